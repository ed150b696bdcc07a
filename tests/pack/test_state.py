"""`--state`: killed and resumed, and what a state file refuses."""

from __future__ import annotations

import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from des.console import status_of
from des.pack.__main__ import pack_command
from des.pack.state import open_state
from des.storage.local import LocalStorage
from des.storage.opening import resolve_target
from tests.pack.forking import CHECKOUT, PackingJob, PackingProcesses
from tests.pack.grounds import LocalGround, S3Ground
from tests.pack.packing import Run, Sources, check_store, objects_under

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.pack.grounds import Ground
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

N_BITS = 4
FILES = {f"file/{number}": f"{number:06} ".encode() * (number % 50) for number in range(120)}
KILLED = -9


@pytest.fixture
def processes() -> Iterator[PackingProcesses]:
    with PackingProcesses() as processes:
        yield processes


def spoil(manifest: Path) -> None:
    """Make a manifest unreadable that looks as before: whoever reads it again fails."""
    status = manifest.stat()
    manifest.write_bytes(b"?" * status.st_size)
    os.utime(manifest, ns=(status.st_atime_ns, status.st_mtime_ns))


def run_killed(processes: PackingProcesses, job: dict[str, Any], seed: int) -> tuple[int, dict[str, Any]]:
    """Run a job, killed at storage calls that the seed picks, until it comes through; return how often it was killed, and its outcome."""
    chance, kills = random.Random(seed), 0
    while True:
        kill_at = chance.randrange(2, 60) if kills < 12 else None
        [status] = processes.run([PackingJob(**job, kill_at=kill_at, kill_after=chance.random() < 0.5)])
        if status == 0:
            outcome: dict[str, Any] = json.loads(Path(job["report"]).read_text())
            return kills, outcome
        assert status == KILLED
        kills += 1


async def check_seeds(
    ground: Ground, tmp_path: Path, sources: Sources, processes: PackingProcesses, seeds: range
) -> None:
    rows = [*sources.rows(FILES), {"uid": "bad"}]
    killed = resumed = 0
    for seed in seeds:
        manifest = sources.manifest(rows, f"manifest-{seed}.json")
        address, state = ground.address(f"store-{seed}"), tmp_path / f"state-{seed}"
        job: dict[str, Any] = {
            "store": address, "manifest": str(manifest), "report": str(tmp_path / "report"), "n_bits": N_BITS, "state": str(state),
        }  # fmt: skip
        # The first kill comes late enough for the plan to be there, and for some shards to be done.
        [status] = processes.run([PackingJob(**job, kill_at=40 + seed % 7)])
        assert status == KILLED
        spoil(manifest)
        kills, outcome = run_killed(processes, job, seed)
        report = outcome["report"]
        killed += kills + 1
        resumed += outcome["done before"]
        assert report["files"] == len(FILES) + 1
        assert report["packed"] + report["skipped"] == len(FILES)
        assert [(row["row"], row["status"]) for row in outcome["failures"]] == [(len(rows), "invalid")]
        await check_store(resolve_target(address), FILES)
    # Of a single kill, none of the shards may have been done, or so many that what is left ends before it is killed again.
    assert (resumed > 0 and killed > len(seeds)) or len(seeds) == 1


