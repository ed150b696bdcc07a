"""Writing a large object to S3 in parts.

- Parts are uploaded while the next ones are written, each retried by itself. All writers on an endpoint together hold
  no more than `EndpointOptions.upload_memory` bytes of parts that are being sent (`s3_in_flight`), and each of them the
  part that it gathers.
- Parts begin at 5.25 MiB, because many writers gather one each and S3 takes none below 5 MiB but the last, and double
  every 1,000 parts, which carries an object to its limit of 5 TiB within 10,000 parts. (Stores that want all parts
  equal, such as Cloudflare R2, take what fits into the first 1,000: 5.1 GiB.)
- What fits into one part becomes one plain PUT.
- A writer that fails or is cancelled aborts its upload, shielded and bounded in time. An upload that could not be
  aborted holds storage until the bucket's lifecycle rule for incomplete uploads ends it; it is never listed.
- A completion whose outcome is unknown is settled by a look at the object: only this writer knows its name.
"""

from __future__ import annotations

import io
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from des.errors import StorageError
from des.storage.s3_errors import required

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyio.abc import TaskGroup
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

    from des.storage.protocol import ObjectWriter
    from des.storage.s3_requests import Requests

FIRST_PART_BYTES = 21 * 256 * 1024
PARTS_PER_SIZE = 1000

_COMPLETION_SECONDS = 120.0  # S3 documents "several minutes" for the largest objects
_ABORT_SECONDS = 10.0
# aiohttp warns of larger bodies that are plain bytes, because it sends them in one piece.
_PLAIN_BODY_BYTES = 1024 * 1024
_log = logging.getLogger(__name__)


def part_size(number: int) -> int:
    """Return the bytes of part `number`, from 1."""
    return FIRST_PART_BYTES << ((number - 1) // PARTS_PER_SIZE)


class _SharedBytes(io.BytesIO):
    """Bytes to be read as a file, without a copy: aiohttp measures a `BytesIO` by its buffer, which would make one."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data

    def getbuffer(self) -> memoryview:
        return memoryview(self._data)


def body_of(data: bytes) -> bytes | io.BytesIO:
    """Return data as a request body; made anew for every attempt, because sending consumes it."""
    return data if len(data) <= _PLAIN_BODY_BYTES else _SharedBytes(data)


@asynccontextmanager
async def open_upload(requests: Requests, key: str, options: dict[str, Any]) -> AsyncGenerator[ObjectWriter, None]:
    """Open a writer of an object.

    Args:
        requests: of the place.
        key: relative to the place.
        options: parameters that creating the object takes: encryption, storage class.

    Raises:
        StorageError: the object will not be.
    """
    upload = _Upload(requests, key, options)
    stopped: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            upload.tasks = tasks
            try:
                yield upload
                await upload.flush()
            except BaseException as error:  # noqa: BLE001 - raised below, as itself and not in a group
                stopped = error
                tasks.cancel_scope.cancel()
        if stopped is not None:
            raise stopped
        await upload.complete()
    except BaseException:
        await upload.abort()
        raise


class _Upload:
    """An object under way. Implements `ObjectWriter`."""

    tasks: TaskGroup

    def __init__(self, requests: Requests, key: str, options: dict[str, Any]) -> None:
        self._requests = requests
        self._subject = requests.subject(key, "write")
        self._options = options
        self._payer: dict[str, Any] = requests.payer
        self._part: list[memoryview] = []
        self._part_bytes = 0
        self._total = 0
        self._id = ""
        self._parts: dict[int, str] = {}
        self._started = 0
        self._in_flight = requests.endpoint.uploads
        self._error: StorageError | None = None

    async def write(self, data: bytes) -> None:
        """See `ObjectWriter`."""
        view = memoryview(data)
        while view:
            self._check()
            size = part_size(self._started + 1)
            taken, view = view[: size - self._part_bytes], view[size - self._part_bytes :]
            self._part.append(taken)
            self._part_bytes += len(taken)
            self._total += len(taken)
            if self._part_bytes == size:
                await self._start_part()

    async def flush(self) -> None:
        """Send what is left, where there are parts before it."""
        self._check()
        if self._id and self._part:
            await self._start_part()

    async def complete(self) -> None:
        """Make the object of its parts."""
        self._check()
        client = self._requests.endpoint.client
        where = self._where
        if not self._id:
            data = b"".join(self._part)
            await self._requests.call(
                "put",
                self._subject,
                lambda: client.put_object(**where, Body=body_of(data), **self._options),
                size=len(data),
            )
            return
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": etag} for number, etag in sorted(self._parts.items())
        ]
        try:
            await self._requests.call(
                "complete_upload",
                self._subject,
                lambda: client.complete_multipart_upload(**where, UploadId=self._id, MultipartUpload={"Parts": parts}),
                extra=_COMPLETION_SECONDS,
            )
        except StorageError:
            if not await self._is_there():
                raise

    async def abort(self) -> None:
        """Drop the parts that S3 holds."""
        if not self._id:
            return
        client = self._requests.endpoint.client
        with anyio.move_on_after(_ABORT_SECONDS, shield=True) as scope:
            try:
                await self._requests.call(
                    "abort_upload",
                    self._subject,
                    lambda: client.abort_multipart_upload(**self._where, UploadId=self._id),
                )
            except StorageError as error:
                _log.warning("the parts of %s could not be dropped (%s).", self._subject, error)
        if scope.cancelled_caught:
            _log.warning("the parts of %s could not be dropped in time.", self._subject)

    @property
    def _where(self) -> dict[str, Any]:
        return {"Bucket": self._subject.bucket, "Key": self._subject.key, **self._payer}

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    async def _start_part(self) -> None:
        client = self._requests.endpoint.client
        if not self._id:
            made = await self._requests.call(
                "create_upload",
                self._subject,
                lambda: client.create_multipart_upload(**self._where, **self._options),
            )
            self._id = required(made, "UploadId", self._subject)
        await self._in_flight.enter(self._part_bytes)
        data = b"".join(self._part)  # only now: while it waits, a part is held once
        self._part.clear()
        self._part_bytes = 0
        self._started += 1
        self.tasks.start_soon(self._upload_part, self._started, data)

    async def _upload_part(self, number: int, data: bytes) -> None:
        client = self._requests.endpoint.client
        try:
            done = await self._requests.call(
                "upload_part",
                self._subject,
                lambda: client.upload_part(**self._where, UploadId=self._id, PartNumber=number, Body=body_of(data)),
                size=len(data),
            )
            self._parts[number] = required(done, "ETag", self._subject)
        except StorageError as error:
            self._error = self._error or error
        finally:
            self._in_flight.leave(len(data))

    async def _is_there(self) -> bool:
        client = self._requests.endpoint.client
        try:
            found = await self._requests.call("head", self._subject, lambda: client.head_object(**self._where))
        except StorageError:
            return False
        return found.get("ContentLength") == self._total
