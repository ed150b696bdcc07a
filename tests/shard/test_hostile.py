"""Containers with good checksums that lie: typed errors or an answer, and no more memory than what was handed in deserves."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from des.errors import ConflictError, CorruptShardError, UnsupportedFormatError
from des.shard.layout import (
    DIRECTORY_ITEM,
    ENTRY,
    ENTRY_BYTES,
    Codec,
    Entry,
    checksum32,
    checksum64,
)
from des.shard.reading import PageRef
from tests.shard.bombs import bombs
from tests.shard.forging import Parts, changed, forged_header
from tests.shard.samples import (
    IDENTITY,
    check_head_fully,
    check_segment_fully,
    lookup,
    open_head,
    read_payload,
    read_rows,
)
from tests.shard.test_damage import FIRST, HEAD, SECOND, SEGMENTS, THIRD, WANTED

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
# A content of 1 MiB, its copy, and what a reader makes of the indexes: no forged field may cost more.
MOST_MEMORY = 8 * MIB

EXTREMES = st.sampled_from(
    [
        *(0, 1, 2, 41, 42, 63, 64, 255, 4096, MIB, MIB + 1),
        *(len(HEAD), len(FIRST.data), len(FIRST.data) - 1),
        *(sign + (1 << bits) for bits in (31, 32, 40, 47, 48, 63, 64) for sign in (-1, 0)),
    ]
)
NUMBERS = EXTREMES | st.integers(0, (1 << 64) - 1)
OBJECTS = {"head": HEAD, "first": FIRST.data, "second": SECOND.data, "third": THIRD.data}


def number_of(width: int) -> st.SearchStrategy[bytes]:
    return NUMBERS.map(lambda number: (number & ((1 << 8 * width) - 1)).to_bytes(width, "little"))


@st.composite
def fields(draw: st.DrawFn, *layouts: tuple[int, int]) -> tuple[int, bytes]:
    """Draw a field of a layout, as its place and other bytes for it."""
    at, width = draw(st.sampled_from(layouts))
    return at, draw(number_of(width))


FOOTER_FIELDS = fields((0, 4), (4, 4), (8, 4), (12, 4), (16, 16), (32, 4), (36, 8), (44, 2), (46, 2))
HEADER_FIELDS = fields((0, 8), (8, 2), (10, 1), (11, 1), (12, 2), (14, 4), (18, 16))
ITEM_FIELDS = fields((0, 16), (16, 8), (24, 8), (32, 4), (36, 2), (38, 2))
ENTRY_FIELDS = fields(
    (0, 16), (16, 16), (32, 4), (36, 2), (38, 2), (40, 1), (41, 1), (42, 6), (48, 6), (54, 6), (60, 4)
)
ROW_FIELDS = fields((0, 16), (36, 2), (38, 2), (40, 1), (41, 1), (42, 6), (48, 6), (54, 6), (60, 4), (64, 8), (72, 8), (80, 2), (82, 2), (84, 4))  # fmt: skip


def rows_of(raw: bytes) -> Iterator[int]:
    """Yield where each row of a chunk begins."""
    at = 0
    while at < len(raw):
        yield at
        uid, metadata = struct.unpack_from("<HI", raw, at + 82)
        at += 88 + uid + metadata


def lie_in_the_footer(draw: st.DrawFn, parts: Parts) -> dict[str, int | bytes]:
    names = {0: "incompat", 4: "ro_compat", 8: "count", 12: "tables_length", 16: "stamp", 32: "length", 36: "size"}
    at, new = draw(FOOTER_FIELDS)
    name = (names | {44: "version", 46: "kind"})[at]
    return {name: new if name == "stamp" else int.from_bytes(new, "little")}


def lie_in_the_header(draw: st.DrawFn, parts: Parts) -> None:
    unsigned = changed(parts.header, *draw(HEADER_FIELDS))[:34]
    parts.header = unsigned + checksum64(unsigned).to_bytes(8, "little")


def lie_in_the_tables(draw: st.DrawFn, parts: Parts) -> None:
    at = draw(st.integers(0, len(parts.tables) - 1))
    new = draw(st.one_of(*(number_of(width) for width in (1, 2, 4, 8))))
    parts.tables = changed(parts.tables, at, new)[: len(parts.tables)]


def lie_in_the_length_of_tables(draw: st.DrawFn, parts: Parts) -> None:
    parts.tables = parts.tables[: len(parts.tables) - draw(st.integers(0, 50))] + draw(st.binary(max_size=50))


def lie_in_the_directory(draw: st.DrawFn, parts: Parts) -> None:
    at, new = draw(ITEM_FIELDS)
    items = [changed(DIRECTORY_ITEM.pack(*ref), at, new) for ref in parts.directory]
    parts.directory = [PageRef(*DIRECTORY_ITEM.unpack(item)) for item in items] * draw(st.integers(0, 3))


def lie_in_the_page(draw: st.DrawFn, parts: Parts) -> None:
    page = parts.page(0)
    for at, new in draw(st.lists(ENTRY_FIELDS, min_size=1, max_size=4)):
        for entry in draw(st.sets(st.sampled_from(range(0, len(page), ENTRY_BYTES)), min_size=1)):
            page = changed(page, entry + at, new)
    parts.set_page(0, page)


def lie_in_the_rows(draw: st.DrawFn, parts: Parts) -> None:
    raw = zstandard.decompress(parts.page(0))
    starts = list(rows_of(raw))
    for at, new in draw(st.lists(ROW_FIELDS, min_size=1, max_size=3)):
        raw = changed(raw, draw(st.sampled_from(starts)) + at, new)
    replace_chunk(parts, zstandard.compress(raw))


def lie_in_the_frame(draw: st.DrawFn, parts: Parts) -> None:
    frames = [zstandard.compress(bytes(5 * MIB)), b"", b"\x50\x2a\x4d\x18\xff\xff\xff\xff", parts.page(0) * 2]
    replace_chunk(parts, draw(st.sampled_from(frames) | st.binary(max_size=100)))


def damage_the_data(draw: st.DrawFn, parts: Parts) -> None:
    """The checksums of payloads are in the entries, so this is mere damage; it must not become wrong bytes."""
    at = draw(st.integers(42, parts.directory[0].offset - 1))
    parts.body = changed(parts.body, at, draw(st.binary(min_size=1, max_size=3)))[: len(parts.body)]


Lie = Callable[[st.DrawFn, Parts], dict[str, int | bytes] | None]
LIES: list[Lie] = [
    lie_in_the_footer,
    lie_in_the_header,
    lie_in_the_tables,
    lie_in_the_length_of_tables,
    lie_in_the_directory,
]
LIES_OF_HEADS: list[Lie] = [*LIES, lie_in_the_page, lie_in_the_page]
LIES_OF_SEGMENTS: list[Lie] = [*LIES, lie_in_the_rows, lie_in_the_rows, lie_in_the_frame, damage_the_data]


@st.composite
def lies(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw one of the sample objects with a few fields of one of its parts changed and its checksums made good again."""
    name = draw(st.sampled_from(list(OBJECTS)))
    parts = Parts.of(OBJECTS[name])
    footer = draw(st.sampled_from(LIES_OF_HEADS if name == "head" else LIES_OF_SEGMENTS))(draw, parts)
    return name, parts.build(**(footer or {}))


