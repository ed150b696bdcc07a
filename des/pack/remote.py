"""Sources on S3: `s3://bucket/key` where a row could name a path.

Small ones are fetched whole, many at once, before their batch goes to a worker thread; large ones are streamed when their turn to be written comes,
held to the version at which their size was taken. Rules:

1. What is fetched and not yet encoded fits into one budget of bytes. A source of unknown size reserves as much as a small one may have.
2. A batch waits for the budget only while it holds nothing of it; else it goes on with what it has. So no two batches wait for each other.
3. What S3 says of one address (no such object or bucket, access denied, archived, changed) is the trouble of that row. Everything else (unreachable,
   overloaded, refused credentials) would hit every row, and stops the run.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from des.errors import ObjectNotFoundError, PreconditionFailedError, StorageDeniedError, StorageError
from des.pack.sources import PIECE_BYTES, SourceError, check_size
from des.shard.chunking import LARGE_BYTES
from des.storage.opening import SourceBuckets
from des.tasks import open_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence

    from des.errors import Status
    from des.pack.plan import PlannedRow
    from des.storage.protocol import Storage

SCHEME = "s3://"
# What botocore takes for the name of a bucket, less access points.
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_MAX_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class RemoteLarge:
    """A large source on S3: its size in bytes, and the version it had then."""

    size: int
    version: str


Fetched = bytes | RemoteLarge | SourceError


@dataclass(frozen=True, slots=True)
class Fetch:
    """Rows that can be encoded now.

    Attributes:
        rows: the first of those that were asked for.
        rest: those that did not fit.
        content: what came of those on S3, by row number.
    """

    rows: Sequence[PlannedRow]
    rest: Sequence[PlannedRow]
    content: Mapping[int, Fetched]


def is_remote(row: PlannedRow) -> bool:
    """Tell whether a row's source is on S3."""
    return row.source_path.startswith(SCHEME)


class RemoteSources:
    """The S3 sources of what is packed in one process."""

    def __init__(self, buckets: SourceBuckets | None, budget_bytes: int) -> None:
        """Fetch nothing yet.

        Args:
            buckets: where the sources are; None: rows that name one fail.
            budget_bytes: what may be held of them, at least `LARGE_BYTES`.
        """
        self._buckets = buckets
        self._budget = _Budget(budget_bytes)
        self._requests = anyio.Semaphore(buckets.max_connections if buckets else 1)

    @asynccontextmanager
    async def fetched(self, rows: Sequence[PlannedRow]) -> AsyncIterator[Fetch]:
        """Fetch the small sources among rows; what is fetched counts against the budget until the context ends.

        Raises:
            StorageError: the storage is unwell.
        """
        if not any(row.source_path.startswith(SCHEME) for row in rows):
            yield Fetch(rows, (), {})
            return
        batch = _Batch(self._budget)
        try:
            end = await self._fetch(rows, batch)
            yield Fetch(rows[:end], rows[end:], batch.content)
        finally:
            batch.release()

    async def _fetch(self, rows: Sequence[PlannedRow], batch: _Batch) -> int:
        """Fetch into a batch; return how many of the rows, counted from the first, it can be encoded with."""
        end = len(rows)
        async with open_tasks() as tasks:
            for index, row in enumerate(rows):
                if not is_remote(row):
                    continue
                reserved = _to_reserve(row)
                if not await batch.reserve(reserved):
                    end = index
                    break
                tasks.start_soon(self._fetch_one, row, batch, reserved)
            await batch.landed()
        return end

    async def _fetch_one(self, row: PlannedRow, batch: _Batch, reserved: int) -> None:
        found: Fetched
        try:
            async with self._requests:
                found = await self._read(row, reserved)
        except SourceError as error:
            found = error
        batch.land(row, found, reserved)

    async def _read(self, row: PlannedRow, reserved: int) -> bytes | RemoteLarge:
        storage, key = await self._place(row)
        with self._row_trouble():
            if not reserved:
                info = await storage.head(key)
                check_size(row, info.size)
                return RemoteLarge(info.size, info.version)
            suffix = await storage.read_suffix(key, reserved, purpose="payload")
        if suffix is None:  # only where a version was named
            raise SourceError("the source cannot be read.")
        check_size(row, suffix.total_size)
        return RemoteLarge(suffix.total_size, suffix.version) if suffix.total_size > LARGE_BYTES else suffix.data

    async def read_large(self, row: PlannedRow, size: int, version: str) -> AsyncGenerator[bytes, None]:
        """Read a large source in pieces of whole chunks. Whoever does not read it to its end closes the generator.

        Raises:
            SourceError: it cannot be read, or is not at `version` any more.
            StorageError: the storage is unwell.
        """
        storage, key = await self._place(row)
        with self._row_trouble():
            async with storage.stream_range(key, 0, size, version=version) as arriving:
                gathered: list[bytes] = []
                held = left = 0
                async for piece in arriving:
                    gathered.append(piece)
                    held += len(piece)
                    while held >= PIECE_BYTES:
                        joined = b"".join(gathered)
                        gathered, held = [joined[PIECE_BYTES:]], held - PIECE_BYTES
                        left += PIECE_BYTES
                        yield joined[:PIECE_BYTES]
                if left + held != size:
                    raise SourceError(f"the source became shorter while it was read (it had {size} bytes).")
                if held:
                    yield b"".join(gathered)

    async def _place(self, row: PlannedRow) -> tuple[Storage, str]:
        bucket, _, key = row.source_path.removeprefix(SCHEME).partition("/")
        if _BUCKET.fullmatch(bucket) is None or not key:
            raise SourceError("the source is no address such as s3://bucket/key.")
        try:
            length = len(key.encode())
        except UnicodeEncodeError as error:
            raise SourceError("the source's key is not UTF-8.") from error
        if length > _MAX_KEY_BYTES:
            raise SourceError(f"the source's key has {length} bytes; S3 takes {_MAX_KEY_BYTES}.")
        if self._buckets is None:
            raise SourceError("sources on S3 cannot be read here.")
        return await self._buckets.storage(bucket), key

    @contextmanager
    def _row_trouble(self) -> Iterator[None]:
        """Turn the errors of one address into `SourceError`."""
        try:
            yield
        except ObjectNotFoundError as error:
            raise SourceError(f"the source cannot be read: {error}") from error
        except PreconditionFailedError as error:
            raise SourceError("the source changed while it was read.") from error
        except StorageError as error:
            if not SourceBuckets.is_about_address(error):
                raise
            status: Status = "denied" if isinstance(error, StorageDeniedError) else "invalid"
            raise SourceError(f"the source cannot be read: {error}", status) from error


