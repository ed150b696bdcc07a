"""One request to S3 at a time: its slot, its deadline, its record and its retries.

Everything S3 is asked goes through `Requests`, so that the limit on requests at once, the retry layer and the observer
see all of it. The order, from the outside in: deadline, retries, slot, record, request. Metrics therefore count every
attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio

from des.errors import DESError, ObjectNotFoundError, PreconditionFailedError
from des.storage.s3_config import MIN_BYTES_PER_SECOND
from des.storage.s3_errors import Failure, RefusedError, Subject, failure_of
from des.storage.s3_kinds import FOREIGN
from des.storage.s3_retry import Attempts

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

    from des.errors import Status
    from des.storage.s3_config import S3Config
    from des.storage.s3_endpoint import Endpoint
    from des.storage.s3_errors import Access

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request to S3, as metrics see it.

    Attributes:
        verb: of the storage protocol, or `create_upload`, `upload_part`, `complete_upload`, `abort_upload`.
        status: how it ended; `timeout` also where the caller went away first.
        size: bytes of body that moved.
        attempt: 1, 2, ... within one call.
    """

    verb: str
    status: Status
    size: int
    attempt: int


Observer = Callable[[RequestRecord], None]


class Attempt:
    """One attempt, as an async context: holds a slot, writes a record, and turns foreign exceptions into a `Failure`.

    Attributes:
        size: bytes of body that moved, for the record.
    """

    __slots__ = ("_attempts", "_requests", "_subject", "_verb", "size")

    def __init__(self, requests: Requests, attempts: Attempts, verb: str, subject: Subject) -> None:
        """Prepare the attempt."""
        self.size = 0
        self._requests = requests
        self._attempts = attempts
        self._verb = verb
        self._subject = subject

    async def __aenter__(self) -> Self:
        """Take a slot.

        Raises:
            StorageTimeoutError: none became free before the deadline.
        """
        await self._requests.endpoint.enter(self._attempts.deadline)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the slot back and write the record."""
        self._requests.endpoint.leave()
        failure = failure_of(error, self._subject) if isinstance(error, FOREIGN) else None
        observe = self._requests.observe
        if observe is not None:
            observe(RequestRecord(self._verb, _status(failure or error), self.size, self._attempts.number))
        if failure is not None:
            raise failure from error


class Requests:
    """How one place asks its endpoint.

    Attributes:
        config: the place.
        endpoint: shared with other places.
        observe: told of every request; None where nobody counts.
    """

    def __init__(self, config: S3Config, endpoint: Endpoint, observe: Observer | None) -> None:
        """Hold what requests need."""
        self.config = config
        self.endpoint = endpoint
        self.observe = observe

    def subject(self, key: str, access: Access, *, conditional: bool = False) -> Subject:
        """Return what a request about a key, relative to the place, is about."""
        return Subject(self.endpoint.options.name, self.config.bucket, self.config.root + key, access, conditional)

    @property
    def payer(self) -> dict[str, Any]:
        """The parameter of requests to a bucket whose requester pays."""
        return {"RequestPayer": self.config.request_payer} if self.config.request_payer else {}

    def attempts(self, size: int) -> Attempts:
        """Begin a call that moves `size` bytes."""
        return Attempts(self.endpoint.budget, time.monotonic() + self.config.allowance(size))

    async def call(
        self, verb: str, subject: Subject, request: Callable[[], Awaitable[T]], *, size: int = 0, extra: float = 0.0
    ) -> T:
        """Send a request through the client until it succeeds or is given up.

        Args:
            verb: see `RequestRecord`.
            subject: what it is about.
            request: makes one attempt; called again for each.
            size: bytes of body that it sends.
            extra: seconds that S3 may take on top of what all requests may.

        Raises:
            StorageError: the last attempt's.
        """
        attempts = self.attempts(size)
        attempts.deadline += extra
        patience = self.config.stall_timeout + size / MIN_BYTES_PER_SECOND + extra
        while True:
            try:
                async with Attempt(self, attempts, verb, subject) as attempt:
                    attempt.size = size
                    with anyio.fail_after(min(patience, attempts.seconds_left)):
                        result = await request()
            except Failure as failure:
                await attempts.retry(failure)
            else:
                attempts.succeeded()
                return result


def _status(error: BaseException | None) -> Status:
    if error is None or isinstance(error, GeneratorExit):  # a reader that stops early is no failure
        return "ok"
    trouble = error.error if isinstance(error, Failure) else error
    if isinstance(trouble, ObjectNotFoundError):
        return "not_found"
    if isinstance(trouble, PreconditionFailedError):
        return "conflict"
    if isinstance(trouble, RefusedError):
        return "denied"
    return trouble.status if isinstance(trouble, DESError) else "timeout"
