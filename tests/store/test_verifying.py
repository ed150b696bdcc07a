from __future__ import annotations

import random
import tracemalloc
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest
import zstandard

from des.errors import (
    InvalidRequestError,
    SettingsError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedFormatError,
)
from des.pack.commit import open_shard
from des.routing import file_id
from des.settings import Settings
from des.shard.codecs import Compression
from des.shard.layout import ENTRY_BYTES, HEADER, Codec, checksum32
from des.shard.tables import Condemned
from des.shard.writing import FileRecord, Payload, SegmentWriter, content_hash, encode_head
from des.storage.local import LocalStorage
from des.storage.protocol import Level, Suffix
from des.storage.testing import Fail, Fault, FaultyStorage, RecordingStorage
from des.storage.wrapper import StorageWrapper
from des.store import Store, open_store
from des.store.heads import read_whole_head
from des.store.verifying import Damage, Progress, Sampling, VerifyReport, verify
from tests.making import DAY, File, Maker, make_store
from tests.shard.forging import forged_footer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from des.shard.layout import Entry, Identity
    from des.storage.protocol import ObjectInfo, Purpose, Storage
    from des.storage.wrapper import Verb

MIB = 1 << 20
WORDS = b"the quick brown fox jumps over the lazy dog and looks back at it; "
DICTIONARY = WORDS * 4


@asynccontextmanager
async def opened_on(storage: Storage) -> AsyncIterator[Store]:
    async with anyio.create_task_group() as tasks:
        yield Store(storage, Settings(), tasks)
        tasks.cancel_scope.cancel()


async def verified(base_dir: Path) -> VerifyReport:
    async with open_store(base_dir) as store:
        return await verify(store)


def objects_of(base_dir: Path) -> list[Path]:
    return [path for path in base_dir.rglob("*.des") if path.is_file()]


@dataclass(frozen=True, slots=True)
class Small:
    """A store of one shard with two segments: `kept` lives in the first, `gone` was in it and is in the second now."""

    base_dir: Path
    maker: Maker
    identity: Identity
    kept: str
    gone: str
    first: str
    second: str

    def path(self, key: str) -> Path:
        return self.base_dir / key

    @property
    def head(self) -> str:
        return self.identity.head_key

    async def entry(self, uid: str) -> Entry:
        whole = await read_whole_head(self.maker.storage, self.identity)
        entry = whole.find(file_id(uid))
        assert entry is not None
        return entry


@pytest.fixture
async def small(tmp_path: Path) -> Small:
    base_dir = tmp_path / "store"
    maker = await make_store(LocalStorage(base_dir))
    kept, gone, empty = maker.uids_of_one_shard(3)
    files: dict[str, bytes | File] = {
        gone: b"old " + WORDS,
        kept: File(WORDS * 2 + b"kept", "text/plain", {"a": 1}, timedelta(hours=1, microseconds=7)),
        empty: b"",
    }
    (first,) = await maker.add(files, compression=Compression("zstd", 3, DICTIONARY))
    (second,) = await maker.add({gone: b"new"})
    return Small(base_dir, maker, maker.identity(kept), kept, gone, first, second)


# ---- sound stores -----------------------------------------------------------------------------------------------------------


async def test_a_sound_store_of_everything_the_format_has(tmp_path: Path) -> None:
    maker = await make_store(LocalStorage(tmp_path), n_bits=2)
    chance = random.Random(1)
    many: dict[str, bytes | File] = {
        f"a/{number}": File(chance.randbytes(number % 97), metadata={"n": number}) for number in range(1_000)
    }
    await maker.add(many)
    await maker.add({"big": chance.randbytes(MIB + 5), "bigger": WORDS * 50_000, "empty": b""})
    await maker.add({f"d/{n}": WORDS + b"%d" % n for n in range(50)}, compression=Compression("zstd", 3, DICTIONARY))
    await maker.add({f"l/{n}": WORDS * n for n in range(20)}, compression=Compression("lz4"))
    await maker.add({"empty": b"no more", "a/1": File(b"x", "text/plain")})
    await maker.delete(["a/2", "a/3"])
    await maker.add({"x": b"of another day"}, day="20240201")
    report = await verified(tmp_path)
    assert (report.damage, report.garbage, report.orphans, report.condemned, report.leftovers) == ([], [], [], [], [])
    live = sum(map(len, maker.files.values()))
    dead = 4  # two replaced, two deleted
    objects = objects_of(tmp_path)
    assert (report.days, report.files, report.payloads) == (2, live, live + dead)
    assert report.shards == sum(len(path.relative_to(tmp_path).parts) == 2 for path in objects)
    assert report.segments == len(objects) - report.shards
    assert report.bytes_read >= sum(path.stat().st_size for path in objects)


