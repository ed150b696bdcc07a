"""`S3Storage`: a place on S3, or on a store that speaks its API.

Reads go by presigned URLs where the endpoint takes them (`s3_presigned`), everything else through aiobotocore's client
(`s3_endpoint`); both under one limit, one retry layer and one set of checks (`s3_requests`, `s3_reading`, `s3_ranges`),
with one seam for errors (`s3_errors`).

A version is an ETag without quotes. That is also how it is sent in the `If-Match` of a PUT: AWS documents this
spelling, SeaweedFS and moto take both, and Ceph's radosgw compares rightly only without.
"""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import anyio

from des.errors import ObjectNotFoundError, PreconditionFailedError, StorageDeniedError, StorageUnavailableError
from des.storage.protocol import IfAbsent, IfVersion, Leftover, Level, ObjectInfo, Overwrite, SinglePlace, Suffix
from des.storage.s3_endpoint import acquire_endpoint, release_endpoint
from des.storage.s3_errors import Failure, failure_of_reply, required
from des.storage.s3_multipart import body_of, open_upload
from des.storage.s3_presigned import PresignedSource
from des.storage.s3_probe import probe_conditional_writes
from des.storage.s3_ranges import RangeRead, version_of
from des.storage.s3_reading import ClientSource, Source, read_pieces, read_whole
from des.storage.s3_requests import Requests

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncGenerator, AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from types_aiobotocore_s3.type_defs import ListObjectsV2OutputTypeDef

    from des.storage.protocol import ObjectWriter, Purpose, PutMode
    from des.storage.s3_config import S3Config
    from des.storage.s3_requests import Observer

# A suffix whose object was replaced while it was being resumed is read anew, this often.
_SUFFIX_READS = 3


async def open_s3(config: S3Config, *, observe: Observer | None = None) -> S3Storage:
    """Open a place on S3. Sends nothing to it: `S3Storage.check_access` does.

    Args:
        config: the place.
        observe: told of every request, retries included.

    Raises:
        SettingsError: profile, certificates or endpoint do not work.
        StorageDeniedError: the AWS chain has no credentials, or could not obtain them.
    """
    return S3Storage(Requests(config, await acquire_endpoint(config.endpoint), observe))


