"""Deleting what manifests name: any number of files, those of a shard in as few commits as memory allows.

The manifests are read to their ends before anything is deleted, and grouped by shard on disk. A row needs `uid` and `created_at`; a bad one fails
alone. A shard that cannot be changed fails with its rows; deleting again is always safe.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread
import anyio.to_thread

from des.errors import DESError, InvalidRequestError, SettingsError, StorageError
from des.lifecycle.clock import microseconds_now
from des.lifecycle.deleting import delete_in_shard
from des.pack.manifest import ManifestRow, UnreadableRow
from des.pack.run import open_plan
from des.routing import MAX_N_BITS, date_dir, normalize_uid, parse_created_at, shard_index_of
from des.shard.layout import Identity, to_microseconds
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from des.lifecycle.running import Place
    from des.pack.inputs import Input
    from des.pack.plan import Plan, PlannedRow, PlannedShard
    from des.pack.spool import Spool
    from des.storage.descriptor import Descriptor

COLUMNS = ("uid", "created_at")

_SHARDS_AT_ONCE = 8
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class NotDeleted:
    """A row that was not carried out, and why, in one sentence."""

    row: int
    uid: str | None
    error: str


@dataclass(slots=True)
class BulkDeletion:
    """What became of the rows.

    Attributes:
        outcomes: how many rows had which outcome of `Deletion`; those that failed count as `failed`.
        shards: those in which something was deleted, now or before: `YYYYMMDD/HH`.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    shards: list[str] = field(default_factory=list)


async def delete_listed(place: Place, inputs: Sequence[Input], tell: Callable[[NotDeleted], None]) -> BulkDeletion:
    """Delete the files that manifests name.

    Args:
        place: the store.
        inputs: the manifests.
        tell: told of each row that was not carried out.

    Raises:
        ManifestError: a manifest cannot be read to its end; nothing was deleted.
        SettingsError: a row belongs to another zone than the store holds; nothing was deleted.
        StorageError: the storage is unwell; what is deleted stays so.
    """
    done = BulkDeletion()
    now = await microseconds_now(place.storage)

    def refuse(row: NotDeleted) -> None:
        done.outcomes["failed"] += 1
        tell(row)

    def refuse_all(rows: Sequence[PlannedRow], error: str) -> None:
        for row in rows:
            refuse(NotDeleted(row.number, row.uid, error))

    async with open_plan() as (plan, spool):
        shards = await anyio.to_thread.run_sync(_fill, plan, place.descriptor, inputs, spool, refuse)
        turn = anyio.CapacityLimiter(1)

        async def delete_one(shard: PlannedShard) -> None:
            identity = Identity(
                place.descriptor.store_id, shard.day, place.descriptor.n_bits_on(shard.day), shard.shard_index
            )
            outcomes: Counter[str] = Counter()
            after = 0
            while rows := await anyio.to_thread.run_sync(plan.rows, shard, after, _ROWS_AT_ONCE, limiter=turn):
                after = rows[-1].number
                try:
                    told = await delete_in_shard(
                        place.storage, identity, list(dict.fromkeys(row.uid for row in rows)), now
                    )
                except (StorageError, SettingsError):
                    raise
                except DESError as error:
                    await anyio.to_thread.run_sync(refuse_all, rows, str(error), limiter=turn)
                else:
                    outcomes.update(told[row.uid] for row in rows)
            done.outcomes.update(outcomes)
            if outcomes["deleted"] or outcomes["already_deleted"]:
                done.shards.append(identity.shard_name)

        await run_all(delete_one, shards, _SHARDS_AT_ONCE)
    done.shards.sort()
    return done


def _fill(
    plan: Plan, descriptor: Descriptor, inputs: Sequence[Input], spool: Spool, refuse: Callable[[NotDeleted], None]
) -> list[PlannedShard]:
    number = 0
    for values in (piece() for one in inputs for part in one.parts() for piece in part.pieces(spool)):
        anyio.from_thread.check_cancelled()
        rows = []
        for value in values:
            number += 1
            try:
                rows.append(_checked(number, value, descriptor))
            except InvalidRequestError as error:
                uid = value.get("uid") if isinstance(value, dict) else None
                refuse(NotDeleted(number, uid if isinstance(uid, str) else None, str(error)))
        plan.add(rows)
    return plan.finish()


def _checked(number: int, value: object, descriptor: Descriptor) -> ManifestRow:
    if isinstance(value, UnreadableRow):
        raise InvalidRequestError(value.error)
    if not isinstance(value, dict):
        raise InvalidRequestError("the row is not an object with uid and created_at.")
    missing = next((name for name in COLUMNS if value.get(name) is None), None)
    if missing:
        raise InvalidRequestError(f"the field {missing} is missing.")
    uid, at = normalize_uid(value["uid"]), parse_created_at(value["created_at"])
    day = date_dir(at)
    n_bits = descriptor.n_bits_on(day)
    index = shard_index_of(uid, n_bits)
    descriptor.check_owned(index, n_bits)
    return ManifestRow(number, (int(day) << MAX_N_BITS) + index, uid, to_microseconds(at), "", None, None, b"")
