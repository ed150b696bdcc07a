"""`--metrics-file` of the maintenance verbs: what a run came to, for Prometheus' textfile collector, so that a cron job is seen to work.

The file is written however the run ends, and replaced as a whole. It holds only what bears the verb as a label, so that the files of several jobs lie
in one directory; a run that fails leaves the time of the last success as it was.
"""

from __future__ import annotations

import os
import time
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from des import metrics
from des.console import say
from des.errors import EXIT_DONE, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_COUNTS = "des.counts"


def measured(verb: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Add `--metrics-file` to a verb, which tells its counts by `tell_counts`."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @wraps(command)
        def run(*, metrics_file: Path | None, **arguments: Any) -> int:  # noqa: ANN401 - whatever the verb takes
            if metrics_file is None:
                return command(**arguments)
            if not os.path.isdir(metrics_file.parent):  # noqa: PTH112 - False for a path that may not be looked at, too
                raise SettingsError(
                    f"--metrics-file {metrics_file} cannot be written: {metrics_file.parent} is no directory."
                )
            metrics.activate()
            began, status = time.monotonic(), None
            try:
                status = command(**arguments)
            finally:
                _write(metrics_file, verb, time.monotonic() - began, is_good=status == EXIT_DONE)
            return status

        option = click.option(
            "--metrics-file",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Write the run's metrics at its end, for Prometheus' textfile collector.",
        )
        return option(run)

    return decorate


def tell_counts(summary: Mapping[str, Any]) -> None:
    """Tell what a run, or a part of it, came to: of a summary the numbers, and the lengths of its lists."""
    counts: dict[str, int] = click.get_current_context().meta.setdefault(_COUNTS, {})
    counts |= {
        name: len(value) if isinstance(value, list) else value
        for name, value in summary.items()
        if isinstance(value, list | int) and not isinstance(value, bool)
    }


def _write(path: Path, verb: str, seconds: float, *, is_good: bool) -> None:
    for name, count in click.get_current_context().meta.get(_COUNTS, {}).items():
        metrics.maintenance_counted(verb, name, count)
    metrics.maintenance_took(verb, seconds)
    at = time.time() if is_good else metrics.value_in_file(path, metrics.MAINTENANCE_SUCCESS, verb)
    if at is not None:
        metrics.maintenance_succeeded(verb, at)
    try:
        metrics.write_file(path, metrics.MAINTENANCE)
    except OSError as error:
        say(f"--metrics-file {path} cannot be written: {error.strerror}.")
