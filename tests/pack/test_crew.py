"""Packing by several processes: this one has threads, so each test begins a new one that may still be forked."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from des import errors
from des.pack.attempt import ShardOutcome
from des.pack.commit import NotSettledError
from des.pack.ledger import RunLedger
from des.pack.plan import Plan, PlannedShard
from des.pack.report import Failure, Report, Tally
from des.pack.workers import _portable
from des.pack.workshop import Limits
from des.shard.chunking import LARGE_BYTES
from des.shard.layout import Identity
from des.storage.descriptor import Descriptor, ensure_descriptor
from des.storage.local import LocalStorage
from des.storage.marked_document import ProblemsError
from des.storage.paths import TEMPORARY_PREFIX
from tests.pack.packing import DAY, Sources, check_store, names_of_one_shard

# argv: manifest, store, how many workers are killed, and when: once there is a plan, or once some files are dealt with.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import anyio, multiprocessing
from des.pack.crew import Crew
from des.pack.inputs import Manifests
from des.pack.report import Report
from des.pack.run import PackJob, Progress, pack
from des.pack.workers import forked_workers
from des.settings import Settings
from des.shard.codecs import Compression
from des.storage.opening import open_storage

manifest, store, killed, when = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
settings = Settings(backend="local", base_dir=store)
job = PackJob([Manifests(manifest)], Compression(), "error", 4, 1 << 30, 64 << 20, 2)
report = Report(store="")

class Killing(Progress):
    advanced = 0
    def kill(self):
        for worker in multiprocessing.active_children()[:killed]:
            os.kill(worker.pid, signal.SIGKILL)
    def begin(self, rows):
        if when == "begin":
            self.kill()
    def advance(self, files):
        if when == "midway" and files and not self.advanced:
            self.kill()
        self.advanced += files

async def main():
    storage = await open_storage(settings)
    await pack(storage, job, report, progress, crew=Crew(workers, settings))
    await storage.aclose()

progress = Killing()
with forked_workers(2) as workers:
    anyio.run(main)
print(json.dumps([report.files, report.packed, report.skipped, report.failed, report.shards, progress.advanced]))
"""


def command(manifest: Path, store: Path, *more: object) -> list[str]:
    call = [sys.executable, "-m", "des.pack", "--input-json", manifest, "--output-dir", store, "--threads", 2, *more]
    return list(map(str, call))


@pytest.fixture
def files() -> dict[str, bytes]:
    return {f"file-{at}": (b"%d " % at) * (at % 500) for at in range(1200)}


@pytest.mark.parametrize(("killed", "when"), [(0, "begin"), (1, "begin"), (2, "begin"), (1, "midway"), (2, "midway")])
def test_what_dead_workers_leave_is_packed(
    sources: Sources, files: dict[str, bytes], tmp_path: Path, killed: int, when: str
) -> None:
    """Their shards are packed again: what they had committed and not told is skipped then."""
    manifest, store = sources.manifest(sources.rows(files)), tmp_path / "store"
    call = [sys.executable, "-c", KILLED, str(manifest), str(store), str(killed), when]
    process = subprocess.run(call, capture_output=True, text=True, check=True)
    files_in, packed, skipped, *rest, advanced = json.loads(process.stdout)
    assert (files_in, packed + skipped, rest) == (1200, 1200, [0, 16])
    assert when == "midway" or (advanced, skipped) == (1200, 0)
    assert process.stderr.count("a worker process died") == killed
    anyio.run(check_store, store, files)


