"""The metrics of a run as a file for Prometheus' textfile collector: written at the end, however the run ends, and replaced as a whole."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from des import metrics
from des.console import say
from des.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from des.pack.report import Report


@contextmanager
def metrics_written(path: Path, report: Report) -> Iterator[None]:
    """Count the run in this context, and write the file at its end; a failed run leaves the time of the last success as it was.

    Raises:
        SettingsError: the file's directory is not there.
    """
    if not os.path.isdir(path.parent):  # noqa: PTH112 - False for a path that may not be looked at, too
        raise SettingsError(f"--metrics-file {path} cannot be written: {path.parent} is no directory.")
    with metrics.shared_between_processes():
        metrics.activate()
        last_success = metrics.value_in_file(path, metrics.PACK_SUCCESS)
        try:
            yield
        finally:
            _count(report)
            if report.is_complete and not report.failed:
                last_success = time.time()
            if last_success is not None:
                metrics.packing_succeeded(last_success)
            try:
                metrics.write_file(path)
            except OSError as error:
                say(f"--metrics-file {path} cannot be written: {error.strerror}.")


def _count(report: Report) -> None:
    metrics.files_packed("ok", report.packed)
    metrics.files_packed("skipped", report.skipped)
    for status, count in report.statuses.items():
        metrics.files_packed(status, count)
    metrics.bytes_packed(report.bytes_in, report.bytes_stored)
    metrics.packing_took(report.seconds)
