"""Packing a directory: every file below it is a row of its own.

    uid          the path below the directory, with slashes
    created_at   the time of the last change, or one given for all
    size_bytes   as it is now: a file that changes before it is packed is reported

Rules:

1. Names are taken in order, directory by directory, so that the same tree is the same rows.
2. A symbolic link counts as the file it leads to if that lies in the directory. One that leads out of it, to a directory or nowhere is not followed.
3. What cannot be packed (such links, devices, pipes, what may not be read) fails by name, and the rest is packed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from des.errors import ManifestError
from des.pack.manifest import UnreadableRow
from des.pack.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from des.pack.inputs import Part
    from des.pack.manifest import Piece

_BATCH_ROWS = 5_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory to be packed; `created_at` is for all its files, or None."""

    directory: Path
    created_at: str | None = None

    @property
    def name(self) -> str:
        """The directory."""
        return str(self.directory)

    def parts(self) -> Iterator[Part]:
        """See `Input`."""
        yield self

    def identity(self) -> str:
        """See `Part`: names, sizes and times of all its files, so it is walked once for that."""
        digest = hashlib.sha256()
        for piece in self.pieces(Spool()):
            digest.update("\n".join(map(repr, piece())).encode("utf-8", "surrogateescape"))
        return f"{os.path.realpath(self.directory)} {digest.hexdigest()}"

    def pieces(self, spool: Spool) -> Iterator[Piece]:  # noqa: ARG002 - the files lie where they are
        """Yield a row for each file, many at once.

        Raises:
            ManifestError: it is no directory, or cannot be read.
        """
        root = str(self.directory)
        try:
            inside = os.path.join(os.path.realpath(root, strict=True), "")  # noqa: PTH118 - with a slash at its end
            names = sorted(os.listdir(root))  # noqa: PTH208 - text, not objects: there may be millions
        except OSError as error:
            raise ManifestError(f"the directory {root} cannot be read: {error.strerror}.") from error
        batch: list[object] = []
        for row in self._below(root, "", names, inside):
            batch.append(row)
            if len(batch) >= _BATCH_ROWS:
                yield partial(list, batch)
                batch = []
        yield partial(list, batch)

    def _below(self, directory: str, prefix: str, names: list[str], inside: str) -> Iterator[object]:
        waiting = [(directory, prefix, iter(names))]
        while waiting:
            directory, prefix, rest = waiting[-1]
            name = next(rest, None)
            if name is None:
                waiting.pop()
                continue
            path, uid = f"{directory}/{name}", f"{prefix}{name}"
            try:
                status = os.lstat(path)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((path, f"{uid}/", iter(sorted(os.listdir(path)))))  # noqa: PTH208 - as above
                    continue
                yield self._row(path, uid, status, inside)
            except OSError as error:
                yield refused(uid, path, f"it cannot be read: {error.strerror}.")

    def _row(self, path: str, uid: str, status: os.stat_result, inside: str) -> object:
        source = path
        if stat.S_ISLNK(status.st_mode):
            source = os.path.realpath(path, strict=True)
            if not source.startswith(inside):
                return refused(uid, path, "it is a symbolic link that leads out of the directory.")
            status = os.stat(source)  # noqa: PTH116 - as above
            if stat.S_ISDIR(status.st_mode):
                return refused(uid, path, "it is a symbolic link to a directory, which is not followed.")
        if not stat.S_ISREG(status.st_mode):
            return refused(uid, path, "it is not a regular file.")
        return {
            "uid": uid,
            "created_at": self.created_at or rfc_3339(status.st_mtime_ns // 1000),
            "source_path": source,
            "size_bytes": status.st_size,
        }


def refused(uid: str, path: str | None, error: str) -> UnreadableRow:
    """Return what stands for a file that is not packed."""
    return UnreadableRow(error, uid, path)


def rfc_3339(microseconds: int) -> str | None:
    """Return a time since 1970 as text; None where it is outside the calendar."""
    try:
        return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()
    except OverflowError:
        return None
