"""Everything that changes a shard, two at a time, their storage calls interleaved by a seed. A failing schedule is printed with its seed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import anyio
import pytest

from des.errors import ConflictError, DeletedError, LostHeadError, NotFoundError
from des.storage.testing import ScheduledStorage, Scheduler
from tests.lifecycle.acting import (
    BOTH,
    FILES,
    GONE,
    KEPT,
    REPLACING,
    VICTIM,
    Actions,
    Told,
    build,
    check_repairable,
    check_told,
    content,
    found_in,
    gotten_from,
)
from tests.making import DAY, WHEN, reading
from tests.pack.packing import Sources
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from des.storage.protocol import Storage

NAMES = ["pack", "replace", "delete", "compact", "forget", "erase", "gc", "repair", "expire"]
PERSISTENCE = [0.0, 0.85, 0.6]
PAIRS = [pair for pair in combinations_with_replacement(NAMES, 2) if pair != ("repair", "repair")]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryStorage, Actions]:
    """Return a store that is to be copied, and what can be done to it."""
    storage = MemoryStorage()
    identity = anyio.run(build, storage)
    return storage, Actions(identity, Sources(tmp_path_factory.mktemp("sources")))


soaked = pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 45), marks=pytest.mark.soak)], ids=str)


@asynccontextmanager
async def scheduled(
    storage: Storage, seed: int, *acts: Callable[[Storage], Awaitable[object]]
) -> AsyncIterator[Scheduler]:
    """Do all of it at once, in the order of the seed; what fails in the body carries the schedule."""
    scheduler = Scheduler(seed, PERSISTENCE[seed % len(PERSISTENCE)])
    views = {f"participant {number}": one for number, one in enumerate(acts, start=1)}
    await scheduler.run({name: partial(one, ScheduledStorage(storage, scheduler, name)) for name, one in views.items()})
    try:
        yield scheduler
    except BaseException as error:
        error.add_note("\n".join([f"Schedule of seed {seed}:", *scheduler.trace]))
        raise


async def act(actions: Actions, name: str, told: Told, storage: Storage) -> None:
    """Do something; where it gives up because of the other one, it is done again later."""
    try:
        await actions.all()[name](storage, told)
    except (ConflictError, LostHeadError):
        told.gave_up = True


async def check(storage: MemoryStorage, actions: Actions, pair: tuple[str, str], told: Told) -> None:
    """Check what is there after a schedule, and after both were done again, one after the other."""
    if told.expires:
        check_told(await gotten_from(storage), told)
        await actions.expire(storage, told)  # also what a packer or a repair left that was at work just then
        assert [key for key in storage.contents() if key != "des.json"] == []
        return
    found = await found_in(storage)
    check_told(found, told)
    await check_repairable(storage.copy(), actions.identity, found)
    for name in pair:
        await actions.all()[name](storage, told)
    found = await found_in(storage)
    check_told(found, told)
    await check_repairable(storage, actions.identity, found)


@soaked
@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
async def test_two_at_a_time(stage: tuple[MemoryStorage, Actions], pair: tuple[str, str], seeds: range) -> None:
    before, actions = stage
    for seed in seeds:
        storage, told = before.copy(), Told()
        async with scheduled(storage, seed, *(partial(act, actions, name, told) for name in pair)):
            assert told.expires or not told.gave_up
            await check(storage, actions, pair, told)


@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 300), marks=pytest.mark.soak)], ids=str)
@pytest.mark.parametrize("other", ["compact", "forget", "erase", "gc"])
async def test_what_is_erased_stays_so(stage: tuple[MemoryStorage, Actions], other: str, seeds: range) -> None:
    before, actions = stage
    for seed in seeds:
        storage, told = before.copy(), Told()

        async def delete_and_erase(storage: Storage, told: Told = told) -> None:
            await actions.delete(storage, told)
            await actions.erase(storage, told)

        async with scheduled(storage, seed, partial(act, actions, other, told), delete_and_erase):
            assert told.deleted == {VICTIM, BOTH}
            held = b"".join(storage.contents().values())
            assert not [uid for uid in (VICTIM, BOTH, GONE) if content(uid, "first") in held]


@soaked
@pytest.mark.parametrize("other", NAMES)
async def test_while_a_lost_head_is_repaired(stage: tuple[MemoryStorage, Actions], other: str, seeds: range) -> None:
    before, actions = stage
    for seed in seeds:
        storage, told = before.copy(), Told()
        await storage.delete(actions.identity.head_key)
        acts = [partial(act, actions, name, told) for name in ("repair", other)]
        async with scheduled(storage, seed, *acts):
            await check(storage, actions, ("repair", other), told)


@soaked
@pytest.mark.parametrize("other", [name for name in NAMES if name != "repair"])
async def test_a_reader_with_a_stale_head(stage: tuple[MemoryStorage, Actions], other: str, seeds: range) -> None:
    before, actions = stage
    for seed in seeds:
        storage, told = before.copy(), Told()
        seen: list[tuple[str, bytes | str]] = []
        async with scheduled(storage, seed, partial(read, seen), partial(act, actions, other, told)):
            assert told.expires or {uid for uid, answer in seen if answer == "listed"} >= {*KEPT}
            told.maybe |= told.packed.keys() | told.deleted  # of what changes, the old and the new are right
            for uid, answer in seen:
                if answer != "listed":
                    check_told({uid: answer}, told)


async def read(seen: list[tuple[str, bytes | str]], storage: Storage) -> None:
    """Read everything twice and list it, and look at the head only when that is inevitable."""
    async with reading(storage, index_ttl=3600, negative_ttl=3600) as store:
        for uid in [*FILES, *REPLACING, *FILES]:
            try:
                seen.append((uid, await store.get(uid, WHEN)))
            except DeletedError:
                seen.append((uid, "deleted"))
            except NotFoundError:
                seen.append((uid, "not found"))
        seen += [(info.uid, "listed") async for info in store.list(DAY)]
