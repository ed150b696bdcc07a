"""Why pages of 32 KiB that grow up to 64 KiB: what a lookup reads and costs with pages of any size.

Run: `python -m benchmarks.page_size [--json FILE]`. A cold lookup reads the tail (one suffix read of 64 KiB, one more read where the tail is
longer) and one page. Small pages make the directory, and with it the tail, too long for one read; large pages make every first
lookup read and check more. The row marked with an arrow is what the writer chooses; times are ratios to it, of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Meter
from des.shard.layout import (
    DIRECTORY_ITEM,
    ENTRY_BYTES,
    HEADER,
    TAIL_READ_BYTES,
    Codec,
    Entry,
    Identity,
    Kind,
    checksum64,
)
from des.shard.reading import Head, find_entry, parse_tail
from des.shard.tables import HeadTables, SegmentRef
from des.shard.writing import encode_head, encode_tail

FILES = (10_000, 100_000, 1_000_000)
PAGE_ENTRIES = (128, 256, 512, 640, 768, 1024, 2048, 4096)
IDENTITY = Identity(bytes(16), "20240131", 8, 0)
SEGMENTS = 20
LOOKUPS = 1000
ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Figures:
    """What pages of one size cost; bytes, and CPU seconds a lookup."""

    files: int
    page_entries: int
    tail: int
    reads: int
    cold_bytes: int
    first_lookup: float
    cached_lookup: float
    chosen: bool


def make_entries(files: int) -> tuple[list[bytes], bytes]:
    keys = sorted(os.urandom(16) for _ in range(files))
    rest = Entry(bytes(16), bytes(16), 1, 0, 1, Codec.ZSTD, 0, 42, 1000, 3000, 1).encode()[16:]
    return keys, b"".join(key + rest for key in keys)


def tables_of(files: int) -> HeadTables:
    refs = tuple(SegmentRef(os.urandom(16), 1 << 30, 0, files // SEGMENTS, 0) for _ in range(SEGMENTS))
    log = tuple(os.urandom(16) for _ in range(64))
    return HeadTables(1, bytes(16), files=files, segments=refs, content_types=("text/plain",), commit_log=log)


def make_tail(tables: HeadTables, entries: bytes, page_entries: int) -> bytes:
    """Return the tail of a head with pages of any size; the writer itself takes only some."""
    step = page_entries * ENTRY_BYTES
    pages = ((at, entries[at : at + step]) for at in range(0, len(entries), step))
    directory = [
        DIRECTORY_ITEM.pack(page[:16], checksum64(page), HEADER.size + at, len(page), len(page) // ENTRY_BYTES, 0)
        for at, page in pages
    ]
    return encode_tail(IDENTITY, Kind.HEAD, tables.encode(), directory, HEADER.size + len(entries), bytes(16))


def look_up(head: Head, pages: list[tuple[bytes, memoryview]], *, check: bool) -> None:
    """Look every key up in a page that is in memory, with or without the check of a page's first use."""
    for key, page in pages:
        ref = head.find_page(key)
        if check and ref is not None:
            ref.check(page)
        entry = find_entry(page, key)
        if entry is None:
            raise LookupError("a key that is there was not found")
        head.check_entry(entry)


def pages_of(head: Head, entries: bytes, keys: list[bytes]) -> list[tuple[bytes, memoryview]]:
    """Return each key with its page, which nothing copies."""
    view = memoryview(entries)
    refs = [head.directory.ref(head.directory.find(key) or 0) for key in keys]
    return [(key, view[r.offset - HEADER.size : r.end - HEADER.size]) for key, r in zip(keys, refs, strict=True)]


def measure(files: int, meter: Meter) -> list[Figures]:
    keys, entries = make_entries(files)
    tables = tables_of(files)
    sample = random.Random(files).sample(keys, LOOKUPS)
    written = encode_head(IDENTITY, tables, entries)
    chosen = Head(parse_tail(written[-(256 << 10) :], len(written)), IDENTITY).directory.ref(0).items
    del written
    heads = {}
    for page_entries in PAGE_ENTRIES:
        tail = make_tail(tables, entries, page_entries)
        heads[page_entries] = Head(parse_tail(tail, HEADER.size + len(entries) + len(tail)), IDENTITY)
    pages = {page_entries: pages_of(head, entries, sample) for page_entries, head in heads.items()}
    times: dict[tuple[int, bool], list[float]] = {}
    for _ in range(ROUNDS):
        for page_entries, head in heads.items():
            for check in (True, False):
                seconds = meter.time(partial(look_up, head, pages[page_entries], check=check))
                times.setdefault((page_entries, check), []).append(seconds / LOOKUPS)
    return [
        Figures(
            files=files,
            page_entries=page_entries,
            tail=head.tail.size,
            reads=1 + (head.tail.size > TAIL_READ_BYTES) + 1,
            cold_bytes=max(head.tail.size, TAIL_READ_BYTES) + page_entries * ENTRY_BYTES,
            first_lookup=statistics.median(times[page_entries, True]),
            cached_lookup=statistics.median(times[page_entries, False]),
            chosen=page_entries == chosen,
        )
        for page_entries, head in heads.items()
    ]


def show(figures: list[Figures]) -> None:
    reference = next(row for row in figures if row.chosen)
    table = Table(title=f"{figures[0].files:,} files in a shard")
    for heading in ("page", "tail", "index reads", "cold bytes", "first lookup", "cached lookup"):
        table.add_column(heading, justify="right")
    for row in figures:
        table.add_row(
            f"{'→ ' if row.chosen else ''}{row.page_entries * ENTRY_BYTES >> 10} KiB",
            f"{row.tail / 1024:.1f} KiB",
            f"{row.reads}",
            f"{row.cold_bytes / 1024:.0f} KiB",
            ratio(row.first_lookup, reference.first_lookup, same=row.chosen),
            ratio(row.cached_lookup, reference.cached_lookup, same=row.chosen),
        )
    Console(width=120).print(table)


def ratio(seconds: float, reference: float, *, same: bool) -> str:
    return f"1 ({seconds * 1e6:.1f} µs)" if same else f"{seconds / reference:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    meter = Meter()
    measured = [measure(files, meter) for files in FILES]
    for figures in measured:
        show(figures)
    Console(width=120).print(meter.report())
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for figures in measured for row in figures], indent=1))


if __name__ == "__main__":
    main()
