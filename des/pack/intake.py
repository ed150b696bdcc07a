"""Taking in what is to be packed: inputs → pieces → rows, checked and routed → the plan. Runs in a worker thread.

What there is to do by row is done in worker processes, several pieces at once; here, pieces are cut and go into the plan, in order. Nothing of the inputs is held: all rows go into the plan, and the bad ones are reported once all inputs were read to their ends. An input that cannot
be is the end of the run, before anything was written.
"""

from __future__ import annotations

import json
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.from_thread

from des.pack.inputs import Manifests
from des.pack.report import Failure
from des.pack.taking import take
from des.pack.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from des.pack.inputs import Input, Part
    from des.pack.manifest import Piece
    from des.pack.plan import Plan, PlannedShard
    from des.pack.report import Report
    from des.pack.spool import Spool
    from des.pack.taking import Order, Taken
    from des.pack.workers import Workers

_TAKEN = "taken in"
# So many pieces a worker are parsed or wait to be: the plan takes them in order, and is not always as fast.
_PIECES_AHEAD = 2


def roots_of(inputs: Sequence[Input], source_root: Path | None) -> list[str]:
    """Return the directories that sources must not lead out of, each with a slash at its end: `source_root`, and those that are packed as a whole.

    None of the latter where manifests may name sources anywhere, theirs included.
    """
    if source_root is None and any(isinstance(one, Manifests) for one in inputs):
        return []
    directories = [one.directory for one in inputs if isinstance(one, Tree)]
    if source_root is not None:
        directories.append(source_root)
    return [os.path.join(name, "") for one in directories for name in (os.path.realpath(one), str(one))]  # noqa: PTH118 - text, with a slash at its end


@dataclass(frozen=True, slots=True)
class Intake:
    """Reads inputs into a plan.

    Attributes:
        order: what to take, and how.
        workers: processes that parse and check; None: this one does.
    """

    order: Order
    workers: Workers | None = None

    def fill(
        self,
        plan: Plan,
        inputs: Sequence[Input],
        spool: Spool,
        report: Report,
        planned: Callable[[int], None],
        took: Callable[[Taken], None] = lambda _: None,
    ) -> list[PlannedShard]:
        """Read all inputs into the plan; return its shards.

        Args:
            plan: an empty one.
            inputs: what to read.
            spool: for what must lie on disk until it is packed.
            report: learns how many files there are, and which are bad.
            planned: told how many rows were read so far.
            took: told of each piece that went into the plan.

        Raises:
            ManifestError: an input cannot be read to its end; nothing was reported.
            SettingsError: a row belongs to another zone than the store holds.
        """
        rows = files = 0
        names = []
        report.is_temporary = spool.holds
        pieces = ((part.name, piece) for one in inputs for part in one.parts() for piece in _pieces(part, spool))
        with closing(self._taken(pieces)) as all_taken:
            for name, taken in all_taken:
                anyio.from_thread.check_cancelled()
                if taken is None:
                    names.append((rows + 1, name))
                    continue
                numbered = [(rows + number, row, is_routed) for number, row, is_routed in taken.bad]
                bad = [(number, row) for number, row, is_routed in numbered if is_routed or self._owns(number)]
                plan.add_chunks(taken.chunks, rows)
                plan.add_bad(bad)
                rows += taken.rows
                files += taken.good + len(bad)
                took(taken)
                planned(rows)
        plan.note(_TAKEN, json.dumps({"files": files, "names": names}))
        shards = plan.finish()
        report_intake(plan, report)
        return shards

    def _owns(self, number: int) -> bool:
        partition = self.order.partition
        return partition is None or partition.owns(0, number)

    def _taken(self, pieces: Iterator[tuple[str, Piece | None]]) -> Generator[tuple[str, Taken | None], None, None]:
        """Yield what the pieces come to, in order and with their names. A few are under way at once where there are workers."""
        if self.workers is None:
            for name, piece in pieces:
                yield name, None if piece is None else take(self.order, piece)
            return
        under_way: deque[tuple[str, Future[Taken] | None]] = deque()
        threads = ThreadPoolExecutor(self.workers.count, "intake")
        try:
            for name, piece in pieces:
                under_way.append(
                    (name, None if piece is None else threads.submit(_take_in_worker, self.workers, self.order, piece))
                )
                if len(under_way) > _PIECES_AHEAD * self.workers.count:
                    yield _result(*under_way.popleft())
            while under_way:
                yield _result(*under_way.popleft())
        finally:
            threads.shutdown(cancel_futures=True)


def _pieces(part: Part, spool: Spool) -> Iterator[Piece | None]:
    """Yield None for the beginning of a part, then its pieces."""
    yield None
    yield from part.pieces(spool)


def _take_in_worker(workers: Workers, order: Order, piece: Piece) -> Taken:
    try:
        return workers.call(take, order, piece)
    except RecursionError:  # values nested as deep as can be do not survive the way to another process
        return take(order, piece)


def _result(name: str, taken: Future[Taken] | None) -> tuple[str, Taken | None]:
    return name, None if taken is None else taken.result()


def report_intake(plan: Plan, report: Report) -> None:
    """Report what a plan knows of its inputs: how many files, and which rows are bad."""
    taken = json.loads(plan.noted(_TAKEN) or "{}")
    report.files = taken["files"]
    report.manifests = [(first, name) for first, name in taken["names"]]
    for row in plan.bad():
        report.fail(Failure.of_bad_row(row))
