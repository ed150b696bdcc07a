"""When the next place is asked although the one before it still may answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from des.storage.latency import HedgeBudget
    from des.storage.place import Place
    from des.storage.zone_observer import ZoneObserver


class Hedging:
    """The turns of one read: after `longest` seconds a place is late; before that, after what is long there, the budget may pay for a second one."""

    def __init__(self, turns: Iterator[Place], count: int, longest: float, budget: HedgeBudget | None) -> None:
        """Begin a read.

        Args:
            turns: the places in the order in which they are asked.
            count: how many there are.
            longest: seconds.
            budget: None: this read is not hedged.
        """
        self._turns = turns
        self._left = count
        self._longest = longest
        self._budget = budget
        self._first: Place | None = None
        self._hedges: list[Place] = []
        self._is_hedge_due = False
        if budget is not None:
            budget.earned()

    def contenders(self) -> Iterator[Place]:
        """Yield the places, each when it is its turn."""
        for place in self._turns:
            self._left -= 1
            self._first = self._first or place
            if self._is_hedge_due:
                self._hedges.append(place)
                self._is_hedge_due = False
            yield place

    def delay(self, place: Place) -> float:
        """Return the seconds before which no other place need be thought of."""
        usual = place.latency.value() if self._budget is not None and self._left else None
        return self._longest if usual is None else min(usual, self._longest)

    async def patience(self, place: Place, waited: float) -> None:
        """Return when the next place shall be asked; `waited` seconds, the delay, have gone by."""
        left = self._longest - waited
        if left > 0:
            if self._budget is not None and self._budget.spend():
                self._is_hedge_due = True
                return
            await anyio.sleep(left)
        place.was_late()

    def won(self, winner: Place, observer: ZoneObserver) -> None:
        """Tell whose answer counted, and what became of the hedges."""
        for place in self._hedges:
            observer.hedged(place.address, "won" if place is winner else "lost")
        if winner is not self._first and winner not in self._hedges:
            observer.failed_over(winner.address)
