"""Errors as RFC 9457 problems, `application/problem+json`.

- The status is the error's own (`des/errors.py`). Only "not there" becomes 404 or 410.
- The detail says what the client can act on and nothing of the inside: no path, address, key or traceback. What really
  happened stands in the log, under the same request id that `instance` names.
- Problems are never cached: `Cache-Control: no-store`. A 503 says when to try again.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from des.errors import DESError, InvalidRequestError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Send

Header = tuple[bytes, bytes]

RETRY_OVERLOAD = 1
RETRY_UNAVAILABLE = 5
_TITLES = {413: "Content Too Large", 416: "Range Not Satisfiable"}  # RFC 9110 names that Python learnt only in 3.13
_DETAILS = {
    404: "No file is stored under this uid on this day.",
    409: "Another file is stored under this uid on this day.",
    410: "The file of this uid on this day was deleted.",
    500: "What is stored of this file is damaged, so it is not served.",
    502: "The storage refused access to this service.",
    503: "The storage is unreachable or overloaded; try again later.",
    504: "The storage did not answer in time; try again later.",
}
_FAILED = "The service failed on this request."
_ADDRESS = re.compile(r"\S*/\S*")


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that says why there is no other.

    Attributes:
        status: HTTP status.
        detail: one sentence for the client.
        headers: what this status needs besides the common headers, such as Allow.
    """

    status: int
    detail: str
    headers: tuple[Header, ...] = ()


class RefusedError(Exception):
    """The service refuses a request by rules of HTTP or for its own protection; nothing is wrong with the store."""

    def __init__(self, problem: Problem) -> None:
        """Refuse with this problem."""
        super().__init__(problem.detail)
        self.problem = problem


def overloaded(detail: str) -> RefusedError:
    """Return the refusal of a request that would be too much at the moment (RFC 9110 section 15.6.4)."""
    return RefusedError(Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, _retry_after(RETRY_OVERLOAD)))


def method_not_allowed(allowed: Sequence[str]) -> RefusedError:
    """Return the refusal of a method (RFC 9110 section 15.5.6)."""
    names = ", ".join(allowed)
    allow = (b"allow", names.encode())
    return RefusedError(Problem(HTTPStatus.METHOD_NOT_ALLOWED, f"This resource answers only to {names}.", (allow,)))


def unsatisfiable(size: int) -> Problem:
    """Return the answer to a range in which a file of `size` bytes has none (RFC 9110 section 15.5.17)."""
    content_range = (b"content-range", b"bytes */%d" % size)
    detail = f"The file has {size} bytes, and none of them lies in the range asked for."
    return Problem(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, detail, (content_range,))


def describe(error: Exception) -> Problem:
    """Return the problem that an error is to the client."""
    if isinstance(error, RefusedError):
        return error.problem
    if isinstance(error, HTTPException):
        return _unrouted(error)
    if not isinstance(error, DESError):
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, _FAILED)
    status = error.http_status
    headers = _retry_after(RETRY_UNAVAILABLE) if status == HTTPStatus.SERVICE_UNAVAILABLE else ()
    if isinstance(error, InvalidRequestError):
        return Problem(status, _sentence(error), headers)
    if isinstance(error, SettingsError):
        return Problem(status, "The store cannot be served: " + _ADDRESS.sub("…", str(error)), headers)
    return Problem(status, _DETAILS.get(status, _FAILED), headers)


def _unrouted(error: HTTPException) -> Problem:
    """Say that there is no route, or none with this method, as Starlette's routing found."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return method_not_allowed(sorted((error.headers or {})["Allow"].split(", "))).problem
    return Problem(error.status_code, "There is nothing at this path.")


def encode(problem: Problem, request_id: str) -> tuple[list[Header], bytes]:
    """Return the headers and the body of a problem.

    Args:
        problem: what to say.
        request_id: 32 hex digits; `instance` is the URN of the same 128 bits (RFC 9562 section 4).
    """
    body = json.dumps(
        {
            "type": "about:blank",
            "title": _TITLES.get(problem.status) or HTTPStatus(problem.status).phrase,
            "status": int(problem.status),
            "detail": problem.detail,
            "instance": uuid.UUID(request_id).urn,
        },
        ensure_ascii=False,
    ).encode("utf-8", "replace")
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *problem.headers,
    ]
    return headers, body


async def send_problem(send: Send, problem: Problem, request_id: str) -> None:
    """Answer with a problem."""
    headers, body = encode(problem, request_id)
    await send({"type": "http.response.start", "status": int(problem.status), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _retry_after(seconds: int) -> tuple[Header, ...]:
    return ((b"retry-after", b"%d" % seconds),)


def _sentence(error: DESError) -> str:
    """Return what an error says with a capital, unless it begins with a field's name."""
    text = str(error)
    return text if "_" in text.partition(" ")[0] else text[:1].upper() + text[1:]
