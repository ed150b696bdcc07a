"""Objects as files under one base directory.

Rules:

1. Writes are whole: see `publishing`. A reader sees the object that was, or the one that is, never a part.
2. Replacing, comparing and deleting a key happen under its lock (see `locks`), in one worker-thread call each. A writer
   (`open_writer`) makes a new object under a fresh name and takes no lock.
3. Objects read without a version are immutable: their files stay open for a while (see `open_files`), and small reads that
   the page cache can answer never leave the event loop. Everything else that may wait for a disk is in a worker thread.
4. A call that was cancelled has either had no effect or all of it. It waits for its worker thread; where the event loop
   does not let it, the thread still tidies up on its own.
5. An `OSError` becomes an error of the contract in one place, `_translated`, which never surrounds the caller's own code.
"""

from __future__ import annotations

import errno
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import aiofiles.threadpool
from anyio import CancelScope, CapacityLimiter, to_thread
from anyio.lowlevel import cancel_shielded_checkpoint

from des.errors import (
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageUnavailableError,
)
from des.storage.locks import KeyLocks
from des.storage.open_files import VERSION_BYTES, Descriptor, DescriptorCache, OwnedFile, version_tag
from des.storage.paths import LOCKS_DIRECTORY, key_of, path_of, scan_backwards, scan_level, scan_temporaries
from des.storage.protocol import IfAbsent, IfVersion, Level, ObjectInfo, Overwrite, SinglePlace, Suffix
from des.storage.publishing import Directories, PendingFile

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from des.storage.paths import Entry
    from des.storage.protocol import Leftover, ObjectWriter, Purpose, PutMode

INLINE_BYTES = 256 * 1024
PIECE_BYTES = 256 * 1024
WRITE_BYTES = 1024 * 1024

_LOCKED_CALLS = 32
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

_Args = TypeVarTuple("_Args")
_T = TypeVar("_T")


