"""One endpoint as this process knows it: its client, its connections, its limit on requests at once, its retry budget.

Places on the same endpoint share all of it, within an event loop, by count: the last one to leave closes it. This
module alone makes aiobotocore clients. What it sets, and why:

- Retries of botocore are off: there is one retry layer (`s3_retry`), and it has the body inside.
- `signature_version` s3v4, because presigned URLs are SigV2 by default on custom endpoints.
- Checksums only `when_required` on custom endpoints: several S3-compatible stores refuse or mangle the others.
- `Expect: 100-continue` is unregistered: a silent peer hangs it.
- Loading botocore's data blocks for a good part of a second, so it happens in a thread, as does what reads files: the
  AWS configuration, credentials and certificates.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import AsyncExitStack
from functools import cache
from typing import TYPE_CHECKING

import anyio
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from anyio import to_thread
from anyio.lowlevel import RunVar
from botocore import handlers
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import get_cert_path
from botocore.loaders import Loader, create_loader

from des.errors import StorageTimeoutError
from des.storage.s3_errors import setup_error
from des.storage.s3_in_flight import InFlight
from des.storage.s3_kinds import FOREIGN
from des.storage.s3_retry import RetryBudget
from des.storage.s3_wire import Origin, Pool

if TYPE_CHECKING:
    from aiobotocore.credentials import AioCredentials
    from types_aiobotocore_s3.client import S3Client

    from des.storage.s3_config import EndpointOptions

_CONNECT_SECONDS = 10
# Our own limits are shorter and see drips too; this one is for what they do not reach, such as closing.
_READ_SECONDS = 120
_USER_AGENT = "data-easy-store"
_SETUP_TROUBLE: tuple[type[Exception], ...] = (*FOREIGN, ValueError)  # botocore's word for an impossible endpoint


class Endpoint:
    """What the places on one endpoint share.

    Attributes:
        options: what it was opened with.
        client: aiobotocore's client.
        credentials: of the AWS chain.
        budget: pays for retries.
        uploads: bounds the parts that are being sent.
    """

    def __init__(
        self,
        options: EndpointOptions,
        client: S3Client,
        credentials: AioCredentials,
        tls: ssl.SSLContext,
    ) -> None:
        """Wrap an open client; made by `acquire_endpoint`."""
        self.options = options
        self.client = client
        self.credentials = credentials
        self.budget = RetryBudget()
        self.uploads = InFlight(options.upload_memory)
        self._slots = anyio.Semaphore(options.max_connections, fast_acquire=True)
        self._pools: dict[Origin, Pool] = {}
        self._tls = tls

    async def enter(self, deadline: float) -> None:
        """Take one of the slots for requests; whoever took it calls `leave`.

        Args:
            deadline: by `time.monotonic`.

        Raises:
            StorageTimeoutError: none became free in time.
        """
        try:
            self._slots.acquire_nowait()
        except anyio.WouldBlock:
            with anyio.move_on_after(max(0.0, deadline - time.monotonic())) as scope:
                await self._slots.acquire()
            if scope.cancelled_caught:
                raise StorageTimeoutError(
                    f"no connection to {self.options.name} became free in time; {self.options.max_connections} are in use"
                    " (DES_MAX_CONNECTIONS)."
                ) from None

    def leave(self) -> None:
        """Give the slot back."""
        self._slots.release()

    @property
    def requests_in_flight(self) -> int:
        """How many slots are taken."""
        return self.options.max_connections - self._slots.value

    @property
    def wire_connections(self) -> int:
        """How many connections the pools of the hot path hold open, idle ones included."""
        return sum(len(pool.connections) for pool in self._pools.values())

    def pool(self, origin: Origin) -> Pool:
        """Return the connections to an origin."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(origin, self._tls if origin.scheme == "https" else None)
        return pool

    async def aclose(self) -> None:
        """Close the pools, then the client."""
        for pool in self._pools.values():
            pool.close()
        await self.client.close()