class S3Storage(SinglePlace):
    """Objects under a prefix of a bucket, behind `des.storage.protocol.Storage`; made by `open_s3`, closed by `aclose`."""

    backend = "s3"

    def __init__(self, requests: Requests) -> None:
        """Take over the endpoint that `requests` holds."""
        self.config = requests.config
        self.address = requests.config.address
        self.endpoint = requests.endpoint
        self._requests = requests
        self._client = requests.endpoint.client
        client_source = ClientSource(requests)
        self._source: Source = (
            PresignedSource(requests, client_source) if self.config.presigned == "auto" else client_source
        )
        self._alone = anyio.Lock()
        self._closed = False

    async def read_suffix(
        self,
        key: str,
        length: int,
        *,
        unless: str | None = None,
        purpose: Purpose = "footer",  # noqa: ARG002 - of the protocol
    ) -> Suffix | None:
        """See `Storage.read_suffix`."""
        subject = self._requests.subject(key, "read")
        for _ in range(_SUFFIX_READS):
            read = RangeRead.of_suffix(subject, length, unless)
            try:
                data = await read_whole(self._requests, self._source, "read_suffix", read)
            except PreconditionFailedError:
                continue
            if read.outcome == "unmodified":
                return None
            if read.outcome == "past_end":  # what S3 answers of an empty object
                info = await self.head(key)
                if info.size:
                    continue
                return None if info.version == unless else Suffix(b"", 0, info.version)
            return Suffix(data, read.total, read.version)
        raise StorageUnavailableError(f"{subject} was replaced again and again while it was being read.")

    async def read_range(
        self,
        key: str,
        start: int,
        end: int,
        *,
        version: str | None = None,
        purpose: Purpose = "payload",  # noqa: ARG002
    ) -> bytes:
        """See `Storage.read_range`."""
        read = RangeRead(self._requests.subject(key, "read"), start, end, version)
        return await read_whole(self._requests, self._source, "read_range", read)

    @asynccontextmanager
    async def stream_range(
        self,
        key: str,
        start: int,
        end: int,
        *,
        version: str | None = None,
        purpose: Purpose = "payload",  # noqa: ARG002
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """See `Storage.stream_range`.

        A stream holds a connection until its context ends, also while nobody takes its pieces.
        """
        read = RangeRead(self._requests.subject(key, "read"), start, end, version)
        async with aclosing(read_pieces(self._requests, self._source, "stream_range", read)) as pieces:
            yield pieces

    async def head(self, key: str) -> ObjectInfo:
        """See `Storage.head`."""
        subject = self._requests.subject(key, "head")
        try:
            found = await self._requests.call(
                "head", subject, lambda: self._client.head_object(Bucket=subject.bucket, Key=subject.key, **self._payer)
            )
        except ObjectNotFoundError:
            # A reply to HEAD has no body to tell a missing bucket from a missing object.
            await self._check_bucket()
            raise
        version = version_of(required(found, "ETag", subject))
        modified: datetime = required(found, "LastModified", subject)
        return ObjectInfo(key, required(found, "ContentLength", subject), version, modified.astimezone(UTC))

    async def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """See `Storage.put`."""
        if not self.config.single_writer or isinstance(mode, Overwrite):
            return await self._put(key, data, mode)
        async with self._alone:
            wanted = mode.version if isinstance(mode, IfVersion) else None
            try:
                found = (await self.head(key)).version
            except ObjectNotFoundError:
                found = None
            if found != wanted:
                raise PreconditionFailedError(f"{self.address}/{key} is not at the version asked for.")
            return await self._put(key, data, Overwrite())

    def open_writer(self, key: str) -> AbstractAsyncContextManager[ObjectWriter]:
        """See `Storage.open_writer`."""
        return open_upload(self._requests, key, self._write_options)

    async def list_level(self, prefix: str) -> Level:
        """See `Storage.list_level`."""
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        async for page in self._pages(prefix, "/"):
            objects += self._objects(page)
            prefixes += [item["Prefix"].removeprefix(self.config.root) for item in page.get("CommonPrefixes", [])]
        return Level(tuple(sorted(objects, key=_key)), tuple(sorted(prefixes)))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `Storage.list`.

        Stores that keep directories, such as SeaweedFS, list by the names of these, without the slash that S3 sorts by.
        The two orders agree on the first name, so what shares it is held back and sorted.
        """
        depth = prefix.rfind("/") + 1
        held: builtins.list[ObjectInfo] = []
        first = ""
        async for page in self._pages(prefix, ""):
            for info in self._objects(page):
                if not info.key.startswith(first, depth):
                    for each in sorted(held, key=_key):
                        yield each
                    held.clear()
                if not held:
                    first = info.key[depth:].partition("/")[0]
                held.append(info)
        for each in sorted(held, key=_key):
            yield each

    async def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        subject = self._requests.subject(key, "delete")
        try:
            await self._requests.call(
                "delete",
                subject,
                lambda: self._client.delete_object(Bucket=subject.bucket, Key=subject.key, **self._payer),
            )
        except ObjectNotFoundError:
            return

    async def now(self) -> datetime:
        """See `Storage.now`: the Date of a reply (RFC 9110 section 6.6.1)."""
        subject = self._requests.subject("", "list")
        reply = await self._requests.call(
            "head", subject, lambda: self._client.head_bucket(Bucket=subject.bucket, **self._payer)
        )
        headers = required(required(reply, "ResponseMetadata", subject), "HTTPHeaders", subject)
        try:
            return parsedate_to_datetime(required(headers, "date", subject)).astimezone(UTC)
        except ValueError as error:
            raise StorageUnavailableError(
                f"{self.endpoint.options.name} does not tell the time in its replies."
            ) from error

    async def list_leftovers(self) -> AsyncIterator[Leftover]:
        """See `Storage.list_leftovers`: uploads that are neither completed nor aborted."""
        subject = self._requests.subject("", "list")
        asked: dict[str, Any] = {"Bucket": subject.bucket, "Prefix": self.config.root, **self._payer}
        while True:
            request = partial(self._client.list_multipart_uploads, **asked)
            page = await self._requests.call("list_uploads", subject, request)
            for item in page.get("Uploads", []):
                key = item["Key"].removeprefix(self.config.root)
                yield Leftover(key, item["UploadId"], item["Initiated"].astimezone(UTC))
            last = (asked.get("KeyMarker"), asked.get("UploadIdMarker"))
            asked |= {"KeyMarker": page.get("NextKeyMarker", ""), "UploadIdMarker": page.get("NextUploadIdMarker", "")}
            if not page.get("IsTruncated"):
                return
            if (asked["KeyMarker"], asked["UploadIdMarker"]) in {last, ("", "")}:
                raise StorageUnavailableError(f"{self.endpoint.options.name} broke off its listing of {subject}.")

    async def discard(self, leftover: Leftover) -> None:
        """See `Storage.discard`."""
        subject = self._requests.subject(leftover.key, "delete")
        try:
            await self._requests.call(
                "abort_upload",
                subject,
                lambda: self._client.abort_multipart_upload(
                    Bucket=subject.bucket, Key=subject.key, UploadId=leftover.token, **self._payer
                ),
            )
        except ObjectNotFoundError:
            return

    async def check_conditional_writes(self, key: str) -> None:
        """See `Storage.check_conditional_writes`."""
        await probe_conditional_writes(self, key, self._put)

    async def check_access(self) -> None:
        """Prove that bucket and credentials are good, and that missing objects can be told from forbidden ones.

        Without `s3:ListBucket` S3 answers 403 for an object that is not there, so that nothing could ever be "not found".

        Raises:
            StorageDeniedError: the credentials are refused, or `s3:ListBucket` is missing; the sentence says which.
            StorageUnavailableError: there is no such bucket, or no such endpoint.
        """
        subject = self._requests.subject("", "list")
        await self._requests.call(
            "list",
            subject,
            lambda: self._client.list_objects_v2(
                Bucket=subject.bucket, Prefix=self.config.root, MaxKeys=1, **self._payer
            ),
        )

    async def aclose(self) -> None:
        """Leave the endpoint; the last place on it closes it. May be called twice."""
        if not self._closed:
            self._closed = True
            await release_endpoint(self.endpoint)

    @property
    def _payer(self) -> dict[str, Any]:
        return self._requests.payer

    @property
    def _write_options(self) -> dict[str, Any]:
        options = {
            "ServerSideEncryption": self.config.sse,
            "SSEKMSKeyId": self.config.sse_kms_key_id,
            "StorageClass": self.config.storage_class,
        }
        return {name: value for name, value in options.items() if value}

    async def _put(self, key: str, data: bytes, mode: PutMode) -> str:
        condition: dict[str, Any] = {}
        if isinstance(mode, IfAbsent):
            condition["IfNoneMatch"] = "*"
        elif isinstance(mode, IfVersion):
            condition["IfMatch"] = mode.version
        subject = self._requests.subject(key, "write", conditional=bool(condition))
        done = await self._requests.call(
            "put",
            subject,
            lambda: self._client.put_object(
                Bucket=subject.bucket,
                Key=subject.key,
                Body=body_of(data),
                **condition,
                **self._write_options,
                **self._payer,
            ),
            size=len(data),
        )
        return version_of(required(done, "ETag", subject))

    async def _check_bucket(self) -> None:
        subject = self._requests.subject("", "list")
        try:
            await self._requests.call("head", subject, lambda: self._client.head_bucket(Bucket=subject.bucket))
        except StorageDeniedError:
            return  # it is there
        except StorageUnavailableError as error:
            cause = error.__cause__
            if isinstance(cause, Failure) and cause.status == HTTPStatus.NOT_FOUND:
                failure = failure_of_reply(cause.status, "NoSuchBucket", "", subject)
                raise failure.error from failure
            raise

    async def _pages(self, prefix: str, delimiter: str) -> AsyncGenerator[ListObjectsV2OutputTypeDef, None]:
        subject = self._requests.subject("", "list")
        asked: dict[str, Any] = {"Bucket": subject.bucket, "Prefix": self.config.root + prefix, **self._payer}
        if delimiter:
            asked["Delimiter"] = delimiter
        token: str | None = None
        while True:
            page = await self._requests.call("list", subject, lambda: self._client.list_objects_v2(**asked))
            yield page
            if not page.get("IsTruncated"):
                return
            if not page.get("NextContinuationToken") or page["NextContinuationToken"] == token:
                raise StorageUnavailableError(f"{self.endpoint.options.name} broke off its listing of {subject}.")
            token = asked["ContinuationToken"] = page["NextContinuationToken"]

    def _objects(self, page: ListObjectsV2OutputTypeDef) -> builtins.list[ObjectInfo]:
        return [
            ObjectInfo(
                item["Key"].removeprefix(self.config.root),
                item["Size"],
                version_of(item.get("ETag", "")),
                item["LastModified"].astimezone(UTC),
            )
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")  # a folder, as consoles and gateways mark it
        ]


def _key(info: ObjectInfo) -> str:
    return info.key
