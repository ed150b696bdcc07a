"""Every error DES raises, in one tree.

    DESError
    ├── NotFoundError (KeyError)         proven: no such file
    │   └── DeletedError                 proven: the file was deleted
    ├── CorruptShardError                the bytes are bad
    │   └── UnsupportedFormatError       the bytes are good, but of a newer format
    ├── StorageError                     the storage is unwell
    │   ├── StorageUnavailableError      unreachable, overloaded or failing
    │   ├── StorageTimeoutError          no answer within the deadline
    │   ├── StorageDeniedError           the storage refused the credentials
    │   ├── ObjectNotFoundError          no such object (never "no such file")
    │   └── PreconditionFailedError      the object is not at the version asked for
    ├── ConflictError                    another file holds this uid and day, or another writer won
    ├── LostHeadError                    segments without a head: run `des repair`
    ├── ShardFullError                   a limit of the format: more files, segments or content types than a shard takes
    ├── ManifestError                    the manifest cannot be read
    ├── SettingsError (ValueError)       a setting is wrong or contradicts the store
    └── InvalidRequestError (ValueError) the call is wrong

"Not there", "the bytes are bad", "the storage is unwell" and "you called it wrong" are four different things. Only the
first may become HTTP 404. Each class carries its status word (used in metrics, reports and logs), its exit status (used
by the command line) and its HTTP status, so that no other module keeps a second table.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Status = Literal["ok", "not_found", "deleted", "corrupt", "unavailable", "timeout", "denied", "invalid", "conflict"]

EXIT_DONE = 0
EXIT_BAD_ANSWER = 1
EXIT_WRONG_CALL = 2
EXIT_STORAGE = 3


class DESError(Exception):
    """Base of all errors that DES raises.

    Attributes:
        status: the status word of this kind of error, see `Status`.
        exit_status: what a command exits with after it: 1 bad answer, 2 wrong call, 3 storage trouble.
        http_status: what an HTTP answer caused by it carries.
    """

    status: ClassVar[Status] = "unavailable"
    exit_status: ClassVar[int] = EXIT_BAD_ANSWER
    http_status: ClassVar[int] = 500

    def __str__(self) -> str:
        """Return the sentence itself; `KeyError`'s own rendering would quote it."""
        return str(self.args[0]) if self.args else type(self).__name__


class NotFoundError(DESError, KeyError):
    """Proven: a verified head, or a missing head under a readable descriptor, says there is no such file."""

    status: ClassVar[Status] = "not_found"
    http_status: ClassVar[int] = 404


class DeletedError(NotFoundError):
    """Proven: the file existed and was deleted."""

    status: ClassVar[Status] = "deleted"
    http_status: ClassVar[int] = 410


class CorruptShardError(DESError):
    """A checksum, length or field of a shard object is wrong: the bytes cannot be trusted and are not served."""

    status: ClassVar[Status] = "corrupt"


class UnsupportedFormatError(CorruptShardError):
    """The checksums are good, but the object uses a version, feature, codec or flag this release does not know."""

    exit_status: ClassVar[int] = EXIT_WRONG_CALL


class StorageError(DESError):
    """The storage is unwell, or said something that DES must not take for an answer."""

    status: ClassVar[Status] = "unavailable"
    exit_status: ClassVar[int] = EXIT_STORAGE
    http_status: ClassVar[int] = 503


class StorageUnavailableError(StorageError):
    """The storage is unreachable, overloaded, full or failing."""


class StorageTimeoutError(StorageError):
    """The storage did not answer within the deadline."""

    status: ClassVar[Status] = "timeout"
    http_status: ClassVar[int] = 504


class StorageDeniedError(StorageError):
    """The storage refused access: wrong credentials, or a permission is missing."""

    status: ClassVar[Status] = "denied"
    http_status: ClassVar[int] = 502


class ObjectNotFoundError(StorageError):
    """The storage has no object under this key. Reading decides whether that proves anything about a file."""


class PreconditionFailedError(StorageError):
    """The object is absent, present, or at another version, contrary to the condition of the call."""


class ConflictError(DESError):
    """Another file holds this uid and day, or other writers kept winning: nothing was overwritten."""

    status: ClassVar[Status] = "conflict"
    http_status: ClassVar[int] = 409


class LostHeadError(DESError):
    """A shard has segments but no head. Writing is refused; `des repair` rebuilds the head from the segments."""

    status: ClassVar[Status] = "corrupt"


class ShardFullError(DESError):
    """A shard is at a limit of the format (files, segments or content types); nothing of it was changed."""

    status: ClassVar[Status] = "invalid"
    http_status: ClassVar[int] = 409


class ManifestError(DESError):
    """The manifest as a whole cannot be read; nothing was written."""

    status: ClassVar[Status] = "invalid"
    exit_status: ClassVar[int] = EXIT_WRONG_CALL
    http_status: ClassVar[int] = 400


class SettingsError(DESError, ValueError):
    """A setting is wrong, or contradicts the store it is used on."""

    status: ClassVar[Status] = "invalid"
    exit_status: ClassVar[int] = EXIT_WRONG_CALL
    http_status: ClassVar[int] = 503


class InvalidRequestError(DESError, ValueError):
    """The call is wrong: a bad uid, a time without zone, an impossible range."""

    status: ClassVar[Status] = "invalid"
    exit_status: ClassVar[int] = EXIT_WRONG_CALL
    http_status: ClassVar[int] = 400
