"""A storage in memory, for tests of protocols in many schedules: no thread, no disk, and a clock that the test sets."""

from __future__ import annotations

import builtins
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio.lowlevel

from des.errors import ObjectNotFoundError, PreconditionFailedError
from des.storage.protocol import IfAbsent, IfVersion, Leftover, Level, ObjectInfo, SinglePlace, Suffix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from des.storage.protocol import ObjectWriter, Purpose, PutMode


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    version: str
    modified: datetime


@dataclass(slots=True)
class MemoryStorage(SinglePlace):
    """Objects in a dict; see `des.storage.protocol.Storage` for the contract of each verb.

    Attributes:
        ahead: how far its clock is ahead of this machine's.
    """

    backend: str = "local"
    address: str = "memory"
    ahead: timedelta = timedelta()
    _objects: dict[str, _Object] = field(default_factory=dict)
    _unfinished: dict[str, Leftover] = field(default_factory=dict)
    _writes: int = 0

    def copy(self) -> MemoryStorage:
        """Return a storage with the same objects."""
        return MemoryStorage(ahead=self.ahead, _objects=dict(self._objects), _writes=self._writes)

    def contents(self) -> dict[str, bytes]:
        """Return all objects."""
        return {key: found.data for key, found in self._objects.items()}

    async def read_suffix(
        self, key: str, length: int, *, unless: str | None = None, purpose: Purpose = "footer"
    ) -> Suffix | None:
        found = await self._get(key)
        if found.version == unless:
            return None
        return Suffix(found.data[-length:], len(found.data), found.version)

    async def read_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> bytes:
        return (await self._get(key, version)).data[start:end]

    @asynccontextmanager
    async def stream_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        data = (await self._get(key, version)).data[start:end]
        yield _pieces(data)

    async def head(self, key: str) -> ObjectInfo:
        return _info(key, await self._get(key))

    async def put(self, key: str, data: bytes, mode: PutMode) -> str:
        await anyio.lowlevel.checkpoint()
        found = self._objects.get(key)
        if isinstance(mode, IfAbsent) and found is not None:
            raise PreconditionFailedError(f"{key} exists already.")
        if isinstance(mode, IfVersion) and (found is None or found.version != mode.version):
            raise PreconditionFailedError(f"{key} is not at version {mode.version}.")
        return self._set(key, bytes(data))

    @asynccontextmanager
    async def open_writer(self, key: str) -> AsyncIterator[ObjectWriter]:
        await anyio.lowlevel.checkpoint()
        self._writes += 1
        token = f"upload-{self._writes}"
        self._unfinished[token] = Leftover(key, token, self._now())
        writer = _Writer()
        try:
            yield writer
            if token not in self._unfinished:
                raise ObjectNotFoundError(f"{key}: its upload was discarded.")
            self._set(key, bytes(writer.data))
        finally:
            self._unfinished.pop(token, None)

    async def list_level(self, prefix: str) -> Level:
        await anyio.lowlevel.checkpoint()
        infos = self._list(prefix)
        below = sorted(
            {prefix + rest[: rest.index("/") + 1] for info in infos if "/" in (rest := info.key[len(prefix) :])}
        )
        return Level(tuple(info for info in infos if "/" not in info.key[len(prefix) :]), tuple(below))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await anyio.lowlevel.checkpoint()
        for info in self._list(prefix):
            yield info

    async def delete(self, key: str) -> None:
        await anyio.lowlevel.checkpoint()
        self._objects.pop(key, None)

    async def now(self) -> datetime:
        await anyio.lowlevel.checkpoint()
        return self._now()

    async def list_leftovers(self) -> AsyncIterator[Leftover]:
        await anyio.lowlevel.checkpoint()
        for leftover in builtins.list(self._unfinished.values()):
            yield leftover

    async def discard(self, leftover: Leftover) -> None:
        await anyio.lowlevel.checkpoint()
        self._unfinished.pop(leftover.token, None)

    async def check_conditional_writes(self, key: str) -> None:
        await self._get(key)

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def _get(self, key: str, version: str | None = None) -> _Object:
        await anyio.lowlevel.checkpoint()
        found = self._objects.get(key)
        if found is None:
            raise ObjectNotFoundError(f"there is no object {key}.")
        if version not in {None, found.version}:
            raise PreconditionFailedError(f"{key} is not at version {version}.")
        return found

    def _set(self, key: str, data: bytes) -> str:
        self._writes += 1
        version = f"v{self._writes}"
        self._objects[key] = _Object(data, version, self._now())
        return version

    def _list(self, prefix: str) -> builtins.list[ObjectInfo]:
        return [_info(key, self._objects[key]) for key in sorted(self._objects) if key.startswith(prefix)]

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.data += data


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 18):
        await anyio.lowlevel.checkpoint()
        yield data[start : start + (1 << 18)]


def _info(key: str, found: _Object) -> ObjectInfo:
    return ObjectInfo(key, len(found.data), found.version, found.modified)
