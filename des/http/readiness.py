"""`/ready`: whether files can be served, and of a store in zones, from which places.

A store whose places fail in part is degraded, and ready all the same: taking the service out of the load balancer would help nobody. It is not ready
while it starts or ends, without a store, and when no place can be read.

Reading tells how a place fares, but copies are hardly read while their primary is well, and a service that is not ready gets no requests at all. So all
places are asked for their descriptors every ten seconds, beside the requests; and where all are being left alone, here and now.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
from starlette.responses import JSONResponse, Response

from des.errors import DESError, StorageError
from des.http.problems import overloaded
from des.storage.descriptor import require_descriptor
from des.tasks import open_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request

    from des.http.service import Service
    from des.storage.protocol import PlaceState
    from des.store import Store

_ASKED_EVERY_SECONDS = 10.0

_log = logging.getLogger(__name__)


@asynccontextmanager
async def places_asked(store: Store, every: float = _ASKED_EVERY_SECONDS) -> AsyncIterator[None]:
    """Ask the places of a store how they are, again and again, while the context lasts.

    Args:
        store: one that lies in one place alone is not asked.
        every: seconds between the end of one round and the next.
    """
    if not store.storage.states():
        yield
        return
    async with open_tasks() as tasks:
        tasks.start_soon(_ask_again_and_again, store, every)
        yield


async def _ask_again_and_again(store: Store, every: float) -> None:
    while True:
        await anyio.sleep(every)
        with suppress(DESError):  # what comes of it shows in the states of the places
            await store.in_time(require_descriptor(store.storage))


class ReadyEndpoint:
    """Answers `GET /ready`."""

    def __init__(self, service: Service) -> None:
        """Speak for a service."""
        self._service = service

    async def answer(self, _request: Request) -> Response:
        """Say whether files can be served.

        Raises:
            RefusedError: the service is starting or ending, or no place can be read.
            SettingsError: there is no store.
            StorageError: the only place is unwell.
        """
        if self._service.draining:
            raise overloaded("The service is ending.")
        store = self._service.store
        states = await _asked(store)
        zones: dict[str, dict[str, str]] = {}
        for one in states:
            zones.setdefault(one.zone, {})[one.place] = "ok" if one.is_well else "failing"
        status = "ok" if all(one.is_well for one in states) else "degraded"
        return JSONResponse({"status": status, "zones": zones}, headers={"Cache-Control": "no-store"})


async def _asked(store: Store) -> Sequence[PlaceState]:
    """Return how the places fare, after at least one of them was found readable."""
    try:
        await store.check()
        states = store.storage.states()
        if states and not any(one.is_well for one in states):
            await store.in_time(require_descriptor(store.storage))
    except StorageError as error:
        if not store.storage.states():
            raise
        _log.warning("no place can be read: %s", error)
        raise overloaded("No place of the store can be read; try again later.") from error
    return store.storage.states()
