"""How much one worker has in hand at once: requests, and bytes of bodies. Beyond it a request is refused early.

What is refused costs nothing but its refusal: 503 with Retry-After, before the store is asked. Bytes are counted from before
they are read until they have left, whether their client takes them or stalls. A single body past the whole limit passes
when it is alone, so that a small limit slows the service and never blocks it. Probes are not limited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from des import metrics
from des.http.problems import overloaded

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Limits:
    """The counts of one worker; all on one event loop, so plain numbers do."""

    __slots__ = ("_held_bytes", "_max_bytes", "_max_requests", "_requests")

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        """Set the limits.

        Args:
            max_requests: requests at once.
            max_bytes: bytes of bodies at once.
        """
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._requests = self._held_bytes = 0

    def take_request(self) -> None:
        """Count a request in.

        Raises:
            RefusedError: too many are in flight.
        """
        if self._requests >= self._max_requests:
            metrics.request_shed("requests")
            raise overloaded("The service has too many requests in flight; try again shortly.")
        self._requests += 1
        metrics.requests_in_flight.add(1)

    def give_request(self) -> None:
        """Count a request out."""
        self._requests -= 1
        metrics.requests_in_flight.add(-1)

    def take_bytes(self, size: int) -> None:
        """Count the bytes of a body in.

        Raises:
            RefusedError: too many are in flight.
        """
        if self._held_bytes and self._held_bytes + size > self._max_bytes:
            metrics.request_shed("bytes")
            raise overloaded("The service has too many bytes in flight; try again shortly.")
        self._held_bytes += size

    def give_bytes(self, size: int) -> None:
        """Count the bytes of a body out."""
        self._held_bytes -= size


class RequestLimit:
    """Pure ASGI middleware: lets a request through while the worker has room for it."""

    __slots__ = ("_app", "_limits")

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        """Wrap an endpoint."""
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or refuse it."""
        self._limits.take_request()
        try:
            await self._app(scope, receive, send)
        finally:
            self._limits.give_request()