def test_the_trouble_of_one_process_stops_all(sources: Sources, files: dict[str, bytes], tmp_path: Path) -> None:
    manifest, store = sources.manifest(sources.rows(files)), tmp_path / "store"
    anyio.run(ensure_descriptor, LocalStorage(store), 4)
    (store / DAY).mkdir()
    (store / DAY / "3").write_bytes(b"where there should be a directory")
    process = subprocess.run(command(manifest, store, "--json"), capture_output=True, text=True, check=False)
    assert process.returncode == errors.EXIT_STORAGE
    assert "Traceback" not in process.stderr
    assert "packing stopped; run the same command again" in process.stderr
    assert json.loads(process.stdout)["packed"] < 1200
    (store / DAY / "3").unlink()
    process = subprocess.run(command(manifest, store, "--json"), capture_output=True, text=True, check=True)
    report = json.loads(process.stdout)
    assert report["packed"] + report["skipped"] == 1200
    anyio.run(check_store, store, files)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_run(
    sources: Sources, files: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    """Whatever ends it, and in the midst of it: once the first of its 256 shards is told, by a row that fails."""
    (first,) = names_of_one_shard(1, 8)
    failing = sources.row(first, b"") | {"source_path": "/nowhere"}
    files.pop(first, None)
    manifest, store = sources.manifest([failing, *sources.rows(files)]), tmp_path / "store"
    total, state = len(files), tmp_path / "state"
    process = subprocess.Popen(
        command(manifest, store, "--n-bits", 8, "--state", state, "--quiet"), stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["uid"] == first
        assert process.poll() is None
        workers = psutil.Process(process.pid).children()
        process.send_signal(number)
        said = process.stderr.read()  # their stderr too: its end is that of all of them
    assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert f"stopped by {number.name}" in said
        assert not list(store.rglob(TEMPORARY_PREFIX + "*"))
    report = run_json(command(manifest, store, "--state", state, "--json"), errors.EXIT_BAD_ANSWER)
    assert (report["packed"] + report["skipped"], report["failed"]) == (total, 1)
    assert report["packed"] > 0
    assert report["skipped"] > 0
    anyio.run(check_store, store, files)


def run_json(call: list[str], status: int = errors.EXIT_DONE) -> dict[str, Any]:
    process = subprocess.run(call, capture_output=True, text=True, check=False)
    assert process.returncode == status, process.stderr
    report: dict[str, Any] = json.loads(process.stdout)
    return report


def test_the_state_and_the_metrics_of_all_processes(sources: Sources, files: dict[str, bytes], tmp_path: Path) -> None:
    manifest, store, metrics = sources.manifest(sources.rows(files)), tmp_path / "store", tmp_path / "des.prom"
    call = command(manifest, store, "--n-bits", 4, "--state", tmp_path / "state", "--metrics-file", metrics, "--json")
    report = run_json(call)
    assert (report["packed"], report["shards"], report["segments"], report["objects_written"]) == (1200, 16, 16, 32)
    lines = metrics.read_text().splitlines()
    figures = {name: float(figure) for name, _, figure in (line.rpartition(" ") for line in lines if line[0] != "#")}
    written = [
        figure for name, figure in figures.items() if name.startswith("des_storage_requests_total") and "write" in name
    ]
    assert sum(written) >= 16
    again = subprocess.run(call, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["skipped"] == 1200
    assert "nothing was left to do" in again.stderr


def every_error() -> list[type[errors.DESError]]:
    kinds = [errors.DESError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return [kind for kind in kinds if kind.__module__ in {"des.errors", "des.pack.commit"}]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_errors_find_their_way_between_processes(kind: type[errors.DESError]) -> None:
    found = pickle.loads(pickle.dumps(kind("a sentence")))
    assert (type(found), str(found)) == (kind, "a sentence")
    assert NotSettledError in every_error()


def test_an_error_that_cannot_be_sent_is_told_as_the_nearest_kind_that_can() -> None:
    found = _portable(ProblemsError(Path("zones.yaml"), []))
    assert type(found) is errors.SettingsError
    assert "zones.yaml" in str(found)
    kept = errors.StorageError("gone")
    assert _portable(kept) is kept


def test_shares() -> None:
    whole = Limits(memory=192 << 20, threads=2)
    assert whole.divided(2) == [Limits(96 << 20, 1, 4)] * 2
    assert whole.divided(1) == [whole]
    assert [share.shards for share in whole.divided(5)] == [2, 2, 2, 1, 1]
    assert Limits(192 << 20, 64).divided(64) == [Limits(24 << 20, 8, 1)] * 8
    assert len(Limits(64 << 20, 64).divided(64)) == 4
    least = Limits(64 << 20, 8).divided(4)[0]
    assert least.batches >= 1
    assert least.fetched_bytes >= LARGE_BYTES


class TestLedger:
    def ledger(self, report: Report, shards: list[PlannedShard]) -> RunLedger:
        plan = Plan()
        plan.finish()
        store = Descriptor.new(4).store_id
        work = [(shard, Identity(store, shard.day, 4, shard.shard_index)) for shard in shards]
        return RunLedger(plan, work, report, None, lambda _: None)

    def test_what_was_said_of_a_shard_that_is_packed_again_does_not_count(self) -> None:
        report = Report(store="")
        shards = [PlannedShard(DAY, index, 5, 0) for index in range(3)]
        ledger = self.ledger(report, shards)
        first = ledger.next_work(None)
        second = ledger.next_work(None)
        assert first is not None
        assert second is not None
        failure = Failure(1, "a", "/a", "conflict", "no.")
        for work in (first, second):
            ledger.take(work.shard, ShardOutcome(Tally(2, 1, 20, 10, [failure]), 1, 1))
        ledger.found_done(second.shard)
        third = ledger.next_work(first.shard)
        assert third is not None
        ledger.take_back()
        assert (report.packed, report.skipped, report.failed, report.shards) == (2, 1, 1, 1)
        assert (report.bytes_in, report.bytes_stored, report.shards_done_before) == (20, 10, 0)
        assert report.statuses == {"conflict": 1}
        assert len(ledger) == 2
        again = [ledger.next_work(None), ledger.next_work(None)]
        assert {work.shard for work in again if work} == {second.shard, third.shard}
        assert ledger.next_work(None) is None
        ledger.take_back()
        assert len(ledger) == 2


def test_a_failed_row_with_metadata_as_deep_as_can_be(sources: Sources, tmp_path: Path) -> None:
    """It is told by one process to another, and comes out as it went in."""
    row = sources.row("a", b"a") | {"source_path": "/nowhere", "metadata": {"deep": json.loads("[" * 900 + "]" * 900)}}
    call = command(sources.manifest([row]), tmp_path / "store", "--json")
    process = subprocess.run(call, capture_output=True, text=True, check=False)
    assert process.returncode == errors.EXIT_BAD_ANSWER
    assert json.loads(process.stderr.splitlines()[0])["metadata"] == row["metadata"]
