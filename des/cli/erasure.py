"""Erasing, and the certificate of it: for `des compact --erase` and `des delete --erase`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from des.cli.maintenance import conclude, shown_progress
from des.console import say, write_line
from des.lifecycle.clock import microseconds_now
from des.lifecycle.erasing import Erasure, erase_in_shard
from des.lifecycle.running import Outcome, chosen_shards, maintain, open_place
from des.routing import rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.lifecycle.rewriting import Rewriting
    from des.settings import Settings


def erase(settings: Settings, names: Sequence[str], how: Rewriting, *, as_json: bool) -> int:
    """Erase what is deleted or replaced in some shards, print the certificate, and return the exit status: 1 where something is left."""
    began = datetime.now(UTC)
    address, outcome = anyio.run(partial(_erase, settings, names, how))
    erasures = sorted(outcome.results, key=lambda one: one.shard)
    for one in erasures:
        for key in one.kept:
            say(
                f"{key}: left alone, because it holds a deleted file beside the only copy of another one; `des gc --discard-unknown` removes it."
            )
    statement = certificate(address, erasures, began, datetime.now(UTC))
    is_good = all(one.is_complete for one in erasures)
    if not as_json:
        write_line(json.dumps(statement, indent=1))
    return conclude(statement, outcome.failed, as_json=as_json, is_good=is_good)


async def _erase(settings: Settings, names: Sequence[str], how: Rewriting) -> tuple[str, Outcome[Erasure]]:
    async with open_place(settings) as place:
        shards = await chosen_shards(place, names)
        now = await microseconds_now(place.storage)
        with shown_progress("erasing", len(shards)) as done:
            work = partial(erase_in_shard, place.storage, how=how, now=now)
            return place.storage.address, await maintain(shards, work, done)


def certificate(store: str, erasures: Sequence[Erasure], began: datetime, ended: datetime) -> dict[str, Any]:
    """Return the certificate: what was erased, which objects were removed, and what the closing scan read and found."""
    return {
        "store": store,
        "began": rfc3339(began),
        "ended": rfc3339(ended),
        "complete": all(one.is_complete for one in erasures),
        "shards": len(erasures),
        "objects_scanned": sum(one.scanned for one in erasures),
        "erased": [
            {"shard": one.shard, "file_id": file.file_id.hex(), "content_hash": file.content_hash.hex()}
            for one in erasures
            for file in one.erased
        ],
        "objects_removed": [key for one in erasures for key in one.removed],
        "objects_left": [key for one in erasures for key in (*one.kept, *one.remaining)],
    }
