"""The ledger of a run: which shards are to be packed, their rows, and what became of them. Whoever packs shards asks it, in one thread at a time.

Where the shards are packed by other processes, each asks the ledger of the process that runs them all, through `AskedLedger`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from des.pack.state import writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from des.pack.attempt import ShardOutcome
    from des.pack.commit import NotSettledError
    from des.pack.plan import Done, PackedRows, Plan, PlannedRow, PlannedShard
    from des.pack.report import Report
    from des.shard.layout import Identity


@dataclass(frozen=True, slots=True)
class Work:
    """A shard to be packed; `done` is what proves that an earlier run has done it, where the state file says so."""

    shard: PlannedShard
    identity: Identity
    done: Done | None = None


class Ledger(Protocol):
    """What those who pack shards ask. Errors: StorageUnavailableError where a state file cannot be written."""

    def next_work(self, finished: PlannedShard | None) -> Work | None:
        """Return another shard to pack, None where there is none any more; `finished` is the one that was packed before."""

    def rows(self, shard: PlannedShard, after: int, limit: int) -> Sequence[PlannedRow]:
        """Return up to `limit` rows of a shard in manifest order, those after row number `after`."""

    def rows_by_number(self, shard: PlannedShard, numbers: Sequence[int]) -> Sequence[PlannedRow]:
        """Return some rows of a shard by their numbers, which rise."""

    def repeated(self, shard: PlannedShard) -> Sequence[tuple[int, int]]:
        """Return the rows of a shard whose file stood in the manifest before: (row number, its how-manieth time), by the latter."""

    def found_done(self, shard: PlannedShard) -> None:
        """Hear that a shard is proven to be done."""

    def take(self, shard: PlannedShard, outcome: ShardOutcome) -> None:
        """Hear what became certain of a shard."""


class RunLedger:
    """The ledger of a run in the process that runs it.

    Attributes:
        unsettled: why files failed that are committed; None: none did.
    """

    def __init__(
        self, plan: Plan, work: Iterable[tuple[PlannedShard, Identity]], report: Report, state: Path | None
    ) -> None:
        """Begin with nothing done.

        Args:
            plan: the rows.
            work: all shards.
            report: takes what became of each file.
            state: the file that keeps the plan; None: none does.
        """
        self.unsettled: NotSettledError | None = None
        self._plan = plan
        self._report = report
        self._state = state
        self._waiting = [Work(shard, identity) for shard, identity in work][::-1]
        self._begun: dict[PlannedShard, Work] = {}
        self._proofs: dict[PlannedShard, Done | None] = {}

    def next_work(self, finished: PlannedShard | None) -> Work | None:
        """See `Ledger`."""
        if finished is not None:
            self._finish(finished)
        if not self._waiting:
            return None
        work = self._waiting.pop()
        self._begun[work.shard] = work
        self._report.shards += 1
        return work if self._state is None else replace(work, done=self._plan.done(work.shard))

    def take_back(self) -> bool:
        """Let the shards that were begun and not finished be packed anew, because whoever began them is no more. Tells whether any is left to do."""
        self._report.shards -= len(self._begun)
        self._waiting += self._begun.values()
        self._begun.clear()
        self._proofs.clear()
        return bool(self._waiting)

    def _finish(self, shard: PlannedShard) -> None:
        del self._begun[shard]
        proof = self._proofs.pop(shard, None)
        if proof is not None and self._state is not None:
            with writing(self._state):
                self._plan.mark_done(shard, proof)

    def packed_rows(self, shard: PlannedShard, after: int, limit: int) -> PackedRows:
        """Return what `rows` takes its rows from."""
        return self._plan.packed_after(shard, after, limit)

    def packed_between(self, shard: PlannedShard, first: int, last: int) -> PackedRows:
        """Return what `rows_by_number` takes its rows from."""
        return self._plan.packed_between(shard, first, last)

    def rows(self, shard: PlannedShard, after: int, limit: int) -> Sequence[PlannedRow]:
        """See `Ledger`."""
        return self.packed_rows(shard, after, limit).after(after, limit)

    def rows_by_number(self, shard: PlannedShard, numbers: Sequence[int]) -> Sequence[PlannedRow]:
        """See `Ledger`."""
        return self.packed_between(shard, numbers[0], numbers[-1]).numbered(frozenset(numbers)) if numbers else ()

    def repeated(self, shard: PlannedShard) -> Sequence[tuple[int, int]]:
        """See `Ledger`."""
        return self._plan.repeated(shard)

    def found_done(self, shard: PlannedShard) -> None:
        """See `Ledger`."""
        self._report.shards_done_before += 1
        self._report.skipped += shard.rows

    def take(self, shard: PlannedShard, outcome: ShardOutcome) -> None:
        """See `Ledger`."""
        self.unsettled = self.unsettled or outcome.unsettled
        self._report.take(outcome.tally)
        self._report.segments += outcome.segments
        self._report.objects_written += outcome.segments + outcome.heads
        if outcome.done is None or outcome.tally.failures:
            self._proofs[shard] = None
        elif shard not in self._proofs:
            self._proofs[shard] = outcome.done
        else:
            earlier = self._proofs[shard]
            if earlier is not None:
                self._proofs[shard] = replace(outcome.done, segments=earlier.segments + outcome.done.segments)


class Question(NamedTuple):
    """What is asked of a ledger: the name of its method, and what it is called with."""

    name: str
    args: tuple[object, ...]


class AskedLedger:
    """The ledger of another process."""

    def __init__(self, ask: Callable[[Question], Any]) -> None:
        """Ask with `ask`, which returns what the other process' ledger does."""
        self._ask = ask

    def next_work(self, finished: PlannedShard | None) -> Work | None:
        """See `Ledger`."""
        work: Work | None = self._ask(Question("next_work", (finished,)))
        return work

    def rows(self, shard: PlannedShard, after: int, limit: int) -> Sequence[PlannedRow]:
        """See `Ledger`. They are unpacked here."""
        packed: PackedRows = self._ask(Question("packed_rows", (shard, after, limit)))
        return packed.after(after, limit)

    def rows_by_number(self, shard: PlannedShard, numbers: Sequence[int]) -> Sequence[PlannedRow]:
        """See `Ledger`."""
        if not numbers:
            return ()
        packed: PackedRows = self._ask(Question("packed_between", (shard, numbers[0], numbers[-1])))
        return packed.numbered(frozenset(numbers))

    def repeated(self, shard: PlannedShard) -> Sequence[tuple[int, int]]:
        """See `Ledger`."""
        turns: Sequence[tuple[int, int]] = self._ask(Question("repeated", (shard,)))
        return turns

    def found_done(self, shard: PlannedShard) -> None:
        """See `Ledger`."""
        self._ask(Question("found_done", (shard,)))

    def take(self, shard: PlannedShard, outcome: ShardOutcome) -> None:
        """See `Ledger`."""
        self._ask(Question("take", (shard, outcome)))
