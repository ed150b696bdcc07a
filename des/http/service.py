"""What all endpoints of one worker share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from des import metrics
from des.http.limits import Limits
from des.http.problems import overloaded
from des.metering import CacheMeter

if TYPE_CHECKING:
    from des.errors import Status
    from des.settings import Settings
    from des.store import Store


class Service:
    """One worker's store, limits and state.

    Attributes:
        settings: what it was started with.
        limits: how much may be in flight.
        draining: it was told to end: what is in flight is finished, connections close after their next answer.
    """

    def __init__(self, settings: Settings) -> None:
        """Begin without a store."""
        self.settings = settings
        self.limits = Limits(settings.http_max_requests, settings.http_max_bytes)
        self.draining = False
        self._store: Store | None = None
        self._cache_meter: CacheMeter | None = None
        self._retrievals: metrics.Retrievals | None = None

    @property
    def store(self) -> Store:
        """The store.

        Raises:
            RefusedError: the service is starting or ending.
        """
        if self._store is None:
            raise overloaded("The service is starting or ending; try again shortly.")
        return self._store

    def attach(self, store: Store) -> None:
        """Serve from this store."""
        self._store = store
        self._cache_meter = CacheMeter(store.cache)
        self._retrievals = metrics.Retrievals(store.backend)

    def detach(self) -> None:
        """Serve from no store."""
        self.report()
        self._store = self._cache_meter = None

    def retrieval_done(self, status: Status, seconds: float) -> None:
        """Count a retrieval, see `des.metrics.Retrievals`."""
        if self._retrievals:
            self._retrievals.done(status, seconds)

    def report(self) -> None:
        """Count what became of the cache since the last report."""
        if self._cache_meter:
            self._cache_meter.report()
