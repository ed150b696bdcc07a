"""A day that was packed every hour: 24 segments of one shard, 100,000 files of about 4 KiB, joined into one. Requests, bytes and time.

Run: `python -m benchmarks.compaction [--files N] [--json FILE]`. On local files, through a storage that records its calls. The time is compared with that of
reading and writing the same bytes by themselves, each payload decoded and hashed, because a compaction checks what it copies.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from benchmarks.tables import Row, print_table
from des.lifecycle.choosing import Rules
from des.lifecycle.compacting import compact_shard
from des.lifecycle.rewriting import Rewriting
from des.pack.commit import new_name, open_shard, swap
from des.routing import file_id, shard_index
from des.shard.codecs import Compression, Encoder, decode
from des.shard.layout import Identity, checksum32
from des.shard.merging import Addition, merge
from des.shard.writing import FileRecord, Payload, SegmentWriter, content_hash
from des.storage.descriptor import ensure_descriptor
from des.storage.local import LocalStorage
from des.storage.testing import RecordingStorage
from tests.payloads import encode_payload

if TYPE_CHECKING:
    from des.pack.commit import Change
    from des.store.heads import WholeHead

DAY = "20240131"
NOON = 1_706_702_400_000_000
HOURS = 24
MIB = 1 << 20

MOVED_BUDGET = 1.1
REQUESTS_BUDGET = 1.5


@dataclass(slots=True)
class Floor:
    """What cannot be saved: every payload checked, decoded and hashed, and the bytes written again."""

    seconds: float = 0
    stored_bytes: int = 0

    def pay(self, payloads: list[tuple[bytes, Payload]], scratch: Path) -> None:
        started = time.perf_counter()
        with scratch.open("ab") as out:
            for stored, payload in payloads:
                checksum32(stored)
                content_hash(decode(payload.codec, memoryview(stored), payload.raw_size, None))
                out.write(stored)
        self.seconds += time.perf_counter() - started
        self.stored_bytes += sum(len(stored) for stored, _ in payloads)


async def pack_hour(
    storage: RecordingStorage, identity: Identity, uids: list[str], floor: Floor, scratch: Path
) -> None:
    """Commit one segment."""
    source = random.Random(uids[0])
    base = await open_shard(storage, identity)
    encoder = Encoder(Compression("zstd"))
    writer = SegmentWriter(identity, base.tables.generation)
    payloads = []
    for uid in uids:
        content = source.randbytes(2 << 10) + uid.encode() * 100
        stored, payload = encode_payload(encoder, content)
        writer.add(FileRecord(file_id(uid), uid, NOON, "text/plain", b""), payload)
        payloads.append((stored, payload))
    pieces, summary = writer.finish()
    addition = Addition(new_name(), summary)
    async with storage.open_writer(identity.segment_key(addition.name)) as out:
        await out.write(b"".join([writer.opening, *(stored for stored, _ in payloads), *pieces]))

    async def change(head: WholeHead) -> Change:
        return merge(head.tables, head.entries, [addition], NOON)

    await swap(storage, base, change)
    floor.pay(payloads, scratch)


async def measure(files: int, directory: Path) -> list[Row]:
    storage = RecordingStorage(LocalStorage(directory / "store"))
    descriptor = await ensure_descriptor(storage, 1)
    identity = Identity(descriptor.store_id, DAY, 1, 0)
    names = (f"folder/{number}/document.txt" for number in range(1 << 30))
    uids = [next(uid for uid in names if shard_index(file_id(uid), 1) == 0) for _ in range(files)]
    floor = Floor()
    for hour in range(HOURS):
        await pack_hour(storage, identity, uids[hour::HOURS], floor, directory / "scratch")
    storage.calls.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.perf_counter(), time.process_time()
    done = await compact_shard(storage, identity, Rules(), Rewriting(), now=NOON, grace=0)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if (done.files, done.segments_before, done.segments_after) != (files, HOURS, 1):
        raise RuntimeError(f"it came to {done}")
    read = sum(storage.moved(verb=verb) for verb in ("read_suffix", "read_range", "piece"))
    written = storage.moved(verb="write") + storage.moved(verb="put")
    requests = sum(storage.count(verb=verb) for verb in ("read_suffix", "read_range", "stream_range", "head", "put"))
    parts = -(-storage.moved(verb="write") // (8 * MIB))
    await storage.aclose()
    return [
        Row("requests to read, swap and look", requests, ""),
        Row("of them for each MiB that moves", requests / (floor.stored_bytes / MIB), "", REQUESTS_BUDGET),
        Row("parts of 8 MiB written", parts, ""),
        Row("bytes read / stored bytes", read / floor.stored_bytes, "", MOVED_BUDGET),
        Row("bytes written / stored bytes", written / floor.stored_bytes, "", MOVED_BUDGET),
        Row("stored bytes", floor.stored_bytes / MIB, "MiB"),
        Row("wall time", wall, "s"),
        Row("files a second", files / wall, "1/s"),
        Row("CPU a file", cpu / files * 1e6, "µs"),
        Row("wall time / that of checking and writing alone", wall / floor.seconds, ""),
        Row("memory it took beside the packing before", grown, "MiB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = anyio.run(measure, arguments.files, Path(directory))
    print_table(f"Compaction of {HOURS} segments of one shard, {arguments.files:,} files", rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
