"""Stores in zones to test with: places in memory, each with a plan of faults that a test may change at any time."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from des.errors import ObjectNotFoundError, StorageTimeoutError, StorageUnavailableError
from des.storage.latency import HedgeBudget
from des.storage.place import Place
from des.storage.wrapper import StorageWrapper
from des.storage.zone import Zone
from des.storage.zones import ZonedStorage
from des.store.whole_objects import WholeObjects
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from des.storage.wrapper import Call, Tally
    from des.storage.zone_observer import HedgeOutcome, MendStatus

N_BITS = 2


class Ill(StorageWrapper):
    """A place that can be made ill.

    Attributes:
        memory: what lies there.
        is_down: every call fails.
        is_hung: every call waits until it is cancelled, or the place is well again.
        deadline: seconds after which a call that hangs fails, as those of all backends do in the end.
        is_ill_for: the two above hold for these calls only.
        calls: what came, in order.
        cancelled: what was waiting and was cancelled.
        met: how many calls met a fault.
    """

    def __init__(self, memory: MemoryStorage) -> None:
        super().__init__(memory)
        self.memory = memory
        self.is_down = False
        self.is_hung = False
        self.deadline = 600.0
        self.is_ill_for: Callable[[Call], bool] = lambda call: bool(call.verb)
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.waiting = 0
        self.met = 0
        self._well = anyio.Event()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        self.calls.append(call)
        if (self.is_down or self.is_hung) and self.is_ill_for(call):
            self.met += 1
            if self.is_down:
                raise StorageUnavailableError(f"{self.address} is down on purpose.")
            self.waiting += 1
            try:
                with anyio.move_on_after(self.deadline) as scope:
                    await self._well.wait()
                if scope.cancelled_caught:
                    raise StorageTimeoutError(f"{self.address} hangs on purpose.")
            except anyio.get_cancelled_exc_class():
                self.cancelled.append(call)
                raise
            finally:
                self.waiting -= 1
        async with super().around(call) as tally:
            yield tally

    def heal(self) -> None:
        self.is_down = self.is_hung = False
        self._well.set()
        self._well = anyio.Event()

    def damage(self, key: str, at: int | None = None) -> None:
        """Flip a byte: in the middle where not said."""
        data = bytearray(self.memory.contents()[key])
        data[len(data) // 2 if at is None else at] ^= 0xFF
        self.memory._set(key, bytes(data))


@dataclass(slots=True)
class Counted:
    """What zones told."""

    hedges: list[tuple[str, HedgeOutcome]] = field(default_factory=list)
    failovers: list[str] = field(default_factory=list)
    mends: list[tuple[str, MendStatus]] = field(default_factory=list)
    up: dict[str, bool] = field(default_factory=dict)

    def hedged(self, place: str, outcome: HedgeOutcome) -> None:
        self.hedges.append((place, outcome))

    def failed_over(self, place: str) -> None:
        self.failovers.append(place)

    def mended(self, place: str, status: MendStatus) -> None:
        self.mends.append((place, status))

    def place_up(self, place: str, *, is_up: bool) -> None:
        self.up[place] = is_up


@dataclass(slots=True)
class Ground:
    """A store in zones.

    Attributes:
        ill: the places of each zone, the primary first.
        counted: what zones told.
        budget: pays for the hedges of the process that was opened last.
    """

    ill: Sequence[Sequence[Ill]]
    counted: Counted = field(default_factory=Counted)
    budget: HedgeBudget = field(default_factory=lambda: HedgeBudget(0))

    @classmethod
    def of(cls, zones: int = 1, copies: int = 2) -> Ground:
        return cls([[Ill(MemoryStorage(address=f"{'abcd'[z]}{n}")) for n in range(1 + copies)] for z in range(zones)])

    def open(
        self, *, quorum: int | None = None, place_timeout: float = 0.05, hedge: float = 0.0, read_repair: bool = False
    ) -> ZonedStorage:
        """Open the store as a process of its own would: with nothing remembered."""
        count = (1 << N_BITS) // len(self.ill)
        self.budget = HedgeBudget(hedge)
        zones = []
        for number, places in enumerate(self.ill):
            name = "abcd"[number]
            opened = [
                Place(place, name, is_primary=not position, observer=self.counted)
                for position, place in enumerate(places)
            ]
            zones.append(
                Zone(
                    name,
                    number * count,
                    (number + 1) * count - 1,
                    opened,
                    quorum=quorum,
                    place_timeout=place_timeout,
                    budget=self.budget,
                    observer=self.counted,
                )
            )
        return ZonedStorage(zones, N_BITS, WholeObjects(), read_repair=read_repair, observer=self.counted)

    def contents(self, zone: int = 0) -> list[dict[str, bytes]]:
        """What lies at each place of a zone, without descriptors."""
        found = [place.memory.contents() for place in self.ill[zone]]
        return [{key: data for key, data in one.items() if key != "des.json"} for one in found]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


__all__ = ["N_BITS", "Ground", "Ill", "ObjectNotFoundError", "noise"]
