"""`DELETE /files`: a tombstone for one file, for keys that have the action `delete`; without access control there is no such method."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import anyio

from des.errors import DeletedError, NotFoundError
from des.http.addressing import parse_file_address
from des.http.exchange import SCOPE_KEY
from des.lifecycle.deleting import delete_files
from des.storage.descriptor import DESCRIPTOR_KEY

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from des.http.exchange import Exchange
    from des.http.service import Service
    from des.storage.protocol import Storage


class DeleteEndpoint:
    """Answers `DELETE`, in both spellings: 204; 404 for a file that is not there, 410 for one that was deleted before.

    Readers, this worker among them, go on serving the file for up to `index_ttl`. A deletion that ran into its deadline (504) may have happened: ask again.
    """

    def __init__(self, service: Service) -> None:
        """Delete from a service's store."""
        self._service = service
        self._is_proven = service.settings.single_writer
        self._proving = anyio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's own signature
        """Answer."""
        store = self._service.store
        exchange: Exchange = scope[SCOPE_KEY]
        address = parse_file_address(scope["path_params"]["below_files"], scope["query_string"])
        await store.in_time(self._prove(store.storage))
        [deletion] = await store.in_time(delete_files(store.storage, [(address.uid, address.created_at)]))
        if deletion.outcome == "not_found":
            raise NotFoundError(f"There is no file {deletion.uid!r} on {deletion.day}.")
        if deletion.outcome == "already_deleted":
            raise DeletedError(f"The file {deletion.uid!r} of {deletion.day} has been deleted before.")
        await exchange.respond(HTTPStatus.NO_CONTENT, [(b"cache-control", b"no-store")])

    async def _prove(self, storage: Storage) -> None:
        """Prove once that two writers cannot both win here."""
        async with self._proving:
            if not self._is_proven:
                await storage.check_conditional_writes(DESCRIPTOR_KEY)
                self._is_proven = True


class ByMethod:
    """One resource whose deletion is another endpoint's."""

    def __init__(self, read: ASGIApp, delete: ASGIApp) -> None:
        """Pass `DELETE` to one, the rest to the other."""
        self._read, self._delete = read, delete

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        endpoint = self._delete if scope["method"] == "DELETE" else self._read
        await endpoint(scope, receive, send)
