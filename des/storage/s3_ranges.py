"""What a range read asks for, and which replies to it may be believed (RFC 9110 sections 14 and 15.3.7).

Pure: headers in, a decision out. Rules:

- 206 must carry exactly the range that was asked for, cut at the object's end, and a Content-Length that fits, if any.
- 200 is the whole object, so it is believed only where the whole object was asked for and nothing has been received
  yet.
- 416 means the range begins at or past the end; where the reply names a size that says otherwise, it is not believed.
- The first ETag holds for the whole read: what follows is asked for with `If-Match`, and a reply under another ETag is
  refused.
- Whatever is not believed is a failed attempt, and never data.

A version is the ETag without its quotes: stores spell it differently in conditions, see `s3.S3Storage.put`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from des.errors import PreconditionFailedError, StorageUnavailableError
from des.storage.s3_errors import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from des.storage.s3_errors import Subject

Outcome = Literal["body", "unmodified", "past_end"]

# As plain numbers: looking a member up costs more than comparing it, and this runs for every read.
_OK = int(HTTPStatus.OK)
_PARTIAL = int(HTTPStatus.PARTIAL_CONTENT)
_NOT_MODIFIED = int(HTTPStatus.NOT_MODIFIED)
_NOT_SATISFIABLE = int(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Conditions:
    """The header fields of one request for a range.

    Attributes:
        range: value of `Range`.
        if_match: version, None for no condition.
        if_none_match: version, None for no condition.
    """

    range: str
    if_match: str | None
    if_none_match: str | None


def version_of(etag: str) -> str:
    """Return the version that an ETag stands for."""
    return etag.removeprefix("W/").strip('"')


class RangeRead:
    """One read of a range over all its attempts: what is still to come, and at which version.

    Attributes:
        subject: for sentences.
        start: first byte; of a suffix, known from the first reply on.
        end: one past the last byte; cut at the object's end by the first reply.
        offset: next byte to come.
        total: size of the object in bytes, from the first reply on.
        outcome: of the last reply. `body`: the bytes from `offset` on follow. `unmodified`: the object is still at the
            version named by `unless`. `past_end`: nothing is there.
        version: what the object is held to: asked for, or of the first reply. "" until then.
    """

    __slots__ = ("_answered", "_suffix", "_unless", "end", "offset", "outcome", "start", "subject", "total", "version")

    def __init__(self, subject: Subject, start: int, end: int, version: str | None) -> None:
        """Begin a read of `[start, end)`, at `version` where there is one."""
        self.subject = subject
        self.start = self.offset = start
        self.end = end
        self.total = 0
        self.outcome: Outcome = "body"
        self.version = version or ""
        self._answered = False
        self._suffix = 0
        self._unless: str | None = None

    @classmethod
    def of_suffix(cls, subject: Subject, length: int, unless: str | None) -> RangeRead:
        """Begin a read of the last `length` bytes, unless the object is at a version."""
        read = cls(subject, 0, length, None)
        read._suffix = length
        read._unless = unless
        return read

    @property
    def conditions(self) -> Conditions:
        """What the next attempt asks for."""
        if self._suffix and not self._answered:
            return Conditions(f"bytes=-{self._suffix}", None, self._unless)
        return Conditions(f"bytes={self.offset}-{self.end - 1}", self.version or None, None)

    @property
    def complete(self) -> bool:
        """All bytes have come."""
        return self._answered and self.offset == self.end

    @property
    def remaining(self) -> int:
        """Bytes to come, as far as that is known."""
        return self.end - self.offset

    def accept(self, status: int, headers: Mapping[str, str]) -> None:
        """Decide what a reply is, see `outcome`.

        Args:
            status: 200, 206, 304 or 416; what else there is has been refused before.
            headers: lower-case names.

        Raises:
            Failure: the reply is not believed.
        """
        if status == _NOT_MODIFIED and self._unless is not None and not self._answered:
            self.outcome = "unmodified"
            return
        if status == _NOT_SATISFIABLE:
            self._check_unsatisfied(headers.get("content-range", ""))
            self.outcome = "past_end"
            return
        if status not in {_OK, _PARTIAL}:
            raise self._refused(f"answered {status}")
        first, last, total = self._extent(status, headers)
        if self._suffix and not self._answered:
            expected, end = max(0, total - self._suffix), total
        else:
            expected, end = self.offset, min(self.end, total)
        if (first, last) != (expected, end) or (self._answered and total != self.total):
            raise self._refused(f"answered bytes {first} to {last} of {total}")
        self._check_version(version_of(headers.get("etag", "")))
        self._answered = True
        self.total = total
        self.end = end
        if self._suffix:
            self.start, self._suffix = expected, 0
            self.offset = expected
        self.outcome = "body"

    def advance(self, size: int) -> None:
        """Count bytes that came.

        Raises:
            Failure: there are more than were asked for.
        """
        if size > self.end - self.offset:
            raise self._refused("sent more bytes than were asked for")
        self.offset += size

    def broken_off(self) -> Failure:
        """Return the failure of a body that ended early."""
        return self._refused(f"ended its reply {self.remaining} bytes early")

    def _extent(self, status: int, headers: Mapping[str, str]) -> tuple[int, int, int]:
        length = headers.get("content-length", "")
        if status == _OK:
            if not length.isdecimal() or self._answered:
                raise self._refused("answered 200 to a request for a range")
            return 0, int(length), int(length)
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if match is None:
            raise self._refused("answered 206 without a valid Content-Range")
        first, last, total = int(match[1]), int(match[2]) + 1, int(match[3])
        if length and length != str(last - first):
            raise self._refused(f"announced {length} bytes for a range of {last - first}")
        return first, last, total

    def _check_unsatisfied(self, content_range: str) -> None:
        match = _UNSATISFIED.fullmatch(content_range)
        beyond = match is None or int(match[1]) <= self.start
        if self._answered or not beyond or (match is not None and self._suffix and int(match[1])):
            raise self._refused("answered 416 to a range that exists")

    def _check_version(self, version: str) -> None:
        if not version:
            raise self._refused("sent no ETag")
        if self.version and version != self.version:
            raise Failure(PreconditionFailedError(f"{self.subject} is at another version than the one being read."))
        self.version = version

    def _refused(self, what: str) -> Failure:
        asked = self.conditions.range.replace("=", " ")
        sentence = f"{self.subject.endpoint} {what} when {asked} of {self.subject} was asked for."
        return Failure(StorageUnavailableError(sentence), transient=True)
