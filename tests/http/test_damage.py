"""Damage of any byte of a shard, seen by a client: the right bytes or 500, never 404, never other bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from des.shard.layout import HEADER
from des.storage.local import LocalStorage
from tests.http.live import running
from tests.making import WHEN, make_store, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.http.live import Server

TEXT = b"the same words over and over, " * 20
NOISE = random.Random(5).randbytes(90)
# Nothing is believed but what the request itself has read: a head whose end is as before would be taken for unchanged.
FRESH = {"index_ttl": 0, "negative_ttl": 0, "cache_bytes": 0}

# A damage: where it begins, where it ends, and the object with it.
Damage = tuple[int, int, bytes]


def flipped(data: bytes, bits: int = 1) -> Iterator[Damage]:
    for at in range(len(data)):
        for bit in range(bits):
            changed = bytearray(data)
            changed[at] ^= 1 << (at + bit) % 8
            yield at, at + 1, bytes(changed)


def every_bit_flipped(data: bytes) -> Iterator[Damage]:
    return flipped(data, 8)


def cut(data: bytes) -> Iterator[Damage]:
    for length in reversed(range(len(data))):
        yield length, len(data), data[:length]


async def ask_under_damage(
    server: Server, path: Path, damages: Iterator[Damage], contents: dict[str, bytes], needed: dict[str, range]
) -> int:
    """Put each damage in the object's place, ask for a file, put the good one back; return how many requests met it.

    Args:
        server: the service.
        path: of the object.
        damages: what it shall look like.
        contents: of the files.
        needed: which bytes of the object reading each of the files takes.
    """
    good = path.read_bytes()
    uids = sorted(contents)
    met = 0
    for number, (start, end, damaged) in enumerate(damages):
        path.write_bytes(damaged)
        uid = uids[number % len(uids)]
        reply = await server.ask(f"/files/{uid}?created_at=2024-01-31")
        if start < needed[uid].stop and end > needed[uid].start:
            met += 1
            assert reply.status == 500, (start, end, reply)
        else:
            assert (reply.status, reply.body) == (200, contents[uid]), (start, end, reply)
    path.write_bytes(good)
    return met


@pytest.mark.parametrize(
    "change", [flipped, cut, pytest.param(every_bit_flipped, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("which", ["head", "segment"])
async def test_every_damage_of_a_small_shard(
    tmp_path: Path, which: str, change: Callable[[bytes], Iterator[Damage]]
) -> None:
    storage = LocalStorage(tmp_path)
    maker = await make_store(storage)
    uids = maker.uids_of_one_shard(3)
    files = dict(zip(uids, (TEXT, NOISE, b"x"), strict=True))
    (segment,) = await maker.add(files)
    head = maker.identity(uids[0]).head_key
    path = tmp_path / (head if which == "head" else segment)
    whole = path.read_bytes()
    if which == "head":  # its header stands in the tail once more, and that one is read; without its end it is none
        needed = dict.fromkeys(uids, range(HEADER.size, len(whole)))
    else:
        async with reading(storage) as store:
            infos = [await store.stat(uid, WHEN) for uid in uids]
        needed = {info.uid: range(info.offset, info.offset + info.stored_size) for info in infos}
    async with running(storage, **FRESH) as server:
        met = await ask_under_damage(server, path, change(whole), files, needed)
        assert met > (len(whole) * 0.8 if which == "head" else 30), "no damage was met"
        for uid, content in files.items():
            assert (await server.ask(f"/files/{uid}?created_at=2024-01-31")).body == content
    await storage.aclose()
