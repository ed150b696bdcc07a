"""Settling: a commit counts once as many places hold it as `write_quorum` asks for.

The primary has it already; the copies are brought up to the head that the primary has now, all at once. A copy that is being left alone after failures is
tried only where the quorum needs it. What others have committed meanwhile is brought along.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio

from des.errors import LostHeadError, ObjectNotFoundError, StorageError, StorageUnavailableError
from des.storage.zone_copying import Primary, bring_up

if TYPE_CHECKING:
    from des.storage.zone import Zone
    from des.storage.zone_copying import Verifier


class Settler:
    """Brings the copies of a zone up to heads that were put, and counts who holds them."""

    def __init__(self, zone: Zone, verifier: Verifier) -> None:
        """Settle heads of a zone."""
        self._zone = zone
        self._verifier = verifier
        self._shards: dict[str, _Settling] = {}

    async def settle(self, key: str) -> None:
        """See `Storage.settle`. Calls for one key that wait at the same time are served by one run that begins after all of them came.

        Raises:
            StorageUnavailableError: too few places hold the primary's head.
            LostHeadError: the primary has lost commits.
            CorruptShardError: too few places hold it, because of damage.
        """
        if not self._zone.copies:
            return
        settling = self._shards.setdefault(key, _Settling())
        settling.waiting += 1
        came = settling.begun
        try:
            async with settling.turn:
                if settling.ended_well > came:
                    return
                settling.begun += 1
                number = settling.begun
                await self._settle(key)
                settling.ended_well = number
        finally:
            settling.waiting -= 1
            if not settling.waiting:
                del self._shards[key]

    async def _settle(self, key: str) -> None:
        zone = self._zone
        primary = Primary(zone, key, self._verifier)
        try:
            await primary.look()
        except ObjectNotFoundError:
            return  # the shard has been removed meanwhile
        asked = [copy for copy in zone.copies if copy.breaker.allows()]
        if 1 + len(asked) < zone.quorum:
            asked = list(zone.copies)
        failures = await zone.everywhere(asked, partial(bring_up, primary))
        for _, error in failures:
            if isinstance(error, LostHeadError):
                raise error
        held = 1 + len(asked) - len(failures)
        if held >= zone.quorum:
            return
        for _, error in failures:
            if not isinstance(error, StorageError):
                raise error
        told = "; ".join(f"{place}: {error}" for place, error in failures)
        raise StorageUnavailableError(
            f"{key} is held by {held} of the {zone.quorum} places of zone {zone.name} that write_quorum asks for ({told}); its files are committed"
            " at the primary: run again, or `des zones sync`, when the places can be reached."
        ) from (failures[0][1] if failures else None)


class _Settling:
    __slots__ = ("begun", "ended_well", "turn", "waiting")

    def __init__(self) -> None:
        self.turn = anyio.Lock()
        self.waiting = self.begun = self.ended_well = 0