async def test_a_compacted_store_is_sound_and_its_old_segments_are_orphans(small: Small) -> None:
    await small.maker.compact(collect=False)
    report = await verified(small.base_dir)
    assert report.damage == []
    assert [info.key for info in report.orphans] == sorted([small.first, small.second])
    assert [info.size for info in report.orphans] == [small.path(info.key).stat().st_size for info in report.orphans]


async def test_an_empty_store_and_an_empty_shard(tmp_path: Path) -> None:
    maker = await make_store(LocalStorage(tmp_path))
    assert await verified(tmp_path) == VerifyReport(bytes_read=0)
    await maker.make_shard(DAY, "a")
    report = await verified(tmp_path)
    assert (report.shards, report.segments, report.files, report.damage) == (1, 0, 0, [])


async def test_days_and_since_choose(tmp_path: Path) -> None:
    maker = await make_store(LocalStorage(tmp_path))
    for number, day in enumerate(("20240130", "20240131", "20240201")):
        await maker.add({f"file {n}": b"x" for n in range(10**number)}, day=day)
    async with open_store(tmp_path) as store:
        assert (await verify(store)).files == 111
        assert (await verify(store, ["2024-01-31"])).files == 10
        assert (await verify(store, ["20240201", "20240130", "2024-01-30"])).files == 101
        assert (await verify(store, since="20240131")).files == 110
        assert (await verify(store, ["20230101"])).shards == 0
        with pytest.raises(InvalidRequestError):
            await verify(store, ["20240231"])
        with pytest.raises(InvalidRequestError):
            await verify(store, since="yesterday")


async def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no des\.json"):
        await verified(tmp_path)


# ---- every byte -------------------------------------------------------------------------------------------------------------


class HeldStorage(StorageWrapper):
    """Serves a store's objects from memory, so that each of its bytes can be changed without writing a file."""

    def __init__(self, base_dir: Path) -> None:
        super().__init__(LocalStorage(base_dir))
        self.objects = {
            path.relative_to(base_dir).as_posix(): path.read_bytes() for path in base_dir.rglob("*") if path.is_file()
        }

    async def read_suffix(
        self,
        key: str,
        length: int,
        *,
        unless: str | None = None,
        purpose: Purpose = "footer",
    ) -> Suffix | None:
        data = self.objects[key]
        return Suffix(data[-length:], len(data), "1")

    async def read_range(
        self,
        key: str,
        start: int,
        end: int,
        *,
        version: str | None = None,
        purpose: Purpose = "payload",
    ) -> bytes:
        return self.objects[key][start:end]


async def flips(small: Small, key: str) -> AsyncIterator[tuple[int, VerifyReport]]:
    """Verify once for each byte of an object, with that byte changed."""
    storage = HeldStorage(small.base_dir)
    data = storage.objects[key]
    async with opened_on(storage) as store:
        assert (await verify(store)).damage == []
        for at, byte in enumerate(data):
            storage.objects[key] = data[:at] + bytes([byte ^ 0x10]) + data[at + 1 :]
            yield at, await verify(store)


async def test_every_flipped_byte_of_a_head_is_found(small: Small) -> None:
    async for at, report in flips(small, small.head):
        assert [damage.key for damage in report.damage] == [small.head], f"byte {at}"
        assert report.segments == 2, "its segments are checked all the same"


