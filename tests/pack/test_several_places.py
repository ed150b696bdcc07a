"""Packing on a storage of several places: what is committed is acknowledged once enough places hold it, and a rerun finishes it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from des.console import status_of
from des.errors import EXIT_STORAGE, PreconditionFailedError, StorageTimeoutError, StorageUnavailableError
from des.pack.__main__ import pack_command
from des.pack.commit import NotSettledError, close_shard, open_shard, swap
from des.storage.testing import Fail, Fault, FaultyStorage, LoseReply
from tests.making import WHEN, make_store, reading
from tests.pack.packing import Run, Sources, names_of_one_shard
from tests.storage.mirrored import Mirrored

if TYPE_CHECKING:
    from pathlib import Path

    from des.pack.commit import Change
    from des.store.heads import WholeHead

pytestmark = pytest.mark.usefixtures("no_pauses")

FILES = {uid: f"content of {uid}".encode() for index in (0, 1) for uid in names_of_one_shard(3, index=index)}


@pytest.fixture
def storage() -> Mirrored:
    return Mirrored()


async def unchanged(head: WholeHead) -> Change:
    """The smallest change: a commit of nothing."""
    return head.tables, bytes(head.entries)


async def none(_: WholeHead) -> None:
    """No change."""


class TestSwap:
    @pytest.mark.parametrize("effect", [None, LoseReply(), LoseReply(PreconditionFailedError("its own echo"))])
    async def test_every_way_out_that_acknowledges(self, storage: Mirrored, effect: LoseReply | None) -> None:
        identity = (await make_store(storage)).identity("file")
        base = await open_shard(storage, identity)
        assert storage.settled == [], "nothing is acknowledged by making a head"
        faults = [Fault(effect, verb="put")] if effect else []
        faulty = FaultyStorage(storage, faults)
        assert (await swap(faulty, base, unchanged)).written
        assert not (await swap(faulty, await open_shard(storage, identity), none)).written
        await close_shard(storage, identity, 0)
        await close_shard(storage, identity, 0)
        assert storage.settled == [identity.head_key] * 4
        assert {place.memory.contents()[identity.head_key] for place in storage.places} == {
            storage.primary.memory.contents()[identity.head_key]
        }

    async def test_no_other_way_out(self, storage: Mirrored) -> None:
        identity = (await make_store(storage)).identity("file")
        base = await open_shard(storage, identity)
        faulty = FaultyStorage(storage, [Fault(Fail(StorageTimeoutError("slow")), at=None, verb="put")])
        with pytest.raises(StorageTimeoutError):
            await swap(faulty, base, unchanged)
        assert storage.settled == []

    async def test_too_few_places(self, storage: Mirrored) -> None:
        identity = (await make_store(storage)).identity("file")
        base = await open_shard(storage, identity)
        storage.copies[0].is_down = True
        with pytest.raises(NotSettledError, match="2 of 3 places hold it"):
            await swap(storage, base, unchanged)
        with pytest.raises(NotSettledError):
            await close_shard(storage, identity, 0)


async def test_a_copy_is_down_and_comes_back(storage: Mirrored, sources: Sources, tmp_path: Path) -> None:
    manifest, state = sources.manifest(sources.rows(FILES)), tmp_path / "state"
    await make_store(storage)
    storage.copies[1].is_down = True
    for _ in range(2):  # the second time nothing is written, and nothing is acknowledged either
        run = Run()
        with pytest.raises(StorageUnavailableError, match="2 of 3 places hold it"):
            await run.pack(storage, manifest, state=state)
        assert run.counts == (0, 0, len(FILES))
        assert {row["status"] for row in run.failures} == {"unavailable"}
        assert all("2 of 3 places hold it" in row["error"] for row in run.failures)
        assert run.report.is_complete
    async with reading(storage) as store:  # what is committed can be read all the same
        assert await store.get(next(iter(FILES)), WHEN) == FILES[next(iter(FILES))]
    storage.copies[1].is_down = False
    before = dict(storage.primary.memory.contents())
    run = Run()
    await run.pack(storage, manifest, state=state)
    assert run.counts == (0, len(FILES), 0)
    assert [place.memory.contents() for place in storage.places] == [before] * 3

    storage.forget_calls()
    run = Run()
    await run.pack(storage, manifest, state=state)
    assert run.report.shards_done_before == 2, "as the state file says"
    assert len(storage.settled) == 2
    storage.copies[1].is_down = True
    run = Run()
    with pytest.raises(StorageUnavailableError):
        await run.pack(storage, manifest, state=state)
    assert run.counts == (0, 0, len(FILES)), "a state file acknowledges nothing either"


async def test_without_the_primary_nothing_is_begun(storage: Mirrored, sources: Sources) -> None:
    manifest = sources.manifest(sources.rows(FILES))
    await Run().pack(storage, manifest)
    before = [place.memory.contents() for place in storage.places]
    storage.primary.is_down = True
    with pytest.raises(StorageUnavailableError, match="primary of this shard cannot be asked"):
        await Run().pack(storage, manifest)
    assert [place.memory.contents() for place in storage.places] == before


def test_the_command_exits_as_for_storage_trouble(
    storage: Mirrored, sources: Sources, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def opened(*_: object) -> Mirrored:
        return storage

    monkeypatch.setenv("DES_SINGLE_WRITER", "true")
    monkeypatch.setattr("des.storage.opening.open_storage", opened)
    # The places are objects of this process.
    monkeypatch.setattr("des.pack.__main__.forked_workers", lambda _: nullcontext())
    arguments = [
        "--input",
        str(sources.manifest(sources.rows(FILES))),
        "--output",
        "anywhere",
        "--json",
        "--n-bits",
        "1",
    ]
    storage.quorum = 4
    assert status_of(pack_command, arguments) == EXIT_STORAGE
    told = capfd.readouterr()
    assert json.loads(told.out)["failed"] == len(FILES)
    assert "not all of it counts yet; run the same command again" in told.err
    assert "only 3 of 4 places hold it" in told.err.splitlines()[-1]
    storage.quorum = 3
    assert status_of(pack_command, arguments) == 0
    assert json.loads(capfd.readouterr().out)["skipped"] == len(FILES)
