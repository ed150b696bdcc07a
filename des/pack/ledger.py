"""The ledger of a run: which shards are to be packed, their rows, and what became of them. Whoever packs shards asks it, in one thread at a time.

Where the shards are packed by other processes, each asks the ledger of the process that runs them all, through `AskedLedger`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from des.pack.report import Tally
from des.pack.state import writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from des.errors import Status
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

    def advance(self, files: int) -> None:
        """Hear that so many more files were dealt with."""


@dataclass(slots=True)
class _Begun:
    """What is known of a shard that is under way."""

    work: Work
    tally: Tally = field(default_factory=Tally)
    statuses: Counter[Status] = field(default_factory=Counter)
    proof: Done | None = None
    is_whole: bool = True
    was_done: bool = False


class RunLedger:
    """The ledger of a run in the process that runs it.

    Attributes:
        advance: see `Ledger`.
        unsettled: why files failed that are committed; None: none did.
    """

    def __init__(
        self,
        plan: Plan,
        work: Iterable[tuple[PlannedShard, Identity]],
        report: Report,
        state: Path | None,
        advance: Callable[[int], None],
    ) -> None:
        """Begin with nothing done.

        Args:
            plan: the rows.
            work: all shards.
            report: takes what became of each file.
            state: the file that keeps the plan; None: none does.
            advance: told how many files were dealt with.
        """
        self.advance = advance
        self.unsettled: NotSettledError | None = None
        self._plan = plan
        self._report = report
        self._state = state
        self._waiting = [Work(shard, identity) for shard, identity in work][::-1]
        self._begun: dict[PlannedShard, _Begun] = {}

    def __len__(self) -> int:
        """Return how many shards are left to be begun."""
        return len(self._waiting)

    def next_work(self, finished: PlannedShard | None) -> Work | None:
        """See `Ledger`."""
        if finished is not None:
            self._finish(self._begun.pop(finished))
        if not self._waiting:
            return None
        work = self._waiting.pop()
        self._begun[work.shard] = _Begun(work)
        self._report.shards += 1
        return work if self._state is None else replace(work, done=self._plan.done(work.shard))

    def _finish(self, begun: _Begun) -> None:
        if begun.is_whole and begun.proof is not None and self._state is not None:
            with writing(self._state):
                self._plan.mark_done(begun.work.shard, begun.proof)

    def take_back(self) -> None:
        """Let the shards that were begun and not finished be packed anew, because whoever began them is no more.

        What was reported of their files is not counted; the lines of those that failed may come again.
        """
        for begun in self._begun.values():
            self._report.shards -= 1
            self._report.shards_done_before -= begun.was_done
            self._report.take_back(begun.tally, begun.statuses)
            self._waiting.append(begun.work)
        self._begun.clear()

    def packed_rows(self, shard: PlannedShard, after: int, limit: int) -> PackedRows:
        """Return what `rows` takes its rows from."""
        return self._plan.packed_rows(shard, after, limit)

    def rows(self, shard: PlannedShard, after: int, limit: int) -> Sequence[PlannedRow]:
        """See `Ledger`."""
        return self._plan.rows(shard, after, limit)

    def rows_by_number(self, shard: PlannedShard, numbers: Sequence[int]) -> Sequence[PlannedRow]:
        """See `Ledger`."""
        return self._plan.rows_by_number(shard, numbers)

    def repeated(self, shard: PlannedShard) -> Sequence[tuple[int, int]]:
        """See `Ledger`."""
        return self._plan.repeated(shard)

    def found_done(self, shard: PlannedShard) -> None:
        """See `Ledger`."""
        begun = self._begun[shard]
        begun.was_done = True
        self._report.shards_done_before += 1
        self._count(begun, Tally(skipped=shard.rows))

    def take(self, shard: PlannedShard, outcome: ShardOutcome) -> None:
        """See `Ledger`."""
        begun = self._begun[shard]
        self._count(begun, outcome.tally)
        self.unsettled = self.unsettled or outcome.unsettled
        self._report.segments += outcome.segments
        self._report.objects_written += outcome.segments + outcome.heads
        if outcome.done is None or outcome.tally.failures:
            begun.is_whole = False
        else:
            earlier = begun.proof.segments if begun.proof else ()
            begun.proof = replace(outcome.done, segments=earlier + outcome.done.segments)

    def _count(self, begun: _Begun, tally: Tally) -> None:
        self._report.take(tally)
        begun.tally.add(replace(tally, failures=[]))
        begun.statuses.update(failure.status for failure in tally.failures)


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
        rows: Sequence[PlannedRow] = self._ask(Question("rows_by_number", (shard, numbers)))
        return rows

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

    def advance(self, files: int) -> None:
        """See `Ledger`."""
        self._ask(Question("advance", (files,)))
