"""Reading: `open_store` and the store it opens."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from des.storage.opening import Target, opened_storage, resolve_target
from des.store.fileinfo import FileInfo, GetResult
from des.store.found import FoundFile
from des.store.store import ContentChangedError, Store
from des.store.whole_objects import WholeObjects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from des.settings import Settings

__all__ = ["ContentChangedError", "FileInfo", "FoundFile", "GetResult", "Store", "open_store"]


@asynccontextmanager
async def open_store(target: Target = None, *, settings: Settings | None = None) -> AsyncIterator[Store]:
    """Open a store for reading.

    Args:
        target: a directory, an `s3://bucket/prefix` address, settings, or None for the environment (read at the call).
        settings: what else holds, such as limits; the environment where None.

    Yields:
        The store. A missing descriptor shows at the first use, so that a service can start before its store exists. The context is
        left by the task that entered it.

    Raises:
        SettingsError: a setting or the address is wrong.
        StorageError: the storage cannot be opened.
    """
    resolved = resolve_target(target, settings)
    async with opened_storage(resolved, WholeObjects()) as storage:
        try:
            async with anyio.create_task_group() as tasks:
                yield Store(storage, resolved, tasks)
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The store's own tasks keep their errors, so this one is the body's. It may be a group itself, which stays whole.
            error = group.exceptions[0]
            raise error from error.__cause__
