"""A disk that fails under a running service, at every call that it is asked for anything: clean failures, and the service goes on."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from des.errors import StorageError
from des.storage.local import LocalStorage
from tests.http.live import running
from tests.making import make_store
from tests.pack.packing import Run, Sources
from tests.storage.on_disk import READING, WRITING, OsCalls, files_under

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.live import Reply, Server

FRESH = {"index_ttl": 0, "negative_ttl": 0, "cache_bytes": 0}
EARLIER = {"earlier": b"content", "large": bytes(1_200_000)}
errors = pytest.mark.parametrize(
    "number",
    [
        errno.EIO,
        pytest.param(errno.ENOSPC, marks=pytest.mark.soak),
        pytest.param(errno.EROFS, marks=pytest.mark.soak),
    ],
    ids=errno.errorcode.get,
)


async def ask(server: Server, uid: str) -> Reply:
    return await server.ask(f"/files/{uid}?created_at=2024-01-31")


@errors
async def test_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    os_calls = OsCalls(monkeypatch, tmp_path, READING)
    os_calls.fail_with = number
    storage = LocalStorage(tmp_path)
    await make_store(storage, EARLIER)
    for uid, content in EARLIER.items():
        statuses: list[int] = []
        failing = True
        while failing:
            await storage.aclose()  # it keeps files open, and would not open them again
            async with running(storage, **FRESH) as server:
                os_calls.arm(fail_at=len(statuses) + 1)
                reply = await ask(server, uid)
                failing = os_calls.has_failed
                os_calls.arm()
                statuses.append(reply.status)
                assert reply.status in {200, 502 if number == errno.EROFS else 503}
                assert not reply.is_whole or reply.status != 200 or reply.body == content
                assert content.startswith(reply.body) or reply.status != 200
                assert (await ask(server, uid)).body == content
        assert statuses[-1] == 200
        assert sum(status != 200 for status in statuses) > 6
    await storage.aclose()


@errors
async def test_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A packer on the same disk: what it cannot write is not there, and what it then can is served at once."""
    base = tmp_path / "store"
    os_calls = OsCalls(monkeypatch, base, WRITING)
    os_calls.fail_with = number
    storage = LocalStorage(base)
    await make_store(storage, EARLIER)
    sources = Sources(tmp_path / "sources")
    failures = step = 0
    async with running(storage, **FRESH) as server:
        failing = True
        while failing:
            step += 1
            before = files_under(base)
            new = {f"new-{step}": b"new %d" % step}
            manifest = sources.manifest(sources.rows(new))
            writing = LocalStorage(base)  # does not know yet which directories last
            run = Run()
            os_calls.arm(fail_at=step)
            try:
                await run.pack(writing, manifest)
            except StorageError:
                failures += 1
            failing = os_calls.has_failed
            os_calls.arm()
            there = (await ask(server, f"new-{step}")).status == 200
            assert there or run.report.packed == 0, "what was acknowledged is there"
            assert not [name for name in files_under(base) - before if ".des-tmp-" in name]
            assert (await ask(server, "earlier")).body == EARLIER["earlier"]
            again = Run()
            await again.pack(writing, manifest)
            assert again.report.failed == 0
            assert (await ask(server, f"new-{step}")).body == new[f"new-{step}"]
            await writing.aclose()
    assert failures > 8
    await storage.aclose()
