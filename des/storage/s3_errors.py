"""The one seam where the errors of botocore, aiohttp, the socket and S3 itself become DES's own.

An attempt that fails is a `Failure`: the error a caller would see, and what the retry layer needs to know about it.
Rules:

- 403 is never 404. Only S3's `NoSuchKey` (and a bare 404 on HEAD) is `ObjectNotFoundError`; a missing bucket is storage
  trouble.
- 412, 409 to a conditional request, and 404 to `If-Match` are `PreconditionFailedError`.
- A sentence never carries a URL, because a presigned one is a key to the object.
- Every exception class of botocore and aiohttp has its kind in the table of `s3_kinds`.
"""

from __future__ import annotations

import email.utils
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
import botocore.exceptions

from des.errors import (
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.storage.s3_kinds import kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping

Access = Literal["read", "head", "list", "write", "delete"]

_PERMISSION: dict[Access, str] = {
    "read": "s3:GetObject, and s3:ListBucket, without which a missing object looks forbidden",
    "head": "s3:GetObject, and s3:ListBucket, without which a missing object looks forbidden",
    "list": "s3:ListBucket",
    "write": "s3:PutObject (and s3:GetObject for conditional writes)",
    "delete": "s3:DeleteObject",
}
_DOING: dict[Access, str] = {
    "read": "reading",
    "head": "reading",
    "list": "listing",
    "write": "writing",
    "delete": "deleting",
}
_BAD_CREDENTIALS = {
    "SignatureDoesNotMatch": "the secret key is wrong",
    "InvalidAccessKeyId": "the access key does not exist",
    "ExpiredToken": "the session token has expired",
    "ExpiredTokenException": "the session token has expired",
    "TokenRefreshRequired": "the session token must be refreshed",
    "InvalidToken": "the session token is not valid",
    "InvalidSecurity": "the credentials are not valid",
    "RequestTimeTooSkewed": "this machine's clock is too far from the server's; set it by NTP",
    "RequestInTheFuture": "this machine's clock is ahead of the server's; set it by NTP",
}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_PASSING_CODES = {
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeoutException", "Throttling",
    "ThrottlingException", "TooManyRequests", "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded",
    "OperationAborted", "PriorRequestNotComplete", "ConnectionError", "IncompleteBody",
}  # fmt: skip
_PASSING_STATUSES = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
_XML_FIELD = re.compile(r"<(Code|Message)>([^<]*)</\1>")
_MESSAGE_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about, for sentences.

    Attributes:
        endpoint: for people, see `EndpointOptions.name`.
        bucket: name of the bucket.
        key: whole key, "" where the request is about the bucket.
        access: what is done to it.
        conditional: the request carries `If-Match` or `If-None-Match`.
    """

    endpoint: str
    bucket: str
    key: str
    access: Access
    conditional: bool = False

    def __str__(self) -> str:
        """Return the object's address."""
        return f"s3://{self.bucket}/{self.key}"


class Failure(Exception):  # noqa: N818 - not an error of its own: it carries one
    """One failed attempt.

    Attributes:
        error: what the caller sees if this was the last attempt.
        transient: another attempt may succeed.
        retry_after: seconds the server asks to wait, 0.0 where it does not.
        timed_out: it took its whole time; such a retry costs more of the budget.
        status: of the reply, 0 where there was none.
        refused: the credentials, or how they were used, were not accepted: another signature may be.
        about_address: S3 is well, but the bucket or object that was named cannot be had: other addresses may be fine.
    """

    def __init__(
        self,
        error: StorageError,
        *,
        transient: bool = False,
        retry_after: float = 0.0,
        timed_out: bool = False,
        status: int = 0,
        refused: bool = False,
        about_address: bool = False,
    ) -> None:
        """See the class."""
        super().__init__(str(error))
        self.error = error
        self.transient = transient
        self.retry_after = retry_after
        self.timed_out = timed_out
        self.status = status
        self.refused = refused
        self.about_address = about_address


def is_about_address(error: StorageError) -> bool:
    """Tell whether an error of the S3 backend is one of `Failure.about_address`."""
    return isinstance(error.__cause__, Failure) and error.__cause__.about_address


class RefusedError(Exception):
    """A request was refused the way it was asked, and there is another way to ask: at once, and not as a retry."""


def failure_of_reply(
    status: int, code: str, message: str, subject: Subject, headers: Mapping[str, str] | None = None
) -> Failure:
    """Return what an error reply of S3 means.

    Args:
        status: HTTP status, 300 or more.
        code: S3's error code, "" where the reply has none (HEAD).
        message: S3's own sentence.
        subject: what the request was about.
        headers: of the reply, lower-case names.
    """
    if status == HTTPStatus.PRECONDITION_FAILED or (subject.conditional and status == HTTPStatus.CONFLICT):
        return Failure(PreconditionFailedError(f"{subject} is not at the version asked for."), status=status)
    if code == "NoSuchBucket":
        error = f"there is no bucket {subject.bucket!r} at {subject.endpoint}."
        return Failure(StorageUnavailableError(error), status=status, about_address=True)
    if status == HTTPStatus.NOT_FOUND:
        return _absent(code, subject)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN} or code in _BAD_CREDENTIALS:
        denied = _denied(code, message, subject)
        return Failure(
            denied,
            status=status,
            refused=code != "InvalidObjectState",
            about_address=code not in _BAD_CREDENTIALS,
        )
    if code in _WRONG_REGION or status in {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.TEMPORARY_REDIRECT}:
        error = (
            f"bucket {subject.bucket!r} is not in the region that {subject.endpoint} was asked for; set DES_S3_REGION."
        )
        return Failure(StorageUnavailableError(error), status=status, refused=True)
    transient = status in _PASSING_STATUSES or code in _PASSING_CODES
    what = f"{status} {code}".strip()
    error = f"{subject.endpoint} answered {what} for {subject}{_quoted(message)}."
    return Failure(
        StorageUnavailableError(error),
        transient=transient,
        retry_after=_retry_after((headers or {}).get("retry-after", "")),
        status=status,
    )


