"""Progress of a run on a terminal: a bar while files are packed; plain lines where there is no terminal; a table at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)
from rich.table import Table

from des.pack.run import Progress

if TYPE_CHECKING:
    from rich.console import Console

    from des.pack.report import Report

_LINE_SECONDS = 10.0


class TerminalProgress(Progress):
    """A live bar."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("reading the manifest", total=None, rate="")
        self._started = time.monotonic()
        self._bar.start()

    def planned(self, rows: int) -> None:
        """Show how many rows were read."""
        self._bar.update(self._task, completed=rows)

    def begin(self, rows: int) -> None:
        """Start the bar of the packing itself."""
        self._started = time.monotonic()
        self._bar.update(self._task, description="packing", total=rows, completed=0)

    def advance(self, files: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, files)
        done = self._bar.tasks[0].completed
        seconds = max(time.monotonic() - self._started, 0.001)
        self._bar.update(self._task, rate=f"{done / seconds:,.0f} files/s")

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


class PlainProgress(Progress):
    """A line every ten seconds, for logs."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._total = 0
        self._done = 0
        self._last = time.monotonic()

    def begin(self, rows: int) -> None:
        """Note the total."""
        self._total = rows

    def advance(self, files: int) -> None:
        """Write a line when it is time for one."""
        self._done += files
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS:
            self._last = now
            self._stream.write(f"packing: {self._done:,} of {self._total:,} files\n")

    def close(self) -> None:
        """Nothing is left on the screen."""


def summary_table(report: Report) -> Table:
    """Return the table that ends a run."""
    table = Table(title=f"packed into {report.store}", show_header=False)
    ratio = report.bytes_in / report.bytes_stored if report.bytes_stored else 1.0
    rate = report.files / report.seconds if report.seconds else 0.0
    rows = [
        ("files", f"{report.files:,}"),
        ("packed", f"{report.packed:,}"),
        ("skipped (already there)", f"{report.skipped:,}"),
        ("failed", f"{report.failed:,}"),
        ("bytes in", f"{report.bytes_in:,}"),
        ("bytes stored", f"{report.bytes_stored:,}"),
        ("ratio", f"{ratio:.2f}"),
        ("shards", f"{report.shards:,}"),
        ("segments written", f"{report.segments:,}"),
        ("objects written", f"{report.objects_written:,}"),
        ("seconds", f"{report.seconds:.2f}"),
        ("files/s", f"{rate:,.0f}"),
    ]
    if report.dictionary is not None:
        rows.append(("dictionary", str(report.dictionary)))
    for name, figure in rows:
        table.add_row(name, figure)
    table.columns[1].justify = "right"
    return table
