"""What becomes of a piece of a manifest before the plan has it: its rows are parsed, checked, routed and packed. A worker process may do it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from des.errors import InvalidRequestError, SettingsError
from des.pack.manifest import BadRow, CheckedRows, ManifestRow, RowChecker
from des.pack.per_thread import PerThread
from des.pack.plan import encoded, packed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from des.pack.manifest import Piece
    from des.pack.partition import Partition
    from des.pack.plan import Chunk
    from des.storage.descriptor import Descriptor


@dataclass(frozen=True, slots=True)
class SourceRoot:
    """A directory that the sources of manifests must lie in; relative paths start there. `real` is its path without any symbolic link."""

    real: str

    @classmethod
    def at(cls, directory: Path) -> Self:
        """Return the one at a path.

        Raises:
            SettingsError: it is no directory.
        """
        try:
            real = os.path.realpath(directory, strict=True)
            is_directory = stat.S_ISDIR(os.stat(real).st_mode)  # noqa: PTH116 - text as below
        except OSError as error:
            raise SettingsError(f"--source-root {directory} cannot be used: {error.strerror}.") from error
        if not is_directory:
            raise SettingsError(f"--source-root {directory} is not a directory.")
        return cls(real)

    def located(self, source: str) -> str:
        """Return where a source really is, without any symbolic link.

        Raises:
            InvalidRequestError: outside.
        """
        if "://" in source:
            raise InvalidRequestError("source_path is an address, but --source-root allows only files below it.")
        real = os.path.realpath(os.path.join(self.real, source))  # noqa: PTH118 - takes an absolute path as it is
        if not real.startswith(os.path.join(self.real, "")):  # noqa: PTH118 - with a slash at its end
            raise InvalidRequestError("source_path leads out of --source-root.")
        return real


@dataclass(frozen=True, slots=True)
class Order:
    """What to take, and how.

    Attributes:
        descriptor: of the store.
        partition: the share of the shards to keep; None keeps all.
        source_root: where sources must lie; None: anywhere.
        asks_sizes: whether to ask the file system for the sizes that a manifest does not say.
    """

    descriptor: Descriptor
    partition: Partition | None = None
    source_root: SourceRoot | None = None
    asks_sizes: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """What a piece came to.

    Attributes:
        rows: how many it had.
        good: how many of them go into the plan.
        chunks: these.
        bad: those that cannot be packed: number, the rest of it as the plan has it, and whether it has a shard.
        sized: how many good ones have the size that the file system says.
        unsized: how many have none.
    """

    rows: int
    good: int
    chunks: Sequence[Chunk]
    bad: Sequence[tuple[int, str, bool]]
    sized: int
    unsized: int


def _checker(order: Order) -> RowChecker:
    located = None if order.source_root is None else order.source_root.located
    return RowChecker(order.descriptor, order.partition, located)


_checker_for = PerThread(_checker)  # it remembers what repeats from piece to piece


def take(order: Order, piece: Piece) -> Taken:
    """Take a piece; its rows are numbered from 1.

    Raises:
        ManifestError: it cannot be read.
        SettingsError: a row belongs to another zone than the store holds.
    """
    values = piece()
    rows = _checker_for(order).check_all(1, values)
    sized = unsized = 0
    if order.asks_sizes:
        rows, sized, unsized = _with_sizes(rows)
    bad = [(row.number, encoded(row), row.is_routed) for row in rows.bad]
    return Taken(len(values), len(rows.good), packed(rows.good), bad, sized, unsized)


def _with_sizes(rows: CheckedRows) -> tuple[CheckedRows, int, int]:
    """Ask the file system for the sizes that are not said; say how many it said, and how many nothing says without a request."""
    if all(row.size_bytes is not None for row in rows.good):
        return rows, 0, 0
    good: list[ManifestRow] = []
    bad = list(rows.bad)
    sized = unsized = 0
    for row in rows.good:
        if row.size_bytes is not None:
            good.append(row)
        elif "://" in row.source_path:
            unsized += 1
            good.append(row)
        else:
            try:
                size = os.stat(row.source_path).st_size  # noqa: PTH116 - text, millions of times
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                bad.append(BadRow(row.number, row.uid, row.source_path, f"the source cannot be opened: {why}."))
            else:
                sized += 1
                good.append(row._replace(size_bytes=size))
    return CheckedRows(good, bad), sized, unsized