def required(reply: Mapping[str, Any], name: str, subject: Subject) -> Any:  # noqa: ANN401 - what botocore parsed
    """Return a field of a parsed reply.

    Raises:
        StorageUnavailableError: it is missing; what answers here is hardly S3.
    """
    if name not in reply:
        raise StorageUnavailableError(f"{subject.endpoint} answered without {name} for {subject}.")
    return reply[name]


def failure_of_body(status: int, body: bytes, subject: Subject, headers: Mapping[str, str]) -> Failure:
    """Return what an error reply means, from its XML body."""
    fields = dict(_XML_FIELD.findall(body.decode("utf-8", "replace")))
    return failure_of_reply(status, fields.get("Code", ""), fields.get("Message", ""), subject, headers)


def failure_of(error: Exception, subject: Subject) -> Failure:
    """Return what a foreign exception means.

    Args:
        error: one of `FOREIGN`.
        subject: what the request was about.
    """
    if isinstance(error, botocore.exceptions.ClientError):
        return _of_client_error(error, subject)
    match kind_of(type(error)):
        case "timeout":
            trouble: StorageError = StorageTimeoutError(f"{subject.endpoint} did not answer in time for {subject}.")
            return Failure(trouble, transient=True, timed_out=True)
        case "broken":
            trouble = StorageUnavailableError(f"the reply of {subject.endpoint} for {subject} broke off.")
            return Failure(trouble, transient=True)
        case "unreachable":
            trouble = StorageUnavailableError(f"{subject.endpoint} cannot be reached: {_network_reason(error)}.")
            return Failure(trouble, transient=True)
        case "tls":
            trouble = StorageUnavailableError(_tls_sentence(error, subject))
        case "credentials":
            trouble = StorageDeniedError(_credentials_sentence(error))
        case _:  # botocore's sentences of these kinds name parameters and files, never a signed URL
            trouble = StorageUnavailableError(f"the S3 client failed for {subject}: {_brief(error)}.")
    return Failure(trouble)


