"""A disk that keeps only a part of what is written: told or untold, a reader gets the right bytes or an error, and the damage is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import CorruptShardError, DESError, NotFoundError, StorageUnavailableError
from des.lifecycle.repairing import repair_shard
from des.shard.codecs import Compression
from des.storage.testing import Fault, FaultyStorage, RecordingStorage, Tear
from des.store.verifying import verify
from tests.making import WHEN, make_store, reading
from tests.pack.packing import Run, Sources, names_of_one_shard
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from des.storage.protocol import Storage

EARLIER = {uid: uid.encode() * 20 for uid in names_of_one_shard(4, stem="earlier")}
LATER = {uid: uid.encode() * 30 for uid in names_of_one_shard(4, stem="later")}
WRITES = ("put", "write")


async def pack(storage: Storage, manifest: Path) -> Run:
    run = Run()
    await run.pack(storage, manifest, compression=Compression("none"), max_segment_bytes=400)
    return run


@pytest.mark.parametrize("told", [True, False])
async def test_any_write_of_a_pack(tmp_path: Path, told: bool) -> None:
    sources = Sources(tmp_path)
    manifest = sources.manifest(sources.rows(LATER))
    before = MemoryStorage()
    identity = (await make_store(before, EARLIER)).identity(next(iter(EARLIER)))
    recording = RecordingStorage(before.copy())
    await pack(recording, manifest)
    writes = [call for call in recording.calls if call.verb in WRITES]
    assert {call.verb for call in writes} == {*WRITES}
    damaged = 0
    for number, call in enumerate(writes):
        at = sum(one.verb == call.verb for one in writes[: number + 1])
        for keep in {0, call.size // 2, call.size - 1}:
            storage = before.copy()
            error = StorageUnavailableError("It was torn.") if told else None
            faulty = FaultyStorage(storage, [Fault(Tear(keep, error), at=at, verb=call.verb)])
            acknowledged = set(EARLIER)
            try:
                if (await pack(faulty, manifest)).report.packed == len(LATER):
                    acknowledged |= LATER.keys()
            except DESError:
                assert told
            assert [call.verb for call in faulty.fired] == [call.verb]
            damaged += await check_what_is_read(storage, acknowledged)
            await repair_shard(storage, identity)
            assert await what_is_read(storage, EARLIER) == set(), "nothing that was there before is lost"
    assert damaged > 3 or told


async def what_is_read(storage: Storage, files: dict[str, bytes]) -> set[str]:
    """Read files; return those that are damaged. What is "not found" is so only where nobody was told otherwise."""
    damaged = set()
    async with reading(storage) as store:
        for uid, content in files.items():
            try:
                assert await store.get(uid, WHEN) == content
            except CorruptShardError:
                damaged.add(uid)
    return damaged


async def check_what_is_read(storage: Storage, acknowledged: set[str]) -> bool:
    """Read all files, and let `verify` find what cannot be read; return whether there was any."""
    unknown = {uid: content for uid, content in LATER.items() if uid not in acknowledged}
    known = {uid: content for uid, content in (EARLIER | LATER).items() if uid in acknowledged}
    damaged = await what_is_read(storage, known)
    for uid, content in unknown.items():
        try:
            damaged |= await what_is_read(storage, {uid: content})
        except NotFoundError:
            continue
    async with reading(storage) as store:
        report = await verify(store)
    assert bool(report.damage) >= bool(damaged)
    return bool(damaged)
