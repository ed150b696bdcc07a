"""Packing in processes that may be killed: one process imports everything once, and forks for each pack.

    with PackingProcesses() as processes:
        first, second = processes.run([job, other_job])    # exit statuses, -9 where killed; both ran at the same time

Run as a module it is that process: a JSON list of jobs a line on stdin, a JSON list of exit statuses a line on stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import Field, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import anyio

from des.storage.s3_endpoint import _load_session
from des.storage.testing import Fault, FaultyStorage, Kill
from tests.pack.grounds import open_at
from tests.pack.packing import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from des.pack.decisions import OnConflict

CHECKOUT = Path(__file__).parents[2]


class Job(Protocol):
    """What a process of its own does: a dataclass of what JSON can carry."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]

    @property
    def store(self) -> str:
        """The address of the store."""

    async def run(self) -> None:
        """Do it, in this process."""


@dataclass(frozen=True, slots=True)
class PackingJob:
    """A pack in a process of its own.

    Attributes:
        store: its address.
        manifest: what to pack.
        report: where its outcome goes as JSON: the report, the failures, and how many storage calls it took.
        on_conflict: as for a run.
        max_segment_bytes: as for a run.
        kill_at: the storage call at which it is killed, from 1; None: it lives.
        kill_after: whether that call takes effect first.
        single_writer: whether the proof that locks hold is left out.
        state: as for a run.
        n_bits: as for a run.
        finds_dictionary: as for a run.
    """

    store: str
    manifest: str
    report: str
    on_conflict: OnConflict = "error"
    max_segment_bytes: int = 1 << 30
    kill_at: int | None = None
    kill_after: bool = False
    single_writer: bool = True
    state: str | None = None
    n_bits: int = 1
    finds_dictionary: bool = False

    async def run(self) -> None:
        """Do it, in this process."""
        plan = [] if self.kill_at is None else [Fault(Kill(after=self.kill_after), at=self.kill_at)]
        place = await open_at(self.store)
        storage = FaultyStorage(place, plan)
        run = Run()
        await run.pack(
            storage,
            Path(self.manifest),
            on_conflict=self.on_conflict,
            max_segment_bytes=self.max_segment_bytes,
            single_writer=self.single_writer,
            state=None if self.state is None else Path(self.state),
            n_bits=self.n_bits,
            finds_dictionary=self.finds_dictionary,
        )
        await place.aclose()
        outcome = {
            "report": json.loads(run.report.to_json()),
            "failures": run.failures,
            "calls": storage.seen,
            "done before": run.report.shards_done_before,
        }
        await anyio.Path(self.report).write_text(json.dumps(outcome))


class PackingProcesses:
    """Runs jobs in processes of their own."""

    def __init__(self, module: str = "tests.pack.forking") -> None:
        command = [sys.executable, "-m", module]
        self._process = subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait()

    def run(self, jobs: Sequence[Job]) -> list[int]:
        """Run jobs at the same time; return their exit statuses, the negative signal where one was killed."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the process has no pipes")
        self._process.stdin.write(json.dumps([asdict(job) for job in jobs]) + "\n")
        self._process.stdin.flush()
        statuses: list[int] = json.loads(self._process.stdout.readline())
        return statuses


def _fork(job: Job) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        anyio.run(job.run)
        status = 0
    finally:
        os._exit(status)


def serve(make_job: Callable[..., Job]) -> None:
    """Be the process that forks."""
    for line in sys.stdin:
        jobs = [make_job(**job) for job in json.loads(line)]
        if any("://" in job.store for job in jobs):
            _load_session(None)  # what it reads is kept, so that no child has to read it again
        children = [_fork(job) for job in jobs]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(statuses) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(PackingJob)
