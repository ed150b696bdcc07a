"""One zone: the places that hold a range of shard indices, read through trouble and written with care.

Rules:

1. Segments are immutable and the same everywhere: reads go to the first place that is well, to the next when one fails, lacks the object or takes longer
   than `place_timeout`; the first good answer counts. Reads of one range are *hedged*: one that takes longer than most do at its place is asked again at
   the next, as far as the budget goes.
2. "No such object" needs the word of all places; "at another version" that of one, where none has the version: whoever hears it reads the head again.
3. Heads are read as `zone_heads` says, and put at the primary alone; `zone_settling` brings them to the copies.
4. Segments are written to all places at once. A copy that fails is dropped, and brought up later; the primary's failure is the writer's.
5. Deleting asks the copies first. Where one of them fails the failure is raised after all others were asked; a head then stays at the primary, so that
   it is found again.
6. A place whose breaker is open is asked last, a probe now and then aside.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import anyio

from des.errors import (
    CorruptShardError,
    DESError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageDeniedError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.storage.hedging import Hedging
from des.storage.latency import HedgeBudget
from des.storage.protocol import IfVersion
from des.storage.racing import Outcome, race
from des.storage.zone_heads import BYTES_PER_SECOND, HeadReader
from des.storage.zone_keys import is_head
from des.storage.zone_observer import NobodyObserves
from des.storage.zone_writer import open_everywhere
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from des.storage.place import Place
    from des.storage.protocol import ObjectInfo, ObjectWriter, Purpose, PutMode, Suffix
    from des.storage.zone_observer import ZoneObserver

T = TypeVar("T")


class Zone:
    """A zone.

    Attributes:
        name: of the zone.
        start: its first shard index.
        end: its last one, included.
        places: the primary, then the copies.
        primary: the first of them.
        copies: the others.
        quorum: how many places, the primary included, must hold a commit.
        place_timeout: seconds for one attempt at one place while there are others.
        heads: reads its heads.
        when_damaged: told the keys of objects that are damaged at one of the places.
    """

    def __init__(
        self,
        name: str,
        start: int,
        end: int,
        places: Sequence[Place],
        *,
        quorum: int | None = None,
        place_timeout: float = 2.0,
        budget: HedgeBudget | None = None,
        observer: ZoneObserver | None = None,
    ) -> None:
        """Take over open places.

        Args:
            name: see the class, likewise `start`, `end`, `places` and `place_timeout`.
            start: see there.
            end: see there.
            places: see there.
            quorum: see there; None means all.
            place_timeout: see there.
            budget: pays for hedges; None: there are none.
            observer: told of hedges and failovers.
        """
        self.name, self.start, self.end = name, start, end
        self.places = tuple(places)
        self.primary, *self.copies = self.places
        self.quorum = quorum or len(self.places)
        self.place_timeout = place_timeout
        self.observer = observer or NobodyObserves()
        self.when_damaged: Callable[[str], None] | None = None
        self._budget = budget or HedgeBudget(0)
        self.heads = HeadReader(
            self.places,
            place_timeout=place_timeout,
            copies_prove=self.quorum > 1,
            found_damaged=self.damaged,
        )

    def damaged(self, key: str) -> None:
        """Take note that an object is damaged at one of the places."""
        if self.when_damaged is not None:
            self.when_damaged(key)

    # ---- reading ------------------------------------------------------------------------------------------------------------

    async def read_suffix(self, key: str, length: int, unless: str | None, purpose: Purpose) -> Suffix | None:
        """See `Storage.read_suffix`."""
        if is_head(key):
            return await self.heads.read_suffix(key, length, unless, purpose)

        async def read(place: Place) -> Suffix | None:
            return await place.read_suffix(key, length, unless=unless, purpose=purpose)

        return await self.first_good(key, read, length)

    async def read_range(self, key: str, start: int, end: int, version: str | None, purpose: Purpose) -> bytes:
        """See `Storage.read_range`."""

        async def read(place: Place) -> bytes:
            return await place.read_range(key, start, end, version=version, purpose=purpose)

        return await self.first_good(key, read, end - start, is_hedged=version is None)

    @asynccontextmanager
    async def stream_range(
        self, key: str, start: int, end: int, version: str | None, purpose: Purpose
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Storage.stream_range`. Where a place fails midway, the next goes on from the offset that was reached.

        Places are asked one after another, each in the task of the reader: what a stream holds belongs to that.
        """
        async with AsyncExitStack() as stack:
            stream = _Stream(self, key, start, end, version, purpose)
            stack.push_async_callback(stream.aclose)
            pieces = stream.pieces(await stream.next_piece())
            yield await stack.enter_async_context(aclosing(pieces))

    async def probe(self, key: str) -> ObjectInfo:
        """Do as `Storage.head` for a segment, whose version does not matter: it is left out."""
        info = await self.first_good(key, lambda place: place.probe(key))
        return replace(info, version="")

    async def head(self, key: str) -> ObjectInfo:
        """See `Storage.head`."""
        if not is_head(key):
            return await self.probe(key)
        while True:
            chosen = await self.heads.choose(key)
            if chosen.look.state == "absent":
                raise ObjectNotFoundError(f"there is no object {key} at {self.primary}.")
            info = await chosen.look.place.head(key)
            if info.version == chosen.look.version:
                return info

    async def first_good(
        self, key: str, read: Callable[[Place], Awaitable[T]], size: int = 0, *, is_hedged: bool = False
    ) -> T:
        """Ask the places until one of them answers, and return the first answer.

        Args:
            key: what is asked for, for messages.
            read: asks one place.
            size: bytes that may come, for which a place is given more time.
            is_hedged: see rule 1 of this module.

        Raises:
            ObjectNotFoundError, PreconditionFailedError: see rule 2.
            StorageError: no place can be read.
        """
        if not self.copies:
            return await read(self.primary)
        longest = self.place_timeout + size / BYTES_PER_SECOND
        budget = self._budget if is_hedged else None
        hedging = Hedging(self.in_order(), len(self.places), longest, budget)
        outcome = await race(hedging.contenders(), read, hedging)
        if not outcome.results:
            raise self.error_of(key, outcome)
        winner, result = outcome.results[0]
        hedging.won(winner, self.observer)
        return result

    def in_order(self) -> Iterator[Place]:
        """Yield the places in the order in which they are asked; each only when it will be, because that may make it a breaker's probe."""
        left_alone = []
        for place in self.places:
            if place.breaker.allows():
                yield place
            else:
                left_alone.append(place)
        yield from left_alone

    def error_of(self, key: str, outcome: Outcome[T, Place]) -> DESError:
        """Return what it means that all places have failed."""
        errors = [error for _, error in outcome.errors]
        stranger = next((error for error in errors if not isinstance(error, StorageError)), None)
        if stranger is not None:
            return stranger
        if all(isinstance(error, ObjectNotFoundError) for error in errors):
            return errors[0]
        moved = next((error for error in errors if isinstance(error, PreconditionFailedError)), None)
        if moved is not None:
            return moved
        kind = next(
            (
                kind
                for kind in (StorageTimeoutError, StorageDeniedError)
                if all(isinstance(error, kind | ObjectNotFoundError) for error in errors)
            ),
            StorageUnavailableError,
        )
        told = "; ".join(f"{place}: {error}" for place, error in outcome.errors)
        error = kind(f"{key} cannot be read from any place of zone {self.name}: {told}")
        error.__cause__ = next(error for error in errors if not isinstance(error, ObjectNotFoundError))
        return error

    # ---- writing ------------------------------------------------------------------------------------------------------------

    async def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """See `Storage.put`: at the primary."""
        try:
            version = await self.primary.put(key, data, mode)
        except (StorageUnavailableError, StorageTimeoutError, StorageDeniedError) as error:
            raise type(error)(
                f"{key} cannot be written, because the primary of zone {self.name} cannot ({error}); the zone takes no writes until it can."
            ) from error
        except PreconditionFailedError as error:
            if self.copies and isinstance(mode, IfVersion) and self.heads.knows(key, mode.version):
                await self._refuse_damaged_primary(key, error)
            raise
        if is_head(key):
            self.heads.wrote(key, data, version)
        return version

    async def _refuse_damaged_primary(self, key: str, refusal: PreconditionFailedError) -> None:
        """Tell damage, for which a copy stood in when the head was read, from a head that others have replaced."""
        if (await self.heads.look(key, None, self.primary)).state == "damaged":
            self.damaged(key)
            raise CorruptShardError(
                f"{key} is damaged at {self.primary}, and whole at a copy only; nothing is written to the shard until it is mended, by"
                " `read_repair: true` in the zones file or by `des zones sync`."
            ) from refusal

    def open_writer(self, key: str) -> AbstractAsyncContextManager[ObjectWriter]:
        """See `Storage.open_writer`: at all places."""
        return open_everywhere(self.primary, [copy for copy in self.copies if copy.breaker.allows()], key)

    async def delete(self, key: str) -> None:
        """See `Storage.delete`: at all places, see rule 5."""
        failures = await self.everywhere(self.copies, lambda place: place.delete(key))
        if not (failures and is_head(key)):
            failures += await self.everywhere([self.primary], lambda place: place.delete(key))
        if failures:
            place, error = failures[0]
            kind = type(error) if isinstance(error, StorageError) else StorageUnavailableError
            raise kind(f"{key} cannot be deleted at {place} ({error}); run again when it can.") from error
        if is_head(key):
            self.heads.forget(key)

    @staticmethod
    async def everywhere(
        places: Sequence[Place], act: Callable[[Place], Awaitable[object]]
    ) -> list[tuple[Place, DESError]]:
        """Do something at several places at once, and return those that failed, each with its error."""
        failures: list[tuple[Place, DESError]] = []

        async def run(place: Place) -> None:
            try:
                await act(place)
            except DESError as error:
                failures.append((place, error))

        await run_all(run, places, len(places))
        return failures

    async def aclose(self) -> None:
        """Close all places."""
        for place in self.places:
            await place.aclose()


