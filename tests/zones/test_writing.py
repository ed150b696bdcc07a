"""Packing, deleting and compacting a store in zones by the commands, while a place is down; and what `des zones sync` makes of it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.making import DAY
from tests.pack.packing import CREATED_AT, Sources
from tests.servers.fault_proxy import Down, Hold
from tests.servers.s3_servers import REGION
from tests.zones.sample import PLACES, objects, proxies, zones_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from subprocess import CompletedProcess

    from anyio.abc import Process

    from tests.servers.fault_proxy import FaultProxy, Request
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

FIRST = {f"first-{number}": b"%d " % number * 50 for number in range(12)}
SECOND = {f"second-{number}": b"%d " % number * 70 for number in range(12)}


@dataclass
class Places:
    """A zone of three new buckets behind proxies, the commands on it, and what its places hold."""

    server: S3Server
    buckets: tuple[str, ...]
    ways: tuple[FaultProxy, ...]
    file: Path
    sources: Sources

    async def run(self, *arguments: str) -> CompletedProcess[bytes]:
        """Run a command of `python -m des`."""
        return await anyio.run_process([sys.executable, "-m", "des", *arguments], check=False, env=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DES_S3_REGION": REGION, "DES_LOG_FORMAT": "text"}

    async def pack(self, files: dict[str, bytes], *more: str) -> tuple[int, dict[str, Any], str]:
        """Pack files; return the exit status, the report and what was said."""
        manifest = self.sources.manifest(self.sources.rows(files))
        done = await self.run(
            "pack", "--input-json", str(manifest), "--zones", str(self.file), "--json", "--quiet", *more
        )
        lines = done.stdout.decode().splitlines()
        return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr.decode()

    async def sync(self, *more: str) -> CompletedProcess[bytes]:
        return await self.run("zones", "sync", str(self.file), *more)

    async def kill_sync_at_put(self, place: int, nth: int) -> None:
        """Let a sync run until it puts something at a place for the nth time, and kill it there: neither that nor anything later is carried out."""
        puts = 0

        def is_due(request: Request) -> bool:
            nonlocal puts
            puts += request.method == "PUT"
            return puts >= nth

        hold = Hold()
        command = [sys.executable, "-m", "des", "zones", "sync", str(self.file)]
        with self.ways[place].fault(hold, when=is_due, times=None):
            async with (
                await anyio.open_process(command, env=self.environment) as process,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._fail_at_end, process)
                await hold.reached.wait()
                tasks.cancel_scope.cancel()
                process.kill()
                await process.wait()
        await self.ways[place].quiet()

    @staticmethod
    async def _fail_at_end(process: Process) -> None:
        assert process.stderr is not None
        said = b"".join([piece async for piece in process.stderr])
        pytest.fail(f"the sync ended by itself: {said.decode()}")

    async def get(self, uid: str) -> CompletedProcess[bytes]:
        return await self.run("get", uid, "--created-at", CREATED_AT, "--zones", str(self.file))

    def objects(self) -> list[dict[str, bytes]]:
        """Return what each place holds, without the descriptors, which have revisions of their own."""
        held = [objects(self.server, bucket) for bucket in self.buckets]
        return [{key: data for key, data in place.items() if not key.endswith("des.json")} for place in held]


@pytest.fixture
async def places(seaweedfs: S3Server, s3_credentials: None, tmp_path: Path) -> AsyncIterator[Places]:
    buckets = tuple(seaweedfs.make_bucket() for _ in PLACES)
    async with proxies(seaweedfs) as ways:
        file = zones_file(
            tmp_path / "zones.json",
            buckets,
            [way.endpoint for way in ways],
            place_timeout=1.0,
            write_quorum="majority",
        )
        yield Places(seaweedfs, buckets, ways, file, Sources(tmp_path / "sources"))
    for bucket in buckets:
        seaweedfs.drop_bucket(bucket)


def rewrite(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


async def test_places_that_are_down(places: Places) -> None:
    status, report, said = await places.pack(FIRST)
    assert status == 0, said
    assert report["packed"] == len(FIRST)
    first = places.objects()
    assert first[0] == first[1] == first[2]
    assert first[0]

    with places.ways[0].fault(Down(), times=None) as down:
        status, _, said = await places.pack(SECOND)
        assert down.fired
        assert status == 3, "without its primary a zone takes no writes"
        assert places.buckets[0] in said
        assert "Traceback" not in said
        got = await places.get("first-3")
        assert (got.returncode, got.stdout) == (0, FIRST["first-3"]), got.stderr.decode()
    assert places.objects() == first

    with places.ways[2].fault(Down(), times=None) as down:
        status, report, said = await places.pack(SECOND)
        assert down.fired
        assert status == 0, "two of three places are a majority: " + said
        assert report["packed"] == len(SECOND)

        rewrite(places.file, write_quorum="all")
        status, report, said = await places.pack(SECOND)
        assert status == 3, "a skip is acknowledged only when the quorum holds the commit"
        assert not report.get("skipped"), said
        assert places.buckets[2] in said, said
        assert "Traceback" not in said
    primary, one, other = places.objects()
    assert primary == one != other

    synced = await places.sync()
    assert synced.returncode == 0, synced.stderr.decode()
    primary, one, other = places.objects()
    assert primary == one == other

    zones = ("--zones", str(places.file))
    rows = [{"uid": uid, "created_at": CREATED_AT} for uid in list(FIRST)[:9]]
    done = await places.run("delete", "--input", str(places.sources.manifest(rows, "deletions.json")), *zones)
    assert done.returncode == 0, done.stderr.decode()
    compacted = await places.run("compact", DAY, *zones)
    assert compacted.returncode == 0, compacted.stderr.decode()
    primary, one, other = places.objects()
    assert primary == one == other
    verified = await places.run("verify", *zones)
    assert verified.returncode == 0, verified.stdout.decode() + verified.stderr.decode()


async def test_a_sync_that_is_killed(places: Places) -> None:
    await places.pack(FIRST)
    with places.ways[1].fault(Down(), times=None):
        status, _, said = await places.pack(SECOND)
        assert status == 0, said
    for at in (2, 3):
        await places.kill_sync_at_put(1, at)
    synced = await places.sync("--older-than", "0s")
    assert synced.returncode == 0, synced.stderr.decode()
    primary, one, other = places.objects()
    assert primary == one == other


@pytest.mark.soak
async def test_a_new_copy_is_filled(places: Places) -> None:
    config = json.loads(places.file.read_text(encoding="utf-8"))
    new = config["zones"][0]["copies"].pop()
    places.file.write_text(json.dumps(config), encoding="utf-8")
    await places.pack(FIRST)
    assert not places.objects()[2]
    config["zones"][0]["copies"].append(new)
    places.file.write_text(json.dumps(config), encoding="utf-8")
    synced = await places.sync("--json")
    assert synced.returncode == 0, synced.stderr.decode()
    primary, one, other = places.objects()
    assert primary == one == other
    again = await places.sync("--json")
    assert again.returncode == 0
    assert places.objects() == [primary, one, other]
