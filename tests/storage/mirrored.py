"""A storage of several places in memory, simple and to order: what zones mean to all that stands above the storage.

The first place is the primary. Reads fail over where a place is down; heads are put at the primary and follow to the copies by `settle`.
"""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from des.errors import ObjectNotFoundError, PreconditionFailedError, StorageError, StorageUnavailableError
from des.storage.protocol import Overwrite, PlaceState
from des.storage.testing import RecordingStorage
from des.storage.wrapper import StorageWrapper
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from typing import TypeVar

    from des.storage.protocol import ObjectInfo, ObjectWriter, Purpose, PutMode, Storage, Suffix
    from des.storage.wrapper import Call, Tally

    Result = TypeVar("Result")


@dataclass(slots=True)
class _Memory(MemoryStorage):
    """Tells versions by the last bytes, so that they are the same in every place."""

    def _set(self, key: str, data: bytes) -> str:
        MemoryStorage._set(self, key, data)
        version = f"{len(data)}-{hashlib.sha256(data[-64:]).hexdigest()[:16]}"
        self._objects[key] = replace(self._objects[key], version=version)
        return version


class Place(RecordingStorage):
    """One place: records what it is asked, and can be down.

    Attributes:
        is_down: whether every call fails.
        undeletable: objects that it does not delete.
    """

    def __init__(self, address: str) -> None:
        self.memory = _Memory(address=address)
        super().__init__(self.memory)
        self.is_down = False
        self.undeletable: set[str] = set()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        async with super().around(call) as tally:
            if self.is_down or (call.verb == "delete" and call.key in self.undeletable):
                raise StorageUnavailableError(f"{self.address} is down.")
            yield tally

    async def spoil(self, key: str, start: int = 0, end: int | None = None) -> None:
        """Flip all bits of an object's bytes `[start, end)`."""
        data = bytearray(self.memory.contents()[key])
        data[start:end] = bytes(byte ^ 0xFF for byte in data[start:end])
        await self.memory.put(key, bytes(data), Overwrite())


class Mirrored(StorageWrapper):
    """A primary and its copies.

    Attributes:
        places: the primary first.
        quorum: how many of them must hold a head before it is settled.
        settled: keys that were settled, in order.
        mended: keys that were found damaged in one place and good in another, in order.
    """

    def __init__(self, count: int = 3) -> None:
        self.places = [Place(f"place-{number}") for number in range(count)]
        self.quorum = count
        self.settled: list[str] = []
        self.mended: list[str] = []
        super().__init__(self.primary)
        self.address = "mirrored"

    @property
    def primary(self) -> Place:
        return self.places[0]

    @property
    def copies(self) -> list[Place]:
        return self.places[1:]

    def forget_calls(self) -> None:
        for place in self.places:
            place.calls.clear()
        self.settled.clear()
        self.mended.clear()

    async def read_suffix(
        self, key: str, length: int, *, unless: str | None = None, purpose: Purpose = "footer"
    ) -> Suffix | None:
        try:
            return await self.primary.read_suffix(key, length, unless=unless, purpose=purpose)
        except ObjectNotFoundError:
            if _is_head(key):
                raise
        except StorageUnavailableError:
            pass
        suffix = await self._any(key, lambda place: place.read_suffix(key, length, purpose=purpose))
        return replace(suffix, is_proof=not _is_head(key)) if suffix else None

    async def read_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> bytes:
        return await self._any(key, lambda place: place.read_range(key, start, end, version=version, purpose=purpose))

    @asynccontextmanager
    async def stream_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async with AsyncExitStack() as stack:

            async def opened(place: Storage) -> AsyncIterator[bytes]:
                stream = place.stream_range(key, start, end, version=version, purpose=purpose)
                return await stack.enter_async_context(stream)

            yield await self._any(key, opened)

    async def head(self, key: str) -> ObjectInfo:
        return await self._any(key, lambda place: place.head(key))

    async def put(self, key: str, data: bytes, mode: PutMode) -> str:
        version = await self.primary.put(key, data, mode)
        if not _is_head(key):
            for copy in self.copies:
                await copy.put(key, data, Overwrite())
        return version

    @asynccontextmanager
    async def open_writer(self, key: str) -> AsyncIterator[ObjectWriter]:
        async with AsyncExitStack() as stack:
            up = [self.primary, *(copy for copy in self.copies if not copy.is_down)]
            yield _Writers([await stack.enter_async_context(place.open_writer(key)) for place in up])

    async def delete(self, key: str) -> None:
        failure: StorageError | None = None
        for place in reversed(self.places):
            try:
                await place.delete(key)
            except StorageError as error:
                failure = error
        if failure is not None:
            raise failure

    async def settle(self, key: str) -> None:
        self.settled.append(key)
        wanted = {
            one: data
            for one, data in self.primary.memory.contents().items()
            if one == key or one.startswith(key.removesuffix(".des") + "/")
        }
        if self.primary.is_down:
            raise StorageUnavailableError(f"{self.primary.address} is down.")
        if key not in wanted:
            return
        up = [copy for copy in self.copies if not copy.is_down]
        for copy in up:
            for one, data in wanted.items():
                await copy.memory.put(one, data, Overwrite())
        if 1 + len(up) < self.quorum:
            raise StorageUnavailableError(
                f"{key} is committed, but only {1 + len(up)} of {self.quorum} places hold it."
            )

    def alternatives(self, key: str) -> Sequence[Storage]:
        del key
        return self.places

    def mend(self, key: str) -> None:
        self.mended.append(key)

    def states(self) -> Sequence[PlaceState]:
        return [PlaceState("zone", place.address, place is self.primary, not place.is_down) for place in self.places]

    async def _any(self, key: str, ask: Callable[[Storage], Awaitable[Result]]) -> Result:
        """Return what the first place says that can; "not there" only where all say so."""
        failures: list[StorageError] = []
        for place in self.places:
            try:
                return await ask(place)
            except (ObjectNotFoundError, PreconditionFailedError) as error:
                failures.append(error)
            except StorageUnavailableError as error:
                failures.insert(0, error)
        failure = failures[0]
        if _is_head(key) and isinstance(failure, ObjectNotFoundError) and self.primary.is_down:
            raise StorageUnavailableError(f"{self.primary.address} is down.") from failure
        raise failure


class _Writers:
    def __init__(self, writers: Sequence[ObjectWriter]) -> None:
        self._writers = writers

    async def write(self, data: bytes) -> None:
        for writer in self._writers:
            await writer.write(data)


def _is_head(key: str) -> bool:
    return key.count("/") == 1
