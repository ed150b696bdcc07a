"""Keys as paths: which file holds an object, and which names under the base directory are no objects.

A key is one or more names joined by slashes. Names that begin with `.des-tmp-` are unfinished files, and `.locks` at the top
holds the lock files: no key may have them, and no listing shows them.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from des.errors import InvalidRequestError
from des.storage.protocol import Leftover, Level, ObjectInfo

if TYPE_CHECKING:
    from pathlib import Path

Entry = ObjectInfo | str
TEMPORARY_PREFIX = ".des-tmp-"
LOCKS_DIRECTORY = ".locks"


def path_of(base: Path, key: str) -> Path:
    """Return the path of the file that holds an object.

    Args:
        base: the base directory.
        key: the object.

    Raises:
        InvalidRequestError: the key would lead elsewhere, or is a name of the backend's own.
    """
    parts = key.split("/")
    for part in parts:
        if part in {"", ".", ".."} or "\0" in part:
            msg = f"{key!r} is no key: between its slashes must be names, none of them empty, '.' or '..'."
            raise InvalidRequestError(msg)
        if part.startswith(TEMPORARY_PREFIX):
            msg = f"{key!r} is no key: names that begin with {TEMPORARY_PREFIX} are those of unfinished files."
            raise InvalidRequestError(msg)
    if parts[0] == LOCKS_DIRECTORY:
        msg = f"{key!r} is no key: {LOCKS_DIRECTORY}/ holds the locks of the store."
        raise InvalidRequestError(msg)
    return base / key


def key_of(entry: Entry) -> str:
    """Return the key of an object, or the prefix itself."""
    return entry if isinstance(entry, str) else entry.key


def scan_level(base: Path, prefix: str) -> Level:
    """List the objects and the prefixes directly below a prefix, both in order of their keys' UTF-8 bytes. Blocks.

    Args:
        base: the base directory.
        prefix: "" or ending in a slash; what does not exist is empty.

    Raises:
        InvalidRequestError: the prefix leads elsewhere.
        OSError: the directory cannot be read.
    """
    entries = _scan(base, prefix)
    return Level(
        objects=tuple(entry for entry in entries if isinstance(entry, ObjectInfo)),
        prefixes=tuple(entry for entry in entries if isinstance(entry, str)),
    )


def scan_backwards(base: Path, prefix: str) -> list[Entry]:
    """List what `scan_level` does as one list, the last entry first, so that `pop` takes them in order of their keys.

    What lies under a prefix stands between its neighbours here, because the prefix ends in its slash.
    """
    entries = _scan(base, prefix)
    entries.reverse()
    return entries


def scan_temporaries(base: Path) -> list[Leftover]:
    """List all unfinished files below a base directory. Blocks.

    Raises:
        OSError: a directory cannot be read.
    """
    found: list[Leftover] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(base / prefix) as entries:
            for entry in entries:
                key = prefix + entry.name
                if key == LOCKS_DIRECTORY:
                    continue
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{key}/")
                    elif entry.name.startswith(TEMPORARY_PREFIX):
                        began = datetime.fromtimestamp(entry.stat().st_mtime, UTC)
                        found.append(Leftover(key, entry.name, began))
    return sorted(found, key=lambda leftover: leftover.key)


def _scan(base: Path, prefix: str) -> list[Entry]:
    if prefix and not prefix.endswith("/"):
        msg = f"a level is listed below a prefix that is empty or ends in a slash, not below {prefix!r}."
        raise InvalidRequestError(msg)
    found: list[Entry] = []
    directory = path_of(base, prefix[:-1]) if prefix else base
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as entries:
        for entry in entries:
            key = prefix + entry.name
            if entry.name.startswith(TEMPORARY_PREFIX) or key == LOCKS_DIRECTORY:
                continue
            with suppress(FileNotFoundError):  # deleted since, or a link to nothing
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    found.append(f"{key}/")
                elif stat.S_ISREG(status.st_mode):
                    found.append(ObjectInfo(key, status.st_size, "", datetime.fromtimestamp(status.st_mtime, UTC)))
    found.sort(key=lambda entry: os.fsencode(key_of(entry)))
    return found
