"""Damage of any byte of a shard, seen by a client: the right bytes or 500, never 404, never other bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from des.storage.local import LocalStorage
from tests.http.live import running
from tests.making import make_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.http.live import Server

TEXT = b"the same words over and over, " * 20
NOISE = random.Random(5).randbytes(90)
# Nothing is believed for longer than the request that read it.
FRESH = {"index_ttl": 0, "negative_ttl": 0}


def flipped(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        yield bytes(changed)


def cut(data: bytes) -> Iterator[bytes]:
    for length in reversed(range(len(data))):
        yield data[:length]


async def seen_by_a_client(
    server: Server, path: Path, versions: Iterator[bytes], contents: dict[str, bytes]
) -> dict[int, int]:
    """Put each version in the object's place, ask for a file, put the good one back; count the answers by status."""
    good = path.read_bytes()
    uids = sorted(contents)
    answers: dict[int, int] = {}
    for number, version in enumerate(versions):
        path.write_bytes(version)
        uid = uids[number % len(uids)]
        reply = await server.ask(f"/files/{uid}?created_at=2024-01-31")
        answers[reply.status] = answers.get(reply.status, 0) + 1
        assert reply.status in {200, 500}, (number, reply)
        if reply.status == 200:
            assert reply.body == contents[uid], (number, reply)
    path.write_bytes(good)
    return answers


@pytest.mark.parametrize("change", [flipped, cut])
@pytest.mark.parametrize("which", ["head", "segment"])
async def test_every_damage_of_a_small_shard(
    tmp_path: Path, which: str, change: Callable[[bytes], Iterator[bytes]]
) -> None:
    storage = LocalStorage(tmp_path)
    maker = await make_store(storage)
    uids = maker.uids_of_one_shard(3)
    files = dict(zip(uids, (TEXT, NOISE, b"x"), strict=True))
    (segment,) = await maker.add(files)
    head = maker.identity(uids[0]).head_key
    path = tmp_path / (head if which == "head" else segment)
    async with running(storage, **FRESH) as server:
        answers = await seen_by_a_client(server, path, change(path.read_bytes()), files)
        assert answers[500] > 0, "no damage was met"
    await storage.aclose()
    storage = LocalStorage(tmp_path)
    async with running(storage, **FRESH) as server:
        for uid, content in files.items():
            assert (await server.ask(f"/files/{uid}?created_at=2024-01-31")).body == content
    await storage.aclose()
