"""The application: routes, and the store they answer from.

Probes and metrics do not depend on the store and are not limited, so that a service that is busy, or waits for its store to be
made, still says so. Without a descriptor it starts: `/health` is 200, `/files` and `/ready` say what is missing.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from des import metrics
from des.http import openapi
from des.http.access import OPEN_PATHS, AccessControl, kept_fresh
from des.http.addressing import names_listing, path_below_files, raw_path
from des.http.batch import BatchEndpoint, takes_content
from des.http.deleting import ByMethod, DeleteEndpoint
from des.http.exchange import ExchangeMiddleware
from des.http.files import FileEndpoint
from des.http.keys import KeysFile
from des.http.limits import RequestLimit
from des.http.listings import FilesOfDayEndpoint, ShardsOfDayEndpoint
from des.http.readiness import ReadyEndpoint, places_asked
from des.http.service import Service
from des.storage.opening import resolve_target
from des.store import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request
    from starlette.types import ASGIApp, Scope

    from des.settings import Settings
    from des.storage.opening import Target
    from des.store import Store

_NOT_CACHED = {"Cache-Control": "no-store"}


def create_app(target: Target = None, *, settings: Settings | None = None) -> Starlette:
    """Return the service as an ASGI application for any server.

    Args:
        target: a directory, an `s3://bucket/prefix` address, settings, or None for the environment (read at the call).
        settings: what else holds; the environment where None.

    Raises:
        SettingsError: a setting or the address is wrong.
    """
    resolved = resolve_target(target, settings)
    return build_app(resolved, lambda: open_store(resolved))


def build_app(settings: Settings, open_it: Callable[[], AbstractAsyncContextManager[Store]]) -> Starlette:
    """Return the service over a store that is opened when the server starts and closed when it ends.

    Args:
        settings: limits, times and headers; with `http_admin_port`, probes and metrics are an application of their own, `app.state.admin`.
        open_it: opens the store.

    Raises:
        SettingsError: a setting is wrong.
    """
    metrics.activate()
    metrics.serving(openapi.VERSION)
    service = Service(settings)
    keys = None if settings.http_api_keys_file is None else KeysFile(settings.http_api_keys_file)
    has_admin_port = settings.http_admin_port is not None
    access = AccessControl(keys, open_paths=() if has_admin_port else OPEN_PATHS) if keys else None

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        with metrics.gathering(service.report):
            async with kept_fresh(keys), open_it() as store, places_asked(store):
                service.attach(store)
                try:
                    yield
                finally:
                    service.detach()

    limited = [Middleware(RequestLimit, service.limits)]
    probing = [
        _route(openapi.HEALTH, _health),
        _route(openapi.READY, ReadyEndpoint(service).answer),
        _route(openapi.METRICS, _metrics),
    ]
    app = _Application(
        service,
        access,
        routes=[
            _files_route(service, limited, deleting=access is not None),
            _FilesOfDayRoute(
                openapi.FILES.path, FilesOfDayEndpoint(service), methods=openapi.FILES.methods, middleware=limited
            ),
            _route(openapi.SHARDS, ShardsOfDayEndpoint(service), limited),
            _route(openapi.BATCH, BatchEndpoint(service), limited),
            _route(openapi.OPENAPI, _openapi_with_deletion if access else _openapi),
            *([] if has_admin_port else probing),
        ],
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.admin = _Application(service, None, routes=probing) if has_admin_port else None
    return app


def _files_route(service: Service, middleware: Sequence[Middleware], *, deleting: bool) -> Route:
    endpoint: ASGIApp = FileEndpoint(service)
    methods = list(openapi.FILE.methods)
    if deleting:
        endpoint = ByMethod(endpoint, DeleteEndpoint(service))
        methods += openapi.DELETE_FILE.methods
    return _FilesRoute(openapi.FILE.path, endpoint, methods=methods, middleware=middleware)


def _route(operation: openapi.Operation, endpoint: Callable[..., Any], middleware: Sequence[Middleware] = ()) -> Route:
    return Route(operation.path, endpoint, methods=operation.methods, middleware=middleware)


class _Application(Starlette):
    """Starlette's, without the middlewares that it puts around all routes: the exchange answers whatever goes wrong, routing included."""

    def __init__(self, service: Service, access: AccessControl | None, **arguments: Any) -> None:  # noqa: ANN401 - Starlette's own
        super().__init__(**arguments)
        self.router.redirect_slashes = False
        self._service, self._access = service, access

    def build_middleware_stack(self) -> ASGIApp:
        return ExchangeMiddleware(self.router.middleware_stack, self._service, takes_content, self._access)


class _FilesRoute(Route):
    """Both spellings of `/files`, matched on the raw path: the decoded one is not the uid, and a line break in it matches nothing."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        below_files = path_below_files(raw_path(scope)) if scope["type"] == "http" else None
        if below_files is None or (not below_files and names_listing(scope["query_string"])):
            return Match.NONE, {}
        return Match.FULL, {"endpoint": self.endpoint, "path_params": {"below_files": below_files}}


class _FilesOfDayRoute(Route):
    """`/files` as a listing."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        below_files = path_below_files(raw_path(scope)) if scope["type"] == "http" else None
        if below_files != b"":
            return Match.NONE, {}
        return Match.FULL, {"endpoint": self.endpoint, "path_params": {}}


async def _health(_request: Request) -> Response:
    """Say that the process answers; depends on nothing."""
    return JSONResponse({"status": "ok"}, headers=_NOT_CACHED)


async def _metrics(_request: Request) -> Response:
    metrics.settle()
    body = await anyio.to_thread.run_sync(metrics.exposition)
    return Response(body, headers={"Content-Type": metrics.CONTENT_TYPE, **_NOT_CACHED})


async def _openapi(_request: Request) -> Response:
    return JSONResponse(openapi.document())


async def _openapi_with_deletion(_request: Request) -> Response:
    return JSONResponse(openapi.document(deleting=True))