async def test_every_flipped_byte_of_a_segment_is_found(small: Small) -> None:
    # The payload that nobody needs any more stands first, behind the dictionary.
    dead = range(HEADER.size + len(DICTIONARY), (await small.entry(small.kept)).offset)
    assert len(dead) > 0
    async for at, report in flips(small, small.first):
        if at in dead:
            assert report.damage == []
            assert [(garbage.key, garbage.uid) for garbage in report.garbage] == [(small.first, small.gone)], at
        else:
            assert report.damage, f"byte {at}"
            assert {damage.key for damage in report.damage} == {small.first}


async def test_every_flipped_byte_of_a_newer_segment_is_found(small: Small) -> None:
    async for at, report in flips(small, small.second):
        assert {damage.key for damage in report.damage} == {small.second}, f"byte {at}"


@pytest.mark.parametrize("which", ["head", "first", "second"])
async def test_truncations_are_found(small: Small, which: str) -> None:
    key = getattr(small, which)
    path = small.path(key)
    data = path.read_bytes()
    for length in (0, 1, 31, 32, 63, 64, *range(65, len(data), 97), len(data) - 1):
        path.write_bytes(data[:length])
        report = await verified(small.base_dir)
        assert {damage.key for damage in report.damage} == {key}, f"length {length}"
    path.write_bytes(data + b"\0")
    assert {damage.key for damage in (await verified(small.base_dir)).damage} == {key}


async def test_a_large_payload_is_checked_chunk_by_chunk(tmp_path: Path) -> None:
    maker = await make_store(LocalStorage(tmp_path))
    (key,) = await maker.add({"big": random.Random(2).randbytes(2 * MIB)})
    path = tmp_path / key
    data = path.read_bytes()
    table = HEADER.size + 2 * MIB
    for at in (HEADER.size, HEADER.size + MIB, table - 1, table, table + 63):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        report = await verified(tmp_path)
        assert [(damage.key, damage.uid) for damage in report.damage] == [(key, "big")], f"byte {at}"


# ---- what is missing, and what is too much ----------------------------------------------------------------------------------


async def test_a_missing_segment_is_damage(small: Small) -> None:
    small.path(small.first).unlink()
    (damage,) = (await verified(small.base_dir)).damage
    assert (damage.key, damage.uid) == (small.first, None)
    assert damage.sentence == "the segment is missing; 2 entries of the head point into it."


async def test_a_lost_head_is_damage_and_its_segments_are_checked(small: Small) -> None:
    small.path(small.head).unlink()
    report = await verified(small.base_dir)
    assert [(damage.key, damage.sentence) for damage in report.damage] == [
        (small.head, "the head is lost; `des repair` rebuilds it from the segments.")
    ]
    assert (report.shards, report.segments, report.payloads) == (1, 2, 4)
    data = small.path(small.first).read_bytes()
    entry_end = HEADER.size + len(DICTIONARY) + 1
    small.path(small.first).write_bytes(data[:entry_end] + bytes([data[entry_end] ^ 1]) + data[entry_end + 1 :])
    report = await verified(small.base_dir)
    assert [(damage.key, damage.uid) for damage in report.damage] == [(small.head, None), (small.first, small.gone)]


async def test_the_head_of_another_shard_or_store_is_damage(small: Small, tmp_path: Path) -> None:
    async with opened_on(small.maker.storage) as store:
        other = next(uid for uid in map(str, range(99)) if small.maker.identity(uid) != small.identity)
        await small.maker.add({other: b"x"})
        small.path(small.head).write_bytes(small.path(small.maker.identity(other).head_key).read_bytes())
        (damage,) = (await verify(store)).damage
        assert damage.key == small.head
        assert damage.sentence == "its header is another shard's."
    elsewhere = await make_store(LocalStorage(tmp_path / "elsewhere"), {small.kept: b"x"})
    small.path(small.head).write_bytes((tmp_path / "elsewhere" / small.head).read_bytes())
    assert elsewhere.descriptor.store_id != small.identity.store_id
    assert small.head in {damage.key for damage in (await verified(small.base_dir)).damage}


