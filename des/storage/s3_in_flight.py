"""How many bytes of parts may be on their way to an endpoint at once, over all its writers.

Only what was handed over to be sent is bounded, and not what writers gather: sending ends by itself, whereas a writer
that waits for its data may wait, through memory that others hold, for another writer. So whoever waits here is let in.
"""

from __future__ import annotations

import anyio


class InFlight:
    """A bound on bytes that are being sent.

    Attributes:
        max_bytes: the bound; a single part larger than it goes alone.
        held_bytes: what is being sent now.
    """

    def __init__(self, max_bytes: int) -> None:
        """Begin with nothing being sent."""
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._turn = anyio.Lock()  # first come, first served: a large part is not passed by small ones for ever
        self._landed = anyio.Event()

    async def enter(self, size: int) -> None:
        """Wait until so many bytes may be sent; whoever entered them calls `leave`."""
        async with self._turn:
            while self.held_bytes and self.held_bytes + size > self.max_bytes:
                self._landed = anyio.Event()
                await self._landed.wait()
            self.held_bytes += size

    def leave(self, size: int) -> None:
        """Note that bytes have been sent, or given up."""
        self.held_bytes -= size
        self._landed.set()
