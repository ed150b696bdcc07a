"""A circuit breaker: a place that keeps failing is left alone for a while (M. Nygard, "Release It!", 2007, "Circuit Breaker").

- *Closed*: requests pass. It opens after a number of failures in a row, or when a share of the latest outcomes failed, so that a place that fails
  every other request is left alone too.
- *Open*: nothing passes. What still comes back from requests begun before changes nothing.
- *Half-open*, once the pause is over: exactly one real request passes, the probe. Success closes the breaker and forgets the past; failure opens it
  again, for twice as long, up to a bound. Each pause is drawn from the upper half of its length, so that many processes do not probe in step.
- A probe that was given up (cancelled: another place was faster) says nothing; the next request is the probe. One that is never reported at all
  counts as given up after a while, so that no path through the caller can leave a breaker stuck.

No I/O, no tasks, and the clock is handed in.
"""

from __future__ import annotations

import random
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_IN_A_ROW = 5
_WINDOW = 20
_SHARE = 0.5
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_PROBE_SECONDS = 10.0


class Breaker:
    """Whether a place is worth asking. Whoever `allows` let through reports one of `succeeded`, `failed` or `abandoned`."""

    __slots__ = (
        "_clock",
        "_failures",
        "_first_pause",
        "_in_a_row",
        "_longest_pause",
        "_outcomes",
        "_pause",
        "_probe_ends",
        "_probe_seconds",
        "_retry_at",
        "_row",
        "_share",
    )

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        in_a_row: int = _IN_A_ROW,
        window: int = _WINDOW,
        share: float = _SHARE,
        first_pause: float = _FIRST_PAUSE_SECONDS,
        longest_pause: float = _LONGEST_PAUSE_SECONDS,
        probe_seconds: float = _PROBE_SECONDS,
    ) -> None:
        """Begin closed.

        Args:
            clock: seconds that never go back.
            in_a_row: so many failures in a row open it.
            window: how many of the latest outcomes the share is taken of; fewer outcomes have no share.
            share: this share of failures among them opens it.
            first_pause: seconds until the first probe.
            longest_pause: bound of the pauses, which double with each failed probe.
            probe_seconds: after so long, a probe that nobody reported counts as given up.
        """
        self._clock = clock
        self._in_a_row = in_a_row
        self._share = share
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._probe_seconds = probe_seconds
        self._outcomes: deque[bool] = deque(maxlen=window)  # True for a failure
        self._failures = 0
        self._row = 0
        self._pause = 0.0
        self._retry_at: float | None = None  # None while closed
        self._probe_ends: float | None = None  # None while no probe is under way

    @property
    def is_open(self) -> bool:
        """Whether the place is being left alone, a probe aside."""
        return self._retry_at is not None

    def allows(self) -> bool:
        """Tell whether a request may be sent. True while open makes that request the probe, so ask only when it will be sent."""
        if self._retry_at is None:
            return True
        now = self._clock()
        if now < self._retry_at or (self._probe_ends is not None and now < self._probe_ends):
            return False
        self._probe_ends = now + self._probe_seconds
        return True

    def succeeded(self) -> None:
        """Note that the place answered as it should; "no such object" is such an answer."""
        if self._retry_at is None:
            self._row = 0
            self._note(failed=False)
        elif self._probe_ends is not None:
            self._close()

    def failed(self) -> None:
        """Note that the place did not answer, or not in time, or with an error of its own."""
        if self._retry_at is not None:
            if self._probe_ends is not None:
                self._open(min(self._longest_pause, 2 * self._pause))
            return
        self._row += 1
        self._note(failed=True)
        is_full = len(self._outcomes) == self._outcomes.maxlen
        if self._row >= self._in_a_row or (is_full and self._failures >= self._share * len(self._outcomes)):
            self._open(self._first_pause)

    def abandoned(self) -> None:
        """Note that a request was given up without an answer: it tells nothing, and the next one may be the probe."""
        self._probe_ends = None

    def _note(self, *, failed: bool) -> None:
        if len(self._outcomes) == self._outcomes.maxlen:
            self._failures -= self._outcomes[0]
        self._outcomes.append(failed)
        self._failures += failed

    def _open(self, pause: float) -> None:
        self._pause = pause
        self._retry_at = self._clock() + random.uniform(pause / 2, pause)  # noqa: S311 - jitter, no secret
        self._probe_ends = None

    def _close(self) -> None:
        self._retry_at = self._probe_ends = None
        self._outcomes.clear()
        self._failures = self._row = 0
