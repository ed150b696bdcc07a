"""The live series of this process, and how they are added to.

Rules:

1. Counting is off until `activate`: a program that only reads files pays neither for it nor for importing
   prometheus-client. The service and `--metrics-file` switch it on. Until then every function here does nothing.
2. A service counts some ten times a request, and an instrument takes its time to count. While `gathering`, counts are added up
   and handed to the instruments `GATHER_SECONDS` later, so that a busy service pays once for many requests; times are handed over
   one by one, but all in a row, which takes half as long. A scrape may lack what other workers counted since; its own worker
   settles first.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING

from des.metrics.instruments import INSTRUMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from prometheus_client import Counter, Gauge, Histogram

    from des.metrics.instruments import Instrument

GATHER_SECONDS = 0.05
_LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Series:
    """One series of a counter or gauge: whoever counts it often keeps it, which spares looking it up.

    Any thread may add to it.
    """

    __slots__ = ("_child", "_gathered", "_is_gathered", "_labels", "_name")

    def __init__(self, name: str, labels: tuple[str, ...]) -> None:
        """Begin at 0."""
        self._name, self._labels = name, labels
        self._child: Counter | Gauge | None = None
        self._gathered: float = 0
        self._is_gathered = False

    def add(self, amount: float = 1) -> None:
        """Count, where anybody does."""
        if _registry.gathering_thread == get_ident():
            if not self._is_gathered:
                self._is_gathered = True
                _registry.gathered(self)
            self._gathered += amount
        elif _registry.is_active:
            self._count(amount)

    def hand_over(self) -> None:
        """Count what was gathered; in the thread that gathers."""
        self._is_gathered = False
        amount, self._gathered = self._gathered, 0
        self._count(amount)

    def _count(self, amount: float) -> None:
        if self._child is None:
            family = _registry.counts[self._name]
            self._child = family.labels(*self._labels) if self._labels else family
        self._child.inc(amount)


class Timings:
    """One series of a histogram, which whoever observes keeps."""

    __slots__ = ("_child", "_gathered", "_labels", "_name")

    def __init__(self, instrument: Instrument, *labels: str) -> None:
        """Begin without observations."""
        self._name, self._labels = instrument.name, labels
        self._child: Histogram | None = None
        self._gathered: list[float] = []

    def observe(self, seconds: float) -> None:
        """Count a time, where anybody does."""
        if _registry.gathering_thread == get_ident():
            if not self._gathered:
                _registry.gathered(self)
            self._gathered.append(seconds)
        elif _registry.is_active:
            self._observe((seconds,))

    def hand_over(self) -> None:
        """Count what was gathered; in the thread that gathers."""
        gathered, self._gathered = self._gathered, []
        self._observe(gathered)

    def _observe(self, times: Iterable[float]) -> None:
        if self._child is None:
            self._child = _registry.times[self._name].labels(*self._labels)
        for seconds in times:
            self._child.observe(seconds)


class _Registry:
    """The live instruments of this process, none until it is activated; series are looked up once and kept."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter | Gauge] = {}
        self.times: dict[str, Histogram] = {}
        self.gathering_thread = 0
        self._gauges: dict[str, Gauge] = {}
        self._series: dict[tuple[str, tuple[str, ...]], Series] = {}
        self._gathered: list[Series | Timings] = []
        self._reporters: list[Callable[[], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_active(self) -> bool:
        return bool(self.counts)

    def activate(self) -> None:
        if self.is_active:
            return
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415 - 0.1 s that only those who count pay

        for one in INSTRUMENTS:
            if one.kind == "counter":
                self.counts[one.name] = Counter(one.name, one.help, one.labels)
            elif one.kind == "gauge":
                gauge = Gauge(one.name, one.help, one.labels, multiprocess_mode="livesum")
                self.counts[one.name] = self._gauges[one.name] = gauge
            else:
                self.times[one.name] = Histogram(one.name, one.help, one.labels, buckets=_LATENCY_BUCKETS)

    def series(self, instrument: Instrument, *labels: str) -> Series:
        key = (instrument.name, labels)
        found = self._series.get(key)
        return found or self._series.setdefault(key, Series(*key))

    def gathered(self, series: Series | Timings) -> None:
        """Hear of a series that has something to hand over."""
        if not self._gathered and self._loop is not None:
            self._loop.call_later(GATHER_SECONDS, self.hand_over)
        self._gathered.append(series)

    def hand_over(self) -> None:
        for report in self._reporters:
            report()
        gathered, self._gathered = self._gathered, []
        for series in gathered:
            series.hand_over()

    @contextmanager
    def gathering(self, report: Callable[[], None]) -> Iterator[None]:
        leads = self._loop is None  # else another service of this process gathers, and this one counts one by one
        self._reporters.append(report)
        if leads:
            self._loop, self.gathering_thread = asyncio.get_running_loop(), get_ident()
        try:
            yield
        finally:
            report()
            self._reporters.remove(report)
            if leads:
                self._loop, self.gathering_thread = None, 0
                self.hand_over()

    def set(self, instrument: Instrument, value: float, *labels: str) -> None:
        gauge = self._gauges.get(instrument.name)
        if gauge is not None:
            (gauge.labels(*labels) if labels else gauge).set(value)


_registry = _Registry()


def series(instrument: Instrument, *labels: str) -> Series:
    """Return the one series of a counter or gauge with these labels."""
    return _registry.series(instrument, *labels)


def set_gauge(instrument: Instrument, value: float, *labels: str) -> None:
    """Set a gauge, where anybody counts."""
    _registry.set(instrument, value, *labels)


def activate() -> None:
    """Start counting in this process. May be called twice."""
    _registry.activate()


def is_active() -> bool:
    """Tell whether anybody counts."""
    return _registry.is_active


def gathering(report: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
    """Count in the running event loop with less effort, see rule 2, until the context ends.

    Args:
        report: called before what was gathered is handed over, and in the end: counts what is better looked at now and then.
    """
    return _registry.gathering(report)


def settle() -> None:
    """Hand over what was gathered; in the event loop that gathers."""
    _registry.hand_over()
