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
