"""From settings to storage: the composition root, and the only place that knows all backends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from des.errors import SettingsError
from des.settings import Settings

if TYPE_CHECKING:
    from des.storage.protocol import Storage

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
    address = urlsplit(text)
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

        return LocalStorage(settings.base_dir)
    raise SettingsError(f"the backend {settings.backend!r} is not part of this release.")
