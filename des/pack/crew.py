"""Packing by several processes: each packs whole shards, with an event loop and a storage of its own.

The plan and the report stay with the process that forked them, which they ask for shards and rows, and tell what became of them. Rules:

1. A worker says how far it is every so often, and learns whether to go on. So it stops soon after the run was stopped, or failed elsewhere.
2. What a worker leaves that dies is packed again here, and what it said of it does not count: what is in the store already is skipped.
3. Together they hold and ask for no more at once than one process would: each has its share of the memory, the shards and the connections.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio import from_thread, to_thread

from des.pack.ledger import AskedLedger, Question
from des.pack.remote import RemoteSources
from des.pack.shards import pack_shards
from des.pack.workers import WorkerDiedError
from des.pack.workshop import Workshop
from des.storage.opening import SourceBuckets, opened_storage
from des.store.whole_objects import WholeObjects
from des.tasks import open_tasks, run_all

if TYPE_CHECKING:
    from des.pack.ledger import RunLedger
    from des.pack.workers import Ask, Workers
    from des.pack.workshop import Limits, Options
    from des.settings import Settings

_BEAT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Crew:
    """Processes, and the settings by which they open the store."""

    workers: Workers
    settings: Settings

    async def pack(self, ledger: RunLedger, options: Options, limits: Limits) -> None:
        """Pack the shards of a ledger, as far as the processes live.

        Args:
            ledger: has the shards.
            options: how to pack.
            limits: of the whole run.

        Raises:
            Exception: as `pack_shards`.
        """
        shares = limits.divided(min(self.workers.count, len(ledger)))
        connections = max(1, self.settings.max_connections // len(shares))
        settings = self.settings.model_copy(update={"max_connections": connections})
        turn = threading.Lock()

        def answer(question: Question) -> object:
            with turn:
                answered: object = getattr(ledger, question.name)(*question.args)
            from_thread.check_cancelled()
            return answered

        async def attend(share: Limits) -> None:
            work = partial(self.workers.attend, answer, _pack_share, settings, options, share)
            with suppress(WorkerDiedError):
                await to_thread.run_sync(work)

        await run_all(attend, shares, len(shares))


def _pack_share(ask: Ask, settings: Settings, options: Options, limits: Limits) -> None:
    """Pack shards in this process until there are no more."""
    anyio.run(_pack_until_done, ask, settings, options, limits)


async def _pack_until_done(ask: Ask, settings: Settings, options: Options, limits: Limits) -> None:
    dealt_with = 0
    ledger = AskedLedger(ask)

    def advance(files: int) -> None:
        nonlocal dealt_with
        dealt_with += files

    async def beat() -> None:
        nonlocal dealt_with
        told = dealt_with
        await workshop.ask(partial(ledger.advance, told))
        dealt_with -= told

    async def beat_regularly() -> None:
        while True:
            await anyio.sleep(_BEAT_SECONDS)
            await beat()

    async with opened_storage(settings, WholeObjects()) as storage, SourceBuckets(settings) as buckets:
        remote = RemoteSources(buckets, limits.fetched_bytes)
        workshop = Workshop(storage, ledger, options, remote, limits, advance)
        async with open_tasks() as tasks:
            tasks.start_soon(beat_regularly)
            await pack_shards(workshop, limits.shards)
        await beat()