def setup_error(error: Exception, options_name: str) -> SettingsError | StorageError:
    """Return what a foreign exception means while a client is made, before any request."""
    if isinstance(error, botocore.exceptions.ProfileNotFound):
        return SettingsError(f"{str(error).rstrip('.')}; check DES_S3_PROFILE and ~/.aws/config.")
    if isinstance(error, OSError | ssl.SSLError) and not isinstance(error, aiohttp.ClientError):
        return SettingsError(f"the CA bundle cannot be loaded ({error}); check DES_S3_CA_BUNDLE.")
    if isinstance(error, ValueError) or kind_of(type(error)) == "configuration":
        return SettingsError(f"the S3 settings for {options_name} do not work: {_brief(error)}.")
    return failure_of(error, Subject(options_name, "", "", "read")).error


def _of_client_error(error: botocore.exceptions.ClientError, subject: Subject) -> Failure:
    response = error.response
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    details = response.get("Error", {})
    code = str(details.get("Code") or "")
    if code == str(status):  # botocore's stand-in where the reply has no body
        code = ""
    headers = {str(name).lower(): str(value) for name, value in metadata.get("HTTPHeaders", {}).items()}
    return failure_of_reply(status, code, str(details.get("Message") or "") if code else "", subject, headers)


_GONE_UPLOAD = ("delete", "NoSuchUpload")


def _absent(code: str, subject: Subject) -> Failure:
    status = HTTPStatus.NOT_FOUND
    if code == "NoSuchKey" and subject.access == "write" and subject.conditional:
        return Failure(PreconditionFailedError(f"{subject} does not exist, so it is at no version."), status=status)
    if code == "NoSuchKey" or (subject.access == "head" and not code) or (subject.access, code) == _GONE_UPLOAD:
        return Failure(ObjectNotFoundError(f"there is no object {subject}."), status=status)
    # A 404 that is no S3 error document comes from something else at this address: no proof that the object is absent.
    sentence = (
        f"{subject.endpoint} answered 404 {code or 'without an S3 error code'} for {subject}; check the endpoint."
    )
    return Failure(StorageUnavailableError(sentence), status=status)


def _denied(code: str, message: str, subject: Subject) -> StorageError:
    if code in _BAD_CREDENTIALS:
        return StorageDeniedError(f"{subject.endpoint} refused the credentials: {_BAD_CREDENTIALS[code]} ({code}).")
    if code == "InvalidObjectState":
        return StorageUnavailableError(
            f"{subject} is archived; restore it, and keep DES's buckets in a readable storage class."
        )
    place = f"bucket {subject.bucket!r}" if subject.access == "list" else str(subject)
    verb = _DOING[subject.access]
    why = f" ({code})" if code else ""
    return StorageDeniedError(
        f"{subject.endpoint} denied {verb} {place}{why}{_quoted(message)}; allow {_PERMISSION[subject.access]}."
    )


def _brief(error: Exception) -> str:
    return str(error)[:_MESSAGE_LIMIT].rstrip(".")


def _quoted(message: str) -> str:
    return f": {message[:_MESSAGE_LIMIT].rstrip('.')!r}" if message else ""


def _credentials_sentence(error: Exception) -> str:
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return "no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role."
    return f"the S3 credentials could not be obtained: {_brief(error)}."


def _tls_sentence(error: Exception, subject: Subject) -> str:
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError) and not isinstance(cause, aiohttp.ClientError):
            return (
                f"the TLS certificate of {subject.endpoint} is not trusted ({cause.verify_message}); where a private"
                " authority signed it, set DES_S3_CA_BUNDLE."
            )
    return f"TLS with {subject.endpoint} failed; check that DES_S3_ENDPOINT_URL should begin with https."


def _network_reason(error: Exception) -> str:
    for cause in _chain(error):
        if isinstance(cause, socket.gaierror | aiohttp.ClientConnectorDNSError):
            return "its name does not resolve"
        if isinstance(cause, ConnectionRefusedError):
            return "the connection was refused"
        if isinstance(cause, OSError) and not isinstance(cause, aiohttp.ClientError) and cause.strerror:
            return cause.strerror[0].lower() + cause.strerror[1:]
    return "the connection failed"


def _chain(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        if isinstance(error, aiohttp.ClientConnectorError):
            causes.append(error.os_error)
        error = error.__cause__ or error.__context__
    return causes


def _retry_after(value: str) -> float:
    """Return the seconds of a `Retry-After` header (RFC 9110 section 10.2.3), 0.0 where it says nothing."""
    if value.isdecimal():
        return float(value[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
