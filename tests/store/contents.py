"""Contents to pack, and how to read a stream."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from des.shard.chunking import CHUNK_BYTES, LARGE_BYTES
from des.store.store import OFFLOAD_BYTES
from tests.making import WHEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from des.store import Store

TEXT = b"All work and no play makes Jack a dull boy.\n"


def text(size: int, seed: int = 0) -> bytes:
    generator = random.Random(seed)
    words = [generator.randbytes(5).hex().encode() for _ in range(100)]
    return b" ".join(generator.choices(words, k=size // 10 + 1))[:size]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


SIZES = [0, 1, 100, 4096, 65_536, OFFLOAD_BYTES - 1, OFFLOAD_BYTES, LARGE_BYTES, LARGE_BYTES + 1, 5 * CHUNK_BYTES + 77]
CONTENTS = {f"{kind.__name__}/{size}": kind(size) for kind in (text, noise) for size in SIZES}
DICTIONARY = text(20_000)


async def collect(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def read_stream(store: Store, uid: str, start: int = 0, end: int | None = None) -> bytes:
    async with store.stream(uid, WHEN, start=start, end=end) as pieces:
        return await collect(pieces)
