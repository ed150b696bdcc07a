"""The start-up probe: does this store keep conditions on PUT?

It rewrites an existing object with its own bytes under conditions that do not hold, so a good store changes nothing,
and a bad one nothing that could be seen. Only 412 will do: a store that answers 304, 409 or 501, or lets the write
pass, cannot keep two writers apart.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from des.errors import PreconditionFailedError, SettingsError, StorageUnavailableError
from des.storage.protocol import IfAbsent, IfVersion
from des.storage.s3_errors import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from des.storage.protocol import PutMode
    from des.storage.s3 import S3Storage

    Put = Callable[[str, bytes, PutMode], Awaitable[str]]

_MAX_BYTES = 1024 * 1024
_NO_SUCH_VERSION = "0" * 32


async def probe_conditional_writes(storage: S3Storage, key: str, put: Put) -> None:
    """See `Storage.check_conditional_writes`.

    Args:
        storage: the place.
        key: an existing object that may be rewritten with its own bytes.
        put: leaves conditions to the storage.

    Raises:
        SettingsError: the storage does not keep them.
    """
    suffix = await storage.read_suffix(key, _MAX_BYTES)
    if suffix is None or len(suffix.data) != suffix.total_size:
        raise SettingsError(f"{key} of {storage.address} is too large to be the descriptor of a store.")
    probes: tuple[tuple[str, PutMode], ...] = (
        ("If-None-Match: * on an object that exists", IfAbsent()),
        ("If-Match with a version that the object is not at", IfVersion(_NO_SUCH_VERSION)),
    )
    for condition, mode in probes:
        answer = await _answer(put, key, suffix.data, mode)
        if answer is not None:
            raise SettingsError(
                f"{storage.address} {answer} a PUT with {condition}, so two writers could lose each other's files; where"
                " there is only ever one writer, set DES_SINGLE_WRITER=true."
            )


async def _answer(put: Put, key: str, data: bytes, mode: PutMode) -> str | None:
    """Return what the store did instead of answering 412; None where it did."""
    try:
        await put(key, data, mode)
    except (PreconditionFailedError, StorageUnavailableError) as error:
        failure = error.__cause__
        status = failure.status if isinstance(failure, Failure) else 0
        if status == HTTPStatus.PRECONDITION_FAILED:
            return None
        if status < HTTPStatus.MULTIPLE_CHOICES or (isinstance(failure, Failure) and failure.transient):
            raise  # trouble that says nothing about conditions
        return f"answered {status} to"
    return "let pass"
