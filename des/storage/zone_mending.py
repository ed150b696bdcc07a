"""Mending: an object that is damaged at one place is put anew from a place where it is whole.

Rules:

1. Every place's object is verified whole before anything is done; only verified content is put, and only in place of what was found damaged.
2. A segment that is missing is not put: it may have been deleted. A head that is missing, or behind, is `settle`'s and `des zones sync`'s.
3. A head takes the place of a damaged one only at the same generation of the same lineage. Where damage hides which that was, a copy is brought up to the
   primary; the primary takes the newest that the copies have, if all of them answer soundly with one lineage, hold every acknowledged commit between
   them, and are not behind what this process has seen.
4. One key at a time, in one background task; the queue is bounded, and knows each key once. What does not fit is found again by the next reader.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio.to_thread

from des.errors import CorruptShardError, DESError, StorageError, UnsupportedFormatError
from des.storage.bounded_map import BoundedMap
from des.storage.protocol import IfVersion
from des.storage.zone_copying import MAX_HEAD_BYTES, Primary, bring_up
from des.storage.zone_keys import is_head
from des.storage.zone_observer import NobodyObserves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from des.shard.tables import History
    from des.storage.place import Place
    from des.storage.zone import Zone
    from des.storage.zone_copying import Verifier
    from des.storage.zone_observer import MendStatus, ZoneObserver

# Up to this size a segment is put on condition; a larger one is written part by part.
PUT_BYTES = 16 << 20
_QUEUED = 1_000
# What was looked at is left alone for a while, mended or not: looking reads all of it, everywhere.
_REST_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Examined:
    """An object at a place, read whole."""

    state: Literal["good", "damaged", "absent", "unknown"]
    version: str = ""
    history: History | None = None
    data: bytes = b""


async def mend(zone: Zone, key: str, verifier: Verifier) -> Mapping[Place, MendStatus]:
    """Verify an object at every place of a zone, and mend it where it is damaged.

    Args:
        zone: the zone it belongs to.
        key: the object.
        verifier: verifies.

    Returns:
        What came of it at each place that has it.

    Raises:
        StorageError: a place became unwell while it was written.
    """
    return await (_mend_head if is_head(key) else _mend_segment)(zone, key, verifier)


async def _mend_segment(zone: Zone, key: str, verifier: Verifier) -> Mapping[Place, MendStatus]:
    statuses: dict[Place, MendStatus] = {}
    for place in zone.places:
        with suppress(UnsupportedFormatError, StorageError):  # not there, not to be reached, or not to be judged
            try:
                await verifier.check_segment(place, key)
            except UnsupportedFormatError:
                raise
            except CorruptShardError:
                statuses[place] = "failed"
            else:
                statuses[place] = "good"
    source = next((place for place, status in statuses.items() if status == "good"), None)
    if source is None:
        return statuses
    for place in [place for place, status in statuses.items() if status == "failed"]:
        with suppress(CorruptShardError):
            await _replace_segment(source, place, key)
            await verifier.check_segment(place, key)
            statuses[place] = "mended"
    return statuses


async def _replace_segment(source: Place, target: Place, key: str) -> None:
    version = (await target.head(key)).version
    size = (await source.probe(key)).size
    if size <= PUT_BYTES:
        await target.put(key, await source.read_range(key, 0, size), IfVersion(version))
        return
    async with target.open_writer(key) as writer, source.stream_range(key, 0, size) as pieces:
        async for piece in pieces:
            await writer.write(piece)


async def _mend_head(zone: Zone, key: str, verifier: Verifier) -> Mapping[Place, MendStatus]:
    found = {place: await _examine(zone, place, key, verifier) for place in zone.places}
    statuses: dict[Place, MendStatus] = {}
    for place, examined in found.items():
        if examined.state == "good":
            statuses[place] = "good"
        elif examined.state == "damaged":
            source = _source_for(zone, place, examined, found, key)
            if source is not None:
                await place.put(key, source.data, IfVersion(examined.version))
            elif not place.is_primary and found[zone.primary].state == "good":
                await bring_up(Primary(zone, key, verifier), place)
            again = await _examine(zone, place, key, verifier)
            statuses[place] = "mended" if again.state == "good" else "failed"
            found[place] = again
    return statuses


async def _examine(zone: Zone, place: Place, key: str, verifier: Verifier) -> _Examined:
    unknown = _Examined(
        "unknown"
    )  # not to be reached or judged, or replaced meanwhile: whoever reads it next will tell
    try:
        look = await zone.heads.look(key, None, place)
        if look.state == "absent":
            return _Examined("absent")
        suffix = await place.read_suffix(key, MAX_HEAD_BYTES)
    except StorageError:
        return unknown
    if suffix is None or suffix.version != look.version:
        return unknown
    try:
        await anyio.to_thread.run_sync(verifier.check_head, key, suffix.data)
    except UnsupportedFormatError:
        return unknown
    except CorruptShardError:
        return _Examined("damaged", look.version, look.history)
    return _Examined("good", look.version, look.history, suffix.data)


def _source_for(
    zone: Zone, place: Place, damaged: _Examined, found: Mapping[Place, _Examined], key: str
) -> _Examined | None:
    good = [one for one in found.values() if one.state == "good" and one.history is not None]
    if damaged.history is not None:
        return next((one for one in good if one.history == damaged.history), None)
    if not place.is_primary or not zone.heads.copies_prove:
        return None
    copies = [found[copy] for copy in zone.copies]
    lineages = {one.history.lineage for one in good if one.history is not None}
    if len(lineages) != 1 or any(one.state not in {"good", "absent"} for one in copies):
        return None
    newest = max(good, key=lambda one: one.history.generation if one.history is not None else 0)
    return None if zone.heads.is_behind(key, newest.history) else newest


class Mender:
    """Mends in the background what readers found damaged."""

    def __init__(
        self, zone_of: Callable[[str], Zone], verifier: Verifier, observer: ZoneObserver | None = None
    ) -> None:
        """Prepare.

        Args:
            zone_of: tells the zone of a key.
            verifier: verifies.
            observer: told what came of it.
        """
        self._zone_of = zone_of
        self._verifier = verifier
        self._observer = observer or NobodyObserves()
        self._queue: dict[str, None] = {}
        self._looked_at: BoundedMap[str, float] = BoundedMap(_QUEUED)
        self._task: asyncio.Task[None] | None = None

    def note(self, key: str) -> None:
        """Put a key into the queue, unless it is in there, or there is no room."""
        last = self._looked_at.get(key)
        if len(self._queue) >= _QUEUED or (last is not None and time.monotonic() < last + _REST_SECONDS):
            return
        self._queue.setdefault(key)
        if self._task is None or self._task.done():
            # Not in a task group: no reader's context lasts as long as this work, which is the storage's own, until `aclose`.
            self._task = asyncio.get_running_loop().create_task(self._run(), name="des mender")

    async def settled(self) -> None:
        """Wait until the queue is empty and all in it was looked at."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        while self._queue:
            key = next(iter(self._queue))
            try:
                statuses = await mend(self._zone_of(key), key, self._verifier)
            except DESError as error:
                _log.warning("%s cannot be mended now: %s", key, error)
                statuses = {}
            self._looked_at.put(key, time.monotonic())
            self._queue.pop(key, None)
            for place, status in statuses.items():
                self._observer.mended(place.address, status)
                if status != "good":
                    _log.warning("%s was damaged at %s: %s", key, place, status)

    async def aclose(self) -> None:
        """Give up what is not done."""
        task, self._task = self._task, None
        self._queue.clear()
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
