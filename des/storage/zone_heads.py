"""Reading heads from a zone: which of its places is to be believed.

Rules:

1. The primary is asked first, alone; what it says in time, undamaged, counts. Where it does not answer within `place_timeout`, cannot be read, has
   damage, or is behind what this process has seen, all copies are asked at once; it may still answer meanwhile.
2. Among the copies the newest generation counts. A new lineage is taken only from the primary. Never is a head taken that is older than one this
   process has seen (the *floor* of the head): rather there is no answer.
3. *Proof*, that what this head lacks is not there, is the primary's word, or that of all copies together: each acknowledged commit is in one of them,
   unless `write_quorum` is 1, when a commit may be at the primary alone. Copies of several lineages prove nothing, and neither does one that was never
   brought up as a whole (it has no descriptor yet).
4. "No such head" needs the same proof, and the word of all places where the floor says that there was one.
5. Damage in all places is no trouble of the storage: the primary's bytes are handed over, and the reader will say so.
6. Of copies only the tail is read first; all of a head comes from one place, at the version that was chosen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import anyio

from des.errors import (
    CorruptShardError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
    StorageUnavailableError,
    UnsupportedFormatError,
)
from des.shard.layout import TAIL_READ_BYTES, Kind
from des.shard.reading import parse_tail, tail_length
from des.shard.tables import History
from des.storage.bounded_map import BoundedMap
from des.storage.protocol import Suffix
from des.storage.racing import Poll

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from des.storage.place import Place
    from des.storage.protocol import Purpose

_KEPT = 16_384
_READS = 5
BYTES_PER_SECOND = 1 << 20


@dataclass(frozen=True, slots=True)
class Look:
    """What a place says of a head.

    Attributes:
        place: who says it.
        state: `newer` is good, but of a format that this release does not know.
        suffix: its end; None where it is absent, or known to be at `version` without being read.
        version: see `Suffix`; "" where it is absent.
        history: where a good one stands.
        store_id: whose it is; b"" where that was not read.
    """

    place: Place
    state: Literal["good", "newer", "damaged", "absent"]
    suffix: Suffix | None = None
    version: str = ""
    history: History | None = None
    store_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The look that counts, and whether what it lacks is proven not to be there."""

    look: Look
    is_proof: bool


