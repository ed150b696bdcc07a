"""Packing by several processes: each packs whole shards, with an event loop and a storage of its own.

The plan and the report stay with the process that forked them, which they ask for shards and rows, and tell what became of them. Rules:

1. A worker says how far it is every so often, and learns whether to go on. So it stops soon after the run was stopped, or failed elsewhere.
2. What a worker leaves that dies is packed here: nothing is reported before it is certain, and what is in the store already is skipped.
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
from des.storage.opening import SourceBuckets, open_storage
from des.store.whole_objects import WholeObjects
from des.tasks import open_tasks, run_all

if TYPE_CHECKING:
    from collections.abc import Callable

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

    async def pack(
        self, ledger: RunLedger, shards: int, options: Options, limits: Limits, advance: Callable[[int], None]
    ) -> None:
        """Pack the shards of a ledger, as far as the processes live.

        Args:
            ledger: has the shards.
            shards: how many it has.
            options: how to pack.
            limits: of the whole run.
            advance: told how many files were dealt with, in any thread but one at a time.

        Raises:
            Exception: as `pack_shards`.
        """
        shares = limits.divided(min(self.workers.count, shards))
        turn = threading.Lock()

        def answer(question: Question | int) -> object:
            answered: object = None
            with turn:
                if isinstance(question, Question):
                    answered = getattr(ledger, question.name)(*question.args)
                else:
                    advance(question)
            from_thread.check_cancelled()
            return answered

        limiter = anyio.CapacityLimiter(len(shares))

        async def attend(share: Limits) -> None:
            work = partial(self.workers.attend, answer, _pack_share, self.settings, options, share)
            with suppress(WorkerDiedError):
                advance(await to_thread.run_sync(work, limiter=limiter))

        await run_all(attend, shares, len(shares))


def _pack_share(ask: Ask, settings: Settings, options: Options, limits: Limits) -> int:
    """Pack shards in this process; return how many files were dealt with since that was told last."""
    return anyio.run(partial(_pack_until_done, ask, settings, options, limits))


async def _pack_until_done(ask: Ask, settings: Settings, options: Options, limits: Limits) -> int:
    dealt_with = 0

    def advance(files: int) -> None:
        nonlocal dealt_with
        dealt_with += files

    async def beat() -> None:
        nonlocal dealt_with
        while True:
            await anyio.sleep(_BEAT_SECONDS)
            told = dealt_with
            await workshop.ask(partial(ask, told))
            dealt_with -= told

    storage = await open_storage(settings, WholeObjects())
    try:
        async with SourceBuckets(settings) as buckets:
            remote = RemoteSources(buckets, limits.fetched_bytes)
            workshop = Workshop(storage, AskedLedger(ask), options, remote, limits, advance)
            async with open_tasks() as tasks:
                tasks.start_soon(beat)
                await pack_shards(workshop, limits.shards)
    finally:
        with anyio.CancelScope(shield=True):
            await storage.aclose()
    return dealt_with