async def test_two_segments_that_changed_places_are_damage(small: Small) -> None:
    first, second = small.path(small.first).read_bytes(), small.path(small.second).read_bytes()
    small.path(small.first).write_bytes(second)
    small.path(small.second).write_bytes(first)
    report = await verified(small.base_dir)
    assert {damage.key for damage in report.damage} == {small.first, small.second}
    disagreement = Damage(small.second, small.gone, "head and catalog say different things about a file.")
    assert disagreement in report.damage
    assert any(file_id(small.kept).hex() in d.sentence for d in report.damage if d.key == small.first)


async def test_what_is_no_part_of_a_shard_is_listed(small: Small) -> None:
    prefix = small.identity.segment_prefix
    strays = [f"{prefix}notes.txt", f"{prefix}ABC.des", f"{DAY}/README", f"{DAY}/elsewhere/x.des"]
    for key in (*strays, f"{DAY}/7F.des"):
        small.path(key).parent.mkdir(exist_ok=True)
        small.path(key).write_bytes(b"?")
    report = await verified(small.base_dir)
    assert [info.key for info in report.leftovers] == sorted(strays)
    assert [(damage.key, damage.sentence) for damage in report.damage] == [
        (f"{DAY}/7F.des", "no shard of a day with n_bits 1 has this key.")
    ]


async def test_condemned_segments_are_listed(small: Small) -> None:
    whole = await read_whole_head(small.maker.storage, small.identity)
    name = bytes.fromhex(small.second.rpartition("/")[2].removesuffix(".des"))
    gone = bytes(range(16))
    tables = replace(whole.tables, condemned=(Condemned(gone, 1_000_000),))
    small.path(small.head).write_bytes(encode_head(small.identity, tables, whole.entries))
    report = await verified(small.base_dir)
    assert report.damage == []
    assert [(one.key, one.since) for one in report.condemned] == [(small.identity.segment_key(gone), 1_000_000)]
    tables = replace(whole.tables, condemned=(Condemned(name, 1_000_000),))
    small.path(small.head).write_bytes(encode_head(small.identity, tables, whole.entries))
    (damage,) = (await verified(small.base_dir)).damage
    assert damage.sentence == "it lists a segment that it condemns."


# ---- lies with good checksums -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"raw_bytes": 1}, "its counters contradict its entries."),
        ({"stored_bytes": 1}, "its counters contradict its entries."),
        ({"files": 2, "deleted": 1}, "its counters contradict its entries."),
        ({"files": 4}, "the index does not hold as many items as the tables say."),
    ],
)
async def test_false_counters_of_a_head(small: Small, change: dict[str, int], sentence: str) -> None:
    whole = await read_whole_head(small.maker.storage, small.identity)
    data = encode_head(small.identity, replace(whole.tables, **change), whole.entries)  # type: ignore[arg-type]  # counters by name
    small.path(small.head).write_bytes(data)
    assert [damage.sentence for damage in (await verified(small.base_dir)).damage] == [sentence]


async def rewrite_entry(small: Small, uid: str, **changes: object) -> None:
    """Let the head say something else about a file, with good checksums."""
    whole = await read_whole_head(small.maker.storage, small.identity)
    entry = (await small.entry(uid))._replace(**changes)  # type: ignore[arg-type]  # fields by name
    at = bytes(whole.entries).index(file_id(uid))
    entries = bytes(whole.entries[:at]) + entry.encode() + bytes(whole.entries[at + ENTRY_BYTES :])
    small.path(small.head).write_bytes(encode_head(small.identity, whole.tables, entries))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"content_hash": bytes(16)}, "head and catalog say different things about a file."),
        ({"content_type": 0}, "head and catalog say different things about a file."),
        ({"second": 1}, "head and catalog say different things about a file."),
        ({"checksum": 1}, "its stored bytes are damaged."),
        ({"segment": 9}, "an entry points outside the head's tables."),
        ({"offset": 1 << 40}, "an entry points outside its segment."),
        ({"raw_size": 1}, "an entry's sizes contradict each other."),
        ({"file_id": b"\xff" * 16}, "a file does not belong to this shard."),
    ],
)
async def test_false_entries_of_a_head(small: Small, changes: dict[str, object], sentence: str) -> None:
    await rewrite_entry(small, small.kept, **changes)
    report = await verified(small.base_dir)
    assert sentence in {damage.sentence.partition(" (file_id")[0] for damage in report.damage}