def replace_chunk(parts: Parts, stored: bytes) -> None:
    """Put another catalog chunk in the place of the only one, with a good checksum."""
    ref = parts.directory[0]
    parts.body = parts.body[: ref.offset] + stored
    parts.directory = [ref._replace(length=len(stored), checksum=checksum64(stored))]


def attempt(read: Callable[[], object]) -> object:
    """Return what reading yields, or None for a typed error. Any other error is a bug and passes through."""
    try:
        return read()
    except (CorruptShardError, ConflictError):  # the latter where the lie is that the shard is being removed
        return None


def read_all(head: bytes, segments: dict[bytes, bytes]) -> dict[bytes, tuple[Entry, bytes]]:
    """Read whatever can be read, each thing by itself."""
    contents: dict[bytes, tuple[Entry, bytes]] = {}
    for data in segments.values():
        for row in attempt(lambda data=data: read_rows(data)) or ():  # type: ignore[misc,attr-defined]  # the lambda is called at once
            attempt(row.metadata_object)
        attempt(lambda data=data: check_segment_fully(data))  # type: ignore[misc]  # as above
    attempt(lambda: check_head_fully(head))
    try:
        opened = open_head(head)
    except CorruptShardError:
        return contents
    attempt(opened.check_writable)
    for key in WANTED:
        try:
            entry = lookup(opened, head, key)
            if entry is None or entry.deleted:
                continue
            ref = opened.tables.segments[entry.segment]
            contents[key] = (entry, read_payload(entry, segments.get(ref.name, b""), ref.dictionary))
        except CorruptShardError:
            continue
    return contents


@settings(max_examples=200)
@given(lies())
def test_lies_are_refused_or_harmless(lie: tuple[str, bytes]) -> None:
    name, data = lie
    built = {"first": FIRST.name, "second": SECOND.name, "third": THIRD.name}
    head = data if name == "head" else HEAD
    segments = SEGMENTS if name == "head" else SEGMENTS | {built[name]: data}
    tracemalloc.start()
    try:
        contents = read_all(head, segments)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY
    for entry, content in contents.values():
        # Whoever can sign can lie about what is there, but not make a reader return other sizes than it says.
        assert len(content) == entry.raw_size
        if name != "head":
            assert hashlib.sha256(content).digest()[:16] == entry.content_hash