@pytest.mark.parametrize(
    "seeds",
    [range(3), pytest.param(range(3, 45), marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
    ids=["few", "many"],
)
async def test_killed_at_seeded_points_and_resumed(
    tmp_path: Path, sources: Sources, processes: PackingProcesses, seeds: range
) -> None:
    await check_seeds(LocalGround(tmp_path), tmp_path, sources, processes, seeds)


@pytest.mark.parametrize(
    "seeds",
    [range(1), pytest.param(range(5, 45), marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
    ids=["one", "many"],
)
async def test_killed_at_seeded_points_and_resumed_on_s3(
    tmp_path: Path, sources: Sources, seaweedfs: S3Server, seaweedfs_bucket: str, s3_addresses: None, seeds: range
) -> None:
    with PackingProcesses() as processes:  # in the environment in which addresses on S3 mean the server
        ground = S3Ground(seaweedfs, seaweedfs_bucket, tmp_path.name)
        await check_seeds(ground, tmp_path, sources, processes, seeds)


def test_killed_while_it_is_filled(tmp_path: Path) -> None:
    state = tmp_path / "state"
    program = """
import os, sys
from pathlib import Path
from des.pack.manifest import ManifestRow
from des.pack.state import open_state
plan = open_state(Path(sys.argv[1]))
for start in range(0, 300_000, 1_000):
    plan.add([ManifestRow(number, 0, "x" * 200, 0, "/", None, None, b"") for number in range(start, start + 1_000)])
plan.finish()
os.kill(os.getpid(), 9)
"""
    process = subprocess.run([sys.executable, "-c", program, state], check=False, cwd=CHECKOUT)
    assert process.returncode == KILLED
    assert state.stat().st_size > 1 << 20  # some of it was on disk already
    with open_state(state) as plan:
        assert plan.noted("digest") is None
        assert plan.finish() == []


def test_a_disk_that_is_full(tmp_path: Path, sources: Sources) -> None:
    """Files may not grow past a limit here, which is as real as a full disk: the kernel refuses the write."""
    manifest = sources.manifest(
        [sources.row(f"a/rather/long/name/of/a/file/{number}", b"same") for number in range(4_000)]
    )
    call = ["--input", manifest, "--output", tmp_path / "store", "--state", tmp_path / "state", "--quiet"]
    process = subprocess.run(
        [sys.executable, "-m", "des.pack", *map(str, call)],
        capture_output=True, text=True, check=False, preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )  # fmt: skip
    assert process.returncode == 3, process.stderr
    assert "--state" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "store").exists()


class TestResuming:
    async def pack(self, base_dir: Path, manifest: Path, state: Path, **options: object) -> Run:
        run, local = Run(), LocalStorage(base_dir)
        try:
            await run.pack(local, manifest, state=state, n_bits=N_BITS, **options)  # type: ignore[arg-type]  # as of `Run.pack`
        finally:
            await local.aclose()
        return run

    async def test_a_finished_run_is_harmless_to_run_again(self, tmp_path: Path, sources: Sources) -> None:
        store, state, manifest = tmp_path / "store", tmp_path / "state", sources.manifest(sources.rows(FILES))
        first = await self.pack(store, manifest, state)
        before = objects_under(store)
        second = await self.pack(store, manifest, state)
        assert (first.counts, second.counts) == ((120, 0, 0), (0, 120, 0))
        assert first.report.shards_done_before == 0
        assert second.report.shards_done_before == second.report.shards == 1 << N_BITS
        assert second.progress.files == second.progress.rows == 120
        assert objects_under(store) == before

    async def test_the_head_proves_what_is_done(self, tmp_path: Path, sources: Sources) -> None:
        """A store that went back to an earlier day has the same id and the same heads, but not what was done since."""
        earlier = {f"earlier/{number}": b"earlier" for number in range(60)}
        store, state, manifest = tmp_path / "store", tmp_path / "state", sources.manifest(sources.rows(FILES))
        await self.pack(store, sources.manifest(sources.rows(earlier), "earlier.json"), tmp_path / "earlier")
        backup = {path: path.read_bytes() for path in store.rglob("*.des")}
        await self.pack(store, manifest, state)
        for path in store.rglob("*.des"):
            path.unlink()
        for path, data in backup.items():
            path.write_bytes(data)
        run = await self.pack(store, manifest, state)
        assert run.report.shards_done_before == 0
        assert run.counts == (120, 0, 0)
        await check_store(store, FILES | earlier)

    async def test_a_shard_with_failures_is_packed_again(self, tmp_path: Path, sources: Sources) -> None:
        rows = sources.rows(FILES)
        missing = tmp_path / "missing"
        rows[5] |= {"source_path": str(missing)}
        store, state, manifest = tmp_path / "store", tmp_path / "state", sources.manifest(rows)
        first = await self.pack(store, manifest, state)
        missing.write_bytes(b"mended")
        second = await self.pack(store, manifest, state)
        assert (first.counts, second.counts) == ((119, 0, 1), (1, 119, 0))
        assert second.report.shards_done_before == (1 << N_BITS) - 1
        await check_store(store, FILES | {rows[5]["uid"]: b"mended"})

    async def test_repeated_rows_count_again(self, tmp_path: Path, sources: Sources) -> None:
        rows = [*sources.rows(FILES), *sources.rows(FILES)]
        store, state, manifest = tmp_path / "store", tmp_path / "state", sources.manifest(rows)
        first = await self.pack(store, manifest, state)
        second = await self.pack(store, manifest, state)
        assert (first.counts, second.counts) == ((120, 120, 0), (0, 240, 0))
        assert second.report.shards_done_before == 1 << N_BITS

    async def test_the_dictionary_that_was_found_stays(
        self, tmp_path: Path, sources: Sources, processes: PackingProcesses
    ) -> None:
        from tests.pack.test_dictionaries import letters

        contents = {f"letter/{number}": content for number, content in enumerate(letters(1_000))}
        job: dict[str, Any] = {
            "store": str(tmp_path / "store"), "manifest": str(sources.manifest(sources.rows(contents))), "report": str(tmp_path / "report"),
            "state": str(tmp_path / "state"), "finds_dictionary": True,
        }  # fmt: skip
        [status] = processes.run([PackingJob(**job, kill_at=14)])
        assert status == KILLED
        with sqlite3.connect(tmp_path / "state") as connection:
            kept = connection.execute("SELECT value FROM notes WHERE name = 'dictionary'").fetchone()[0]
        connection.close()
        assert len(kept) > 1000
        assert processes.run([PackingJob(**job)]) == [0]
        assert json.loads((tmp_path / "report").read_text())["report"]["dictionary"] == "trained"
        segments = [data for key, (data, _) in objects_under(tmp_path / "store").items() if key.count("/") == 2]
        assert all(kept in data for data in segments)
        await check_store(tmp_path / "store", contents)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    monkeypatch.setenv("DES_SINGLE_WRITER", "true")

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        status = status_of(pack_command, [str(argument) for argument in (*arguments, "--n-bits", N_BITS, "--quiet")])
        return status, capfd.readouterr().err

    return run


class TestCommand:
    def test_it_belongs_to_one_store_and_its_manifests(
        self, tmp_path: Path, sources: Sources, run: Callable[..., tuple[int, str]]
    ) -> None:
        some = dict(list(FILES.items())[:20])
        manifest, other = sources.manifest(sources.rows(some)), sources.manifest(sources.rows(some), "other.json")
        store, state = tmp_path / "store", tmp_path / "state"
        call = ["--input-json", manifest, "--output", store, "--state", state]
        assert run(*call) == (0, "")
        status, err = run(*call)
        assert (status, "finished run" in err) == (0, True)
        assert "another store" in self.refused(run, *call[:3], tmp_path / "second", *call[4:])
        assert not (tmp_path / "second").exists()
        assert run("--input-json", manifest, "--output", tmp_path / "third")[0] == 0
        assert "another store" in self.refused(run, *call[:3], tmp_path / "third", *call[4:])
        assert "other or changed manifests" in self.refused(run, "--input-json", other, *call[2:])
        assert "other or changed manifests" in self.refused(run, *call, "--on-conflict", "replace")
        assert "other or changed manifests" in self.refused(run, *call, "--partition", "0/2")
        manifest.write_text(manifest.read_text() + "\n")
        assert "other or changed manifests" in self.refused(run, *call)
        anyio.run(check_store, store, some)

    def test_what_it_cannot_be_or_go_with(
        self, tmp_path: Path, sources: Sources, run: Callable[..., tuple[int, str]]
    ) -> None:
        manifest = sources.manifest(sources.rows({"a": b"a"}))
        store = ["--output", tmp_path / "store"]
        text, foreign, used = tmp_path / "text", tmp_path / "foreign", tmp_path / "used"
        text.write_text("not a database, and rather longer than the header of one would be\n" * 20)
        with sqlite3.connect(foreign) as connection:
            connection.execute("CREATE TABLE mine (x)")
        connection.close()
        for path, sentence in [
            (text, "no state file"),
            (foreign, "something else"),
            (tmp_path / "no" / "x", "cannot be used"),
        ]:
            before = path.read_bytes() if path.exists() else None
            assert sentence in self.refused(run, "--input", manifest, *store, "--state", path)
            assert before is None or path.read_bytes() == before
        with open_state(used):
            assert "in use" in self.refused(run, "--input", manifest, *store, "--state", used)
        fresh = ["--state", tmp_path / "fresh", *store]
        assert "standard input" in self.refused(run, "--input", "-", *fresh)
        assert "unpacked for one run" in self.refused(run, "--from-tar", manifest, *fresh)
        assert "--dry-run" in self.refused(run, "--input", manifest, "--dry-run", *fresh)
        assert not (tmp_path / "store").exists()

    def test_a_directory_is_known_again_by_its_files(self, tmp_path: Path, run: Callable[..., tuple[int, str]]) -> None:
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "a").write_bytes(b"a")
        call = [tree, "--output", tmp_path / "store", "--state", tmp_path / "state"]
        assert run(*call)[0] == 0
        assert "finished run" in run(*call)[1]
        (tree / "b").write_bytes(b"b")
        assert "other or changed manifests" in self.refused(run, *call)

    @staticmethod
    def refused(run: Callable[..., tuple[int, str]], *arguments: object) -> str:
        status, err = run(*arguments)
        assert status == 2, err
        assert err.count("\n") == 1
        return err
