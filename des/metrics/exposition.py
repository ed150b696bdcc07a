"""How the counts leave the process: a scrape of all workers, a file.

Several worker processes count into files of prometheus-client's multiprocess mode, so that one scrape sees all of them. That mode is
decided by the environment when prometheus-client is first imported; here it is only recognised.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from des.metrics.instruments import INSTRUMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from des.metrics.instruments import Instrument

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition() -> bytes:
    """Return all instruments in Prometheus' text format, of all workers; reads files where there are several."""
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, values  # noqa: PLC0415 - as for `activate`
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

    if values.ValueClass is values.MutexValue:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library leaves it untyped
    return generate_latest(registry)


def share_between_processes(directory: str) -> None:
    """Let the processes that are started from now on count together, in files of an empty directory.

    Args:
        directory: theirs alone; it goes when they are gone.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory


def process_ended(pid: int) -> None:
    """Forget the gauges of a process that counted together with others and is no more."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 - as for `activate`

    mark_process_dead(pid)  # type: ignore[no-untyped-call]  # the library leaves it untyped


def write_file(path: Path, instruments: Sequence[Instrument] = INSTRUMENTS) -> None:
    """Write instruments to a file, for the textfile collector of a node exporter; replaced as a whole.

    Those of the process and the interpreter are left out: the node exporter has its own of the same names, and would refuse all.

    Raises:
        OSError: it cannot be written.
    """
    from prometheus_client import REGISTRY, write_to_textfile  # noqa: PLC0415 - as for `activate`

    names = [one.name + ending for one in instruments for ending in ("", "_bucket", "_count", "_sum")]
    write_to_textfile(str(path), REGISTRY.restricted_registry(names))


def value_in_file(path: Path, instrument: Instrument, *labels: str) -> float | None:
    """Return what a file that `write_file` wrote says of an instrument with these labels; None where it says nothing."""
    pairs = ",".join(f'{name}="{value}"' for name, value in zip(instrument.labels, labels, strict=True))
    series = f"{instrument.name}{{{pairs}}} " if pairs else f"{instrument.name} "
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(series)), None)
    except (OSError, ValueError, IndexError):
        return None