def test_bombs_are_refused_before_they_take_memory() -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.shard.bombs"], cwd=root, capture_output=True, text=True, check=False, timeout=100
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == list(bombs())


def forge_entry(index: int, **changes: Any) -> tuple[bytes, bytes]:  # noqa: ANN401 - fields of several types
    """Return a head whose n-th entry says something else, and that entry's file_id."""
    parts = Parts.of(HEAD)
    page = parts.page(0)
    fields_of = ENTRY.unpack_from(page, index * ENTRY_BYTES)
    names = ("file_id", "content_hash", "checksum", "segment", "content_type", "codec", "flags", "offset", "stored_size", "raw_size", "second")  # fmt: skip
    entry = dict(zip(names, fields_of, strict=True)) | changes
    parts.set_page(0, changed(page, index * ENTRY_BYTES, ENTRY.pack(*entry.values())))
    return parts.build(), fields_of[0]


def u48(number: int) -> bytes:
    return number.to_bytes(6, "little")


@pytest.mark.parametrize("index", range(len(WANTED) - 1))
@pytest.mark.parametrize(
    "change",
    [
        {"offset": u48((1 << 48) - 1)},
        {"stored_size": u48(1 << 47)},
        {"stored_size": u48(1 << 47), "raw_size": u48(1 << 40)},
        {"raw_size": u48(1 << 47)},
        {"segment": 3},
        {"segment": 0xFFFF},
        {"content_type": 0xFFFF},
        {"second": 86_400},
        {"codec": 9},
        {"flags": 0xF0},
    ],
    ids=str,
)
def test_each_lie_of_an_entry_is_refused_by_its_lookup(index: int, change: dict[str, Any]) -> None:
    forged, key = forge_entry(index, **change)
    with pytest.raises(CorruptShardError) as caught:
        lookup(open_head(forged), forged, key)
    assert isinstance(caught.value, UnsupportedFormatError) == ("codec" in change or "flags" in change)


def test_payload_of_another_codec_than_its_entry_says() -> None:
    codecs = {}
    for index in range(len(WANTED) - 1):
        key = forge_entry(index)[1]
        entry = lookup(open_head(HEAD), HEAD, key)
        if entry is None or entry.deleted or not entry.stored_size:
            continue
        for codec in set(Codec) - {entry.codec}:
            forged, _ = forge_entry(index, codec=codec)
            head = open_head(forged)
            try:
                lied = lookup(head, forged, key)
                assert lied is not None
                ref = head.tables.segments[lied.segment]
                content = read_payload(lied, SEGMENTS[ref.name], ref.dictionary)
            except CorruptShardError:
                codecs[codec] = True
            else:
                assert len(content) == entry.raw_size
    assert set(codecs) == set(Codec)


def test_overlapping_payloads_are_found_by_the_full_check() -> None:
    parts = Parts.of(SECOND.data)
    raw = zstandard.decompress(parts.page(0))
    first, second = [at for at in rows_of(raw) if struct.unpack_from("<Q", raw[at + 48 : at + 54] + b"\0\0")[0] > 0][:2]
    raw = changed(raw, second + 42, raw[first + 42 : first + 48])
    replace_chunk(parts, zstandard.compress(raw))
    parts.body = parts.body[: parts.directory[0].end]
    with pytest.raises(CorruptShardError, match="do not follow each other"):
        check_segment_fully(parts.build())


def test_a_gap_in_the_data_is_found_by_the_full_check() -> None:
    parts = Parts.of(FIRST.data)
    ref = parts.directory[0]
    chunk = parts.page(0)
    parts.body = parts.body[: ref.offset] + b"gap" + chunk
    parts.directory = [ref._replace(offset=ref.offset + 3)]
    parts.tables = changed(parts.tables, 16, (ref.offset + 3).to_bytes(8, "little"))
    with pytest.raises(CorruptShardError, match="do not fill its data"):
        check_segment_fully(parts.build())


def test_a_header_that_contradicts_its_tail_is_found_by_the_full_check() -> None:
    other = forged_header(HEAD[:42], shard_index=1)
    with pytest.raises(CorruptShardError, match="contradicts the tail"):
        check_head_fully(other + HEAD[42:])
    assert open_head(other + HEAD[42:]).identity == IDENTITY


def test_checksums_of_forged_payloads_do_not_help() -> None:
    entry = lookup(open_head(HEAD), HEAD, WANTED[0])
    assert entry is not None
    junk = b"junk" * 10
    lied = entry._replace(flags=0, codec=Codec.ZSTD, offset=0, stored_size=40, raw_size=100, checksum=checksum32(junk))
    with pytest.raises(CorruptShardError):
        read_payload(lied, junk, None)
