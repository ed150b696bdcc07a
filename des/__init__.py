"""DES, Data Easy Store: huge numbers of small files in few large S3-optimised shards, any one back in at most three range-GETs, with no database."""

from des.errors import (
    ConflictError,
    CorruptShardError,
    DeletedError,
    DESError,
    InvalidRequestError,
    LostHeadError,
    ManifestError,
    NotFoundError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    ShardFullError,
    StorageDeniedError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedFormatError,
)
from des.routing import ShardLocation, locate_shard
from des.settings import Settings
from des.store import FileInfo, GetResult, Store, open_store

__version__ = "0.1.0"

__all__ = [
    "ConflictError",
    "CorruptShardError",
    "DESError",
    "DeletedError",
    "FileInfo",
    "GetResult",
    "InvalidRequestError",
    "LostHeadError",
    "ManifestError",
    "NotFoundError",
    "ObjectNotFoundError",
    "PreconditionFailedError",
    "Settings",
    "SettingsError",
    "ShardFullError",
    "ShardLocation",
    "StorageDeniedError",
    "StorageError",
    "StorageTimeoutError",
    "StorageUnavailableError",
    "Store",
    "UnsupportedFormatError",
    "__version__",
    "locate_shard",
    "open_store",
]
