"""What the maintenance verbs share: their options, a progress bar, and the form of their answer."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from des.cli.measuring import tell_counts
from des.console import say, write_line
from des.errors import EXIT_BAD_ANSWER, EXIT_DONE
from des.lifecycle.clock import parse_age

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta

    from des.lifecycle.running import Failed

_Function = TypeVar("_Function", bound="Callable[..., object]")


class AgeType(click.ParamType["timedelta"]):
    """An age such as 15m, 24h, 90d or 7y."""

    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time it means."""
        try:
            return parse_age(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def shards_argument(function: _Function) -> _Function:
    """Add `[DATE|SHARD]...`."""
    return click.argument("names", metavar="[DATE|SHARD]...", nargs=-1)(function)


def microseconds(age: timedelta) -> int:
    """Return an age in microseconds."""
    return int(age.total_seconds() * 1_000_000)


@contextmanager
def shown_progress(doing: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar of shards on stderr where that is a terminal; yields what is to be called after each."""
    if sys.stderr is None or not sys.stderr.isatty() or not total:
        yield lambda: None
        return
    from rich.console import Console  # noqa: PLC0415 - only people pay for its import
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn("shards"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def conclude(summary: dict[str, Any], failed: Sequence[Failed], *, as_json: bool, is_good: bool = True) -> int:
    """Write what failed to stderr and, with `as_json`, the summary to stdout; tell the counts, and return the exit status."""
    tell_counts(summary | {"failed": list(failed)})
    for one in failed:
        say(f"{one.shard}: {one.error}")
    if as_json:
        write_line(json.dumps(summary | {"failed": [asdict(one) for one in failed]}, ensure_ascii=False))
    return EXIT_DONE if is_good and not failed else EXIT_BAD_ANSWER
