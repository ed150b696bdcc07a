"""Answers for people: tables where stdout is a terminal, tab-separated lines where it is not, fields as aligned lines."""

from __future__ import annotations

import sys
from io import StringIO
from typing import TYPE_CHECKING

from des.console import visible, write_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024


def human_size(count: int) -> str:
    """Return bytes as people read them: `17 B`, `2.9 MiB`."""
    size, unit = float(count), 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size, unit = size / _STEP, unit + 1
    return f"{count} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def exact_size(count: int) -> str:
    """Return bytes exactly, and as people read them: `3,000,000 bytes (2.9 MiB)`."""
    plain = f"{count:,} byte{'' if count == 1 else 's'}"
    return plain if count < _STEP else f"{plain} ({human_size(count)})"


def is_for_people() -> bool:
    """Tell whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def write_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Write names and values, aligned."""
    pairs = list(fields)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        write_line(f"{name:{width}}  {visible(value)}")


def write_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = (), folded: Sequence[str] = ()
) -> None:
    """Write a table: for people with a heading, for programs one line a row, tab-separated.

    Args:
        columns: their names.
        rows: their cells; no cell has a tab or a line break.
        numbers: the names of the columns that are aligned to the right.
        folded: the names of the columns that take a second line where there is no room.
    """
    if not is_for_people():
        for row in rows:
            write_line("\t".join(row))
        return
    from rich import box  # noqa: PLC0415 - only people pay for its import
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(
            column, justify="right" if column in numbers else "left", no_wrap=column not in folded, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    terminal = Console()
    rendered = Console(file=StringIO(), force_terminal=terminal.is_terminal, width=terminal.width)
    with rendered.capture() as capture:
        rendered.print(table)
    write_line(capture.get().strip("\n"))
