"""How the counts leave the process: a scrape of all workers, a file.

Several worker processes count into files of prometheus-client's multiprocess mode, so that one scrape sees all of them. That mode is
decided by the environment when prometheus-client is first imported; here it is only recognised.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from des.metrics.instruments import INSTRUMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from des.metrics.instruments import Instrument

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition() -> bytes:
    """Return all instruments in Prometheus' text format, of all workers; reads files where there are several."""
    from prometheus_client import generate_latest  # noqa: PLC0415 - as for `activate`

    return generate_latest(_registry())


def _registry() -> CollectorRegistry:
    """Return what has the counts of all processes that count together."""
    from prometheus_client import REGISTRY, CollectorRegistry, values  # noqa: PLC0415 - as for `activate`
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

    if values.ValueClass is values.MutexValue:
        return REGISTRY
    registry = CollectorRegistry(support_collectors_without_names=True)
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library leaves it untyped
    return registry


@contextmanager
def shared_between_processes() -> Iterator[None]:
    """Let this process, if it counts nothing yet, and those that are started from now on count together.

    The files they count in go with the context: they are gone by then, and this one counts no more.
    """
    with TemporaryDirectory(prefix="des-metrics-") as directory:
        os.environ[_DIRECTORY] = directory
        try:
            yield
        finally:
            del os.environ[_DIRECTORY]


def process_ended(pid: int) -> None:
    """Forget the gauges of a process that is no more, if it counted together with others."""
    from prometheus_client import values  # noqa: PLC0415 - as for `activate`
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    if values.ValueClass is not values.MutexValue:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]  # the library leaves it untyped


def write_file(path: Path, instruments: Sequence[Instrument] = INSTRUMENTS) -> None:
    """Write instruments to a file, for the textfile collector of a node exporter; replaced as a whole.

    Those of the process and the interpreter are left out: the node exporter has its own of the same names, and would refuse all.

    Raises:
        OSError: it cannot be written.
    """
    from prometheus_client import write_to_textfile  # noqa: PLC0415 - as for `activate`

    names = [one.name + ending for one in instruments for ending in ("", "_bucket", "_count", "_sum")]
    write_to_textfile(str(path), _registry().restricted_registry(names))


def value_in_file(path: Path, instrument: Instrument, *labels: str) -> float | None:
    """Return what a file that `write_file` wrote says of an instrument with these labels; None where it says nothing."""
    pairs = ",".join(f'{name}="{value}"' for name, value in zip(instrument.labels, labels, strict=True))
    series = f"{instrument.name}{{{pairs}}} " if pairs else f"{instrument.name} "
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(series)), None)
    except (OSError, ValueError, IndexError):
        return None
