"""Packing the shards of a ledger, several at once, until it has no more."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio

from des.pack.packer import pack_shard
from des.pack.state import is_proven
from des.tasks import run_all

if TYPE_CHECKING:
    from des.pack.ledger import Work
    from des.pack.workshop import Workshop


async def pack_shards(workshop: Workshop, at_once: int) -> None:
    """Pack what the workshop's ledger has.

    Args:
        workshop: of this process.
        at_once: how many shards.

    Raises:
        StorageError: the storage is unwell, or a state file cannot be written.
        SettingsError: n_bits of a day changed.
        UnsupportedFormatError: a shard is of a newer format.
    """

    async def pack_some(_: int) -> None:
        work = await workshop.ask(partial(workshop.ledger.next_work, None))
        while work is not None:
            await _pack(workshop, work)
            work = await workshop.ask(partial(workshop.ledger.next_work, work.shard))

    await run_all(pack_some, range(at_once), at_once)


async def _pack(workshop: Workshop, work: Work) -> None:
    shard, identity = work.shard, work.identity
    if work.done is not None and await is_proven(workshop.storage, identity, work.done):
        await workshop.ask(partial(workshop.ledger.found_done, shard))
        workshop.advance(shard.rows)
        return
    async for outcome in pack_shard(workshop, identity, shard):
        with anyio.CancelScope(shield=True):  # what is certain is reported
            await workshop.ask(partial(workshop.ledger.take, shard, outcome))
