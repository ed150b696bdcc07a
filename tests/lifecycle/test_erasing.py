from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Literal

import anyio
import pytest

from des.lifecycle.choosing import Rules
from des.lifecycle.compacting import compact_shard
from des.lifecycle.deleting import delete_files
from des.lifecycle.erasing import ErasedFile, Erasure, erase_in_shard
from des.lifecycle.rewriting import Rewriting
from des.pack.commit import new_name, open_shard
from des.routing import file_id
from des.shard.codecs import Compression, Encoder
from des.shard.writing import FileRecord, SegmentWriter
from des.storage.testing import Fault, FaultyStorage, Hold
from tests.lifecycle.living import MINUTE, check, every_byte, now, shards
from tests.making import WHEN, make_store
from tests.payloads import encode_payload

if TYPE_CHECKING:
    from des.shard.layout import Identity
    from des.storage.protocol import Storage
    from tests.making import Maker

SECRET = b"nobody may read this, ever: " + bytes(range(256)) * 4
OTHER = b"this one stays "


async def erase(maker: Maker) -> list[Erasure]:
    at = await now(maker.storage)
    return [await erase_in_shard(maker.storage, identity, Rewriting(), at) for identity in await shards(maker)]


def forms(content: bytes) -> list[bytes]:
    """Return a content as it may lie in a store."""
    return [content, *(Encoder(Compression(codec)).encode(content)[1] for codec in ("zstd", "lz4"))]


async def add_orphan(storage: Storage, identity: Identity, files: dict[str, bytes]) -> str:
    """Upload a segment that is never swapped in, as a packer that was killed leaves it."""
    base = await open_shard(storage, identity)
    writer = SegmentWriter(identity, base.tables.generation)
    data = b""
    for uid, content in files.items():
        stored, payload = encode_payload(Encoder(Compression("none")), content)
        writer.add(FileRecord(file_id(uid), uid, 1_706_659_200_000_000, None, b""), payload)
        data += stored
    pieces, _ = writer.finish()
    key = identity.segment_key(new_name())
    async with storage.open_writer(key) as out:
        await out.write(b"".join([writer.opening, data, *pieces]))
    return key


async def test_no_byte_of_an_erased_file_is_left(storage: Storage) -> None:
    maker = await make_store(storage, n_bits=1)
    for number, compression in enumerate([Compression("none"), Compression("zstd"), Compression("lz4")]):
        await maker.add(
            {f"secret-{number}": SECRET + b"%d" % number, f"other-{number}": OTHER * 50}, compression=compression
        )
    await maker.add({"secret-0": b"an older version went first " * 40}, compression=Compression("none"))
    await delete_files(storage, [(f"secret-{number}", WHEN) for number in range(3)])
    assert SECRET in await every_byte(storage)
    erasures = await erase(maker)
    assert all(one.is_complete for one in erasures)
    assert all(one.scanned for one in erasures)
    erased = {file for one in erasures for file in one.erased}
    assert erased >= {
        ErasedFile(file_id(f"secret-{number}"), hashlib.sha256(SECRET + b"%d" % number).digest()[:16])
        for number in range(3)
    }
    left = await every_byte(storage)
    for number in range(3):
        for form in forms(SECRET + b"%d" % number):
            assert form not in left
    assert b"an older version" not in left
    await check(storage, {f"other-{n}": OTHER * 50 for n in range(3)}, [f"secret-{n}" for n in range(3)])
    assert all(not one.removed for one in await erase(maker))


async def test_dictionaries_made_from_files_go_too(storage: Storage) -> None:
    maker = await make_store(storage, n_bits=1)
    secret, other = maker.uids_of_one_shard(2)
    await maker.add({secret: SECRET, other: SECRET[::-1]}, compression=Compression("zstd", 3, SECRET))
    await delete_files(storage, [(secret, WHEN)])
    await erase(maker)
    assert SECRET not in await every_byte(storage)
    await maker.add({secret: b"again"})
    await check(storage, {secret: b"again", other: SECRET[::-1]})


async def test_segments_that_no_head_lists(storage: Storage) -> None:
    maker = await make_store(storage, {"secret": SECRET, "other": OTHER}, n_bits=1)
    [identity] = {maker.identity("secret")}
    useless = await add_orphan(storage, identity, {"secret": SECRET})
    mixed = await add_orphan(storage, identity, {"secret": SECRET, "only-here": b"the only copy"})
    harmless = await add_orphan(storage, identity, {"only-there": b"another only copy"})
    await delete_files(storage, [("secret", WHEN)])
    erasures = {one.shard: one for one in await erase(maker)}
    erasure = erasures[f"{identity.date}/{identity.shard_hex}"]
    assert erasure.kept == [mixed]
    assert not erasure.is_complete
    assert useless in erasure.removed
    keys = [info.key async for info in storage.list("")]
    assert useless not in keys
    assert {mixed, harmless} <= set(keys)


@pytest.mark.parametrize("held_at", ["commit", "put"])
async def test_a_compaction_that_slept_brings_nothing_back(storage: Storage, held_at: Literal["commit", "put"]) -> None:
    """It had copied the file before it was deleted and erased, and goes on when the certificate is written."""
    maker = await make_store(storage, n_bits=1)
    secret, *others = maker.uids_of_one_shard(4)
    for uid in (secret, *others):
        await maker.add({uid: SECRET if uid == secret else OTHER}, compression=Compression("none"))
    identity = maker.identity(secret)
    hold = Hold(anyio.Event(), anyio.Event())
    sleepy = FaultyStorage(storage, [Fault(hold, verb=held_at)])
    async with anyio.create_task_group() as tasks:
        at = await now(storage)
        tasks.start_soon(partial(compact_shard, now=at, grace=MINUTE), sleepy, identity, Rules(), Rewriting())
        await hold.reached.wait()
        await delete_files(storage, [(secret, WHEN)])
        assert (await erase_in_shard(storage, identity, Rewriting(), at)).is_complete
        assert SECRET not in await every_byte(storage)
        hold.release.set()
    assert sleepy.fired
    assert SECRET not in await every_byte(storage)
    await check(storage, dict.fromkeys(others, OTHER), [secret])


async def test_what_a_packer_is_about_to_commit_is_left_to_it(storage: Storage) -> None:
    maker = await make_store(storage, {"secret": SECRET}, n_bits=1)
    await delete_files(storage, [("secret", WHEN)])
    later = await add_orphan(storage, maker.identity("secret"), {"secret": b"brought back"})
    assert all(one.is_complete for one in await erase(maker))
    left = await every_byte(storage)
    assert SECRET not in left
    assert b"brought back" in left
    assert later in [info.key async for info in storage.list("")]
