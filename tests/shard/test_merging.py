"""Merging against a plain dict: whatever is added in whatever order, the head says what the dict says."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from des.errors import CorruptShardError, ShardFullError
from des.shard.layout import ENTRY_BYTES, MAX_CONTENT_TYPES, MAX_SEGMENTS, Codec, Entry, Flag, decode_entry
from des.shard.merging import Addition, merge
from des.shard.tables import DictionaryPlace, HeadTables, SegmentRef
from des.shard.writing import SegmentSummary
from tests.shard.samples import COMMITTED, LINEAGE

EMPTY = HeadTables(1, LINEAGE)


@dataclass
class Model:
    """What a head must say: entry and content type by file_id."""

    files: dict[bytes, tuple[Entry, str | None]] = field(default_factory=dict)


def summary_of(rng: random.Random, keys: list[bytes], types: tuple[str, ...]) -> SegmentSummary:
    """Make up a finished segment that holds files and tombstones of these keys."""
    entries = []
    for key in sorted(keys):
        kind = rng.randrange(len(types) + 1)
        entry = Entry(key, rng.randbytes(16), rng.randrange(1 << 32), 0, kind, Codec.ZSTD, 0, 42, 10, 20, 5)
        if rng.random() < 0.2:
            entry = entry._replace(codec=Codec.NONE, flags=Flag.DELETED, offset=0, stored_size=0, raw_size=0)
        else:
            entry = entry._replace(stored_size=rng.randrange(100), raw_size=rng.randrange(100, 1000))
        entries.append(entry.encode())
    place = DictionaryPlace(42, 10, rng.randbytes(16)) if rng.random() < 0.3 else None
    return SegmentSummary(rng.randrange(5000, 10_000), b"".join(entries), types, place)


def entries_of(encoded: bytes) -> list[Entry]:
    return [decode_entry(encoded, at) for at in range(0, len(encoded), ENTRY_BYTES)]


def check(tables: HeadTables, encoded: bytes, model: Model) -> None:
    """Compare a head with its model, counters with counting."""
    entries = entries_of(encoded)
    assert [entry.file_id for entry in entries] == sorted(model.files)
    pointing, stored = Counter[int](), Counter[int]()
    for entry in entries:
        expected, content_type = model.files[entry.file_id]
        said = tables.content_types[entry.content_type - 1] if entry.content_type else None
        assert entry._replace(segment=0, content_type=0) == expected._replace(segment=0, content_type=0)
        assert (entry.segment, said) == (expected.segment, content_type)
        pointing[entry.segment] += 1
        stored[entry.segment] += entry.stored_size
    live = [entry for entry in entries if not entry.deleted]
    assert tables.files == len(live)
    assert tables.deleted == len(entries) - len(live)
    assert tables.raw_bytes == sum(entry.raw_size for entry in live)
    assert tables.stored_bytes == sum(entry.stored_size for entry in live)
    assert [ref.entries for ref in tables.segments] == [pointing[n] for n in range(len(tables.segments))]
    assert [ref.stored_bytes for ref in tables.segments] == [stored[n] for n in range(len(tables.segments))]
    assert len(set(tables.content_types)) == len(tables.content_types)


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(1, 8), st.integers(1, 60))
def test_against_a_dict(rng: random.Random, commits: int, universe: int) -> None:
    keys = [rng.randbytes(1) * 15 + bytes([n]) for n in range(universe)]
    tables, encoded, model = EMPTY, b"", Model()
    for _ in range(commits):
        additions: list[Addition] = []
        free = set(keys)
        for _ in range(rng.randrange(3)):
            chosen = rng.sample(sorted(free), rng.randint(0, len(free)))
            free -= set(chosen)
            types = tuple(rng.sample(["a/a", "b/b", "c/c", "d/d"], rng.randrange(4)))
            left_out = frozenset(key for key in chosen if rng.random() < 0.2)
            number = len(tables.segments) + len(additions)
            additions.append(Addition(rng.randbytes(16), summary_of(rng, chosen, types), left_out))
            for entry in entries_of(additions[-1].summary.entries):
                if entry.file_id not in left_out:
                    content_type = types[entry.content_type - 1] if entry.content_type else None
                    model.files[entry.file_id] = (entry._replace(segment=number), content_type)
        before = tables
        tables, encoded = merge(tables, encoded, additions, COMMITTED)
        check(tables, encoded, model)
        assert tables.generation == before.generation
        assert (tables.lineage, tables.commit_log) == (before.lineage, before.commit_log)
        assert tables.content_types[: len(before.content_types)] == before.content_types
        joined = [(ref.name, ref.size, ref.committed_at, ref.dictionary) for ref in tables.segments]
        assert joined[: len(before.segments)] == [
            (ref.name, ref.size, ref.committed_at, ref.dictionary) for ref in before.segments
        ]
        assert joined[len(before.segments) :] == [
            (a.name, a.summary.size, COMMITTED, a.summary.dictionary) for a in additions
        ]


def one_segment(rng: random.Random, keys: list[bytes]) -> Addition:
    return Addition(rng.randbytes(16), summary_of(rng, keys, ("a/a",)))


def test_order_of_additions_does_not_matter_for_what_is_found() -> None:
    rng = random.Random(1)
    one, two = one_segment(rng, [b"a" * 16, b"c" * 16]), one_segment(rng, [b"b" * 16, b"d" * 16])
    together = merge(EMPTY, b"", [one, two], COMMITTED)
    tables, encoded = merge(EMPTY, b"", [one], COMMITTED)
    assert merge(tables, encoded, [two], COMMITTED) == together


def test_nothing_added_changes_nothing() -> None:
    rng = random.Random(2)
    tables, encoded = merge(EMPTY, b"", [one_segment(rng, [b"a" * 16])], COMMITTED)
    assert merge(tables, encoded, [], COMMITTED + 1) == (tables, encoded)


def test_entries_come_back_as_bytes_from_any_buffer() -> None:
    rng = random.Random(3)
    first, second = one_segment(rng, [b"a" * 16]), one_segment(rng, [b"a" * 16, b"b" * 16])
    tables, encoded = merge(EMPTY, b"", [first], COMMITTED)
    expected = merge(tables, encoded, [second], COMMITTED)
    assert merge(tables, memoryview(encoded), [second], COMMITTED) == expected
    assert merge(tables, bytearray(encoded), [second], COMMITTED) == expected


def test_limits() -> None:
    rng = random.Random(4)
    full = replace(EMPTY, segments=tuple(SegmentRef(rng.randbytes(16), 100, 0, 0, 0) for _ in range(MAX_SEGMENTS)))
    with pytest.raises(ShardFullError, match="2,000 segments"):
        merge(full, b"", [one_segment(rng, [])], COMMITTED)
    types = [tuple(f"{n}/{m}" for m in range(MAX_CONTENT_TYPES)) for n in range(17)]
    additions = [Addition(rng.randbytes(16), SegmentSummary(100, b"", own, None)) for own in types]
    assert len(merge(EMPTY, b"", additions[:1], COMMITTED)[0].content_types) == MAX_CONTENT_TYPES
    with pytest.raises(ShardFullError, match="4,096 content types"):
        merge(EMPTY, b"", additions, COMMITTED)


def test_a_head_that_contradicts_itself_is_no_base() -> None:
    rng = random.Random(5)
    addition = one_segment(rng, [b"a" * 16])
    tables, encoded = merge(EMPTY, b"", [addition], COMMITTED)
    replacing = [one_segment(rng, [b"a" * 16])]
    outside = decode_entry(encoded)._replace(segment=9).encode()
    with pytest.raises(CorruptShardError, match="outside the head's tables"):
        merge(tables, outside, replacing, COMMITTED)
    with pytest.raises(CorruptShardError, match="counters contradict"):
        merge(
            replace(tables, files=0, deleted=0),
            encoded,
            [Addition(bytes(16), SegmentSummary(100, tombstone(), (), None))],
            COMMITTED,
        )


def tombstone() -> bytes:
    return Entry(b"a" * 16, bytes(16), 0, 0, 0, Codec.NONE, Flag.DELETED, 0, 0, 0, 0).encode()
