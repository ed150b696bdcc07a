"""`make fuzz`: coverage-guided fuzzing of all that reads what it cannot trust; stops by itself.

    python -m tests.fuzz [--minutes 30] [--jobs 2] [TARGET…]

Each batch is a process of its own with bounds of memory and time (see `worker`). What reaches new code is kept in `.fuzz/corpus`, where the next run goes
on; findings are copied to `tests/fuzz/corpus/<target>`, where the suite reads them for ever after. The outcome is 1 where there was one, or a batch failed.

`distilling` takes over from there what is worth being kept with the code.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz.targets import CORPUS, ROOT, TARGETS, Target

WORK = ROOT / ".fuzz"
# Starting takes seconds, so a batch should not be short; memory that leaks must not add up, so it should not be long.
_BATCH_SECONDS = 150
# Instrumenting takes so long, and counts.
_STARTING_SECONDS = 5
# Over what a batch was given, for instrumenting and for an input that hangs.
_SPARE_SECONDS = 180
_PROGRESS = re.compile(r"^#\d+\s+(\w+)\s+cov: (\d+) ft: (\d+)(?: corp: (\d+)/)?", re.MULTILINE)
_RUNS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)


@dataclass(slots=True)
class Outcome:
    """What came of a target.

    Attributes:
        seconds: it ran.
        runs: inputs that were tried.
        edges: places in the code that were reached, at the first look and at the end.
        corpus: inputs that each reach something no other does.
        findings: names of the files.
        failures: batches that ended without a finding, and not well.
    """

    seconds: float = 0.0
    runs: int = 0
    edges: tuple[int, int] = (0, 0)
    corpus: int = 0
    findings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Batch:
    """A target, and for how long."""

    target: Target
    seconds: float


def plan(targets: list[Target], seconds: float) -> list[Batch]:
    """Share out seconds of one processor: rounds of batches in which each target has its share."""
    shares = sum(target.share for target in targets)
    longest = max(seconds * target.share / shares for target in targets)
    rounds = max(1, -int(-longest // _BATCH_SECONDS))
    # The longest first, so that all end at about the same time.
    order = sorted(targets, key=lambda target: -target.share)
    return [Batch(target, seconds * target.share / shares / rounds) for _ in range(rounds) for target in order]


class Run:
    """One run over some targets."""

    def __init__(self, targets: list[Target], minutes: float, jobs: int) -> None:
        """Share the time out."""
        self.outcomes = {target.name: Outcome() for target in targets}
        self._until = time.monotonic() + minutes * 60
        self._batches = plan(targets, minutes * 60 * jobs)
        self._planned = sum(batch.seconds for batch in self._batches)
        self._jobs = jobs
        self._lock = threading.Lock()

    def go(self) -> None:
        """Run all batches that there is time for."""
        with ThreadPoolExecutor(self._jobs) as pool:
            list(pool.map(self._run_batch, self._batches))

    def _run_batch(self, batch: Batch) -> None:
        target, outcome = batch.target, self.outcomes[batch.target.name]
        with self._lock:
            # Where starting takes longer than thought, all that is still to come has a little less.
            left = (self._until - time.monotonic()) * self._jobs * batch.seconds / self._planned
            self._planned -= batch.seconds
        seconds = min(batch.seconds, left) - _STARTING_SECONDS
        if seconds < 1 and outcome.runs:
            return
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="des-fuzz-") as directory:
            found = Path(directory)
            status, log = run_worker(target, max(1, round(seconds)), found)
            artifacts = [path for path in sorted(found.iterdir()) if path.suffix != ".txt"]
            with self._lock:
                for path in artifacts:
                    if not path.name.startswith("slow-unit"):
                        keep(target, path, outcome)
                failed = status != 0 and not any(
                    path.name.startswith(("crash", "timeout", "oom")) for path in artifacts
                )
                if failed:
                    outcome.failures.append(f"exit status {status}: {last_words(log)}")
                _count(outcome, log, time.monotonic() - began)


def run_worker(target: Target, seconds: int, found: Path) -> tuple[int, str]:
    """Run one batch; return its exit status and its log. One that does not end is killed."""
    grown = WORK / "corpus" / target.name
    grown.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.worker", target.name, "--seconds", str(seconds)]
    command += ["--work", str(grown), "--found", str(found)]
    # Each arena of glibc reserves address space that the limit counts.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "2"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, capture_output=True, timeout=seconds + _SPARE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return -1, "it did not stop in time"
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def keep(target: Target, path: Path, outcome: Outcome) -> None:
    """Copy a finding to the inputs that are kept, and say what it is."""
    kept = CORPUS / target.name / path.name
    if kept.exists():
        return
    shutil.copy(path, kept)
    outcome.findings.append(kept.name)
    trace = path.with_suffix(".txt")
    why = trace.read_text(encoding="utf-8") if trace.exists() else "it ends the process, or takes too long\n"
    print(f"FOUND {kept.relative_to(ROOT)}\n{why}", flush=True)  # noqa: T201 - this is a program, and its output its result


def _count(outcome: Outcome, log: str, seconds: float) -> None:
    outcome.seconds += seconds
    runs = _RUNS.findall(log)
    outcome.runs += int(runs[-1]) if runs else 0
    progress = _PROGRESS.findall(log)
    if progress:
        first = next((int(cov) for word, cov, _, _ in progress if word == "INITED"), int(progress[0][1]))
        outcome.edges = (outcome.edges[0] or first, max(outcome.edges[1], int(progress[-1][1])))
        outcome.corpus = max(outcome.corpus, *(int(corpus or 0) for *_, corpus in progress))


def last_words(log: str) -> str:
    """Return the end of a log."""
    return " / ".join(line for line in log.splitlines() if "Instrumenting" not in line)[-400:]


def print_table(outcomes: dict[str, Outcome]) -> None:
    """Print what came of it."""
    table = Table("target", "seconds", "executions", "edges", "new edges", "corpus", "findings")
    for name, outcome in outcomes.items():
        first, last = outcome.edges
        said = [*outcome.findings, *outcome.failures]
        found = "[red]" + "\n".join(said).replace("[", "\\[") + "[/]" if said else "0"
        row = (f"{outcome.seconds:.0f}", f"{outcome.runs:,}", str(last), str(last - first), str(outcome.corpus), found)
        table.add_row(name, *row)
    Console(highlight=False).print(table)


def main() -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all where none is named: {', '.join(TARGETS)}")
    parser.add_argument("--minutes", type=float, default=30, help="by the clock")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are: {', '.join(TARGETS)}.")
    if find_spec("atheris") is None:
        parser.error("fuzzing needs atheris: pip install -e '.[fuzz]'.")
    targets = [TARGETS[name] for name in arguments.targets or TARGETS]
    run = Run(targets, arguments.minutes, max(1, arguments.jobs))
    run.go()
    print_table(run.outcomes)
    # Where the time was not enough for a target, nothing is known of it.
    return int(any(outcome.findings or outcome.failures or not outcome.runs for outcome in run.outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
