"""Reading a range from S3: attempts that resume, over one of two sources.

A `Source` sends one request and hands over its reply. `ClientSource` does so through aiobotocore and always works;
`PresignedSource` (its own module) does so at a fraction of the CPU. `read_whole` and `read_pieces` drive either: slot,
deadline, checks, resume and retries are the same.

Ownership: slot and reply belong to the attempt, and are given back when it ends, be it by its last byte, an error, or
the cancellation of the reader at any await. Whoever iterates `read_pieces` closes it.

Progress: a piece of the body, 64 KiB of a stream or 256 KiB of a range that is read as a whole, must come within a
third of `request_timeout`; else the attempt is given up and the next one resumes. Bytes that drip do not extend this.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel
from botocore.exceptions import ClientError

from des.storage.s3_errors import Failure, RefusedError
from des.storage.s3_requests import Attempt
from des.storage.s3_wire import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from aiobotocore.response import StreamingBody

    from des.storage.s3_ranges import RangeRead
    from des.storage.s3_requests import Requests
    from des.storage.s3_retry import Attempts

STREAM_PIECE_BYTES = 64 * 1024

# What a reader decides on itself; every other error reply is a failure.
BELIEVABLE: set[int] = {
    HTTPStatus.OK,
    HTTPStatus.PARTIAL_CONTENT,
    HTTPStatus.NOT_MODIFIED,
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
}


class Reply(Protocol):
    """A reply whose status is one of `BELIEVABLE`."""

    status: int
    headers: Mapping[str, str]

    async def read(self, want: int, within: float) -> bytes:
        """Return at least `want` bytes within so many seconds, or what is left of the body; b"" after its end."""

    def close(self) -> None:
        """Give its connection back, or up where the body has not been read."""


class Source(Protocol):
    """Where replies come from."""

    async def get(self, read: RangeRead, *, want: int, within: float, refusals: int) -> Reply:
        """Ask for what the read still needs.

        Args:
            read: says what to ask for.
            want: bytes of body that the reader will ask for first.
            within: seconds until the head of the reply, and with it perhaps those bytes, must be there.
            refusals: how often this source has refused this read already.

        Raises:
            RefusedError: the source wants to be asked again, at once.
            Failure: S3 answered with an error.
        """


async def read_whole(requests: Requests, source: Source, verb: str, read: RangeRead) -> bytes:
    """Read a range as a whole; the deadline holds for all of it.

    It is not made of `read_pieces`, because a small read would spend as much on the generator as on the rest.

    Args:
        requests: of the place.
        source: where replies come from.
        verb: for the record.
        read: the range; holds what has been learnt of the object when this ends.

    Raises:
        StorageError: see `des.storage.protocol.Storage.read_range`.
    """
    attempts = requests.attempts(read.remaining)
    patience = requests.config.stall_timeout
    pieces: list[bytes] = []
    refusals = 0
    while True:
        try:
            async with Attempt(requests, attempts, verb, read.subject) as attempt:
                within = min(patience, attempts.seconds_left)
                reply = await source.get(read, want=min(PIECE_BYTES, read.remaining), within=within, refusals=refusals)
                try:
                    read.accept(reply.status, reply.headers)
                    while read.outcome == "body" and not read.complete:
                        want = min(PIECE_BYTES, read.remaining)
                        pieces.append(await _next_piece(attempt, attempts, reply, read, want, patience))
                finally:
                    reply.close()
        except RefusedError:
            refusals += 1
        except Failure as failure:
            await attempts.retry(failure)
        else:
            attempts.succeeded()
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_pieces(requests: Requests, source: Source, verb: str, read: RangeRead) -> AsyncGenerator[bytes, None]:
    """Read a range piece by piece; the deadline holds for each of them. Arguments and errors as for `read_whole`."""
    attempts = requests.attempts(0)
    patience = requests.config.stall_timeout
    refusals = 0
    while True:
        try:
            async with Attempt(requests, attempts, verb, read.subject) as attempt:
                within = min(patience, attempts.seconds_left)
                reply = await source.get(
                    read, want=min(STREAM_PIECE_BYTES, read.remaining), within=within, refusals=refusals
                )
                try:
                    read.accept(reply.status, reply.headers)
                    while read.outcome == "body" and not read.complete:
                        want = min(STREAM_PIECE_BYTES, read.remaining)
                        piece = await _next_piece(attempt, attempts, reply, read, want, patience)
                        yield piece
                        if len(piece) >= want:
                            attempts.deadline = time.monotonic() + requests.config.request_timeout
                finally:
                    reply.close()
        except RefusedError:
            refusals += 1
        except Failure as failure:
            await attempts.retry(failure)
        else:
            attempts.succeeded()
            return


async def _next_piece(
    attempt: Attempt, attempts: Attempts, reply: Reply, read: RangeRead, want: int, patience: float
) -> bytes:
    """Return the next piece of a reply's body, counted and checked to be part of the range."""
    if attempt.size:  # data that is always there already would keep a cancellation out
        await anyio.lowlevel.checkpoint_if_cancelled()
    piece = await reply.read(want, min(patience, attempts.seconds_left))
    if not piece:
        raise read.broken_off()
    read.advance(len(piece))
    attempt.size += len(piece)
    if len(piece) >= want:
        attempts.progressed()
    return piece


class ClientSource:
    """Asks through aiobotocore's client."""

    def __init__(self, requests: Requests) -> None:
        """Hold what requests need."""
        self._requests = requests

    async def get(self, read: RangeRead, *, want: int, within: float, refusals: int) -> Reply:  # noqa: ARG002 - of `Source`
        """See `Source`; never refuses, and waits for the head alone."""
        conditions = read.conditions
        optional = self._requests.payer
        if conditions.if_match is not None:
            optional["IfMatch"] = f'"{conditions.if_match}"'
        if conditions.if_none_match is not None:
            optional["IfNoneMatch"] = f'"{conditions.if_none_match}"'
        try:
            with anyio.fail_after(within):
                response = await self._requests.endpoint.client.get_object(
                    Bucket=self._requests.config.bucket, Key=read.subject.key, Range=conditions.range, **optional
                )
        except ClientError as error:
            refusal = error.response["ResponseMetadata"]
            if refusal["HTTPStatusCode"] not in BELIEVABLE:
                raise
            return _ClientReply(refusal["HTTPStatusCode"], refusal["HTTPHeaders"], None)
        metadata = response["ResponseMetadata"]
        return _ClientReply(metadata["HTTPStatusCode"], metadata["HTTPHeaders"], response["Body"])


class _ClientReply:
    def __init__(self, status: int, headers: Mapping[str, str], body: StreamingBody | None) -> None:
        self.status = status
        self.headers = headers
        self._body = body
        self._error: Exception | None = None

    async def read(self, want: int, within: float) -> bytes:
        if self._error is not None:
            raise self._error
        chunks: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(within):
                while self._body is not None and size < want:
                    chunk = await self._body.read(PIECE_BYTES)
                    if not chunk:
                        break
                    chunks.append(chunk)
                    size += len(chunk)
        except Exception as error:
            if not chunks:
                raise
            self._error = error  # what came before it is good; it is raised by the next call
        return b"".join(chunks)

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
