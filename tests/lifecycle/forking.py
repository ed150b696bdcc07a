"""Maintenance in processes that may be killed; see `tests.pack.forking`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anyio

from des.storage.testing import Fault, FaultyStorage, Kill
from tests.lifecycle.acting import Actions, Told, shard_on
from tests.pack.forking import serve
from tests.pack.grounds import open_at
from tests.pack.packing import Sources


@dataclass(frozen=True, slots=True)
class MaintenanceJob:
    """An action in a process of its own.

    Attributes:
        store: its address.
        action: which of `Actions`.
        calls: the file that takes how many storage calls it made.
        kill_at: the storage call before which it is killed, from 1; None: it lives.
    """

    store: str
    action: str
    calls: str
    kill_at: int | None = None

    async def run(self) -> None:
        """Do it, in this process."""
        place = await open_at(self.store)
        storage = FaultyStorage(place, [Fault(Kill(), at=self.kill_at)] if self.kill_at else [])
        actions = Actions(await shard_on(place), Sources(Path(self.calls).parent / "sources"))
        await actions.all()[self.action](storage, Told())
        await place.aclose()
        await anyio.Path(self.calls).write_text(str(storage.seen))


if __name__ == "__main__":
    serve(MaintenanceJob)
