"""A writer that stops itself (SIGSTOP) between upload and swap; a program of its own: STORE ACTION SOURCES."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from des.storage.wrapper import Call, StorageWrapper, Tally
from tests.lifecycle.acting import Actions, Told, shard_on
from tests.pack.grounds import open_at
from tests.pack.packing import Sources

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class StoppingStorage(StorageWrapper):
    """Stops the process before the first swap of a head."""

    has_stopped = False

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        if call.verb == "put" and not self.has_stopped:
            self.has_stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)
        yield Tally()


async def main(*arguments: str) -> None:
    store, action, sources = arguments
    place = await open_at(store)
    actions = Actions(await shard_on(place), Sources(Path(sources)))
    await actions.all()[action](StoppingStorage(place), Told())
    await place.aclose()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
