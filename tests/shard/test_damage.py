"""Every byte of a shard, damaged.

Two properties, for heads and segments alike: reading yields the right answers or `CorruptShardError` (its subclass included), whatever was
flipped or cut; and a full check notices every flip, so no byte is uncovered.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from des.errors import CorruptShardError
from des.shard.codecs import Compression
from des.shard.layout import Flag
from tests.shard.samples import (
    DICTIONARY,
    MIDNIGHT,
    WORDS,
    BuiltSegment,
    Sample,
    build_head,
    build_segment,
    check_head_fully,
    check_segment_fully,
    lookup,
    open_head,
    read_everything,
    read_payload,
    read_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Every codec, a dictionary, a large payload, an empty one, content types, metadata, tombstones, replaced files, superseded segments.
RAW = random.Random(0).randbytes(60)
OLD = [
    Sample("plain", WORDS * 3, MIDNIGHT + 1, "text/plain", b'{"a":1}'),
    Sample("replaced", b"the old content", MIDNIGHT + 2),
    Sample("deleted", b"what was deleted", MIDNIGHT + 3),
    Sample("noise", RAW, MIDNIGHT + 86_399_999_999),
]
NEW = [
    Sample("replaced", b"the new content " * 20, MIDNIGHT + 2, "a/b", flags=Flag.REPLACED),
    Sample("ünïcode/../ %2F 日本", WORDS * 4 + RAW),
    Sample("stored raw", RAW[:20], metadata='{"é":"日本"}'.encode()),
    Sample("empty", b""),
]
LARGE = [Sample("large", (WORDS * 20_000)[: (1 << 20) + 5], MIDNIGHT + 5, "text/plain"), Sample("zstd", WORDS * 5)]
COMPRESSIONS = [Compression("zstd", dictionary=DICTIONARY), Compression("lz4"), Compression("none")]
FIRST = build_segment(OLD, compressions=COMPRESSIONS)
SECOND = build_segment(
    NEW,
    number=1,
    compressions=COMPRESSIONS,
    tombstones=[Sample("deleted", b"what was deleted", MIDNIGHT + 90_000_000)],
    superseded=[b"s" * 16],
    generation=2,
)
THIRD = build_segment(LARGE, number=2)
BUILT = [FIRST, SECOND, THIRD]
HEAD = build_head(BUILT)
SEGMENTS = {segment.name: segment.data for segment in BUILT}
WANTED = sorted({sample.file_id for sample in (*OLD, *NEW, *LARGE, Sample("absent", b""))})
RIGHT = read_everything(HEAD, SEGMENTS, WANTED)


def flips(data: bytes, seed: int) -> Iterator[bytes]:
    """Every bit of the first and last bytes and of some others, and one random bit of every byte."""
    rng = random.Random(seed)
    thorough = {*range(48), *range(len(data) - 72, len(data)), *rng.sample(range(len(data)), 40)}
    for position in range(len(data)):
        for bit in range(8) if position in thorough else (rng.randrange(8),):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            yield bytes(damaged)


def cuts(data: bytes) -> Iterator[bytes]:
    """Every prefix, some suffixes, and what a torn or doubled write leaves."""
    yield from (data[:length] for length in range(len(data)))
    yield from (data[length:] for length in range(1, len(data), 7))
    yield from (data[: len(data) // 2] + bytes(len(data) - len(data) // 2), bytes(len(data)), data + data[-64:])
    yield from (data[:at] + data[at + 1 :] for at in range(0, len(data), 5))
    yield from (data[:at] + b"\0" + data[at:] for at in range(0, len(data), 5))


def test_the_samples_are_what_they_claim_to_be() -> None:
    entries = [lookup(open_head(HEAD), HEAD, key) for key in WANTED]
    assert {entry.codec.wire_name for entry in entries if entry} == {"none", "zstd", "lz4", "zstd-dict"}
    assert RIGHT.contents[Sample("deleted", b"").file_id] is None
    assert RIGHT.contents == {s.file_id: s.raw for s in (*OLD, *NEW, *LARGE)} | {Sample("deleted", b"").file_id: None}
    assert len(RIGHT.rows) == len(OLD) + len(NEW) + len(LARGE) + 1
    assert max(map(len, [HEAD, *SEGMENTS.values()])) < 4096
    check_head_fully(HEAD)
    for segment in BUILT:
        check_segment_fully(segment.data)


def right_or_corrupt(head: bytes, segments: dict[bytes, bytes]) -> bool:
    """Look everything up in a head and read what lies in these segments; return whether anything was noticed.

    Wrong answers and other errors fail the test.
    """
    noticed = False
    try:
        opened = open_head(head)
    except CorruptShardError:
        return True
    for key in WANTED:
        try:
            entry = lookup(opened, head, key)
            if entry is None:
                assert key not in RIGHT.contents
                continue
            ref = opened.tables.segments[entry.segment]
            if ref.name not in segments:
                continue
            content = None if entry.deleted else read_payload(entry, segments[ref.name], ref.dictionary)
        except CorruptShardError:
            noticed = True
        else:
            assert content == RIGHT.contents[key]
    for name, data in segments.items():
        try:
            rows = read_rows(data)
        except CorruptShardError:
            noticed = True
        else:
            assert {(name, row.entry.file_id): row for row in rows} == {
                key: row for key, row in RIGHT.rows.items() if key[0] == name
            }
    return noticed


def notices(check: Callable[[bytes], object], data: bytes) -> bool:
    try:
        check(data)
    except CorruptShardError:
        return True
    return False


def test_every_flip_of_a_head() -> None:
    small = {FIRST.name: FIRST.data, SECOND.name: SECOND.data}
    outcomes = [(right_or_corrupt(damaged, small), notices(check_head_fully, damaged)) for damaged in flips(HEAD, 1)]
    assert len(outcomes) > len(HEAD)
    assert all(checked for _, checked in outcomes)
    assert any(read for read, _ in outcomes)


@pytest.mark.parametrize("segment", BUILT, ids=["first", "second", "third"])
def test_every_flip_of_a_segment(segment: BuiltSegment) -> None:
    outcomes = []
    for damaged in flips(segment.data, 2):
        read = right_or_corrupt(HEAD, {segment.name: damaged})
        outcomes.append((read, notices(check_segment_fully, damaged)))
    assert len(outcomes) > len(segment.data)
    assert all(checked for _, checked in outcomes)
    assert any(read for read, _ in outcomes)


def test_every_cut_of_a_head() -> None:
    for damaged in cuts(HEAD):
        assert right_or_corrupt(damaged, SEGMENTS)
        assert notices(check_head_fully, damaged)


@pytest.mark.parametrize("segment", BUILT, ids=["first", "second", "third"])
def test_every_cut_of_a_segment(segment: BuiltSegment) -> None:
    for damaged in cuts(segment.data):
        assert right_or_corrupt(HEAD, {segment.name: damaged})
        assert notices(check_segment_fully, damaged)


def test_segments_in_each_others_place() -> None:
    swapped = {FIRST.name: SECOND.data, SECOND.name: THIRD.data, THIRD.name: FIRST.data}
    head = open_head(HEAD)
    for key in WANTED:
        entry = lookup(head, HEAD, key)
        if entry is None or entry.deleted or not entry.stored_size:
            continue
        ref = head.tables.segments[entry.segment]
        with pytest.raises(CorruptShardError):
            read_payload(entry, swapped[ref.name], ref.dictionary)


def test_random_bursts_of_damage() -> None:
    rng = random.Random(3)
    objects = {b"head": HEAD} | SEGMENTS
    for _ in range(300):
        name, data = rng.choice(list(objects.items()))
        at, length = rng.randrange(len(data)), rng.randrange(1, 200)
        damaged = (data[:at] + rng.randbytes(length) + data[at + length :])[: len(data)]
        right_or_corrupt(damaged if data is HEAD else HEAD, SEGMENTS if data is HEAD else {name: damaged})