class HeadReader:
    """Reads heads from the places of one zone; remembers what was seen of them.

    Attributes:
        copies_prove: whether all copies together hold every commit that was acknowledged.
    """

    def __init__(
        self, places: Sequence[Place], *, place_timeout: float, copies_prove: bool, found_damaged: Callable[[str], None]
    ) -> None:
        """Read from `places`.

        Args:
            places: the primary, then the copies.
            place_timeout: seconds.
            copies_prove: see the class.
            found_damaged: told the key of a head that is damaged in one place and good in another.
        """
        self._primary, *self._copies = places
        self._place_timeout = place_timeout
        self.copies_prove = copies_prove
        self._found_damaged = found_damaged
        self._floors: BoundedMap[str, History] = BoundedMap(_KEPT)
        self._histories: BoundedMap[tuple[str, str], History] = BoundedMap(_KEPT)

    # ---- what was seen ------------------------------------------------------------------------------------------------------

    def wrote(self, key: str, data: bytes, version: str) -> None:
        """Take note of a head that was put at the primary."""
        try:
            history, _ = _stated(key, data[-tail_length(data, len(data)) :], len(data))
        except CorruptShardError:
            return
        self._histories.put((key, version), history)
        self._saw(key, history, at_primary=True)

    def knows(self, key: str, version: str) -> bool:
        """Tell whether a head was seen undamaged at a version."""
        return self._histories.get((key, version)) is not None

    def is_behind(self, key: str, history: History | None) -> bool:
        """Tell whether a head is older than one that was seen of its lineage."""
        floor = self._floors.get(key)
        return (
            floor is not None
            and history is not None
            and floor.lineage == history.lineage
            and history.generation < floor.generation
        )

    def forget(self, key: str) -> None:
        """Take note that a head was deleted."""
        self._floors.discard(key)

    def _saw(self, key: str, history: History, *, at_primary: bool) -> None:
        floor = self._floors.get(key)
        if floor is not None and floor.lineage == history.lineage:
            is_news = floor.generation < history.generation
        else:
            is_news = floor is None or at_primary
        if is_news:
            self._floors.put(key, history)

    # ---- reading ------------------------------------------------------------------------------------------------------------

    async def read_suffix(self, key: str, length: int, unless: str | None, purpose: Purpose) -> Suffix | None:
        """Do as `Storage.read_suffix`, for a head.

        Raises:
            ObjectNotFoundError: there is none, on proof.
            StorageUnavailableError: nothing can be said, or nothing but what is older than was seen.
        """
        for _ in range(_READS):
            chosen = await self.choose(key, unless)
            look = chosen.look
            if look.state == "absent":
                raise ObjectNotFoundError(f"there is no object {key} at {self._primary}.")
            if chosen.is_proof and look.version == unless:
                return None
            data = await self._whole(key, look, length, purpose)
            if data is not None:
                return Suffix(data[-length:], _size(look.version), look.version, chosen.is_proof)
            unless = None
        raise StorageUnavailableError(f"{key} is replaced faster than it can be read; try again.")

    async def _whole(self, key: str, look: Look, length: int, purpose: Purpose) -> bytes | None:
        """Return the last bytes of what was chosen, None where it was replaced meanwhile."""
        size = _size(look.version)
        if look.suffix is not None and len(look.suffix.data) >= min(length, size):
            return look.suffix.data
        places = [look.place, *(place for place in (self._primary, *self._copies) if place is not look.place)]
        patience = self._place_timeout + size / BYTES_PER_SECOND
        replaced = False
        error: StorageError | None = None
        for place in places:
            with anyio.move_on_after(None if place is places[-1] else patience) as scope:
                try:
                    found = await place.read_suffix(key, length, purpose=purpose)
                except StorageError as trouble:
                    error = error or trouble
                    continue
                if found is not None and found.version == look.version:
                    return found.data
                replaced = True
            if scope.cancelled_caught:
                place.was_late()
        if replaced:
            return None
        raise StorageUnavailableError(f"{key} cannot be read from {look.place} any more ({error}).") from error

    async def choose(self, key: str, unless: str | None = None) -> Chosen:
        """Find out what counts.

        Args:
            key: the head.
            unless: a version; where the primary is at it, its bytes are not read.

        Raises:
            StorageUnavailableError: see `read_suffix`.
        """
        if not self._copies:
            look = await self.look(key, unless, self._primary)
            if look.history is not None:
                self._saw(key, look.history, at_primary=True)
            return Chosen(look, is_proof=True)
        while True:
            floor = self._floors.get(key)
            async with Poll(partial(self.look, key, unless)) as poll:
                chosen = await self._choose(key, poll)
            if chosen is None:
                if self._floors.get(key) == floor:
                    raise self._unavailable(key, poll)
                continue  # another task saw more meanwhile; what is older than that was never handed out
            if chosen.look.history is not None:
                self._saw(key, chosen.look.history, at_primary=chosen.look.place is self._primary)
            return chosen

    async def _choose(self, key: str, poll: Poll[Look, Place]) -> Chosen | None:
        asked_last: list[Place] = []
        late: set[Place] = set()
        if self._primary.breaker.allows():
            poll.ask(self._primary)
            await self._wait(poll, late, lambda: bool(poll.running))
            if (chosen := self._by_primary(key, poll)) is not None:
                return chosen
        else:
            asked_last.append(self._primary)
        for copy in self._copies:
            if copy.breaker.allows():
                poll.ask(copy)
            else:
                asked_last.append(copy)
        while True:
            await self._wait(poll, late, lambda: self._by_primary(key, poll) is None and self._copies_still_read(poll))
            chosen = self._by_primary(key, poll) or self._by_copies(key, poll)
            if chosen is not None:
                return chosen
            if asked_last:
                for place in asked_last:
                    poll.ask(place)
                asked_last = []
            elif not poll.running:
                return None
            else:
                await poll.wait(anyio.sleep_forever)

    def _copies_still_read(self, poll: Poll[Look, Place]) -> bool:
        return any(place is not self._primary for place in poll.unanswered)

    async def _wait(self, poll: Poll[Look, Place], late: set[Place], goes_on: Callable[[], bool]) -> None:
        """Wait while something holds, for `place_timeout` at most; who has not answered by then has failed."""
        ends = time.monotonic() + self._place_timeout
        while goes_on():
            left = ends - time.monotonic()
            if left <= 0:
                for place in poll.unanswered - late:
                    place.was_late()
                late |= poll.unanswered
                return
            await poll.wait(partial(anyio.sleep, left))

    def _by_primary(self, key: str, poll: Poll[Look, Place]) -> Chosen | None:
        """Return what the primary says where that is enough."""
        for place, look in poll.outcome.results:
            if place is self._primary:
                is_enough = (
                    look.state == "newer"
                    or (look.state == "absent" and self._floors.get(key) is None)
                    or (look.state == "good" and not self.is_behind(key, look.history))
                )
                return Chosen(look, is_proof=True) if is_enough else None
        return None

    def _by_copies(self, key: str, poll: Poll[Look, Place]) -> Chosen | None:
        """Return what the copies that have answered say, with a primary that is behind or damaged; None where that is not enough."""
        floor = self._floors.get(key)
        looks = dict(poll.outcome.results)
        primary = looks.get(self._primary)
        copies = [looks[copy] for copy in self._copies if copy in looks]
        are_all = len(copies) == len(self._copies)
        good = [(look, look.history) for look in looks.values() if look.history is not None]
        if floor is not None:
            good = [one for one in good if one[1].lineage == floor.lineage and one[1].generation >= floor.generation]
        if good:
            look, _ = max(good, key=lambda one: one[1].generation)
            if any(one.state == "damaged" for one in looks.values()):
                self._found_damaged(key)
            are_all_sound = are_all and all(one.state in {"good", "absent"} and one.place.holds_store for one in copies)
            is_one_lineage = len({history.lineage for _, history in good}) == 1
            return Chosen(look, is_proof=are_all_sound and is_one_lineage and self.copies_prove)
        if not are_all:
            return None
        are_absent = all(one.state == "absent" and one.place.holds_store for one in copies)
        if primary is not None and primary.state == "absent" and all(one.state == "absent" for one in copies):
            self._floors.discard(key)
            return Chosen(primary, is_proof=True)
        if primary is not None and primary.state == "damaged":
            return Chosen(primary, is_proof=True)
        if primary is None and are_absent and floor is None and self.copies_prove:
            return Chosen(copies[0], is_proof=True)
        return None

    def _unavailable(self, key: str, poll: Poll[Look, Place]) -> StorageUnavailableError:
        troubles = "; ".join(f"{place}: {error}" for place, error in poll.outcome.errors)
        if self._floors.get(key) is not None:
            said = f"only older content of {key} can be read than was there before"
        else:
            said = f"what {key} is cannot be told without the primary or all copies"
        return StorageUnavailableError(f"{said} ({troubles or 'the primary is behind its copies'}); try again later.")

    # ---- looking at one place -----------------------------------------------------------------------------------------------

    async def look(self, key: str, unless: str | None, place: Place) -> Look:
        """Read the tail of a head at one place.

        Args:
            key: the head.
            unless: the primary need not read it again where it is at this version.
            place: who is asked.

        Raises:
            StorageError: the place is unwell.
        """
        if place is not self._primary or (unless is not None and self._histories.get((key, unless)) is None):
            unless = None
        for _ in range(_READS):
            try:
                suffix = await place.read_suffix(key, TAIL_READ_BYTES, unless=unless)
                if suffix is None:
                    return Look(place, "good", None, unless or "", self._histories.get((key, unless or "")))
                return await self._judged(key, place, suffix)
            except ObjectNotFoundError:
                return Look(place, "absent")
            except PreconditionFailedError:
                continue  # replaced between the two reads
        raise StorageUnavailableError(f"{key} at {place} is replaced faster than it can be read; try again.")

    async def _judged(self, key: str, place: Place, suffix: Suffix) -> Look:
        size, version, tail = suffix.total_size, suffix.version, suffix.data
        try:
            length = tail_length(tail, size)
            if length > len(tail):
                known = self._histories.get((key, version))
                if known is not None:
                    return Look(place, "good", suffix, version, known)
                start, end = size - length, size - len(tail)
                tail = await place.read_range(key, start, end, version=version, purpose="footer") + tail
            history, store_id = _stated(key, tail, size)
        except UnsupportedFormatError:
            return Look(place, "newer", suffix, version)
        except CorruptShardError:
            return Look(place, "damaged", suffix, version)
        self._histories.put((key, version), history)
        return Look(place, "good", suffix, version, history, store_id)


def _stated(key: str, tail: bytes, size: int) -> tuple[History, bytes]:
    """Return where a head stands, and the id of its store."""
    parsed = parse_tail(tail, size)
    if parsed.kind is not Kind.HEAD or parsed.identity.head_key != key:
        raise CorruptShardError(f"{key} is another shard's, or no head.")
    return History.of(parsed.tables), parsed.identity.store_id


def _size(version: str) -> int:
    return int(version.partition("-")[0])
