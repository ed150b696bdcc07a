"""A shard of a million files: what a cold lookup reads, what a lookup costs once a page is there, and what an open head weighs.

Run: `python -m benchmarks.million [--files N] [--json FILE]`. The head is generated: every entry is that of a real uid, so routing, head,
pages and entries are the real thing, and some of the files are really packed, so that a real `Store` gets them from a
local storage that records its calls. Reads of the descriptor (one per process) are not counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import tracemalloc
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio

from benchmarks.tables import Row, print_table
from benchmarks.timing import Meter
from des.routing import file_id, shard_index
from des.settings import Settings
from des.shard.codecs import Compression, Encoder
from des.shard.layout import ENTRY, ENTRY_BYTES, TAIL_READ_BYTES, Codec, Entry, Identity
from des.shard.merging import Addition, merge
from des.shard.reading import Head, PageRef, find_entry, parse_tail
from des.shard.tables import HeadTables, SegmentRef
from des.shard.writing import FileRecord, SegmentWriter, encode_head
from des.storage.descriptor import DESCRIPTOR_KEY, Descriptor
from des.storage.local import LocalStorage
from des.storage.protocol import Overwrite
from des.storage.testing import RecordingStorage
from des.store import Store
from des.tasks import open_tasks
from tests.payloads import encode_payload

DAY = "20240131"
CREATED_AT = "2024-01-31"
N_BITS = 1
SEGMENTS = 20
PACKED = 50
LOOKUPS = 3000
ROUNDS = 25
KIB = 1 << 10

READS_BUDGET = 3
INDEX_BYTES_BUDGET = 128
LOOKUP_BUDGET = 20
MEMORY_BUDGET = 2
FILE_BYTES_BUDGET = 68


@dataclass(frozen=True, slots=True)
class Million:
    """A generated head, and the files of it that really exist.

    Attributes:
        identity: the shard.
        head: its bytes.
        keys: all file_ids.
        segment_key: key of the segment that exists.
        segment: its bytes.
        contents: uid → content of the files in it.
    """

    identity: Identity
    head: bytes
    keys: list[bytes]
    segment_key: str
    segment: bytes
    contents: dict[str, bytes]


def pack_some(identity: Identity, uids: list[str], source: random.Random) -> tuple[bytes, Addition, dict[str, bytes]]:
    """Pack files of about 4 KiB into a segment."""
    encoder = Encoder(Compression("zstd"))
    writer = SegmentWriter(identity, 2)
    pieces, contents = [writer.opening], {}
    for uid in uids:
        contents[uid] = source.randbytes(2 * KIB) + uid.encode() * 200
        stored, payload = encode_payload(encoder, contents[uid])
        pieces.append(stored)
        writer.add(FileRecord(file_id(uid), uid, 1_706_659_200_000_000, "text/plain", b""), payload)
    rest, summary = writer.finish()
    return b"".join([*pieces, *rest]), Addition(source.randbytes(16), summary), contents


def generate(descriptor: Descriptor, files: int) -> Million:
    """Make the head: entries of generated segments, and the files that are really packed merged into them."""
    source = random.Random(files)
    identity = Identity(descriptor.store_id, DAY, N_BITS, 0)
    uids: list[str] = []
    keys: list[bytes] = []
    number = 0
    while len(uids) < files:
        uid = f"folder/{number}/document.txt"
        key = file_id(uid)
        if shard_index(key, N_BITS) == identity.shard_index:
            uids.append(uid)
            keys.append(key)
        number += 1
    segment, addition, contents = pack_some(identity, source.sample(uids, PACKED), source)
    entries = bytearray()
    for key in sorted(keys):
        size = source.randrange(100, 5000)
        place = (
            source.randrange(1 << 29).to_bytes(6, "little"),
            size.to_bytes(6, "little"),
            (size * 3).to_bytes(6, "little"),
        )
        entries += ENTRY.pack(
            key, source.randbytes(16), source.getrandbits(32), source.randrange(SEGMENTS), 1, Codec.ZSTD, 0, *place, 1
        )
    refs = tuple(SegmentRef(source.randbytes(16), 1 << 30, 0, files, 1 << 40) for _ in range(SEGMENTS))
    log = tuple(source.randbytes(16) for _ in range(64))
    size = files * 5000
    tables = HeadTables(65, source.randbytes(16), files, 0, size * 3, size, refs, ("text/plain",), (), log)
    tables, merged = merge(tables, entries, [addition], 0)
    head = encode_head(identity, tables.committed(source.randbytes(16)), merged)
    return Million(identity, head, keys, identity.segment_key(addition.name), segment, contents)


@dataclass(frozen=True, slots=True)
class ColdReads:
    """What cold gets read at most: reads in all, and bytes besides the payload; and what an open head adds to memory, in bytes."""

    reads: int
    index_bytes: int
    memory: int


async def get_cold(million: Million, descriptor: Descriptor, folder: Path) -> ColdReads:
    """Get each packed file from a store that knows nothing yet, and compare it."""
    local = LocalStorage(folder)
    storage = RecordingStorage(local)
    await local.put(DESCRIPTOR_KEY, descriptor.encode(), Overwrite())
    await local.put(million.identity.head_key, million.head, Overwrite())
    await local.put(million.segment_key, million.segment, Overwrite())
    reads, index_bytes, memory = [], [], []
    for uid, content in million.contents.items():
        async with open_tasks() as tasks:
            store = Store(storage, Settings(), tasks)
            await store.index.descriptor()
            storage.calls.clear()
            gc.collect()
            tracemalloc.start()
            if await store.get(uid, CREATED_AT) != content:
                raise ValueError(f"{uid} came back different")
            gc.collect()
            memory.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
        calls = [call for call in storage.calls if call.key != DESCRIPTOR_KEY]
        reads.append(len(calls))
        index_bytes.append(sum(call.size for call in calls if call.purpose != "payload"))
    await local.aclose()
    # The median, because now and then a table of the interpreter itself grows by a megabyte.
    return ColdReads(max(reads), max(index_bytes), int(statistics.median(memory)))


def look_up(head: Head, pages: list[tuple[bytes, bytes]], *, check: bool) -> None:
    """Look every key up in its page, with or without the check of the page's first use."""
    for key, page in pages:
        ref = head.find_page(key)
        if check and ref is not None:
            ref.check(page)
        entry: Entry | None = find_entry(page, key)
        if entry is None:
            raise LookupError("a key that is there was not found")
        head.check_entry(entry)


