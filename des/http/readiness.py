"""`/ready`: whether files can be served, and of a store in zones, from which places.

A store whose places fail in part is degraded, and ready all the same: taking the service out of the load balancer would help nobody. It is not ready
while it starts or ends, without a store, and when no place can be read. Where all places are being left alone, one is asked here and now: otherwise a
service that gets no requests because it is not ready would never find out that they are well again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from des.errors import StorageError
from des.http.problems import overloaded
from des.storage.descriptor import require_descriptor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from des.http.service import Service
    from des.storage.protocol import PlaceState
    from des.store import Store

_log = logging.getLogger(__name__)


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
