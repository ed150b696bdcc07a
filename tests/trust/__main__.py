"""`make trust`: the tests of `promises` in their long forms, then the mutations; a table of it all, and the same as JSON.

    TRUST_SCALE=0.1 python -m tests.trust [FAULT …]

`TRUST_SCALE` says how much of the long forms runs (see `sampling`): 1, the default, all of it and the mutations. `TRUST_SEED` chooses what runs below 1.
A FAULT is a part of a row's name; without any, all rows run. The outcome is 1 where a test failed, a row ran nothing, or a mutation was not caught.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.trust.mutations import MUTATIONS, ROOT, Outcome, sentence, try_all
from tests.trust.promises import ROWS, Row
from tests.trust.sampling import REPORT, SCALE, SEED, scale

RESULTS = ROOT / "trust.json"
_CASE_SECONDS = 1800
_MUTATIONS_FROM = 1.0


@dataclass(slots=True)
class Result:
    """What came of a row.

    Attributes:
        promise: see `Row`.
        fault: see `Row`.
        runs: cases that ran.
        seconds: that they took together.
        failures: node ids.
        skipped: cases that said they could not run here.
    """

    promise: str
    fault: str
    runs: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    skipped: int = 0

    @property
    def is_kept(self) -> bool:
        """Whether the row ran, and nothing failed."""
        return self.runs > 0 and not self.failures


def run_tests(rows: list[Row], seed: str) -> tuple[int, list[Result]]:
    """Run the tests of some rows; return pytest's exit status, and what came of each row."""
    tests = sorted({test for row in rows for test in row.tests})
    with tempfile.TemporaryDirectory(prefix="des-trust-") as directory:
        report = Path(directory, "cases.ndjson")
        report.touch()
        # One more than there are cores: the long soak of the service mostly waits.
        options = [
            "-n",
            str((os.cpu_count() or 1) + 1),
            "--dist",
            "worksteal",
            "-m",
            "soak or not soak",
            "-p",
            "tests.trust.sampling",
        ]
        options += ["--timeout", str(_CASE_SECONDS), "-q", "--show-capture=no", "-p", "no:cacheprovider"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), SEED: seed, REPORT: str(report)}
        command = [sys.executable, "-m", "pytest", *options, *tests]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        cases = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    results = []
    for row in rows:
        result = Result(row.promise, row.fault)
        for case in cases:
            if any(is_of(case["test"], test) for test in row.tests):
                result.runs += case["outcome"] == "passed"
                result.skipped += case["outcome"] == "skipped"
                result.seconds += case["seconds"]
                if case["outcome"] == "failed":
                    result.runs += 1
                    result.failures.append(case["test"])
        result.seconds = round(result.seconds, 1)
        results.append(result)
    return done.returncode, results


def is_of(case: str, test: str) -> bool:
    """Tell whether a case is one of a test, a class or a module."""
    return case == test or case.startswith((f"{test}[", f"{test}::"))


def print_table(console: Console, results: list[Result], outcomes: list[Outcome]) -> None:
    """Print what came of it all."""
    table = Table("promise", "fault", "runs", "failures", "seconds")
    for result in results:
        failures = f"[red]{len(result.failures)}[/]" if result.failures else "0"
        table.add_row(result.promise, result.fault, str(result.runs or "[red]0[/]"), failures, f"{result.seconds:.0f}")
    console.print(table)
    if outcomes:
        table = Table("mutation", "caught by", title="rules broken on purpose")
        for outcome in outcomes:
            if outcome.is_caught:
                table.add_row(outcome.mutation.rule, "\n".join(outcome.mutation.tests))
            else:
                table.add_row(outcome.mutation.rule, f"[red]{sentence(outcome)}[/]")
        console.print(table)


def main(faults: list[str]) -> int:
    """Run it; return the exit status."""
    rows = [row for row in ROWS if not faults or any(fault in row.fault for fault in faults)]
    if not rows:
        sys.exit(f"There is no such fault; there are: {'; '.join(row.fault for row in ROWS)}.")
    seed = os.environ.get(SEED) or secrets.token_hex(4)
    console = Console(highlight=False)
    console.print(f"{SCALE}={scale():g} {SEED}={seed}")
    began = time.monotonic()
    status, results = run_tests(rows, seed)
    outcomes: list[Outcome] = []
    if scale() >= _MUTATIONS_FROM and not faults:
        outcomes = try_all(
            MUTATIONS, at_once=os.cpu_count() or 1, tell=lambda outcome: console.print(sentence(outcome))
        )
    print_table(console, results, outcomes)
    seconds = round(time.monotonic() - began)
    document = {
        "scale": scale(),
        "seed": seed,
        "seconds": seconds,
        "rows": [asdict(result) for result in results],
        "mutations": [{"rule": one.mutation.rule, "caught": one.is_caught, "by": one.failed} for one in outcomes],
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.print(f"{seconds} s; written to {RESULTS.name}")
    kept = status == 0 and all(result.is_kept for result in results) and all(one.is_caught for one in outcomes)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
