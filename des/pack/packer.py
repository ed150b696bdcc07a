"""Packing one shard: rows in, segments and a swapped head out.

    rows → batches, encoded by workers, several ahead → decided and written in manifest order → segments → swap

`encoding` does what belongs to a batch, `settling` decides, `attempt` writes and commits, `workshop` is what all shards share. Rules:

1. What is in a segment is decided on one head, the *base*. If at the swap another head decides otherwise about any file, the shard is packed anew on
   that head, so that no catalog row ever contradicts what was decided when it became visible. A file that turned out to be there already, with the same
   content, is only left out.
2. Nothing is reported before the head that holds it is swapped in, or proven to hold it.
3. A file repeated in the manifest is packed in a later round, on the head that holds its first occurrence: then the rules for conflicts apply.
4. What is committed, but not in as many places as must hold it, fails too: it is not lost, and the next run finds it there.
5. A large source that fails midway spoils the bytes of its segment: that segment is given up and written again without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from des.errors import ConflictError, DESError, SettingsError, StorageError, UnsupportedFormatError
from des.pack.attempt import Attempt, DecidedOtherwiseError, ShardOutcome
from des.pack.commit import NotSettledError, open_shard
from des.pack.report import Failure, Tally
from des.pack.workshop import Round

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from des.pack.plan import PlannedRow, PlannedShard
    from des.pack.workshop import Workshop
    from des.shard.layout import Identity

_ATTEMPTS = 10


async def pack_shard(workshop: Workshop, identity: Identity, shard: PlannedShard) -> AsyncIterator[ShardOutcome]:
    """Pack all rows of a shard; yields what became certain, as it does. A shard that cannot be packed, or settled, fails with its rows.

    Raises:
        SettingsError: n_bits of the day changed.
        UnsupportedFormatError: the shard is of a newer format.
        StorageError: the storage is unwell.
    """
    repeated = await workshop.ask(lambda: workshop.ledger.repeated(shard))
    rounds = [Round(shard, None, frozenset(number for number, _ in repeated))]
    for nth in sorted({nth for _, nth in repeated}):
        numbers = tuple(number for number, its_nth in repeated if its_nth == nth)
        rounds.append(Round(shard, numbers, frozenset()))
    for rows in rounds:
        failure: DESError
        try:
            outcome = await _pack_round(workshop, identity, rows)
        except NotSettledError as error:
            failure = error
        except (StorageError, SettingsError, UnsupportedFormatError):
            raise
        except DESError as error:
            failure = error
        else:
            yield outcome
            continue
        unsettled = failure if isinstance(failure, NotSettledError) else None
        async for batch in rows.batches(workshop, 0):
            failures = [Failure.of_row(row, failure.status, str(failure)) for row in batch]
            yield ShardOutcome(Tally(failures=failures), 0, 0, unsettled=unsettled)


async def _pack_round(workshop: Workshop, identity: Identity, rows: Round) -> ShardOutcome:
    advance = _Advance(workshop.advance)
    for _ in range(_ATTEMPTS):
        attempt = Attempt(workshop, await open_shard(workshop.storage, identity), rows, advance.past)
        try:
            await attempt.write_segments()
            return await attempt.commit()
        except DecidedOtherwiseError:
            continue
    raise ConflictError(
        f"{identity.head_key}: other writers changed the same files {_ATTEMPTS} times in a row; run again."
    )


class _Advance:
    """Tells how many files were dealt with, each once, however often it is begun again."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._last = 0

    def past(self, rows: Sequence[PlannedRow]) -> None:
        is_new = rows[0].number > self._last
        self._tell(len(rows) if is_new else sum(row.number > self._last for row in rows))
        self._last = max(self._last, rows[-1].number)