async def test_an_entry_that_points_into_another_segment(small: Small) -> None:
    whole = await read_whole_head(small.maker.storage, small.identity)
    one, two = whole.tables.segments
    entry = await small.entry(small.kept)
    lie = entry._replace(segment=1, codec=Codec.NONE, offset=HEADER.size, stored_size=3, raw_size=3)
    tables = replace(
        whole.tables,
        raw_bytes=whole.tables.raw_bytes - entry.raw_size + 3,
        stored_bytes=whole.tables.stored_bytes - entry.stored_size + 3,
        segments=(
            replace(one, entries=one.entries - 1, stored_bytes=one.stored_bytes - entry.stored_size),
            replace(two, entries=two.entries + 1, stored_bytes=two.stored_bytes + 3),
        ),
    )
    at = bytes(whole.entries).index(file_id(small.kept))
    entries = bytes(whole.entries[:at]) + lie.encode() + bytes(whole.entries[at + ENTRY_BYTES :])
    small.path(small.head).write_bytes(encode_head(small.identity, tables, entries))
    report = await verified(small.base_dir)
    said = {(damage.key, damage.sentence.partition(" (file_id")[0]) for damage in report.damage}
    assert said == {
        (small.second, "its catalog lacks a file of the head."),
        (small.second, "its stored bytes are damaged."),
    }


@dataclass(frozen=True, slots=True)
class Lie:
    """A file that is packed wrongly, and what verification says of it."""

    sentence: str
    content_hash: bytes | None = None
    checksum: int | None = None
    raw_size: int | None = None
    codec: Codec = Codec.NONE
    created_at: int = 1_706_659_200_000_000
    metadata: bytes = b""


@pytest.mark.parametrize(
    "lie",
    [
        Lie("its content is not what was packed.", content_hash=bytes(16)),
        Lie("its stored bytes are damaged.", checksum=7),
        Lie("a zstd frame does not have the size its index says.", raw_size=1_000, codec=Codec.ZSTD),
        Lie("the catalog is wrong: a file is of another day.", created_at=1_706_659_200_000_000 + 86_400_000_000),
        Lie("the catalog is wrong: a file's metadata is no JSON, or nested too deeply.", metadata=b"{"),
        Lie("the catalog is wrong: a file's metadata is no JSON object.", metadata=b"[]"),
    ],
    ids=lambda lie: lie.sentence,
)
async def test_false_rows_of_a_catalog(tmp_path: Path, lie: Lie) -> None:
    maker = await make_store(LocalStorage(tmp_path))
    base = await open_shard(maker.storage, maker.identity("liar"))
    stored = zstandard.ZstdCompressor().compress(WORDS) if lie.codec else WORDS
    writer = SegmentWriter(base.identity, base.tables.generation)
    payload = Payload(
        lie.content_hash or content_hash(WORDS),
        checksum32(stored) if lie.checksum is None else lie.checksum,
        lie.codec,
        len(stored),
        lie.raw_size or len(WORDS),
    )
    writer.add(FileRecord(file_id("liar"), "liar", lie.created_at, None, lie.metadata), payload)
    key = await maker._commit(base, writer, stored)
    report = await verified(tmp_path)
    assert {damage.key for damage in report.damage} <= {key, base.identity.head_key}
    assert lie.sentence in {damage.sentence.partition(" (file_id")[0] for damage in report.damage}
    assert "liar" in {damage.uid for damage in report.damage}