def time_lookups(million: Million, meter: Meter) -> dict[bool, float]:
    """Return CPU seconds a lookup in a page that is in memory, with (True) and without the check of its first use.

    Of many rounds the quickest counts: this is compared with an absolute budget, and a disturbed round says nothing about the code.
    """
    head = Head(parse_tail(million.head[-TAIL_READ_BYTES:], len(million.head)), million.identity)
    cached: dict[PageRef, bytes] = {}
    pages = []
    for key in random.Random(1).sample(million.keys, LOOKUPS):
        ref = head.find_page(key)
        if ref is None:
            raise LookupError("a key that is there was not found")
        pages.append((key, cached.setdefault(ref, million.head[ref.offset : ref.end])))
    rounds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for check, times in rounds.items():
            times.append(meter.time(partial(look_up, head, pages, check=check)) / LOOKUPS)
    return {check: min(times) for check, times in rounds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    descriptor = Descriptor.new(N_BITS)
    million = generate(descriptor, options.files)
    with tempfile.TemporaryDirectory() as name:
        cold = anyio.run(get_cold, million, descriptor, Path(name))
    meter = Meter()
    times = time_lookups(million, meter)
    tail = parse_tail(million.head[-TAIL_READ_BYTES:], len(million.head))
    rows = [
        Row("reads of a cold get, payload included", cold.reads, "", READS_BUDGET),
        Row("bytes of a cold get besides the payload", cold.index_bytes / KIB, "KiB", INDEX_BYTES_BUDGET),
        Row("lookup in a cached page", times[False] * 1e6, "µs", LOOKUP_BUDGET),
        Row("lookup in a page at its first use, checked", times[True] * 1e6, "µs", LOOKUP_BUDGET),
        Row("memory that opening the head adds, one page included", cold.memory / KIB / KIB, "MiB", MEMORY_BUDGET),
        Row("bytes a file on disk, head", len(million.head) / options.files, "B", FILE_BYTES_BUDGET),
        Row("tail", tail.size / KIB, "KiB"),
        Row("page", tail.directory.ref(0).items * ENTRY_BYTES / KIB, "KiB"),
    ]
    print_table(f"a shard of {options.files:,} files", rows)
    print(meter.report())
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