class _Stream:
    """A range being streamed from one place at a time."""

    def __init__(self, zone: Zone, key: str, start: int, end: int, version: str | None, purpose: Purpose) -> None:
        self._zone = zone
        self._key = key
        self._position = start
        self._end = end
        self._version = version
        self._purpose = purpose
        self._turns = zone.in_order()
        self._outcome: Outcome[bytes, Place] = Outcome()
        self._left = len(zone.places)
        self._place: Place | None = None
        self._opened = AsyncExitStack()
        self._arriving: AsyncIterator[bytes]

    async def pieces(self, piece: bytes) -> AsyncGenerator[bytes, None]:
        while piece:
            yield piece
            piece = await self.next_piece()

    async def next_piece(self) -> bytes:
        """Return the next piece, from the next place where the one at hand fails; b"" at the end.

        Raises:
            StorageError: no place is left.
        """
        while self._position < self._end:
            place = self._place or self._next_place()
            with anyio.move_on_after(self._zone.place_timeout if self._left else None) as scope:
                try:
                    piece = await self._piece(place)
                except DESError as error:
                    self._outcome.errors.append((place, error))
                else:
                    self._position += len(piece)
                    return piece
            if scope.cancelled_caught:
                place.was_late()
                late = f"no answer within {self._zone.place_timeout} s."
                self._outcome.errors.append((place, StorageTimeoutError(late)))
            self._place = None
            await self.aclose()
        return b""

    async def _piece(self, place: Place) -> bytes:
        if self._place is None:
            opened = place.stream_range(
                self._key, self._position, self._end, version=self._version, purpose=self._purpose
            )
            self._arriving = await self._opened.enter_async_context(opened)
            piece = await anext(self._arriving, b"")
            self._place = place
            if self._outcome.errors:
                self._zone.observer.failed_over(place.address)
            return piece
        return await anext(self._arriving, b"")

    def _next_place(self) -> Place:
        place = next(self._turns, None)
        if place is None:
            raise self._zone.error_of(self._key, self._outcome)
        self._left -= 1
        return place

    async def aclose(self) -> None:
        await self._opened.aclose()
