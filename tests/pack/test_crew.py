"""Packing by several processes: this one has threads, so each test begins a new one that may still be forked."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest

from des import errors
from des.pack.commit import NotSettledError
from des.pack.workshop import Limits
from des.storage.descriptor import ensure_descriptor
from des.storage.local import LocalStorage
from tests.pack.packing import DAY, Sources, check_store

if TYPE_CHECKING:
    from pathlib import Path

# argv: manifest, store, how many workers are killed once there is a plan.
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

manifest, store, killed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
settings = Settings(backend="local", base_dir=store)
job = PackJob([Manifests(manifest)], Compression(), "error", 4, 1 << 30, 64 << 20, 2)
report = Report(store="")

class Killing(Progress):
    advanced = 0
    def begin(self, rows):
        # Some have work by then, and some are about to.
        for worker in multiprocessing.active_children()[:killed]:
            os.kill(worker.pid, signal.SIGKILL)
    def advance(self, files):
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


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_what_dead_workers_leave_is_packed(
    sources: Sources, files: dict[str, bytes], tmp_path: Path, killed: int
) -> None:
    manifest, store = sources.manifest(sources.rows(files)), tmp_path / "store"
    call = [sys.executable, "-c", KILLED, str(manifest), str(store), str(killed)]
    process = subprocess.run(call, capture_output=True, text=True, check=True)
    assert json.loads(process.stdout) == [1200, 1200, 0, 0, 16, 1200]
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
    """Whatever ends it, and in the midst of it."""
    manifest, store = sources.manifest(sources.rows(files)), tmp_path / "store"
    state = tmp_path / "state"
    process = subprocess.Popen(
        command(manifest, store, "--n-bits", 8, "--state", state, "--quiet"), stderr=subprocess.PIPE, text=True
    )
    with process:
        while not list(store.glob(f"{DAY}/*/*.des")):
            assert process.poll() is None
            time.sleep(0.001)
        workers = psutil.Process(process.pid).children()
        process.send_signal(number)
        said = process.stderr.read() if process.stderr else ""  # their stderr too: its end is that of all of them
    assert len(workers) == 2
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert f"stopped by {number.name}" in said
        assert not [path for path in store.rglob(".tmp*") if path.is_file()]
    report = run_json(command(manifest, store, "--state", state, "--json"))
    assert report["packed"] + report["skipped"] == 1200
    assert report["skipped"] > 0
    anyio.run(check_store, store, files)


def run_json(call: list[str]) -> dict[str, Any]:
    process = subprocess.run(call, capture_output=True, text=True, check=True)
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
        kinds += [one for one in kind.__subclasses__() if one.__module__.startswith("des.")]
    return kinds


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_errors_find_their_way_between_processes(kind: type[errors.DESError]) -> None:
    found = pickle.loads(pickle.dumps(kind("a sentence")))
    assert (type(found), str(found)) == (kind, "a sentence")
    assert NotSettledError in every_error()


def test_shares() -> None:
    whole = Limits(memory=192 << 20, threads=2)
    assert whole.divided(2) == [Limits(96 << 20, 1, 4)] * 2
    assert whole.divided(1) == [whole]
    assert len(Limits(192 << 20, 64).divided(64)) == 12
    assert Limits(192 << 20, 64).divided(64)[0] == Limits(16 << 20, 6, 1)
    assert Limits(64 << 20, 8).divided(1) == [Limits(64 << 20, 8, 8)]
    assert whole.divided(2)[0].batches >= 4
