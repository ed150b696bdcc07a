"""The plan: the rows of a run grouped by shard, on disk, so that a run's size is bounded by the disk and not by memory.

Beside the rows it has those that are bad, notes about the run, and which shards are done: what a run needs that goes on with the plan of another one
(see `state`).
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Self

from des.pack.manifest import BadRow
from des.routing import MAX_N_BITS, file_id
from des.shard.layout import NAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from des.pack.manifest import ManifestRow

_SCHEMA = (
    """CREATE TABLE rows (
        number INTEGER PRIMARY KEY, shard INTEGER, uid TEXT, created_at INTEGER, source TEXT, size INTEGER, content_type TEXT, metadata BLOB
    )""",
    "CREATE TABLE bad (number INTEGER PRIMARY KEY, row TEXT)",
    "CREATE TABLE notes (name TEXT PRIMARY KEY, value BLOB)",
    "CREATE TABLE done (shard INTEGER PRIMARY KEY, lineage BLOB, generation INTEGER, segments BLOB)",
)
_INSERT = "INSERT INTO rows VALUES (?,?,?,?,?,?,?,?)"
# Many rows a statement take half the time of a statement a row.
_ROWS_AT_ONCE = 200
_INSERT_MANY = _INSERT + ",(?,?,?,?,?,?,?,?)" * (_ROWS_AT_ONCE - 1)
PAGE_BYTES = 16 << 10
_INDEX_MASK = (1 << MAX_N_BITS) - 1
# Holds all it takes to count the shards.
_BY_SHARD = "CREATE INDEX rows_by_shard ON rows (shard, number, size)"
_SHARDS = "SELECT shard, COUNT(*), COALESCE(SUM(size), 0) FROM rows GROUP BY shard ORDER BY shard"
# Golden-ratio hashing of the row numbers (Knuth, TAOCP vol. 3, 6.4): spread evenly over the run, and in an order that has nothing to do with the rows.
_DRAWN = "SELECT number FROM rows ORDER BY ((number & 0x7fffffff) * 2654435761) & 0xffffffff, number LIMIT ?"
_COLUMNS = "number, uid, created_at, source, size, content_type, metadata"
# One sort of all rows answers for all shards; asking each for itself takes longer, and hardly any run has such rows.
_HAS_REPEATED = "SELECT EXISTS (SELECT 1 FROM rows GROUP BY shard, uid HAVING COUNT(*) > 1)"
_REPEATED = """
SELECT number, nth FROM (
    SELECT number, ROW_NUMBER() OVER (PARTITION BY uid ORDER BY number) AS nth FROM rows WHERE shard = ?
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
    """A row of the plan; see `ManifestRow`. `created_at` is microseconds since 1970; `root` is the directory that its source must not lead out of.

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
    root: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What proves that a shard is done: a head of this lineage, of this generation or a later one, that lists these segments."""

    lineage: bytes
    generation: int
    segments: tuple[bytes, ...]


class Plan:
    """The plan of one run. One thread at a time.

    Attributes:
        roots: directories, each with a slash at its end, out of which the sources that lie below them must not lead.
    """

    def __init__(self, connection: sqlite3.Connection | None = None) -> None:
        """Make an empty plan in a temporary file, or take the one of a database, which is made empty there if there is none; `with` closes it."""
        # An empty name is a temporary database on disk that goes with its connection (sqlite.org/inmemorydb.html).
        self._connection = connection or sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self.roots: Sequence[str] = ()
        self._has_repeated: bool | None = None
        if connection is None:
            self._connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            self._connection.execute("PRAGMA journal_mode = OFF")
            self._connection.execute("PRAGMA synchronous = OFF")
        elif self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            return
        self._connection.execute("BEGIN")
        for statement in _SCHEMA:
            self._connection.execute(statement)

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

    def add(self, rows: Sequence[ManifestRow]) -> None:
        """Add rows."""
        whole = len(rows) - len(rows) % _ROWS_AT_ONCE
        for start in range(0, whole, _ROWS_AT_ONCE):
            values = list(chain.from_iterable(rows[start : start + _ROWS_AT_ONCE]))
            self._connection.execute(_INSERT_MANY, values)
        self._connection.executemany(_INSERT, rows[whole:])

    def add_bad(self, rows: Sequence[BadRow]) -> None:
        """Add rows that cannot be packed."""
        values = [(row.number, _encoded(row)) for row in rows]
        self._connection.executemany("INSERT INTO bad VALUES (?, ?)", values)

    def bad(self) -> Iterator[BadRow]:
        """Yield the rows that cannot be packed, in order."""
        for (row,) in self._connection.execute("SELECT row FROM bad ORDER BY number"):
            yield BadRow(*json.loads(row))

    def finish(self) -> list[PlannedShard]:
        """Index the rows; return the shards in order."""
        self._connection.execute(_BY_SHARD)
        return self.shards()

    def commit(self) -> None:
        """Make all that was added so far last; from now on, each change lasts by itself, in the order they were made."""
        self._connection.execute("COMMIT")
        # A commit to this log waits for no disk, and is never half there (sqlite.org/wal.html).
        self._connection.execute("PRAGMA journal_mode = WAL")

    def shards(self) -> list[PlannedShard]:
        """Return the shards in order, once all rows are there."""
        return [
            PlannedShard(f"{shard >> MAX_N_BITS:08}", shard & _INDEX_MASK, rows, size)
            for shard, rows, size in self._connection.execute(_SHARDS)
        ]

    def rows(self, shard: PlannedShard, after: int, limit: int) -> list[PlannedRow]:
        """Return up to `limit` rows of a shard in manifest order, those after row number `after`."""
        query = f"SELECT {_COLUMNS} FROM rows WHERE shard = ? AND number > ? ORDER BY number LIMIT ?"  # noqa: S608 - constants
        return [self._planned(*row) for row in self._connection.execute(query, (_number_of(shard), after, limit))]

    def rows_by_number(self, numbers: Sequence[int]) -> list[PlannedRow]:
        """Return some rows by their numbers, in that order."""
        query = f"SELECT {_COLUMNS} FROM rows WHERE number = ?"  # noqa: S608 - constants
        return [self._planned(*self._connection.execute(query, (number,)).fetchone()) for number in numbers]

    def _planned(
        self,
        number: int,
        uid: str,
        created_at: int,
        source_path: str,
        size_bytes: int | None,
        content_type: str | None,
        metadata: bytes,
    ) -> PlannedRow:
        root = next((one for one in self.roots if source_path.startswith(one)), None) if self.roots else None
        return PlannedRow(number, file_id(uid), uid, created_at, source_path, size_bytes, content_type, metadata, root)

    # ---- what lasts ---------------------------------------------------------------------------------------------------------

    def note(self, name: str, value: str | bytes) -> None:
        """Write something down about the run."""
        self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> str | bytes | None:
        """Return what was written down; None: nothing."""
        found = self._connection.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        value: str | bytes | None = found[0] if found else None
        return value

    def mark_done(self, shard: PlannedShard, done: Done) -> None:
        """Write down that a shard is done, and what proves it."""
        values = (_number_of(shard), done.lineage, done.generation, b"".join(done.segments))
        self._connection.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?)", values)

    def done(self, shard: PlannedShard) -> Done | None:
        """Return what proves that a shard is done; None: it is not."""
        query = "SELECT lineage, generation, segments FROM done WHERE shard = ?"
        found = self._connection.execute(query, (_number_of(shard),)).fetchone()
        if found is None:
            return None
        lineage, generation, names = found
        return Done(lineage, generation, tuple(names[at : at + NAME_BYTES] for at in range(0, len(names), NAME_BYTES)))

    # ---- rows ---------------------------------------------------------------------------------------------------------------

    def drawn(self, limit: int) -> list[int]:
        """Return the numbers of up to `limit` rows from all over the run, the same ones each time."""
        return [number for (number,) in self._connection.execute(_DRAWN, (limit,))]

    def repeated(self, shard: PlannedShard) -> list[tuple[int, int]]:
        """Return the rows of a shard whose file stood in the manifest before: (row number, its how-manieth time), by the latter."""
        if self._has_repeated is None:
            self._has_repeated = bool(self._connection.execute(_HAS_REPEATED).fetchone()[0])
        if not self._has_repeated:
            return []
        return list(self._connection.execute(_REPEATED, (_number_of(shard),)))


def _encoded(row: BadRow) -> str:
    known = [row.number, row.uid, row.source_path, row.error]
    try:
        return json.dumps([*known, row.fields])
    except RecursionError:  # nested as deep as can be, and one deeper here
        return json.dumps([*known, {}])


def _number_of(shard: PlannedShard) -> int:
    return (int(shard.day) << MAX_N_BITS) + shard.shard_index