def _to_reserve(row: PlannedRow) -> int:
    """Return how many bytes to ask for at once: all that a small source may have, none of one known to be large."""
    if row.size_bytes is None:
        return LARGE_BYTES
    return 0 if row.size_bytes > LARGE_BYTES else max(1, row.size_bytes)


class _Batch:
    """What is being fetched, and was, for one batch; holds a part of the budget for it."""

    def __init__(self, budget: _Budget) -> None:
        self.content: dict[int, Fetched] = {}
        self._budget = budget
        self._held = 0
        self._under_way = 0
        self._landed = anyio.Event()

    async def reserve(self, size: int) -> bool:
        """Take a part of the budget for one more source; False: encode those that are there first."""
        while not self._budget.take_now(size):
            if self._under_way:  # each gives back what it turned out not to need
                await self._next_landing()
            elif self._held:
                return False
            else:
                await self._budget.take(size)
                break
        self._held += size
        self._under_way += 1
        return True

    def land(self, row: PlannedRow, found: Fetched, reserved: int) -> None:
        """Keep what came of a source, and give back what it does not need of its part."""
        kept = len(found) if isinstance(found, bytes) else 0
        self.content[row.number] = found
        self._held += kept - reserved
        self._budget.give(reserved - kept)
        self._under_way -= 1
        self._landed.set()

    async def landed(self) -> None:
        """Wait for what is under way."""
        while self._under_way:
            await self._next_landing()

    def release(self) -> None:
        """Give back all of it."""
        self._budget.give(self._held)
        self._held = 0

    async def _next_landing(self) -> None:
        self._landed = anyio.Event()
        await self._landed.wait()


class _Budget:
    """Bytes that batches share. Whoever waits is first: nobody takes past it."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._turn = anyio.Lock()
        self._given = anyio.Event()

    def take_now(self, size: int) -> bool:
        if self._turn.locked() or size > self._free:
            return False
        self._free -= size
        return True

    async def take(self, size: int) -> None:
        async with self._turn:
            while size > self._free:
                self._given = anyio.Event()
                await self._given.wait()
            self._free -= size

    def give(self, size: int) -> None:
        self._free += size
        self._given.set()
