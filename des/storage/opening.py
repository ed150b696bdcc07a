"""From settings to storage: the composition root, and the only place that knows all backends."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio

from des import metrics
from des.errors import SettingsError, StorageDeniedError, StorageError
from des.settings import Settings

if TYPE_CHECKING:
    from des.storage.protocol import Storage

_log = logging.getLogger(__name__)
_ACCESS_SECONDS = 5.0

Target = str | Path | Settings | None


def resolve_target(target: Target, settings: Settings | None = None) -> Settings:
    """Return the settings that name a place.

    Args:
        target: a directory, an `s3://bucket/prefix` address, settings, or None for the environment (read at the call).
        settings: what else holds, such as endpoint and time limits; the environment where None.

    Raises:
        SettingsError: the address cannot be understood.
    """
    if isinstance(target, Settings):
        return target
    base = settings or Settings()
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
        raise SettingsError(f"{text!r} is no store; give a directory or s3://bucket/prefix.") from error
    if address.scheme != "s3" or not address.netloc or address.query or address.fragment:
        raise SettingsError(f"{text!r} is no store; give a directory or s3://bucket/prefix.")
    return base.model_copy(
        update={"backend": "s3", "s3_bucket": address.netloc, "s3_prefix": address.path.strip("/")},
    )


async def open_storage(settings: Settings) -> Storage:
    """Open the storage that settings name. Whoever opens it closes it with `aclose`.

    Raises:
        SettingsError: a setting is missing or wrong.
        StorageError: the storage cannot be reached.
    """
    if settings.backend == "local":
        from des.storage.local import LocalStorage  # noqa: PLC0415 - each backend pays only for its own imports

        return metrics.metered(LocalStorage(settings.base_dir, single_writer=settings.single_writer))
    if settings.backend == "s3":
        return await _open_s3(settings)
    raise SettingsError(f"the backend {settings.backend!r} is not part of this release.")


async def _open_s3(settings: Settings) -> Storage:
    from des.storage.s3 import open_s3  # noqa: PLC0415 - as above
    from des.storage.s3_config import S3Config  # noqa: PLC0415

    config = S3Config.from_settings(settings)
    storage = await open_s3(config, observe=metrics.request_observer(config.address))
    try:
        with anyio.move_on_after(_ACCESS_SECONDS):
            await storage.check_access()
    except StorageDeniedError:
        await storage.aclose()
        raise
    except StorageError as error:
        # A service may start before its storage does; whoever reads meets the trouble again, with a deadline of its own.
        _log.debug("%s", error)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await storage.aclose()
        raise
    return metrics.metered(storage, reports_requests=True)
