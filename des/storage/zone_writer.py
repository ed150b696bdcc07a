"""Writing an object to all places of a zone at once.

The primary is written in the caller's own task, and its failure is the caller's. Each copy is written in a task of its own, which is handed the parts as
they come and holds no more than one of them; one that fails is dropped. The slowest place sets the pace. The copies are completed while the primary is:
an object that only copies have is one that no head can name, and is removed by `des zones sync`.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Self

import anyio

from des.errors import DESError
from des.tasks import open_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from des.storage.place import Place
    from des.storage.protocol import ObjectWriter

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_everywhere(primary: Place, copies: Sequence[Place], key: str) -> AsyncIterator[ObjectWriter]:
    """Open a writer at all places.

    Args:
        primary: where it has to succeed.
        copies: where it should.
        key: the object.

    Raises:
        StorageError: the primary failed; the object will not be.
    """
    if not copies:
        async with primary.open_writer(key) as writer:
            yield writer
        return
    with ExitStack() as streams:
        feeds = [streams.enter_context(_Feed(place, key)) for place in copies]
        async with open_tasks() as tasks:
            for feed in feeds:
                tasks.start_soon(feed.run)
            for feed in feeds:
                await feed.opened.wait()
            async with primary.open_writer(key) as writer:
                yield _Fan(writer, feeds)
                for feed in feeds:
                    feed.finish()
            for feed in feeds:
                await feed.ended.wait()


class _Fan:
    """Implements `ObjectWriter`."""

    def __init__(self, primary: ObjectWriter, feeds: Sequence[_Feed]) -> None:
        self._primary = primary
        self._feeds = feeds

    async def write(self, data: bytes) -> None:
        for feed in self._feeds:
            await feed.write(data)
        await self._primary.write(data)


class _Feed:
    """What is written to one copy."""

    def __init__(self, place: Place, key: str) -> None:
        self.opened = anyio.Event()
        self.ended = anyio.Event()
        self._parts_in, self._parts_out = anyio.create_memory_object_stream[bytes](0)
        self._place = place
        self._key = key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._parts_in.close()
        self._parts_out.close()

    async def write(self, data: bytes) -> None:
        try:
            await self._parts_in.send(data)
        except anyio.BrokenResourceError:
            return  # dropped

    def finish(self) -> None:
        self._parts_in.close()

    async def run(self) -> None:
        try:
            with self._parts_out:
                async with self._place.open_writer(self._key) as writer:
                    self.opened.set()
                    async for part in self._parts_out:
                        await writer.write(part)
        except DESError as error:
            _log.warning("%s is not written to %s, and will be brought up later: %s", self._key, self._place, error)
        finally:
            self.opened.set()
            self.ended.set()
