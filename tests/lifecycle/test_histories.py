"""Any history of all that changes a store, with storages that fail midway and heads that are lost, against a dict: in memory, on files, on S3.

After every step everything is read, listed and verified. A history ends with its heads lost and repaired, and with what was replaced erased.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from des.errors import StorageUnavailableError
from des.lifecycle.choosing import Rules
from des.lifecycle.collecting import Limits, collect_leftovers, collect_shard
from des.lifecycle.compacting import compact_shard
from des.lifecycle.deleting import delete_files
from des.lifecycle.erasing import erase_in_shard
from des.lifecycle.repairing import repair_shard
from des.lifecycle.rewriting import Rewriting
from des.shard.codecs import Compression
from des.storage.local import LocalStorage
from des.storage.s3 import open_s3
from des.storage.testing import Fail, Fault, FaultyStorage, ScheduledStorage, Scheduler
from des.store.verifying import verify
from tests.lifecycle.living import MINUTE, every_byte, now, shards
from tests.making import DAY, WHEN, make_store, reading, told_of
from tests.pack.packing import Run, Sources
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from des.pack.decisions import OnConflict
    from des.shard.layout import Identity
    from des.storage.protocol import Storage
    from tests.making import Maker
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

UIDS = [f"file-{number}" for number in range(6)]
VERSIONS = 4
MODES: tuple[OnConflict, ...] = ("error", "skip", "replace")
COMPACTING = ("compact", "compact small", "recompress", "forget")
WAYS = {
    "compact": Rewriting(),
    "compact small": Rewriting(memory=4_000, max_segment_bytes=1_000),
    "recompress": Rewriting(compression=Compression("lz4")),
}
NAMES = ["pack", "pack", "pack", "two packers", "delete", *COMPACTING, "gc", "erase", "lose", "restart"]

Found = bytes | str  # what readers are told of a file: its content, or "deleted", or "not found"


@dataclass(frozen=True, slots=True)
class Step:
    """What is done, and whether the storage is gone from one of its calls on, as it is for a process that was killed.

    Attributes:
        what: one of `NAMES`.
        uids: for those that name files.
        version: of their contents.
        mode: of a pack.
        dies_at: the call, from 1; None: it lives.
        seed: orders the calls of two packers.
    """

    what: str
    uids: tuple[str, ...]
    version: int = 0
    mode: OnConflict = "error"
    dies_at: int | None = None
    seed: int = 0

    @property
    def versions(self) -> tuple[int, int]:
        """What two packers bring."""
        return self.version, (self.version + 1) % VERSIONS

    @property
    def own(self) -> list[str]:
        """What each of two packers brings alone."""
        return [uid for uid in UIDS if uid not in self.uids][:2]


steps = st.lists(
    st.builds(
        Step,
        what=st.sampled_from(NAMES),
        uids=st.lists(st.sampled_from(UIDS), min_size=1, max_size=4, unique=True).map(tuple),
        version=st.integers(0, VERSIONS - 1),
        mode=st.sampled_from(MODES),
        dies_at=st.one_of(st.none(), st.none(), st.integers(1, 30)),
        seed=st.integers(0, 9),
    ),
    min_size=1,
    max_size=12,
)


def content(uid: str, version: int) -> bytes:
    return [b"", f"{uid} v{version} ".encode() * 9, random.Random(f"{uid}{version}").randbytes(700), uid.encode()][
        version
    ]


@dataclass(slots=True)
class History:
    """A store, and what readers must be told of it.

    Attributes:
        maker: of the store.
        storage: it lies on.
        sources: for manifests.
        open_again: returns the storage anew, as after a restart.
        told: of each file.
        stray: what writers that died may have left of files in segments that no head lists: a repair may find it.
    """

    maker: Maker
    storage: Storage
    sources: Sources
    open_again: Callable[[], Awaitable[Storage]]
    told: dict[str, Found] = field(default_factory=lambda: dict.fromkeys(UIDS, "not found"))
    stray: dict[str, set[Found]] = field(default_factory=dict)

    async def take(self, step: Step) -> None:
        """Take a step. Where it dies, each shard is as before it, or as after it."""
        may_be = {uid: self.outcomes(step, uid) for uid in UIDS}
        has_died = await self.carry_out(step)
        if has_died and step.what == "lose":
            await self.lose_and_repair(self.storage)
        found = await self.read_all()
        for identity in {self.maker.identity(uid) for uid in UIDS}:
            mine = [uid for uid in UIDS if self.maker.identity(uid) == identity]
            is_after = all(found[uid] in may_be[uid] for uid in mine)
            is_before = has_died and all(found[uid] == self.told[uid] for uid in mine)
            if has_died and step.what == "two packers":  # one of them may have come to its end
                is_before = all(found[uid] in may_be[uid] | {self.told[uid]} for uid in mine)
            assert is_after or is_before, (step, {uid: (self.told[uid], found[uid], may_be[uid]) for uid in mine})
        if has_died and step.what in {"pack", "two packers", "delete"}:
            for uid in UIDS:
                if may_be[uid] != {self.told[uid]}:
                    self.stray.setdefault(uid, set()).update(may_be[uid])
        self.told = found

    def outcomes(self, step: Step, uid: str) -> set[Found]:
        """Return what a file may be when a step has come to its end."""
        told = self.told[uid]
        may_be: set[Found] = {told}
        match step.what:
            case "pack" if uid in step.uids and (step.mode == "replace" or told == "not found"):
                may_be = {content(uid, step.version)}
            case "two packers" if uid in step.uids:
                may_be = {content(uid, version) for version in step.versions}
            case "two packers" if uid in step.own:
                may_be = {content(uid, step.versions[step.own.index(uid)])}
            case "delete" if uid in step.uids and isinstance(told, bytes):
                may_be = {"deleted"}
            case "forget" if told == "deleted":
                may_be = {"deleted", "not found"}
            case "lose":  # a deletion that was forgotten may come back, the file may not
                may_be = {told} | self.stray.get(uid, set()) | ({"deleted"} if told == "not found" else set())
        return may_be

    # ---- doing it -----------------------------------------------------------------------------------------------------------

    async def carry_out(self, step: Step) -> bool:
        """Do it; return whether it died."""
        fault = Fault(Fail(StorageUnavailableError("The storage is gone.")), at=step.dies_at, lasting=True)
        storage = FaultyStorage(self.storage, [fault] if step.dies_at else [])
        died = False
        try:
            await self.act(step, storage)
        except* StorageUnavailableError:
            assert storage.fired
            died = True
        return died

    async def act(self, step: Step, storage: Storage) -> None:
        match step.what:
            case "pack":
                manifest = self.manifest(step.uids, step.version)
                await Run().pack(storage, manifest, on_conflict=step.mode, max_segment_bytes=900)
            case "two packers":
                await self.pack_at_once(step, storage)
            case "delete":
                await delete_files(storage, [(uid, WHEN) for uid in step.uids])
            case "lose":
                await self.lose_and_repair(storage)
            case "restart":
                self.storage = self.maker.storage = await self.open_again()
            case _:
                await self.maintain(step, storage)

    async def maintain(self, step: Step, storage: Storage) -> None:
        later = await now(self.storage) + MINUTE
        if step.what == "gc":
            await collect_leftovers(storage, Limits(later, later, apply=True))
        for identity in await shards(self.maker):
            if step.what == "gc":
                await collect_shard(storage, identity, Limits(later, later, apply=True))
            elif step.what == "erase":
                erasure = await erase_in_shard(storage, identity, Rewriting(), later)
                assert erasure.is_complete or self.stray
            elif step.what in COMPACTING:
                how = WAYS.get(step.what, Rewriting(drop_tombstones_before=later))
                await self.compact(storage, identity, how, later)

    def manifest(self, uids: Sequence[str], version: int) -> Path:
        rows = [self.sources.row(uid, content(uid, version)) for uid in uids]
        return self.sources.manifest(rows, f"{version} of {' '.join(uids)}.json")

    async def pack_at_once(self, step: Step, storage: Storage) -> None:
        """Two packers bring the same files in different versions, and each one of its own."""
        scheduler = Scheduler(step.seed)
        acts = {}
        for uid, version in zip(step.own, step.versions, strict=True):
            manifest = self.manifest([*step.uids, uid], version)
            view = ScheduledStorage(storage, scheduler, uid)
            acts[uid] = partial(Run().pack, view, manifest, on_conflict="replace")
        await scheduler.run(acts)

    async def compact(self, storage: Storage, identity: Identity, how: Rewriting, at: int) -> None:
        """Compact; condemned segments are sometimes deleted by it, and sometimes stay."""
        live = sum(isinstance(told, bytes) for told in self.told.values())
        rules = Rules(small_segments=2, garbage_share=0.01)
        await compact_shard(storage, identity, rules, how, now=at, grace=(live % 2 - 1) * MINUTE)

    async def lose_and_repair(self, storage: Storage) -> None:
        for identity in {self.maker.identity(uid) for uid in UIDS}:
            await self.storage.delete(identity.head_key)
            repair = await repair_shard(storage, identity)
            assert repair.outcome == "rebuilt" or not repair.segments
            assert repair.is_certain or self.stray

    # ---- reading it ---------------------------------------------------------------------------------------------------------

    async def read_all(self) -> dict[str, Found]:
        """Return what readers are told of every file; listings must agree, and nothing be damaged."""
        async with reading(self.storage, index_ttl=0, negative_ttl=0) as store:
            found = await told_of(store, UIDS)
            listed = {info.uid async for info in store.list(DAY)}
            assert listed == {uid for uid, told in found.items() if isinstance(told, bytes)}
            assert (await verify(store)).damage == []
        return found


async def live(given_steps: Sequence[Step], directory: Path, open_storage: Callable[[], Awaitable[Storage]]) -> None:
    storage = await open_storage()

    async def open_again() -> Storage:
        await history.storage.aclose()
        return await open_storage()

    history = History(await make_store(storage, n_bits=1), storage, Sources(directory / "sources"), open_again)
    try:
        for step in [*given_steps, Step("lose", ()), Step("erase", ())]:
            note(str(step))
            await history.take(step)
        left = await every_byte(history.storage)
        for uid in UIDS:
            assert content(uid, 2) == history.told[uid] or content(uid, 2) not in left or history.stray
    finally:
        await history.storage.aclose()


def check_histories(examples: int, opening: Callable[[Path], Callable[[], Awaitable[Storage]]]) -> None:
    """Live through random histories.

    Args:
        examples: how many.
        opening: given a directory that no other history has, returns what opens its storage.
    """

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(steps)
    def holds(given_steps: list[Step]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            anyio.run(live, given_steps, Path(directory), opening(Path(directory)))

    holds()


@pytest.mark.parametrize("examples", [25, pytest.param(700, marks=pytest.mark.soak)])
def test_in_memory(examples: int) -> None:
    def opening(_: Path) -> Callable[[], Awaitable[Storage]]:
        storage = MemoryStorage()

        async def opened() -> Storage:
            return storage

        return opened

    check_histories(examples, opening)


@pytest.mark.parametrize("examples", [5, pytest.param(200, marks=pytest.mark.soak)])
def test_on_files(examples: int) -> None:
    def opening(directory: Path) -> Callable[[], Awaitable[Storage]]:
        async def opened() -> Storage:
            return LocalStorage(directory / "store")

        return opened

    check_histories(examples, opening)


@pytest.mark.soak
def test_on_s3(seaweedfs: S3Server, seaweedfs_bucket: str, s3_credentials: None) -> None:
    def opening(directory: Path) -> Callable[[], Awaitable[Storage]]:
        async def opened() -> Storage:
            return await open_s3(seaweedfs.config(seaweedfs_bucket, prefix=directory.name))

        return opened

    check_histories(60, opening)
