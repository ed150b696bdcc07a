"""CPU seconds of this thread, and whether other processes disturbed the run: on a shared machine wall time says little."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Time this thread waited for a processor, as a share of what it used; beyond this, figures of caches and ratios are doubtful too.
_DISTURBED_SHARE = 0.3


class Meter:
    """Times pieces of work, and adds up what they used and how long they took."""

    def __init__(self) -> None:
        self._cpu = 0.0
        self._wall = 0.0

    def time(self, work: Callable[[], object]) -> float:
        """Return the CPU seconds that the work takes."""
        wall, cpu = time.perf_counter(), time.thread_time()
        work()
        used = time.thread_time() - cpu
        self._cpu += used
        self._wall += time.perf_counter() - wall
        return used

    def report(self) -> str:
        """Say whether the run was disturbed."""
        waited = self._wall / self._cpu - 1 if self._cpu else 0.0
        if waited > _DISTURBED_SHARE:
            return (
                f"Foreign load: this run waited {waited:.0%} of its own time for a processor. Take its times with care."
            )
        return f"Quiet run: it waited {max(waited, 0):.0%} of its own time for a processor."
