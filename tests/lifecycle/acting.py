"""A shard with a history, and all that can be done to it: what interleavings, kills and histories are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from des.lifecycle.choosing import Rules
from des.lifecycle.collecting import Limits, collect_leftovers, collect_shard
from des.lifecycle.compacting import compact_shard
from des.lifecycle.deleting import delete_files
from des.lifecycle.erasing import erase_in_shard
from des.lifecycle.expiring import expire_shard
from des.lifecycle.repairing import Repair, repair_shard
from des.lifecycle.rewriting import Rewriting
from des.shard.codecs import Compression
from des.storage.descriptor import require_descriptor
from des.store.verifying import verify
from tests.lifecycle.living import MINUTE, now
from tests.lifecycle.test_erasing import add_orphan
from tests.making import DAY, WHEN, Maker, make_store, reading, told_of
from tests.pack.packing import Run, Sources, names_of_one_shard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from des.pack.decisions import OnConflict
    from des.shard.layout import Identity
    from des.storage.protocol import Storage

PLAIN = Compression("none")  # so that a scan finds contents

KEPT = names_of_one_shard(4, stem="kept")
NEW = names_of_one_shard(2, stem="new")
VICTIM, BOTH, SWAPPED, GONE, BACK, LEFT = names_of_one_shard(6, stem="other")


def content(uid: str, version: str) -> bytes:
    return f"the {version} content of {uid}; ".encode() * 5


# What is there at the beginning. GONE was deleted; BACK was deleted and came back; LEFT and GONE lie in a segment that nobody lists, too.
FILES = {uid: content(uid, "first") for uid in (*KEPT, VICTIM, BOTH, SWAPPED, LEFT)} | {BACK: content(BACK, "second")}
REPLACING = {uid: content(uid, "replacing") for uid in (BOTH, SWAPPED, GONE)}
PACKED = {uid: content(uid, "first") for uid in (*NEW, KEPT[0])}


async def shard_on(storage: Storage) -> Identity:
    """Return the shard that all of it is about."""
    return Maker(storage, await require_descriptor(storage)).identity(KEPT[0])


async def build(storage: Storage) -> Identity:
    """Make a store of one shard with a history."""
    maker = await make_store(storage, n_bits=1)
    identity = maker.identity(KEPT[0])
    # A packer that was killed before its swap, and run again.
    await add_orphan(storage, identity, {LEFT: content(LEFT, "first"), GONE: content(GONE, "first")})
    early = {uid: content(uid, "first") for uid in (KEPT[0], VICTIM, BOTH, GONE, BACK)}
    await maker.add(early, compression=PLAIN)
    await maker.add({uid: content(uid, "first") for uid in (KEPT[1], SWAPPED, LEFT)}, compression=PLAIN)
    await delete_files(storage, [(GONE, WHEN), (BACK, WHEN)])
    await compact_shard(storage, identity, Rules(small_segments=3), Rewriting(), now=await now(storage), grace=MINUTE)
    await maker.add({BACK: content(BACK, "second"), KEPT[2]: content(KEPT[2], "first")}, compression=PLAIN)
    await maker.add({KEPT[3]: content(KEPT[3], "first")}, compression=PLAIN)
    return identity


@dataclass(slots=True)
class Told:
    """What was acknowledged, and which action may not have come to its end."""

    deleted: set[str] = field(default_factory=set)
    packed: dict[str, bytes] = field(default_factory=dict)
    maybe: set[str] = field(default_factory=set)  # uids of which nothing was acknowledged
    forgets: bool = False  # a deleted file may be "not found"
    expires: bool = False  # everything may be gone
    gave_up: bool = False  # an action said "run again"


@dataclass(slots=True)
class Actions:
    """The actions. Each may be done again.

    Attributes:
        identity: the shard.
        sources: for manifests.
    """

    identity: Identity
    sources: Sources

    def __post_init__(self) -> None:
        for name, files in (("pack.json", PACKED), ("replace.json", REPLACING)):
            if not (self.sources.directory / name).exists():
                self.sources.manifest(self.sources.rows(files), name)

    def all(self) -> dict[str, Callable[[Storage, Told], Awaitable[object]]]:
        return {
            "pack": self.pack,
            "replace": self.replace,
            "delete": self.delete,
            "compact": self.compact,
            "forget": self.forget,
            "erase": self.erase,
            "gc": self.gc,
            "repair": self.repair,
            "expire": self.expire,
        }

    async def pack(self, storage: Storage, told: Told) -> None:
        await self._pack(storage, told, "pack", PACKED, "error")

    async def replace(self, storage: Storage, told: Told) -> None:
        await self._pack(storage, told, "replace", REPLACING, "replace")

    async def _pack(
        self, storage: Storage, told: Told, name: str, files: Mapping[str, bytes], mode: OnConflict
    ) -> None:
        told.maybe |= files.keys()
        run = Run()
        await run.pack(storage, self.sources.directory / f"{name}.json", on_conflict=mode, compression=PLAIN)
        failed = {row["uid"] for row in run.failures}
        assert {row["status"] for row in run.failures} <= {"conflict", "deleted", "corrupt"}
        told.packed |= {uid: content for uid, content in files.items() if uid not in failed}
        told.maybe -= files.keys()

    async def delete(self, storage: Storage, told: Told) -> None:
        told.maybe |= {VICTIM, BOTH}
        for one in await delete_files(storage, [(VICTIM, WHEN), (BOTH, WHEN)]):
            if one.outcome != "not_found":
                told.deleted.add(one.uid)
        told.maybe -= {VICTIM, BOTH}

    async def compact(self, storage: Storage, told: Told, how: Rewriting | None = None) -> None:
        """Compact, and spare nobody: all that is condemned is deleted at once."""
        rules = Rules(small_segments=2, garbage_share=0.01)
        await compact_shard(storage, self.identity, rules, how or Rewriting(), now=await now(storage), grace=-MINUTE)

    async def forget(self, storage: Storage, told: Told) -> None:
        told.forgets = True
        later = await now(storage) + MINUTE
        await self.compact(storage, told, Rewriting(drop_tombstones_before=later))

    async def erase(self, storage: Storage, told: Told) -> None:
        await erase_in_shard(storage, self.identity, Rewriting(), await now(storage))

    async def gc(self, storage: Storage, told: Told) -> None:
        later = await now(storage) + MINUTE
        await collect_shard(storage, self.identity, Limits(later, later, apply=True))
        await collect_leftovers(storage, Limits(later - 2 * MINUTE, 0, apply=True))

    async def repair(self, storage: Storage, told: Told) -> Repair:
        return await repair_shard(storage, self.identity)

    async def expire(self, storage: Storage, told: Told) -> None:
        told.expires = True
        await expire_shard(storage, self.identity, await now(storage))


async def found_in(storage: Storage) -> dict[str, bytes | str]:
    """Return what `gotten_from` does; and prove that listings agree, and that there is no damage."""
    found = await gotten_from(storage)
    async with reading(storage, index_ttl=0, negative_ttl=0) as store:
        live = {uid for uid, content in found.items() if isinstance(content, bytes)}
        assert {info.uid async for info in store.list(DAY)} == live
        assert (await verify(store)).damage == []
    return found


async def gotten_from(storage: Storage) -> dict[str, bytes | str]:
    """Return what readers are told of every file: its content, or `deleted`, or `not found`."""
    async with reading(storage, index_ttl=0, negative_ttl=0) as store:
        return await told_of(store, {**FILES, **REPLACING, **PACKED})


def check_told(found: Mapping[str, bytes | str], told: Told) -> None:
    """Check what readers find against what was acknowledged."""
    for uid, content in found.items():
        allowed: set[bytes | str] = set()
        if uid in told.packed:
            allowed.add(told.packed[uid])
        if uid in told.deleted:
            allowed.add("deleted")
        if not allowed or uid in told.maybe:
            allowed.add(FILES.get(uid, "deleted" if uid == GONE else "not found"))
        if uid in told.maybe:
            allowed |= {files[uid] for files in (REPLACING, PACKED) if uid in files} | {"deleted"}
        if told.forgets and "deleted" in allowed:
            allowed.add("not found")
        if told.expires:
            allowed.add("not found")
        assert content in allowed, f"{uid}: {content!r} and not one of {allowed}"


async def check_repairable(storage: Storage, identity: Identity, found: Mapping[str, bytes | str]) -> None:
    """Lose the head, and prove that everything comes back, but for what is reported."""
    await storage.delete(identity.head_key)
    repair = await repair_shard(storage, identity)
    if repair.outcome == "absent":
        assert not any(isinstance(content, bytes) for content in found.values())
        return
    assert (repair.outcome, repair.unreadable) == ("rebuilt", [])
    assert repair.unclear == []
    for uid, content in (await found_in(storage)).items():
        same = {found[uid], "deleted"} if found[uid] == "not found" else {found[uid]}
        assert content in same, f"{uid}: {content!r} and not {found[uid]!r}"
