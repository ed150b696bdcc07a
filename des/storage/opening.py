"""From settings to storage: the composition root, and the only place that knows all backends.

What wraps what, from the outside in: zones, their places (`place`: versions and the breaker), the meter (`des.metering`), the backend; within S3 the
retries, and below them each request, which S3 itself reports to be counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from des.errors import SettingsError, StorageDeniedError, StorageError
from des.metering import ZoneMeter, metered, request_observer
from des.settings import Settings
from des.storage.s3_config import discreet
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from des.storage.place import Place
    from des.storage.protocol import Storage
    from des.storage.s3 import S3Storage
    from des.storage.zone_copying import Verifier
    from des.storage.zones_config import PlaceConfig, ZonesConfig

_log = logging.getLogger(__name__)
_MODULES = {
    "local": ("des.storage.local",),
    "s3": ("des.storage.s3",),
    "multi_s3": ("des.storage.s3", "des.storage.zones"),
}
_ACCESS_SECONDS = 5.0
# One label for the buckets that manifests name: there may be any number of them.
_SOURCES_PLACE = "sources"
ZONES_BACKEND = "multi_s3"

Target = str | Path | Settings | None


def resolve_target(target: Target, settings: Settings | None = None, *, zones: Path | None = None) -> Settings:
    """Return the settings that name a place.

    Args:
        target: a directory, an `s3://bucket/prefix` address, settings, or None for the environment (read at the call).
        settings: what else holds, such as endpoint and time limits; the environment where None.
        zones: a zones file, in place of a target.

    Raises:
        SettingsError: the address cannot be understood, or there is a zones file as well.
    """
    if isinstance(target, Settings):
        return target
    base = settings or Settings()
    if zones is not None:
        if target is not None:
            raise SettingsError(f"{str(target)!r} and the zones file {zones} are two stores; name one of them.")
        return base.model_copy(update={"backend": "multi_s3", "zones_config": zones})
    if target is None:
        return base
    text = str(target)
    if not text:
        raise SettingsError("the store's address is empty; give a directory or s3://bucket/prefix.")
    if "://" not in text:
        return base.model_copy(update={"backend": "local", "base_dir": Path(text)})
    try:
        address = urlsplit(text)
    except ValueError as error:
        raise SettingsError(f"{discreet(text)!r} is no store; give a directory or s3://bucket/prefix.") from error
    if "@" in address.netloc:
        raise SettingsError(f"{discreet(text)!r} has credentials in it; they come from the AWS chain.")
    if address.scheme != "s3" or not address.netloc or address.query or address.fragment:
        raise SettingsError(f"{discreet(text)!r} is no store; give a directory or s3://bucket/prefix.")
    return base.model_copy(
        update={"backend": "s3", "s3_bucket": address.netloc, "s3_prefix": address.path.strip("/")},
    )


def load_backend(settings: Settings) -> None:
    """Import what opening a storage will need, so that processes that are forked from this one share it."""
    for name in _MODULES[settings.backend]:
        import_module(name)


async def open_storage(settings: Settings, verifier: Verifier | None = None) -> Storage:
    """Open the storage that settings name. Whoever opens it closes it with `aclose`.

    Args:
        settings: name it.
        verifier: verifies what is copied between the places of zones, which do not open without.

    Raises:
        SettingsError: a setting is missing or wrong.
        StorageError: the storage cannot be reached.
    """
    if settings.backend == "local":
        from des.storage.local import LocalStorage  # noqa: PLC0415 - each backend pays only for its own imports

        return metered(LocalStorage(settings.base_dir, single_writer=settings.single_writer))
    if settings.backend == "s3":
        return await _open_s3(settings)
    if verifier is None:
        raise TypeError("a store in zones does not open without what verifies its objects")
    return await _open_zones(settings, verifier)


@asynccontextmanager
async def opened_storage(settings: Settings, verifier: Verifier | None = None) -> AsyncIterator[Storage]:
    """Open the storage that settings name, and close it at the end, cancelled or not. Arguments and errors as for `open_storage`."""
    storage = await open_storage(settings, verifier)
    try:
        yield storage
    finally:
        with anyio.CancelScope(shield=True):
            await storage.aclose()


async def _open_s3(settings: Settings) -> Storage:
    from des.storage.s3 import open_s3  # noqa: PLC0415 - as above
    from des.storage.s3_config import S3Config  # noqa: PLC0415

    config = S3Config.from_settings(settings)
    storage = await open_s3(config, observe=request_observer(config.address))
    try:
        denial = await _denial(storage)
        if denial is not None:
            raise denial
    except BaseException:
        with anyio.CancelScope(shield=True):
            await storage.aclose()
        raise
    return metered(storage, reports_requests=True)


async def _denial(storage: S3Storage, seconds: float = _ACCESS_SECONDS) -> StorageDeniedError | None:
    """Return how a place refuses access; None where it does not, or does not answer now.

    A service may start before its storage does; whoever reads meets the trouble again, with a deadline of its own.
    """
    with anyio.move_on_after(seconds):
        try:
            await storage.check_access()
        except StorageDeniedError as error:
            return error
        except StorageError as error:
            _log.debug("%s", error)
    return None


async def _open_zones(settings: Settings, verifier: Verifier) -> Storage:
    from des.storage.latency import HedgeBudget  # noqa: PLC0415 - as above
    from des.storage.zone import Zone  # noqa: PLC0415
    from des.storage.zones import ZonedStorage  # noqa: PLC0415
    from des.storage.zones_config import zones_of  # noqa: PLC0415

    config = await anyio.to_thread.run_sync(zones_of, settings)
    observer = ZoneMeter()
    budget = HedgeBudget(config.hedge)
    async with AsyncExitStack() as opened:
        places = await _open_places(config, settings, opened)
        zones = [
            Zone(
                zone.name,
                zone.start,
                zone.end,
                [places[place] for place in zone.places],
                quorum=zone.quorum,
                place_timeout=config.place_timeout,
                budget=budget,
                observer=observer,
            )
            for zone in config.zones
        ]
        storage = ZonedStorage(
            zones, config.n_bits, verifier, address=str(config.path), read_repair=config.read_repair, observer=observer
        )
        opened.pop_all()  # closed by the storage from here on
    return storage


async def _open_places(config: ZonesConfig, settings: Settings, opened: AsyncExitStack) -> Mapping[PlaceConfig, Place]:
    """Open all places. One that refuses access is left for the others to stand in, as long as there is one that does not."""
    from des.storage.place import Place  # noqa: PLC0415 - as above
    from des.storage.s3 import open_s3  # noqa: PLC0415

    addresses = Counter(one.s3_config(settings).address for zone in config.zones for one in zone.places)
    places: dict[PlaceConfig, Place] = {}
    storages: list[S3Storage] = []
    for zone in config.zones:
        for one in zone.places:
            s3 = one.s3_config(settings)
            address = s3.address if addresses[s3.address] == 1 else f"{s3.address} at {s3.endpoint.name}"
            storage = await open_s3(s3, observe=request_observer(address))
            opened.push_async_callback(storage.aclose)
            storages.append(storage)
            places[one] = Place(
                metered(storage, reports_requests=True, backend=ZONES_BACKEND),
                zone.name,
                is_primary=one is zone.primary,
                address=address,
                observer=ZoneMeter(),
            )
    denials: list[StorageDeniedError] = []

    async def ask(storage: S3Storage) -> None:
        denial = await _denial(storage, min(_ACCESS_SECONDS, config.place_timeout))
        if denial is not None:
            _log.warning("%s", denial)
            denials.append(denial)

    await run_all(ask, storages, len(storages))
    if len(denials) == len(storages):
        raise denials[0]
    return places


class SourceBuckets:
    """Buckets on the endpoint of the settings that are only read from, each opened when it is first asked for.

    They share the client, the connections and the limits of a store on the same endpoint. `async with` closes them.
    """

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet; everything but bucket and prefix is as in `settings`."""
        self.max_connections = settings.max_connections
        self._settings = settings
        self._open: dict[str, Storage] = {}
        self._turn = anyio.Lock()

    async def __aenter__(self) -> Self:
        """Return the buckets."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what was opened."""
        with anyio.CancelScope(shield=True):
            while self._open:
                await self._open.popitem()[1].aclose()

    async def storage(self, bucket: str) -> Storage:
        """Return a bucket as a place whose keys are those of its objects. Sends nothing to it.

        Raises:
            SettingsError: profile, certificates or endpoint do not work.
            StorageDeniedError: there are no credentials.
        """
        async with self._turn:
            if bucket not in self._open:
                # In a thread, because loading it reads many files while the loop is busy with others.
                await anyio.to_thread.run_sync(import_module, "des.storage.s3")
                from des.storage.s3 import open_s3  # noqa: PLC0415 - for those who read from S3
                from des.storage.s3_config import S3Config  # noqa: PLC0415

                place = self._settings.model_copy(update={"s3_bucket": bucket, "s3_prefix": ""})
                observe = request_observer(_SOURCES_PLACE)
                self._open[bucket] = await open_s3(S3Config.from_settings(place), observe=observe)
            return self._open[bucket]

    @staticmethod
    def is_about_address(error: StorageError) -> bool:
        """Tell whether an error says that this bucket or object cannot be had, while the storage is well."""
        from des.storage.s3_errors import is_about_address  # noqa: PLC0415 - as above

        return is_about_address(error)