class _Registry:
    """The endpoints that are open in one event loop."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.sessions: dict[str | None, AioSession] = {}
        self.endpoints: dict[EndpointOptions, Endpoint] = {}
        self.holders: dict[EndpointOptions, int] = {}


_registry: RunVar[_Registry] = RunVar("des_s3_endpoints")


async def acquire_endpoint(options: EndpointOptions) -> Endpoint:
    """Return the endpoint with these options, opened if it is not; give it back with `release_endpoint`.

    Opening sends nothing to S3. It asks the AWS chain for credentials, which may ask a metadata service.

    Raises:
        SettingsError: profile, certificates or endpoint do not work.
        StorageDeniedError: the chain has no credentials, or could not obtain them.
    """
    registry = _registry.get(None)
    if registry is None:
        registry = _Registry()
        _registry.set(registry)
    async with registry.lock:
        endpoint = registry.endpoints.get(options)
        if endpoint is None:
            try:
                endpoint = await _open(registry, options)
            except _SETUP_TROUBLE as error:
                raise setup_error(error, options.name) from error
            registry.endpoints[options] = endpoint
        registry.holders[options] = registry.holders.get(options, 0) + 1
    return endpoint


async def release_endpoint(endpoint: Endpoint) -> None:
    """Give an endpoint back; the last one closes it."""
    registry = _registry.get()
    with anyio.CancelScope(shield=True):  # closing waits for no peer
        async with registry.lock:
            registry.holders[endpoint.options] -= 1
            if not registry.holders[endpoint.options]:
                del registry.holders[endpoint.options], registry.endpoints[endpoint.options]
                if not registry.endpoints:
                    registry.sessions.clear()  # so that a later opening sees the credentials of its day
                await endpoint.aclose()


async def _open(registry: _Registry, options: EndpointOptions) -> Endpoint:
    session = registry.sessions.get(options.profile)
    if session is None:
        session = await to_thread.run_sync(_load_session, options.profile)
        registry.sessions[options.profile] = session
    verify = str(options.ca_bundle) if options.ca_bundle else session.get_config_variable("ca_bundle")
    tls = await to_thread.run_sync(_tls_context, verify)
    custom = options.url is not None
    region = options.region or session.get_config_variable("region") or ("us-east-1" if custom else None)
    config = AioConfig(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        max_pool_connections=options.max_connections,
        retries={"total_max_attempts": 1, "mode": "standard"},
        signature_version="s3v4",
        s3={"addressing_style": options.addressing or "auto"},
        user_agent_extra=_USER_AGENT,
        request_checksum_calculation="when_required" if custom else None,
        response_checksum_validation="when_required" if custom else None,
    )
    async with AsyncExitStack() as stack:
        client: S3Client = await stack.enter_async_context(
            session.create_client("s3", region_name=region, endpoint_url=options.url, verify=verify, config=config)
        )
        client.meta.events.unregister("before-call.s3", handlers.add_expect_header)
        endpoint = Endpoint(options, client, await _load_credentials(session), tls)
        stack.pop_all()  # closed by the endpoint from here on
    return endpoint


@cache
def _loader(search_path: str | None) -> Loader:
    """Return the reader of botocore's data, which keeps what it has read: the same for all sessions of the process."""
    return create_loader(search_path)


def _load_session(profile: str | None) -> AioSession:
    session = AioSession(profile=profile)
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    session.warm_up_loader_caches("s3")  # type: ignore[attr-defined] # the stubs do not have it yet
    session.get_scoped_config()  # reads and keeps the AWS configuration; raises where the profile is missing
    asyncio.run(_load_credentials(session))  # in a loop of this thread's own, because most of the chain reads files
    return session


async def _load_credentials(session: AioSession) -> AioCredentials:
    """Walk the AWS chain; the session keeps what it finds."""
    credentials = await session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    return credentials


def _tls_context(verify: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=verify or get_cert_path(verify=True))
