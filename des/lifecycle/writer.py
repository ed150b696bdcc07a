"""`StoreWriter`: deleting files from inside a program."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from des.errors import NotFoundError
from des.lifecycle.deleting import Deletion, delete_files
from des.lifecycle.running import open_place
from des.storage.opening import Target, resolve_target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from des.routing import CreatedAt, Uid
    from des.settings import Settings
    from des.storage.protocol import Storage


class StoreWriter:
    """Changes a store; made by `open_writer`. Safe beside packers, readers and other writers."""

    def __init__(self, storage: Storage) -> None:
        """Change the store that lies on a storage."""
        self._storage = storage

    async def delete(self, uid: Uid, created_at: CreatedAt) -> bool:
        """Delete a file. Readers answer "deleted" at the latest when `DES_INDEX_TTL` is over; its bytes go with the next compaction.

        Args:
            uid: its name.
            created_at: aware datetime, date, or RFC 3339 string; only the UTC day matters.

        Returns:
            Whether it was there: False where it had been deleted before.

        Raises:
            NotFoundError: proven: there is no such file.
            InvalidRequestError: the uid or time is unusable.
            LostHeadError, CorruptShardError, ConflictError: the shard cannot be changed.
            StorageError: the storage is unwell.
        """
        [deletion] = await delete_files(self._storage, [(uid, created_at)])
        if deletion.outcome == "not_found":
            raise NotFoundError(f"there is no file {deletion.uid!r} on {deletion.day}.")
        return deletion.outcome == "deleted"

    async def delete_many(self, files: Iterable[tuple[Uid, CreatedAt]]) -> list[Deletion]:
        """Delete files, those of a shard in one commit; see `des.lifecycle.deleting.delete_files`."""
        return await delete_files(self._storage, files)


@asynccontextmanager
async def open_writer(target: Target = None, *, settings: Settings | None = None) -> AsyncIterator[StoreWriter]:
    """Open a store for changes.

    Args:
        target: a directory, an `s3://bucket/prefix` address, settings, or None for the environment (read at the call).
        settings: what else holds; the environment where None.

    Raises:
        SettingsError: a setting is wrong, there is no store, or its storage cannot do conditional writes.
        StorageError: the storage is unwell.
    """
    async with open_place(resolve_target(target, settings)) as place:
        yield StoreWriter(place.storage)
