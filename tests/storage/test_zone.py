"""Reading segments from a zone, and writing them to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import pytest

from des.errors import (
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageDeniedError,
    StorageError,
    StorageUnavailableError,
)
from des.storage.protocol import Overwrite
from des.storage.testing import Fail, Fault, FaultyStorage
from tests.storage.zoned import Ground, noise

if TYPE_CHECKING:
    from des.storage.zones import ZonedStorage

SEGMENT = "20240131/0/0123456789abcdef0123456789abcdef.des"
DATA = noise(900_000)


async def with_segment(at: tuple[int, ...] = (0, 1, 2)) -> Ground:
    ground = Ground.of()
    for number in at:
        await ground.ill[0][number].memory.put(SEGMENT, DATA, Overwrite())
    return ground


async def stream(storage: ZonedStorage, start: int = 0, end: int = len(DATA)) -> bytes:
    async with storage.stream_range(SEGMENT, start, end) as pieces:
        return b"".join([piece async for piece in pieces])


Read = Callable[["ZonedStorage"], Awaitable[bytes]]
READS = [
    pytest.param(lambda storage: storage.read_range(SEGMENT, 0, len(DATA)), id="range"),
    pytest.param(stream, id="stream"),
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("faults", [("is_down",), ("is_hung",), ("is_down", "is_hung"), ("is_hung", "is_hung")])
async def test_the_next_place_answers_for_one_that_does_not(faults: tuple[str, ...], read: Read) -> None:
    ground = await with_segment()
    storage = ground.open()
    for place, fault in zip(ground.ill[0], faults, strict=False):
        setattr(place, fault, True)
    assert await read(storage) == DATA
    assert [place.met > 0 for place in ground.ill[0][: len(faults)]] == [True] * len(faults)
    assert [place.waiting for place in ground.ill[0]] == [0, 0, 0]
    assert ground.counted.failovers == [ground.ill[0][len(faults)].address]


@pytest.mark.parametrize("read", READS)
async def test_a_place_that_lacks_it_is_no_proof(read: Read) -> None:
    ground = await with_segment(at=(2,))
    assert await read(ground.open()) == DATA
    ground.ill[0][2].is_down = True
    with pytest.raises(StorageUnavailableError):
        await read(ground.open())
    ground.ill[0][2].heal()
    await ground.ill[0][2].memory.delete(SEGMENT)
    with pytest.raises(ObjectNotFoundError):
        await read(ground.open())


async def test_the_kind_of_the_trouble_is_told_where_all_have_the_same() -> None:
    ground = Ground.of(copies=1)
    denied = StorageDeniedError("denied on purpose.")
    storage = ground.open()
    for place in storage.zones[0].places:
        place.inner = FaultyStorage(place.inner, [Fault(Fail(denied), at=None)])
    with pytest.raises(StorageDeniedError, match=r"a0 .*; a1 .*denied on purpose"):
        await storage.read_range(SEGMENT, 0, 1)


async def test_a_stream_goes_on_elsewhere_from_where_it_broke() -> None:
    ground = await with_segment()
    storage = ground.open()
    broken = StorageUnavailableError("broken on purpose.")
    plan = [Fault(Fail(broken), verb="piece", at=3)]
    for number in (0, 1):
        place = storage.zones[0].places[number]
        place.inner = FaultyStorage(place.inner, plan)
    assert await stream(storage, 5, 800_000) == DATA[5:800_000]
    starts = [call.start for place in ground.ill[0] for call in place.calls if call.verb == "stream_range"]
    assert starts == [5, 5 + 2 * (1 << 18)], "the second place had the rest, and its end need not be told"


async def test_a_stream_that_is_left_or_cancelled_leaves_nothing_behind() -> None:
    ground = await with_segment()
    storage = ground.open()
    ground.ill[0][0].is_ill_for = lambda call: call.verb == "piece"
    ground.ill[0][0].is_hung = True
    with anyio.move_on_after(0.01) as scope:
        await stream(storage)
    assert scope.cancelled_caught
    assert ground.ill[0][0].waiting == 0
    async with storage.stream_range(SEGMENT, 0, len(DATA)) as pieces:
        assert DATA.startswith(await anext(pieces))


def warmed_up(ground: Ground, *, hedge: float, place_timeout: float = 5.0) -> ZonedStorage:
    """Open a process as it is after 40 reads of 20 ms."""
    storage = ground.open(hedge=hedge, place_timeout=place_timeout)
    for _ in range(40):
        storage.zones[0].primary.latency.add(0.02)
        ground.budget.earned()
    return storage


async def test_a_slow_read_is_hedged_and_the_loser_is_cancelled() -> None:
    ground = await with_segment()
    storage = warmed_up(ground, hedge=0.05)
    ground.ill[0][0].is_hung = True
    with anyio.fail_after(4):
        assert await storage.read_range(SEGMENT, 0, 100) == DATA[:100]
        assert await storage.read_range(SEGMENT, 5, 100) == DATA[5:100]
    assert len(ground.ill[0][0].cancelled) == 2
    assert ground.ill[0][0].waiting == 0
    assert ground.counted.hedges == [("a1", "won"), ("a1", "won")]
    assert ground.ill[0][2].calls == []


async def test_hedges_stay_within_their_budget() -> None:
    ground = await with_segment()
    storage = warmed_up(ground, hedge=0.05, place_timeout=0.05)
    ground.ill[0][0].is_hung = True
    ground.ill[0][0].is_ill_for = lambda _: len(ground.ill[0][0].calls) % 4 == 0
    for _ in range(60):
        assert await storage.read_range(SEGMENT, 0, 100) == DATA[:100]
    assert 1 <= len(ground.counted.hedges) <= 0.05 * 100 + 1
    assert len(ground.counted.hedges) + len(ground.counted.failovers) >= 15


async def test_without_budget_nothing_is_hedged() -> None:
    ground = await with_segment()
    storage = warmed_up(ground, hedge=0.0, place_timeout=0.05)
    ground.ill[0][0].is_hung = True
    assert await storage.read_range(SEGMENT, 0, 100) == DATA[:100]
    assert (ground.counted.hedges, ground.counted.failovers) == ([], ["a1"])


async def test_a_place_that_keeps_failing_is_left_alone_until_a_probe_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = await with_segment()
    storage = ground.open()
    now = 0.0
    for place in storage.zones[0].places:
        monkeypatch.setattr(place.breaker, "_clock", lambda: now)
    primary = ground.ill[0][0]
    primary.is_down = True
    for _ in range(30):
        assert await storage.read_range(SEGMENT, 0, 10) == DATA[:10]
    assert primary.met == 5
    assert [state.is_well for state in storage.states()] == [False, True, True]
    assert ground.counted.up["a0"] is False
    now = 100.0
    for _ in range(3):
        assert await storage.read_range(SEGMENT, 0, 10) == DATA[:10]
    assert primary.met == 6, "one probe"
    primary.heal()
    now = 200.0
    for _ in range(3):
        assert await storage.read_range(SEGMENT, 0, 10) == DATA[:10]
    assert [state.is_well for state in storage.states()] == [True, True, True]
    assert ground.counted.up["a0"] is True


async def test_a_place_left_alone_is_asked_where_no_other_answers() -> None:
    ground = await with_segment()
    storage = ground.open()
    ground.ill[0][0].is_down = True
    for _ in range(6):
        await storage.read_range(SEGMENT, 0, 10)
    ground.ill[0][0].heal()
    ground.ill[0][1].is_down = ground.ill[0][2].is_down = True
    assert await storage.read_range(SEGMENT, 0, 10) == DATA[:10]


async def test_a_version_that_no_place_has_is_told() -> None:
    ground = await with_segment(at=())
    storage = ground.open()
    key = "20240131/0.des"
    version = await storage.put(key, noise(500, 1), Overwrite())
    await ground.ill[0][1].memory.put(key, noise(500, 1), Overwrite())
    ground.ill[0][0].is_down = True
    assert await storage.read_range(key, 0, 10, version=version) == noise(500, 1)[:10]
    ground.ill[0][0].heal()
    for place in ground.ill[0]:
        await place.memory.put(key, noise(500, 2), Overwrite())
    with pytest.raises(PreconditionFailedError):
        await storage.read_range(key, 0, 10, version=version)


# ---- writing --------------------------------------------------------------------------------------------------------------------


async def write(storage: ZonedStorage) -> None:
    async with storage.open_writer(SEGMENT) as writer:
        for start in range(0, len(DATA), 100_000):
            await writer.write(DATA[start : start + 100_000])


def held(ground: Ground) -> list[bool]:
    return [one.get(SEGMENT) == DATA for one in ground.contents()]


async def test_a_segment_is_written_everywhere() -> None:
    ground = Ground.of()
    await write(ground.open())
    assert held(ground) == [True, True, True]


@pytest.mark.parametrize("verb", ["open_writer", "write", "commit"])
async def test_a_copy_that_fails_is_dropped(verb: str) -> None:
    ground = Ground.of()
    ground.ill[0][1].is_ill_for = lambda call: call.verb == verb
    ground.ill[0][1].is_down = True
    await write(ground.open())
    assert held(ground) == [True, False, True]
    assert ground.ill[0][1].met == 1
    assert ground.contents()[1] == {}


@pytest.mark.parametrize("verb", ["open_writer", "write"])
async def test_the_failure_of_the_primary_is_the_writers(verb: str) -> None:
    ground = Ground.of()
    ground.ill[0][0].is_ill_for = lambda call: call.verb == verb
    ground.ill[0][0].is_down = True
    with pytest.raises(StorageUnavailableError):
        await write(ground.open())
    assert ground.contents() == [{}, {}, {}]


async def test_a_writer_that_is_cancelled_while_a_copy_hangs_leaves_nothing() -> None:
    ground = Ground.of()
    ground.ill[0][2].is_ill_for = lambda call: call.verb == "write"
    ground.ill[0][2].is_hung = True
    with anyio.move_on_after(0.05) as scope:
        await write(ground.open())
    assert scope.cancelled_caught
    assert ground.contents() == [{}, {}, {}]
    assert ground.ill[0][2].waiting == 0
    assert [one async for one in ground.open().list_leftovers()] == []


async def test_what_is_deleted_is_deleted_everywhere_or_said_not_to_be() -> None:
    ground = await with_segment()
    ground.ill[0][1].is_down = True
    with pytest.raises(StorageUnavailableError, match="a1"):
        await ground.open().delete(SEGMENT)
    assert held(ground) == [False, True, False], "what can be erased is"
    ground.ill[0][1].heal()
    await ground.open().delete(SEGMENT)
    assert held(ground) == [False, False, False]


async def test_a_head_stays_at_the_primary_until_the_copies_are_rid_of_it() -> None:
    ground = Ground.of()
    for place in ground.ill[0]:
        await place.memory.put("20240131/0.des", b"a head", Overwrite())
    ground.ill[0][1].is_down = True
    with pytest.raises(StorageError):
        await ground.open().delete("20240131/0.des")
    assert [len(one) for one in ground.contents()] == [1, 1, 0]
