"""The plan: the rows of a run grouped by shard, on disk, so that a run's size is bounded by the disk and not by memory.

Beside the rows it has those that are bad, notes about the run, and which shards are done: what a run needs that goes on with the plan of another one
(see `state`).
"""

from __future__ import annotations

import heapq
import json
import sqlite3
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, repeat, starmap
from typing import TYPE_CHECKING, NamedTuple, Self

import orjson

from des.pack.manifest import BadRow
from des.routing import MAX_N_BITS, file_id
from des.shard.layout import NAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from des.pack.manifest import ManifestRow

# Rows lie in chunks, each of one shard and in manifest order: JSON columns, the uids apart because repeated ones are looked for on their own.
# Numbers of rows count from the first of their chunk: who packs it need not know how many rows there were before.
_SCHEMA = (
    "CREATE TABLE chunks (shard INTEGER, first INTEGER, last INTEGER, count INTEGER, size INTEGER, uids BLOB, others BLOB)",
    "CREATE TABLE bad (number INTEGER PRIMARY KEY, row TEXT)",
    "CREATE TABLE notes (name TEXT PRIMARY KEY, value BLOB)",
    "CREATE TABLE done (shard INTEGER PRIMARY KEY, lineage BLOB, generation INTEGER, segments BLOB)",
)
# Of what the tables hold: a state file of another version is not gone on with.
PLAN_VERSION = 2
_INSERT = "INSERT INTO chunks VALUES (?,?,?,?,?,?,?)"
PAGE_BYTES = 16 << 10
_INDEX_MASK = (1 << MAX_N_BITS) - 1
# Holds all it takes to count the shards.
_BY_SHARD = "CREATE INDEX chunks_by_shard ON chunks (shard, first, last, count, size)"
_SHARDS = "SELECT shard, SUM(count), SUM(size) FROM chunks GROUP BY shard ORDER BY shard"
_OF_SHARD = "SELECT first, uids, others, count FROM chunks WHERE shard = ? AND last > ? AND first <= ? ORDER BY first"
_CACHE_KIB = 32 << 10
_MAX_NUMBER = (1 << 63) - 1
_CHUNK_ROWS = 1024
# Repeated uids are looked for among so many at a time, which bounds the memory of a huge shard.
_UIDS_AT_ONCE = 500_000


# A chunk as the table has it.
Chunk = tuple[int, int, int, int, int, bytes, bytes]


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
class PackedRows:
    """Rows of one shard in manifest order, as the plan has them: whoever needs them unpacks them, in another process if need be.

    Attributes:
        chunks: number of the first row, uids, and all else.
        roots: see `Plan`.
    """

    chunks: Sequence[tuple[int, bytes, bytes]]
    roots: Sequence[str]

    def unpacked(self) -> list[PlannedRow]:
        """Return the rows, each with the root that it lies in."""
        rows = list(chain.from_iterable(starmap(_rows_of, self.chunks)))
        return [row._replace(root=self._root_of(row.source_path)) for row in rows] if self.roots else rows

    def after(self, number: int, limit: int) -> list[PlannedRow]:
        """Return up to `limit` rows, those after row number `number`."""
        rows = self.unpacked()
        start = bisect_right(rows, number, key=lambda row: row.number)
        return rows[start : start + limit]

    def _root_of(self, source_path: str) -> str | None:
        return next((root for root in self.roots if source_path.startswith(root)), None)


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

    def add(self, rows: Iterable[ManifestRow]) -> None:
        """Add rows, whose numbers rise; the more at once, the larger are the chunks."""
        self.add_chunks(packed(rows), 0)

    def add_chunks(self, chunks: Iterable[Chunk], before: int) -> None:
        """Add rows that were packed, numbered on from `before`."""
        renumbered = [(shard, first + before, last + before, *rest) for shard, first, last, *rest in chunks]
        self._connection.executemany(_INSERT, renumbered)

    def add_bad(self, rows: Iterable[tuple[int, str]]) -> None:
        """Add rows that cannot be packed: their numbers, and what `encoded` made of them."""
        self._connection.executemany("INSERT INTO bad VALUES (?, ?)", rows)

    def bad(self) -> Iterator[BadRow]:
        """Yield the rows that cannot be packed, in order."""
        for number, row in self._connection.execute("SELECT number, row FROM bad ORDER BY number"):
            yield BadRow(number, *json.loads(row))

    def finish(self) -> list[PlannedShard]:
        """Index the rows, once all are there; return the shards in order."""
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
        return self.packed_rows(shard, after, limit).after(after, limit)

    def packed_rows(self, shard: PlannedShard, after: int, limit: int) -> PackedRows:
        """Return `limit` or more rows of a shard after row number `after`, as far as there are any, and maybe some up to it."""
        chunks: list[tuple[int, bytes, bytes]] = []
        found = 0
        for first, uids, others, count in self._chunks(shard, after, _MAX_NUMBER):
            chunks.append((first, uids, others))
            found += count if first > after else 0
            if found >= limit:
                break
        return PackedRows(chunks, self.roots)

    def _chunks(self, shard: PlannedShard, after: int, last: int) -> Iterator[tuple[int, bytes, bytes, int]]:
        """Yield the chunks of a shard that have rows numbered above `after` and up to `last`, and how many rows each has."""
        yield from self._connection.execute(_OF_SHARD, (_number_of(shard), after, last))

    def rows_by_number(self, shard: PlannedShard, numbers: Sequence[int]) -> list[PlannedRow]:
        """Return some rows of a shard by their numbers, which rise."""
        if not numbers:
            return []
        wanted = frozenset(numbers)
        chunks = self._chunks(shard, numbers[0] - 1, numbers[-1])
        rows = chain.from_iterable(PackedRows((chunk[:3],), self.roots).unpacked() for chunk in chunks)
        return [row for row in rows if row.number in wanted]

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

    def drawn(self, limit: int) -> list[PlannedRow]:
        """Return up to `limit` rows from all over the run, the same ones each time."""
        chunks = self._connection.execute("SELECT first, uids, others FROM chunks")
        rows = chain.from_iterable(PackedRows((chunk,), self.roots).unpacked() for chunk in chunks)
        return heapq.nsmallest(limit, rows, key=_draw)

    def repeated(self, shard: PlannedShard) -> list[tuple[int, int]]:
        """Return the rows of a shard whose file stood in the manifest before: (row number, its how-manieth time), by the latter."""
        parts = 1 + shard.rows // _UIDS_AT_ONCE
        found = [one for part in range(parts) for one in self._repeated(shard, part, parts)]
        return sorted(found, key=lambda one: (one[1], one[0]))

    def _repeated(self, shard: PlannedShard, part: int, parts: int) -> Iterator[tuple[int, int]]:
        """Look among the uids whose hashes are `part` modulo `parts`."""
        query = "SELECT uids FROM chunks WHERE shard = ? ORDER BY first"
        seen: set[int] = set()
        count = 0
        for (uids,) in self._connection.execute(query, (_number_of(shard),)):
            hashes = [hashed for hashed in map(hash, orjson.loads(uids)) if hashed % parts == part]
            seen.update(hashes)
            count += len(hashes)
        if len(seen) == count:
            return
        del seen
        turns: dict[str, int] = {}
        for first, uids, others, _ in self._chunks(shard, -1, _MAX_NUMBER):
            for offset, uid in zip(orjson.loads(others)[0], orjson.loads(uids), strict=True):
                if hash(uid) % parts == part:
                    turns[uid] = nth = turns.get(uid, 0) + 1
                    if nth > 1:
                        yield first + offset, nth


