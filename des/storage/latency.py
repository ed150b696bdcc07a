"""When a second request pays (J. Dean, L. A. Barroso, "The Tail at Scale", 2013, "hedged requests"): how long is long, and how many are too many.

A request that is still unanswered after a high quantile of recent times is asked again elsewhere. That alone would send (1 - quantile) more requests,
and many more when everything grows slow at once; the budget bounds it whatever happens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import ceil

_QUANTILE = 0.95
_SIZE = 256
# Shares are kept as whole numbers, so that a million small earnings add up exactly.
_TOKEN = 1_000_000
_MOST_SAVED = 10 * _TOKEN


class LatencyQuantile:
    """A quantile of the latest times, exact over its window (nearest rank). A call costs about a microsecond."""

    __slots__ = ("_fewest", "_in_order", "_latest", "_quantile")

    def __init__(self, quantile: float = _QUANTILE, size: int = _SIZE) -> None:
        """Begin without times.

        Args:
            quantile: between 0 and 1, both excluded.
            size: how many of the latest times count.
        """
        self._quantile = quantile
        self._latest: deque[float] = deque(maxlen=size)
        self._in_order: list[float] = []
        # With fewer, the quantile would be the maximum. Rounded first: 1 - 0.95 is a little more than a twentieth.
        self._fewest = min(size, ceil(round(1 / (1 - quantile), 6)))

    def add(self, seconds: float) -> None:
        """Note how long a request took; the oldest time goes where the window is full."""
        if len(self._latest) == self._latest.maxlen:
            del self._in_order[bisect_left(self._in_order, self._latest[0])]
        self._latest.append(seconds)
        insort(self._in_order, seconds)

    def value(self) -> float | None:
        """Return the quantile in seconds; None until there are times enough to tell it from the maximum."""
        count = len(self._in_order)
        if count < self._fewest:
            return None
        return self._in_order[ceil(round(self._quantile * count, 6)) - 1]


class HedgeBudget:
    """A token bucket: each request earns a share of an extra one. Begins empty, so the extra ones are never more than that share of all."""

    __slots__ = ("_earning", "_saved")

    def __init__(self, share: float) -> None:
        """Begin empty.

        Args:
            share: extra requests per request, 0 for none.
        """
        self._earning = round(share * _TOKEN)
        self._saved = 0

    def earned(self) -> None:
        """Note a request. What is saved is bounded, so that a quiet hour pays for no storm."""
        self._saved = min(_MOST_SAVED, self._saved + self._earning)

    def spend(self) -> bool:
        """Pay for an extra request; False where it cannot be paid for."""
        if self._saved < _TOKEN:
            return False
        self._saved -= _TOKEN
        return True