@pytest.mark.parametrize(
    ("gaps", "sentence"),
    [
        ((3, 0, 0), "its payloads leave a gap or overlap at byte 42."),
        ((0, 3, 0), "its payloads leave a gap or overlap at byte 108."),
        ((0, -3, 0), "its payloads leave a gap or overlap at byte 105."),
        ((0, 0, 3), "its payloads end at byte 174, not at 177."),
    ],
)
async def test_payloads_that_leave_gaps_or_overlap(tmp_path: Path, gaps: tuple[int, ...], sentence: str) -> None:
    maker = await make_store(LocalStorage(tmp_path))
    one, two = maker.uids_of_one_shard(2)
    base = await open_shard(maker.storage, maker.identity(one))
    writer = SegmentWriter(base.identity, base.tables.generation)
    data = bytearray()
    for uid, gap in zip((one, two), gaps, strict=False):
        data = data[: len(data) + gap] + b"?" * gap + WORDS
        writer.size += gap
        payload = Payload(content_hash(WORDS), checksum32(WORDS), Codec.NONE, len(WORDS), len(WORDS))
        writer.add(FileRecord(file_id(uid), uid, 1_706_659_200_000_000, None, b""), payload)
    writer.size += gaps[2]
    key = await maker._commit(base, writer, bytes(data) + b"?" * gaps[2])
    report = await verified(tmp_path)
    assert Damage(key, None, sentence) in report.damage
    assert {damage.uid for damage in report.damage} == ({None, one} if gaps[1] < 0 else {None})


@pytest.mark.parametrize("which", ["head", "first"])
async def test_a_newer_format_is_no_damage_but_an_error(small: Small, which: str) -> None:
    path = small.path(getattr(small, which))
    path.write_bytes(forged_footer(path.read_bytes(), incompat=1 << 9))
    with pytest.raises(UnsupportedFormatError, match="upgrade DES"):
        await verified(small.base_dir)


async def test_a_damaged_dictionary_is_named_once_and_what_needs_it_too(small: Small) -> None:
    path = small.path(small.first)
    data = path.read_bytes()
    path.write_bytes(data[: HEADER.size] + b"?" + data[HEADER.size + 1 :])
    report = await verified(small.base_dir)
    assert [(damage.uid, damage.sentence) for damage in report.damage] == [
        (None, "its dictionary is damaged."),
        (small.kept, "it cannot be decoded without the dictionary."),
    ]
    assert [garbage.uid for garbage in report.garbage] == [small.gone]


# ---- samples ----------------------------------------------------------------------------------------------------------------


async def test_a_sample_reads_a_share_of_the_contents_and_all_of_the_index(tmp_path: Path) -> None:
    files = {f"file {number}": b"content %d" % number for number in range(400)}
    maker = await make_store(LocalStorage(tmp_path), files)
    async with open_store(tmp_path) as store:
        counts = [(await verify(store, sampling=Sampling(0.25, seed))).payloads for seed in range(4)]
        assert all(50 < count < 150 for count in counts)
        assert counts[0] == (await verify(store, sampling=Sampling(0.25, 0))).payloads
        nothing = await verify(store, sampling=Sampling(0.0))
        assert (nothing.payloads, nothing.files) == (0, 400)
    # A damaged content is found by the samples that take it, and by no other.
    entry_of = {uid: file_id(uid) for uid in files}
    uid = "file 7"
    whole = await read_whole_head(maker.storage, maker.identity(uid))
    entry = whole.find(entry_of[uid])
    assert entry is not None
    path = tmp_path / maker.identity(uid).segment_key(whole.tables.segments[0].name)
    data = path.read_bytes()
    path.write_bytes(data[: entry.offset] + b"?" + data[entry.offset + 1 :])
    async with open_store(tmp_path) as store:
        for seed in range(12):
            sampling = Sampling(0.3, seed)
            found = [damage.uid for damage in (await verify(store, sampling=sampling)).damage]
            assert found == ([uid] if sampling.takes(entry.file_id) else [])
    assert {Sampling(0.3, seed).takes(entry.file_id) for seed in range(12)} == {True, False}


