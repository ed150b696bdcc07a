"""The storage contract: few verbs, and their errors are part of it.

Rules that every backend keeps and `tests/storage/contract.py` holds:

1. Objects are whole or absent. A writer that fails or is cancelled leaves nothing that `list` shows.
2. A *version* names one content of one key: it changes with every replacement. It is opaque, and no checksum.
3. An object read without a version is immutable by contract (a segment): a backend may keep it open for a while. An object
   that is ever replaced (a head, the descriptor) is read by `read_suffix`, or by `read_range` with its version.
4. Ranges are half-open `[start, end)`. A read returns the bytes that exist in the range: shorter only where the *object*
   ends, never because a reply broke. Past the end it is empty.
5. A conditional `put` that fails with anything but a clear refusal may have been applied: see the commit protocol.
6. Any verb may raise `StorageUnavailableError`, `StorageTimeoutError` or `StorageDeniedError`; the docstrings name what
   comes on top. Nothing else escapes but cancellation.
7. `purpose` says what a read is for. Backends ignore it; meters and recorders count by it.
8. A storage may have several places that hold the same objects (`ZonedStorage`). It fails over by itself where a place is unwell; what only
   the reader can tell, that bytes are damaged, the reader takes to `alternatives`. What was committed counts once `settle` has returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

Purpose = Literal["footer", "index", "payload"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a storage knows of an object.

    Attributes:
        key: relative to the store's root.
        size: bytes.
        version: opaque; "" where a listing does not know it.
        modified: when it was last written, by the storage's own clock.
    """

    key: str
    size: int
    version: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class Suffix:
    """The end of an object.

    Attributes:
        data: its last bytes.
        total_size: the whole object's size in bytes.
        version: the one they were read at.
        is_proof: False where a copy answered that may lag behind: what this content lacks may be there all the same.
    """

    data: bytes
    total_size: int
    version: str
    is_proof: bool = True


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a write that was broken off left behind: a temporary file, or the parts of an upload. No listing shows it.

    Attributes:
        key: the object that was being written, as far as the storage knows it.
        token: what the storage knows the leftover by.
        began: when the write began or last went on, by the storage's own clock.
    """

    key: str
    token: str
    began: datetime


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a listing: the objects directly under a prefix, and the prefixes below it, each ending in a slash."""

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IfAbsent:
    """Put only where there is no object."""


@dataclass(frozen=True, slots=True)
class IfVersion:
    """Put only in place of exactly this version."""

    version: str


@dataclass(frozen=True, slots=True)
class Overwrite:
    """Put whatever is there."""


PutMode = IfAbsent | IfVersion | Overwrite


@dataclass(frozen=True, slots=True)
class PlaceState:
    """How a place fares.

    Attributes:
        zone: the zone it belongs to.
        place: its address, for people and labels.
        is_primary: whether it is the one whose heads are compared and swapped.
        is_well: False while it is left alone because it failed.
    """

    zone: str
    place: str
    is_primary: bool
    is_well: bool


class ObjectWriter(Protocol):
    """A new object being written, part by part."""

    async def write(self, data: bytes) -> None:
        """Append bytes. May return before they are durable; a failure then shows at a later call or at the end.

        Raises:
            StorageError: the object will not be.
        """


class Storage(Protocol):
    """A place for immutable segments, and for heads that are compared and swapped. All verbs are safe to run at once.

    Attributes:
        backend: `local`, `s3` or `multi_s3`: the label in metrics.
        address: where it is, for people.
    """

    backend: str
    address: str

    async def read_suffix(
        self, key: str, length: int, *, unless: str | None = None, purpose: Purpose = "footer"
    ) -> Suffix | None:
        """Read the last `length` bytes of an object, or all of a smaller one, with its size and version.

        Args:
            key: the object.
            length: bytes, at least 1.
            unless: a version: where the object is still at it, nothing is read.
            purpose: what the read is for.

        Returns:
            The suffix, or None where the object is still at version `unless`, on proof.

        Raises:
            ObjectNotFoundError: there is no such object.
        """

    async def read_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> bytes:
        """Read `[start, end)`, cut at the object's end.

        Args:
            key: the object.
            start: first byte, 0 or more.
            end: one past the last byte, more than start.
            version: read only at this version. None: the object is immutable.
            purpose: what the read is for.

        Raises:
            ObjectNotFoundError: there is no such object.
            PreconditionFailedError: it is at another version.
        """

    def stream_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read `[start, end)` piece by piece in bounded memory; the pieces have any size but zero.

        Arguments and errors as for `read_range`; errors come at entry or from the iterator.
        """

    async def head(self, key: str) -> ObjectInfo:
        """Ask for an object's size, version and time.

        Raises:
            ObjectNotFoundError: there is no such object.
        """

    async def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """Write a whole object and return its version.

        Raises:
            PreconditionFailedError: the condition does not hold. A missing object fails `IfVersion` this way too. After a
                retry beneath this call it may report the failure of its own success.
        """

    def open_writer(self, key: str) -> AbstractAsyncContextManager[ObjectWriter]:
        """Write a large new object part by part: there as a whole after a clean exit of the context, else not at all."""

    async def list_level(self, prefix: str) -> Level:
        """List one level below `prefix` ("" or ending in a slash), complete, both parts in order of their keys."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """List all objects whose key starts with `prefix`, in order of their keys."""

    async def delete(self, key: str) -> None:
        """Delete an object, from all places; deleting what is not there is done already. Where it fails, some of several places may have it still."""

    async def now(self) -> datetime:
        """Return the time by the clock that `modified` and `began` are told by."""

    def list_leftovers(self) -> AsyncIterator[Leftover]:
        """List what broken-off writes left behind, and what is being written right now: only their age tells the two apart."""

    async def discard(self, leftover: Leftover) -> None:
        """Remove a leftover; one that is gone is removed already. Whoever is still writing it fails."""

    async def check_conditional_writes(self, key: str) -> None:
        """Prove that two writers here cannot both win: the condition for sharing the store between writers.

        Args:
            key: an existing object (the descriptor) that may be rewritten with its own bytes, so that nothing is left behind.

        Raises:
            SettingsError: the storage cannot do conditional writes; the sentence names the cure.
        """

    async def settle(self, key: str) -> None:
        """Bring as many places as must hold it up to a head that was put, or found to be right as it is: before anything in it is acknowledged.

        Where there is no such head any more, there is nothing to do.

        Raises:
            StorageUnavailableError: too few places hold it. It may be done later by calling again.
        """

    def alternatives(self, key: str) -> Sequence[Storage]:
        """Return the places that hold an object, each as a storage of its own, for whoever found what it read damaged; none where there is only one.

        They tell versions as this storage does: a version that either gives is understood by the other. The descriptor is held by all places. A head is
        what that one place has, whatever was seen elsewhere; that it lacks something proves nothing.
        """

    def mend(self, key: str) -> None:
        """Take note that an object is damaged in one of its places and good in another. Returns at once."""

    def states(self) -> Sequence[PlaceState]:
        """Return how the places fare; none where there is only one."""

    async def aclose(self) -> None:
        """Release connections and descriptors. May be called twice."""


class SinglePlace:
    """What the verbs about several places mean to a storage that has one: mixed into such backends."""

    async def settle(self, key: str) -> None:
        """Return: what was put is where it belongs."""

    def alternatives(self, key: str) -> Sequence[Storage]:
        """Return none."""
        del key
        return ()

    def mend(self, key: str) -> None:
        """Do nothing: there is nothing to mend it from."""

    def states(self) -> Sequence[PlaceState]:
        """Return none."""
        return ()
