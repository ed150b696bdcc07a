"""The plan: the rows of a run grouped by shard, on disk, so that a run's size is bounded by the disk and not by memory."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from des.routing import date_dir, file_id, shard_index

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from des.pack.manifest import ManifestRow
    from des.storage.descriptor import Descriptor

_SCHEMA = """
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, day TEXT, shard INTEGER, file_id BLOB, uid TEXT, created_at INTEGER,
    source TEXT, size INTEGER, content_type TEXT, metadata BLOB
)
"""
_INSERT = "INSERT INTO rows VALUES (?,?,?,?,?,?,?,?,?,?)"
_BY_SHARD = "CREATE INDEX rows_by_shard ON rows (day, shard, number)"
_COLUMNS = "number, file_id, uid, created_at, source, size, content_type, metadata"
# One sort of all rows answers for all shards; asking each for itself takes longer, and hardly any run has such rows.
_HAS_REPEATED = "SELECT EXISTS (SELECT 1 FROM rows GROUP BY file_id, day HAVING COUNT(*) > 1)"
_REPEATED = """
SELECT number, nth FROM (
    SELECT number, ROW_NUMBER() OVER (PARTITION BY file_id ORDER BY number) AS nth FROM rows WHERE day = ? AND shard = ?
) WHERE nth > 1 ORDER BY nth, number
"""


# The rows of a shard lie all over the file.
_CACHE_KIB = 32 << 10


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """The rows of one shard: how many, and the bytes the manifest says they have (0 where it says nothing)."""

    day: str
    shard_index: int
    rows: int
    size: int


class PlannedRow(NamedTuple):
    """A row of the plan; see `ManifestRow`. `created_at` is microseconds since 1970.

    A named tuple because one is made of every row, and a frozen dataclass takes five times as long.
    """

    number: int
    file_id: bytes
    uid: str
    created_at: int
    source_path: str
    size_bytes: int | None
    content_type: str | None
    metadata: bytes


class Plan:
    """The plan of one run. One thread at a time."""

    def __init__(self, descriptor: Descriptor) -> None:
        """Make an empty plan in a temporary file; `with` closes it."""
        self._descriptor = descriptor
        # An empty name is a temporary database on disk that goes with its connection (sqlite.org/inmemorydb.html).
        self._connection = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._connection.execute(_SCHEMA)
        self._connection.execute("BEGIN")
        self._has_repeated = False

    def __enter__(self) -> Self:
        """Return the plan."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget the plan."""
        self.close()

    def close(self) -> None:
        """Forget the plan."""
        self._connection.close()

    def add(self, rows: Iterable[ManifestRow]) -> None:
        """Add rows.

        Raises:
            SettingsError: a row belongs to another zone than this place holds.
        """
        self._connection.executemany(_INSERT, (self._routed(row) for row in rows))

    def _routed(self, row: ManifestRow) -> tuple[object, ...]:
        day, identifier = date_dir(row.created_at), file_id(row.uid)
        n_bits = self._descriptor.n_bits_on(day)
        index = shard_index(identifier, n_bits)
        self._descriptor.check_owned(index, n_bits)
        created_at = row.created_at_microseconds
        place = (row.number, day, index, identifier, row.uid, created_at)
        return (*place, row.source_path, row.size_bytes, row.content_type, row.metadata)

    def finish(self) -> list[PlannedShard]:
        """Index the rows; return the shards in order."""
        self._connection.execute(_BY_SHARD)
        self._has_repeated = bool(self._connection.execute(_HAS_REPEATED).fetchone()[0])
        query = "SELECT day, shard, COUNT(*), COALESCE(SUM(size), 0) FROM rows GROUP BY day, shard ORDER BY day, shard"
        return [PlannedShard(*row) for row in self._connection.execute(query)]

    def rows(self, shard: PlannedShard, after: int, limit: int) -> list[PlannedRow]:
        """Return up to `limit` rows of a shard in manifest order, those after row number `after`."""
        query = f"SELECT {_COLUMNS} FROM rows WHERE day = ? AND shard = ? AND number > ? ORDER BY number LIMIT ?"  # noqa: S608 - constants
        values = (shard.day, shard.shard_index, after, limit)
        return [PlannedRow._make(row) for row in self._connection.execute(query, values)]

    def rows_by_number(self, numbers: Sequence[int]) -> list[PlannedRow]:
        """Return some rows by their numbers, in that order."""
        query = f"SELECT {_COLUMNS} FROM rows WHERE number = ?"  # noqa: S608 - constants
        return [PlannedRow(*self._connection.execute(query, (number,)).fetchone()) for number in numbers]

    def repeated(self, shard: PlannedShard) -> list[tuple[int, int]]:
        """Return the rows of a shard whose file stood in the manifest before: (row number, its how-manieth time), by the latter."""
        if not self._has_repeated:
            return []
        return list(self._connection.execute(_REPEATED, (shard.day, shard.shard_index)))