# ---- while others write, and when the storage is unwell ---------------------------------------------------------------------


class CompactedMeanwhile(StorageWrapper):
    """A storage in which somebody compacts the shard, and collects its old segments, between a head's reading and the listing."""

    def __init__(self, small: Small, times: int) -> None:
        super().__init__(small.maker.storage)
        self.left = times
        self._maker = small.maker

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        if self.left:
            self.left -= 1
            await self._maker.compact()
        async for info in super().list(prefix):
            yield info


async def test_a_shard_that_is_compacted_meanwhile_is_verified_again(small: Small) -> None:
    storage = CompactedMeanwhile(small, 2)
    async with opened_on(storage) as store:
        report = await verify(store)
    assert storage.left == 0
    assert (report.damage, report.orphans, report.shards, report.segments) == ([], [], 1, 1)


async def test_a_shard_that_never_holds_still_is_trouble_and_no_damage(small: Small) -> None:
    async with opened_on(CompactedMeanwhile(small, 99)) as store:
        with pytest.raises(StorageUnavailableError, match="changes faster than it can be verified"):
            await verify(store)


class HeadAppearsLate(StorageWrapper):
    """A storage whose listing was made just before the heads were."""

    async def list_level(self, prefix: str) -> Level:
        level = await super().list_level(prefix)
        return Level(() if prefix else level.objects, level.prefixes)


async def test_a_head_that_came_after_the_listing_is_not_lost(small: Small) -> None:
    async with opened_on(HeadAppearsLate(small.maker.storage)) as store:
        report = await verify(store)
    assert (report.damage, report.shards, report.segments) == ([], 1, 2)


@pytest.mark.parametrize("verb", ["read_suffix", "read_range", "list", "list_level"])
async def test_trouble_of_the_storage_is_no_damage(small: Small, verb: Verb) -> None:
    storage = FaultyStorage(
        small.maker.storage,
        [Fault(Fail(StorageTimeoutError("too slow.")), verb=verb, at=2 if verb == "read_suffix" else 1)],
    )
    async with opened_on(storage) as store:
        with pytest.raises(StorageTimeoutError, match=r"too slow\."):
            await verify(store)
    assert storage.fired


# ---- what it costs ----------------------------------------------------------------------------------------------------------


class Counted(Progress):
    def __init__(self) -> None:
        self.shards = self.bytes = self.done = 0

    def found(self, shards: int) -> None:
        self.shards = shards

    def read(self, count: int) -> None:
        self.bytes += count

    def verified(self, report: VerifyReport) -> None:
        self.done += report.shards


async def test_neighbours_are_read_together_and_progress_is_told(tmp_path: Path) -> None:
    maker = await make_store(LocalStorage(tmp_path))
    chance = random.Random(3)
    await maker.add({uid: chance.randbytes(200) for uid in maker.uids_of_one_shard(2_000)})
    storage = RecordingStorage(LocalStorage(tmp_path))
    progress = Counted()
    async with opened_on(storage) as store:
        report = await verify(store, progress=progress)
    assert report.payloads == 2_000
    assert storage.count(purpose="payload") == 2  # planned in batches of 1,024 files
    assert storage.count(purpose="index") <= 3  # the segment's tail, its header, its catalog
    assert (progress.shards, progress.done) == (1, 1)
    assert progress.bytes == report.bytes_read == storage.moved() - storage.moved(key="des.json")


async def test_a_large_file_goes_through_in_pieces(tmp_path: Path) -> None:
    await make_store(LocalStorage(tmp_path), {"big": random.Random(4).randbytes(24 * MIB)})
    tracemalloc.start()
    try:
        report = await verified(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (report.payloads, report.damage) == (1, [])
    assert peak < 6 * MIB