def _draw(row: PlannedRow) -> tuple[int, int]:
    """Return where a row stands when rows are drawn.

    Golden-ratio hashing of the numbers (Knuth, TAOCP vol. 3, 6.4): spread evenly over the run, and in an order that has nothing to do with the rows.
    """
    return (row.number & 0x7FFF_FFFF) * 2_654_435_761 & 0xFFFF_FFFF, row.number


def packed(rows: Iterable[ManifestRow]) -> list[Chunk]:
    """Return rows, whose numbers rise, as the plan has them."""
    by_shard: defaultdict[int, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        by_shard[row[1]].append(row)
    return [
        _chunk(by_shard[shard][start : start + _CHUNK_ROWS])
        for shard in sorted(by_shard)
        for start in range(0, len(by_shard[shard]), _CHUNK_ROWS)
    ]


def _chunk(rows: Sequence[ManifestRow]) -> Chunk:
    """Return some rows of a shard as the plan has them."""
    numbers, shards, uids, times, sources, sizes, types, metadata = zip(*rows, strict=True)
    size = sum([size for size in sizes if size])
    texts = [one.decode() for one in metadata] if any(metadata) else None
    others = orjson.dumps(
        (
            [number - numbers[0] for number in numbers],
            times,
            sources,
            sizes if any(one is not None for one in sizes) else None,
            types if any(types) else None,
            texts,
        )
    )
    return shards[0], numbers[0], numbers[-1], len(rows), size, orjson.dumps(uids), others


def _rows_of(first: int, uids: bytes, others: bytes) -> list[PlannedRow]:
    """Return the rows of a chunk."""
    names = orjson.loads(uids)
    offsets, times, sources, sizes, types, metadata = orjson.loads(others)
    encoded = repeat(b"") if metadata is None else map(str.encode, metadata)
    return list(
        map(
            PlannedRow,
            map(first.__add__, offsets),
            map(file_id, names),
            names,
            times,
            sources,
            sizes or repeat(None),
            types or repeat(None),
            encoded,
        )
    )


def encoded(row: BadRow) -> str:
    """Return a bad row without its number, as the plan has it."""
    known = [row.uid, row.source_path, row.error]
    try:
        return json.dumps([*known, row.fields])
    except RecursionError:  # nested as deep as can be, and one deeper here
        return json.dumps([*known, {}])


def _number_of(shard: PlannedShard) -> int:
    return (int(shard.day) << MAX_N_BITS) + shard.shard_index
