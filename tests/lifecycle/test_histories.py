"""Any history of packing, replacing, deleting, compacting and collecting, against a dict; then the heads are lost, and repaired."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from des.lifecycle.choosing import Rules
from des.lifecycle.collecting import Limits, collect_shard
from des.lifecycle.compacting import compact_shard
from des.lifecycle.deleting import delete_files
from des.lifecycle.erasing import erase_in_shard
from des.lifecycle.repairing import repair_shard
from des.lifecycle.rewriting import Rewriting
from des.shard.codecs import Compression
from tests.lifecycle.living import MINUTE, check, every_byte, now, shards
from tests.making import WHEN, make_store
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.making import Maker

UIDS = [f"file-{number}" for number in range(6)]
STEPS = ["pack", "pack", "pack", "delete", "compact", "compact small", "recompress", "forget", "gc", "erase", "lose"]
Step = tuple[str, list[str], int]
steps = st.lists(
    st.tuples(
        st.sampled_from(STEPS),
        st.lists(st.sampled_from(UIDS), min_size=1, max_size=4, unique=True),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=12,
)


def content(uid: str, version: int) -> bytes:
    return [b"", f"{uid} v{version} ".encode() * 9, random.Random(f"{uid}{version}").randbytes(700), uid.encode()][
        version
    ]


WAYS = {
    "compact": Rewriting(),
    "compact small": Rewriting(memory=4_000, max_segment_bytes=1_000),
    "recompress": Rewriting(compression=Compression("lz4")),
}


class History:
    """A store and what it must hold."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker
        self.storage = maker.storage
        self.files: dict[str, bytes] = {}
        self.deleted: set[str] = set()
        self.forgotten: set[str] = set()

    async def take(self, step: Step) -> None:
        what, uids, version = step
        later = await now(self.storage) + MINUTE
        if what == "pack":
            files = {uid: content(uid, version) for uid in uids if self.files.get(uid) != content(uid, version)}
            await self.maker.add(files)
            self.files |= files
            self.deleted -= files.keys()
            self.forgotten -= files.keys()
        elif what == "delete":
            await delete_files(self.storage, [(uid, WHEN) for uid in uids])
            self.deleted |= {uid for uid in uids if uid in self.files}
            self.files = {uid: content for uid, content in self.files.items() if uid not in uids}
        elif what == "forget":
            await self.compact(Rewriting(drop_tombstones_before=later), later)
        elif what in WAYS:
            await self.compact(WAYS[what], later)
        elif what == "lose":
            await self.lose_and_repair()
        for identity in await shards(self.maker):
            if what == "gc":
                await collect_shard(self.storage, identity, Limits(later, later, apply=True))
            elif what == "erase":
                assert (await erase_in_shard(self.storage, identity, Rewriting(), later)).is_complete

    async def compact(self, how: Rewriting, at: int) -> None:
        """Compact; condemned segments are sometimes deleted by it, and sometimes stay."""
        for identity in await shards(self.maker):
            rules = Rules(small_segments=2, garbage_share=0.01)
            done = await compact_shard(
                self.storage, identity, rules, how, now=at, grace=(len(self.files) % 2 - 1) * MINUTE
            )
            if done.tombstones_dropped:
                self.forgotten |= {uid for uid in self.deleted if self.maker.identity(uid) == identity}

    async def lose_and_repair(self) -> None:
        for identity in await shards(self.maker):
            await self.storage.delete(identity.head_key)
            repair = await repair_shard(self.storage, identity)
            assert repair.outcome == "rebuilt" or not repair.segments
            assert repair.is_certain

    async def check(self) -> None:
        # Of a file whose deletion may be forgotten, "deleted" and "not found" are both right.
        await check(self.storage, self.files, self.deleted - self.forgotten)


async def live(given_steps: Sequence[Step]) -> None:
    history = History(await make_store(MemoryStorage(), n_bits=1))
    for step in given_steps:
        await history.take(step)
        await history.check()
    await history.lose_and_repair()
    await history.check()
    await history.take(("erase", [], 0))
    await history.check()
    left = await every_byte(history.storage)
    for uid in UIDS:
        assert content(uid, 2) == history.files.get(uid) or content(uid, 2) not in left


@pytest.mark.parametrize("examples", [40, pytest.param(1500, marks=pytest.mark.soak)])
def test_any_history(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(steps)
    def holds(given_steps: list[Step]) -> None:
        anyio.run(live, given_steps)

    holds()