class LocalStorage(SinglePlace):
    """A store in a directory; see `des.storage.protocol.Storage` for the contract of each verb.

    Attributes:
        backend: `local`.
        address: the base directory.
    """

    def __init__(self, base_dir: Path, *, single_writer: bool = False) -> None:
        """Touch nothing yet.

        Args:
            base_dir: need not exist for reading: everything is absent then. Writing makes it.
            single_writer: only this process ever writes here: go on where the file system has no locks.
        """
        self.backend = "local"
        self.address = str(base_dir)
        self._base = base_dir
        self._directories = Directories(base_dir)
        self._locks = KeyLocks(base_dir / LOCKS_DIRECTORY, self._directories, single_writer=single_writer)
        # Calls that may wait for a lock have threads of their own, so that they take none from those that do not.
        self._locked_calls = CapacityLimiter(_LOCKED_CALLS)
        self._descriptors = DescriptorCache()
        self._scratch = memoryview(bytearray(INLINE_BYTES))

    async def read_suffix(
        self,
        key: str,
        length: int,
        *,
        unless: str | None = None,
        purpose: Purpose = "footer",  # noqa: ARG002 - for wrappers that meter
    ) -> Suffix | None:
        """Read the end of an object, from one descriptor with its version."""
        return await self._read(key, _read_suffix, self._path(key), length, unless)

    async def read_range(
        self,
        key: str,
        start: int,
        end: int,
        *,
        version: str | None = None,
        purpose: Purpose = "payload",  # noqa: ARG002 - for wrappers that meter
    ) -> bytes:
        """Read a range. Does not yield to the event loop where the page cache has a small one."""
        if version is not None:
            return await self._read(key, _read_at_version, self._path(key), start, end, version)
        descriptor = self._descriptors.get(key)
        if descriptor is None:
            opened, data = await self._read(key, _open_and_read, self._path(key), start, end)
            self._descriptors.add(key, opened)
            return data
        if end - start <= INLINE_BYTES:
            cached = descriptor.read_nowait(start, end, self._scratch)
            if cached is not None:
                return cached
        return await self._read(key, descriptor.read, start, end)

    @asynccontextmanager
    async def stream_range(
        self,
        key: str,
        start: int,
        end: int,
        *,
        version: str | None = None,
        purpose: Purpose = "payload",  # noqa: ARG002 - for wrappers that meter
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read a range in pieces of 256 KiB, from one descriptor."""
        pieces = self._pieces(key, await self._read(key, _open_at, self._path(key), start, version), end - start)
        async with aclosing(pieces):
            yield pieces

    async def _pieces(self, key: str, file: OwnedFile, length: int) -> AsyncGenerator[bytes, None]:
        reader = aiofiles.threadpool.wrap(file)
        while length > 0:
            with self._translated(key, "read"):
                piece = await reader.read(min(PIECE_BYTES, length))
            if not piece:
                return
            length -= len(piece)
            yield piece

    async def head(self, key: str) -> ObjectInfo:
        """Ask for an object's size, version and time."""
        return await self._read(key, _read_info, self._path(key), key)

    async def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """Write a whole object under the lock of its key, and return its version.

        Waits for the lock, uncancelled, as long as another process holds it.
        """
        with self._translated(key, "write"):
            version = await to_thread.run_sync(self._put, key, self._path(key), data, mode, limiter=self._locked_calls)
        self._descriptors.discard(key)
        return version

    def _put(self, key: str, path: Path, data: bytes, mode: PutMode) -> str:
        with self._locks.hold(key):
            _check(path, mode)
            pending = PendingFile(path, self._directories)
            try:
                pending.create()
                pending.write((data,))
                pending.publish()
            except BaseException:
                pending.discard()
                raise
        return version_tag(len(data), data[-VERSION_BYTES:])

    @asynccontextmanager
    async def open_writer(self, key: str) -> AsyncIterator[ObjectWriter]:
        """Write a new object under a temporary name, published at the clean end of the context."""
        pending = PendingFile(self._path(key), self._directories)
        writer = _Writer(lambda pieces: self._write(key, pending.write, pieces))
        try:
            yield writer
            await self._write(key, pending.complete_new, writer.rest())
        except BaseException:
            with CancelScope(shield=True):
                await to_thread.run_sync(pending.discard)
            raise
        self._descriptors.discard(key)

    async def list_level(self, prefix: str) -> Level:
        """List one level, from one scan of a directory."""
        with self._translated(prefix, "list"):
            return await to_thread.run_sync(scan_level, self._base, prefix)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """List objects in order of their keys, holding the entries of one directory per level."""
        pending = await self._entries(prefix[: prefix.rfind("/") + 1])
        pending = [entry for entry in pending if key_of(entry).startswith(prefix)]
        while pending:
            entry = pending.pop()
            if isinstance(entry, ObjectInfo):
                yield entry
            else:
                pending += await self._entries(entry)

    async def _entries(self, prefix: str) -> Sequence[Entry]:
        with self._translated(prefix, "list"):
            return await to_thread.run_sync(scan_backwards, self._base, prefix)

    async def delete(self, key: str) -> None:
        """Delete an object durably, and the directories that it leaves empty."""
        with self._translated(key, "delete"):
            await to_thread.run_sync(self._delete, key, self._path(key), limiter=self._locked_calls)
        self._descriptors.discard(key)

    def _delete(self, key: str, path: Path) -> None:
        try:
            path.lstat()  # what is not there needs no lock, nor a directory for locks
        except _NO_FILE:
            return
        with self._locks.hold(key):
            try:
                path.unlink()
            except _NO_FILE:
                return
        self._directories.settle(path.parent)

    async def now(self) -> datetime:
        """Ask the file system for the time, by a file that is made and removed: it may be another machine's."""
        with self._translated("", "write"):
            return await to_thread.run_sync(self._now)

    def _now(self) -> datetime:
        if not self._base.is_dir():
            return datetime.now(UTC)
        pending = PendingFile(self._base / "now", self._directories)
        try:
            return pending.create_and_tell_time()
        finally:
            pending.discard()

    async def list_leftovers(self) -> AsyncIterator[Leftover]:
        """List unfinished files; lock files are none, and stay."""
        with self._translated("", "list"):
            leftovers = await to_thread.run_sync(scan_temporaries, self._base)
        for leftover in leftovers:
            yield leftover

    async def discard(self, leftover: Leftover) -> None:
        """Remove an unfinished file, and the directories that it leaves empty."""
        with self._translated(leftover.key, "delete"):
            await to_thread.run_sync(self._discard, self._base / leftover.key)

    def _discard(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._directories.prune(path.parent)

    async def check_conditional_writes(self, key: str) -> None:
        """Prove with a second process that locks hold here, and on `key` that conditions do."""
        with self._translated(key, "lock"):
            flaw = await to_thread.run_sync(self._locks.find_flaw)
        flaw = flaw or await self._find_flaw(key)
        if flaw:
            msg = (
                f"{self.address} cannot keep two writers apart ({flaw}; some NFS mounts do not keep locks): use a file "
                "system with working locks, or set DES_SINGLE_WRITER=true where only one process at a time ever writes."
            )
            raise SettingsError(msg)

    async def _find_flaw(self, key: str) -> str | None:
        data, version = await self._read(key, _read_whole, self._path(key))
        for mode in (IfAbsent(), IfVersion(f"not-{version}")):
            try:
                await self.put(key, data, mode)
            except PreconditionFailedError:
                continue
            return f"{mode} did not keep {key} from being replaced"
        return None

    async def aclose(self) -> None:
        """Close the files that were kept open."""
        self._descriptors.clear()
        await (
            cancel_shielded_checkpoint()
        )  # the event loop holds the last result, and with it a file, until its next turn

    async def _read(self, key: str, call: Callable[[*_Args], _T], *args: *_Args) -> _T:
        with self._translated(key, "read"):
            return await to_thread.run_sync(call, *args)

    async def _write(self, key: str, call: Callable[[*_Args], _T], *args: *_Args) -> _T:
        with self._translated(key, "write"):
            return await to_thread.run_sync(call, *args)

    def _path(self, key: str) -> Path:
        return path_of(self._base, key)

    @contextmanager
    def _translated(self, key: str, action: str) -> Iterator[None]:
        """Turn what the operating system says into what the contract says: the only place that does."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            path = self._base / key
            if action == "read" and isinstance(error, _NO_FILE):
                msg = f"There is no object {key} in {self.address}."
                raise ObjectNotFoundError(msg) from error
            if error.errno in _DENIED:
                msg = f"May not {action} {path}: {reason}."
                raise StorageDeniedError(msg) from error
            msg = f"Cannot {action} {path}: {reason}."
            raise StorageUnavailableError(msg) from error


class _Writer:
    """Gathers pieces, so that small ones do not cost a thread hop each."""

    def __init__(self, write: Callable[[list[bytes]], Awaitable[None]]) -> None:
        self._write = write
        self._gathered: list[bytes] = []
        self._size = 0
        self._is_whole = True

    async def write(self, data: bytes) -> None:
        self._gathered.append(data)
        self._size += len(data)
        if self._size >= WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write what was gathered.

        Raises:
            StorageUnavailableError: an earlier write failed or was cancelled, and yet the context goes on.
        """
        gathered = self.rest()
        self._is_whole = False
        await self._write(gathered)
        self._is_whole = True

    def rest(self) -> list[bytes]:
        """Return what was gathered and not written yet, and forget it.

        Raises:
            StorageUnavailableError: as for `flush`.
        """
        if not self._is_whole:
            msg = "An earlier part of the new object was not written, so it cannot be completed."
            raise StorageUnavailableError(msg)
        gathered, self._gathered, self._size = self._gathered, [], 0
        return gathered


def _read_suffix(path: Path, length: int, unless: str | None) -> Suffix | None:
    with closing(Descriptor(path)) as descriptor:
        version = descriptor.version()
        if version == unless:
            return None
        data = descriptor.read(max(0, descriptor.size - length), descriptor.size)
        return Suffix(data, descriptor.size, version)


def _read_whole(path: Path) -> tuple[bytes, str]:
    with closing(Descriptor(path)) as descriptor:
        return descriptor.read(0, descriptor.size), descriptor.version()


def _read_at_version(path: Path, start: int, end: int, version: str) -> bytes:
    with closing(Descriptor(path)) as descriptor:
        _require(path, descriptor, version)
        return descriptor.read(start, end)


def _open_and_read(path: Path, start: int, end: int) -> tuple[Descriptor, bytes]:
    descriptor = Descriptor(path)
    return descriptor, descriptor.read(start, end)


def _open_at(path: Path, start: int, version: str | None) -> OwnedFile:
    descriptor = Descriptor(path)
    if version is not None:
        _require(path, descriptor, version)
    file = OwnedFile(descriptor)
    file.seek(start)
    return file


def _read_info(path: Path, key: str) -> ObjectInfo:
    with closing(Descriptor(path)) as descriptor:
        return ObjectInfo(key, descriptor.size, descriptor.version(), descriptor.modified)


def _require(path: Path, descriptor: Descriptor, version: str) -> None:
    found = descriptor.version()
    if found != version:
        msg = f"{path} is at version {found}, not at {version}."
        raise PreconditionFailedError(msg)


def _check(path: Path, mode: PutMode) -> None:
    if isinstance(mode, Overwrite):
        return
    try:
        with closing(Descriptor(path)) as descriptor:
            if isinstance(mode, IfVersion):
                _require(path, descriptor, mode.version)
                return
    except _NO_FILE as error:
        if isinstance(mode, IfVersion):
            msg = f"{path} is absent, not at version {mode.version}."
            raise PreconditionFailedError(msg) from error
        return
    msg = f"{path} exists already."
    raise PreconditionFailedError(msg)
