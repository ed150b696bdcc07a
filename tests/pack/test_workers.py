"""Worker processes: this process has threads, so each test begins a new one that may still be forked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio

from des.pack.workers import forked_workers
from des.storage.descriptor import ensure_descriptor
from des.storage.local import LocalStorage
from tests.pack.packing import DAY, Sources, check_store, names_of_one_shard

if TYPE_CHECKING:
    from pathlib import Path

KILLED = -9

CALLS = """
import json, os, signal, time
from des.pack.workers import forked_workers

with forked_workers(2) as workers:
    first, second = workers.call(os.getpid), workers.call(os.getpid)
    told = {"here": os.getpid(), "workers": [first, second], "result": workers.call(divmod, 7, 2)}
    try:
        workers.call(os.stat, "/nowhere")
    except FileNotFoundError as error:
        told["raised"] = error.filename
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(first, number)
        os.kill(second, number)
    told["after signals"] = [workers.call(os.getpid), workers.call(os.getpid)]
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    told["one killed"] = [workers.call(os.getpid) for _ in range(4)]
try:
    os.kill(second, 0)
except ProcessLookupError:
    told["ended"] = True
print(json.dumps(told))
"""

ORPHANS = """
import os
from des.pack.workers import forked_workers

with forked_workers(3) as workers:
    print("forked", flush=True)
    os.kill(os.getpid(), 9)
"""


PLANS = """
import json, sys
from pathlib import Path
import anyio
from des.pack.inputs import Manifests
from des.pack.intake import Intake
from des.pack.partition import Partition
from des.pack.plan import Plan
from des.pack.report import Report
from des.pack.spool import Spool
from des.pack.taking import Order
from des.pack.workers import forked_workers
from des.storage.descriptor import Descriptor

def fill(workers, partition):
    report = Report(store="")
    seen = []
    with Plan() as plan, Spool() as spool:
        intake = Intake(Order(descriptor, partition), workers)
        shards = intake.fill(plan, [Manifests(name) for name in sys.argv[1:]], spool, report, seen.append)
        rows = [repr(row) for shard in shards for row in plan.rows(shard, 0, 1_000_000)]
        turns = [repr(turn) for shard in shards for turn in plan.repeated(shard)]
        return [rows, turns, repr(list(plan.bad())), repr(report.manifests), report.files, seen]

descriptor = Descriptor.new(2)
with forked_workers(3) as workers:
    for partition in (None, Partition(1, 3)):
        anyio.run(anyio.to_thread.run_sync, lambda: print(json.dumps([fill(w, partition) for w in (None, workers)])))
"""


def test_plans_are_the_same_whoever_makes_them(tmp_path: Path) -> None:
    """Rows in their order and with their numbers, bad ones, repeated ones, over several manifests of several pieces."""
    rows: list[object] = [
        {"uid": f"file-{at % 3_500}", "created_at": f"2024-01-{at % 28 + 1:02}", "source_path": "/" + "x" * 400}
        for at in range(5_000)
    ]
    rows[2_000::1_000] = [{"uid": "bad", "created_at": "2024-01-31"}] * 3
    rows[2_001::1_000] = [None] * 3
    rows[3_002] = {"uid": "deep", "metadata": None, "more": 2**70}
    names = []
    for name, text in (("m.json", json.dumps(rows)), ("m.jsonl", "\n".join(map(json.dumps, rows)) + "\n[")):
        (tmp_path / name).write_text(text)
        names.append(str(tmp_path / name))
    program = [sys.executable, "-c", PLANS, *names, names[0]]
    process = subprocess.run(program, capture_output=True, text=True, check=True)
    whole, share = map(json.loads, process.stdout.splitlines())
    for here, there in (whole, share):
        assert here == there
        assert len(here[5]) > 6
    (planned, turns, *_, files, _), _ = whole
    assert (len(planned), files) == (3 * (5_000 - 7), 15_001)
    assert len(turns) == len(planned) - 3_495
    assert 0.2 < share[0][4] / files < 0.5


def test_a_process_with_threads_is_not_forked() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with forked_workers(2) as workers:
            assert workers is None
    finally:
        release.set()
        thread.join()


def test_calls() -> None:
    process = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, check=True)
    told = json.loads(process.stdout)
    here, (first, second) = told["here"], told["workers"]
    assert len({here, first, second}) == 3
    assert told["result"] == [3, 1]
    assert told["raised"] == "/nowhere"
    assert told["after signals"] == [first, second] or told["after signals"] == [second, first]
    assert set(told["one killed"]) == {here, second}
    assert "the run goes on without it" in process.stderr
    assert told["ended"]


def test_workers_end_with_the_process_that_made_them() -> None:
    """They have its stdout too: the end of that is the end of all of them."""
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "forked\n"
    assert process.returncode == KILLED


class TestPacking:
    def pack(
        self, manifest: Path, store: Path, *more: object
    ) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        call = [
            sys.executable,
            "-m",
            "des.pack",
            "--input-json",
            manifest,
            "--output-dir",
            store,
            "--n-bits",
            2,
            "--json",
            *more,
        ]
        process = subprocess.run(
            list(map(str, call)),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "DES_SINGLE_WRITER": "true"},
        )
        return process, json.loads(process.stdout)

    def test_one_or_four(self, sources: Sources, tmp_path: Path) -> None:
        """The same segments, the same failures, whoever encodes; and nothing anew where a second run finds everything."""
        files = {f"file-{at}.txt": (b"%d " % at) * at for at in range(1500)}
        rows = sources.rows(files)
        rows[7] |= {"size_bytes": 8}
        rows[1000] |= {"source_path": "/nowhere"}
        for index in (7, 1000):
            del files[rows[index]["uid"]]
        manifest = sources.manifest(rows)
        empty = tmp_path / "empty"
        anyio.run(ensure_descriptor, LocalStorage(empty), 2)
        seen = []
        for threads in (1, 4):
            store = shutil.copytree(empty, tmp_path / f"store-{threads}")
            process, report = self.pack(manifest, store, "--threads", threads)
            assert process.returncode == 1, process.stderr
            assert (report["packed"], report["failed"]) == (1498, 2)
            segments = sorted(path.read_bytes() for path in (store / DAY).glob("*/*.des"))
            seen.append((segments, sorted(process.stderr.splitlines())))
            anyio.run(check_store, store, files)
        assert seen[0] == seen[1]
        assert len(seen[0][0]) == 4
        assert [json.loads(line)["row"] for line in seen[0][1]] == [1001, 8]
        _, report = self.pack(manifest, tmp_path / "store-4", "--threads", 4)
        assert (report["packed"], report["skipped"], report["failed"], report["objects_written"]) == (0, 1498, 2, 0)
        replaced = names_of_one_shard(3, 2)
        later = sources.manifest([*rows, *sources.rows(dict.fromkeys(replaced, b"new"))], "later.json")
        process, report = self.pack(later, tmp_path / "store-4", "--on-conflict", "replace")
        assert (report["packed"], report["skipped"], report["failed"]) == (3, 1498, 2)
