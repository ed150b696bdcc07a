from __future__ import annotations

import gc
import os
import random
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from des.errors import DeletedError, ObjectNotFoundError
from des.pack.commit import new_name, now_microseconds, open_shard, swap
from des.pack.encoding import ANEW_BYTES, EncodedRun
from des.pack.packer import _ATTEMPTS
from des.routing import file_id
from des.shard.chunking import LARGE_BYTES
from des.shard.codecs import Compression
from des.shard.layout import Codec, Flag
from des.shard.merging import Addition, merge
from des.shard.tables import Condemned, HeadTables
from des.shard.writing import FileRecord, Payload, SegmentWriter, content_hash
from des.storage.local import LocalStorage
from des.storage.testing import Fault, FaultyStorage, Hold, RecordingStorage, StorageWrapper
from des.store import open_store
from des.store.catalogs import load_segment, read_rows
from tests.making import make_store
from tests.pack.packing import (
    CREATED_AT,
    DAY,
    Place,
    Row,
    Run,
    Sources,
    check_store,
    date_of,
    head_of,
    names_of_one_shard,
    objects_under,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from des.pack.commit import Change
    from des.pack.decisions import OnConflict
    from des.storage.protocol import Storage
    from des.storage.testing import Call, Tally
    from des.store.heads import WholeHead

pytestmark = pytest.mark.usefixtures("no_pauses")

RAW = Compression("none")
BIG = LARGE_BYTES + 5
MODES: tuple[OnConflict, ...] = ("error", "skip", "replace")


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def storage(base_dir: Path) -> AsyncIterator[LocalStorage]:
    local = LocalStorage(base_dir)
    yield local
    await local.aclose()


async def packed(storage: Storage, sources: Sources, rows: list[Row], **options: object) -> Run:
    run = Run()
    await run.pack(storage, sources.manifest(rows), **options)  # type: ignore[arg-type]  # as of `Run.pack`
    assert sum(run.counts) == run.report.files == len(rows)
    return run


async def get(base_dir: Place, uid: str) -> bytes:
    async with open_store(base_dir) as store:
        return await store.get(uid, date_of(DAY))


class TestOnce:
    async def test_report_and_content(self, base_dir: Path, storage: LocalStorage, sources: Sources) -> None:
        files = {f"file-{number}": b"some text %d " % number * number for number in range(300)}
        run = await packed(storage, sources, sources.rows(files))
        report = run.report
        assert run.counts == (300, 0, 0)
        assert (report.shards, report.segments, report.objects_written) == (2, 2, 4)
        assert report.bytes_in == sum(map(len, files.values()))
        assert (run.progress.rows, run.progress.files) == (300, 300)
        found = await check_store(base_dir, files)
        assert not found.orphans
        heads = {head.identity: head for head in [await head_of(storage, uid) for uid in files]}
        assert report.bytes_stored == sum(head.tables.stored_bytes for head in heads.values())
        assert {head.tables.generation for head in heads.values()} == {2}

    async def test_all_that_a_row_says_is_kept(self, base_dir: Path, storage: LocalStorage, sources: Sources) -> None:
        row = sources.row("a/b", b"content", content_type="text/x-own", metadata={"k": [1, "ü"]}, size_bytes=7)
        row["created_at"] = "2024-01-31T23:59:59.123456+00:00"
        await packed(storage, sources, [row])
        async with open_store(base_dir) as store:
            info = await store.stat("a/b", date_of(DAY), metadata=True)
            (listed,) = [info async for info in store.list(DAY)]
        assert (info.content_type, info.metadata, info.raw_size) == ("text/x-own", {"k": [1, "ü"]}, 7)
        assert listed.created_at.isoformat() == "2024-01-31T23:59:59.123456+00:00"

    async def test_catalog_rows_carry_the_generation_they_were_decided_on(
        self, storage: LocalStorage, sources: Sources
    ) -> None:
        first, second = names_of_one_shard(2)
        await packed(storage, sources, [sources.row(first, b"1")])
        await packed(storage, sources, [sources.row(second, b"2")])
        head = await head_of(storage, first)
        generations = []
        for ref in head.tables.segments:
            loaded = await load_segment(storage, head.identity, ref.name)
            generations += [row.generation async for rows in read_rows(storage, loaded) for row in rows]
        assert generations == [1, 2]
        assert head.tables.generation == 3

    async def test_bad_sources_fail_alone_by_name(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        rows = [
            sources.row("missing", b"") | {"source_path": str(sources.directory / "nowhere")},
            sources.row("good", b"content"),
            sources.row("directory", b"") | {"source_path": str(sources.directory)},
            sources.row("size", b"content", size_bytes=8),
            sources.row("big", bytes(BIG), size_bytes=BIG - 1),
        ]
        run = await packed(storage, sources, rows)
        assert run.counts == (1, 0, 4)
        assert {(row["row"], row["uid"], row["status"]) for row in run.failures} == {
            (1, "missing", "invalid"),
            (3, "directory", "invalid"),
            (4, "size", "invalid"),
            (5, "big", "invalid"),
        }
        assert {row["source_path"] for row in run.failures} == {rows[at]["source_path"] for at in (0, 2, 3, 4)}
        await check_store(base_dir, {"good": b"content"})

    async def test_only_bad_sources(self, base_dir: Path, storage: LocalStorage, sources: Sources) -> None:
        rows = [sources.row(f"file-{number}", b"") | {"source_path": str(base_dir)} for number in range(5)]
        run = await packed(storage, sources, rows)
        assert (run.report.failed, run.report.segments, run.report.objects_written) == (5, 0, 0)
        assert run.progress.files == 5
        await check_store(base_dir, {})


class TestAgain:
    async def test_the_same_again_leaves_every_object_as_it_was(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        files = {f"file-{number}": b"%d" % number * 50 for number in range(40)} | {"big": os.urandom(BIG)}
        rows = sources.rows(files)
        await packed(storage, sources, rows)
        before = objects_under(base_dir)
        recording = RecordingStorage(storage)
        run = await packed(recording, sources, rows)
        assert run.counts == (0, 41, 0)
        assert (run.report.segments, run.report.objects_written, run.report.bytes_in) == (0, 0, 0)
        assert run.progress.files == 41
        assert objects_under(base_dir) == before
        assert {call.verb for call in recording.calls} == {"read_suffix"}

    async def test_more_files_lose_nothing(self, base_dir: Path, storage: LocalStorage, sources: Sources) -> None:
        first = {f"file-{number}": b"first %d" % number for number in range(50)}
        second = {f"file-{number}": b"second %d" % number for number in range(50, 120)}
        await packed(storage, sources, sources.rows(first))
        before = objects_under(base_dir)
        run = await packed(storage, sources, sources.rows(second))
        assert run.counts == (70, 0, 0)
        after = objects_under(base_dir)
        segments = {key for key in before if key.count("/") == 2}
        assert {key: after[key] for key in segments} == {key: before[key] for key in segments}
        await check_store(base_dir, first | second)

    async def test_a_segment_that_is_gone_makes_its_files_new(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        kept, lost, old, big = names_of_one_shard(4)
        content = os.urandom(BIG)
        await packed(storage, sources, [sources.row(kept, b"kept"), sources.row(old, b"old")])
        rows = [sources.row(lost, b"lost"), sources.row(old, b"replaced"), sources.row(big, content)]
        await packed(storage, sources, rows, on_conflict="replace")
        head = await head_of(storage, kept)
        await storage.delete(head.identity.segment_key(head.tables.segments[1].name))
        run = await packed(storage, sources, [sources.row(kept, b"kept"), *rows])
        assert run.counts == (3, 1, 0)
        for uid, expected in {kept: b"kept", lost: b"lost", old: b"replaced", big: content}.items():
            assert await get(base_dir, uid) == expected
        after = await head_of(storage, kept)
        flags = {uid: after.find(file_id(uid)).flags for uid in (kept, lost, old, big)}  # type: ignore[union-attr]  # there
        assert flags == {kept: 0, lost: 0, old: Flag.REPLACED, big: 0}

    async def test_a_file_its_segment_does_not_list(self, storage: LocalStorage, sources: Sources) -> None:
        """A head and a segment that contradict each other are damage, and no base for a decision."""
        maker = await make_store(storage, {"first": b"content"})
        base = await open_shard(storage, maker.identity("first"))
        uid = next(name for name in names_of_one_shard(5, index=base.identity.shard_index) if name != "first")
        writer = SegmentWriter(base.identity, 1)
        digest = content_hash(b"x")
        writer.add(FileRecord(file_id(uid), uid, 1706702400_000000, None, b""), Payload(digest, 0, Codec.NONE, 1, 1))
        _, summary = writer.finish()
        name = new_name()
        source = base.identity.segment_key(base.tables.segments[0].name)
        async with storage.open_writer(base.identity.segment_key(name)) as out:
            await out.write((await storage.read_suffix(source, 1 << 20)).data)  # type: ignore[union-attr]  # there

        async def change(head: WholeHead) -> Change:
            return merge(head.tables, head.entries, [Addition(name, summary)], now_microseconds())

        await swap(storage, base, change)
        run = await packed(storage, sources, [sources.row(uid, b"x")])
        assert [row["status"] for row in run.failures] == ["corrupt"]


def variants(sources: Sources, uid: str) -> dict[str, Row]:
    row = sources.row(uid, b"content", content_type="text/plain")
    return {
        "same": row,
        "metadata": row | {"metadata": {"other": 1}},
        "microseconds": row | {"created_at": CREATED_AT.replace("Z", ".999999Z")},
        "content": sources.row(uid, b"CONTENT", content_type="text/plain"),
        "size": sources.row(uid, b"longer content", content_type="text/plain"),
        "big": sources.row(uid, os.urandom(BIG), content_type="text/plain"),
        "second": row | {"created_at": CREATED_AT.replace("00Z", "01Z")},
        "content type": row | {"content_type": "text/html"},
        "no content type": {name: value for name, value in row.items() if name != "content_type"},
    }


UNCHANGED = ("same", "metadata", "microseconds")
CHANGED = ("content", "size", "big", "second", "content type", "no content type")


def content_of(row: Row) -> bytes:
    return Path(row["source_path"]).read_bytes()


class TestConflicts:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("variant", UNCHANGED)
    async def test_the_same_file(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, mode: OnConflict, variant: str
    ) -> None:
        rows = variants(sources, "file")
        await packed(storage, sources, [rows["same"]])
        before = objects_under(base_dir)
        run = await packed(storage, sources, [rows[variant]], on_conflict=mode)
        assert run.counts == (0, 1, 0)
        assert objects_under(base_dir) == before

    @pytest.mark.parametrize("variant", CHANGED)
    @pytest.mark.parametrize("mode", MODES)
    async def test_another_file(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, mode: OnConflict, variant: str
    ) -> None:
        rows = variants(sources, "file")
        await packed(storage, sources, [rows["same"]])
        before = objects_under(base_dir)
        run = await packed(storage, sources, [rows[variant]], on_conflict=mode)
        if mode == "replace":
            assert run.counts == (1, 0, 0)
            await check_store(base_dir, {"file": content_of(rows[variant])})
            entry = (await head_of(storage, "file")).find(file_id("file"))
            assert entry is not None
            assert entry.replaced
            again = await packed(storage, sources, [rows[variant]], on_conflict=mode)
            assert again.counts == (0, 1, 0)
            return
        assert run.counts == ((0, 1, 0) if mode == "skip" else (0, 0, 1))
        assert [row["status"] for row in run.failures] == ([] if mode == "skip" else ["conflict"])
        assert objects_under(base_dir) == before
        await check_store(base_dir, {"file": b"content"})

    @pytest.mark.parametrize("variant", ["same", "content", "big"])
    @pytest.mark.parametrize("mode", MODES)
    async def test_a_deleted_file(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, mode: OnConflict, variant: str
    ) -> None:
        maker = await make_store(storage, {"file": b"content"})
        await maker.delete(["file"])
        row = variants(sources, "file")[variant]
        run = await packed(storage, sources, [row], on_conflict=mode)
        if mode == "replace":
            assert run.counts == (1, 0, 0)
            await check_store(base_dir, {"file": content_of(row)})
            entry = (await head_of(storage, "file")).find(file_id("file"))
            assert entry is not None
            assert entry.replaced, "only a replaced row comes after a tombstone when a head is repaired"
            return
        assert run.counts == ((0, 1, 0) if mode == "skip" else (0, 0, 1))
        assert [row["status"] for row in run.failures] == ([] if mode == "skip" else ["deleted"])
        with pytest.raises(DeletedError):
            await get(base_dir, "file")

    async def test_a_big_file_that_is_the_same(self, base_dir: Path, storage: LocalStorage, sources: Sources) -> None:
        row = sources.row("file", os.urandom(BIG))
        await packed(storage, sources, [row])
        before = objects_under(base_dir)
        run = await packed(storage, sources, [row])
        assert run.counts == (0, 1, 0)
        assert objects_under(base_dir) == before

    async def test_replacing_very_many_holds_few_at_a_time(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        uids = names_of_one_shard(60)
        await packed(storage, sources, sources.rows(dict.fromkeys(uids, b"old")))
        files = {uid: os.urandom(LARGE_BYTES // 4) for uid in uids}
        held: list[int] = []

        async def count(_: Call) -> None:
            held.append(sum(len(item.stored) for item in gc.get_objects() if isinstance(item, EncodedRun)))

        counting = Between(storage, "write", count)
        run = await packed(counting, sources, sources.rows(files), on_conflict="replace")
        assert run.counts == (60, 0, 0)
        assert 0 < max(held) <= ANEW_BYTES + LARGE_BYTES
        await check_store(base_dir, files)


class TestRepeated:
    @pytest.mark.parametrize("mode", MODES)
    async def test_identical_rows_count_once(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, mode: OnConflict
    ) -> None:
        rows = [sources.row("file", b"content"), sources.row("other", b"x"), sources.row("file", b"content")] * 2
        run = await packed(storage, sources, rows, on_conflict=mode)
        assert run.counts == (2, 4, 0)
        assert run.progress.files == 6
        await check_store(base_dir, {"file": b"content", "other": b"x"})

    @pytest.mark.parametrize(
        ("mode", "counts", "content"),
        [("error", (1, 1, 2), b"first"), ("skip", (1, 3, 0), b"first"), ("replace", (4, 0, 0), b"first")],
    )
    async def test_different_rows_follow_on_conflict(
        self,
        base_dir: Path,
        storage: LocalStorage,
        sources: Sources,
        mode: OnConflict,
        counts: tuple[int, int, int],
        content: bytes,
    ) -> None:
        rows = [sources.row("file", content) for content in (b"first", b"second", b"third", b"first")]
        run = await packed(storage, sources, rows, on_conflict=mode)
        assert run.counts == counts
        assert [row["row"] for row in run.failures] == ([2, 3] if mode == "error" else [])
        await check_store(base_dir, {"file": content})

    async def test_replacing_ends_with_the_last(self, base_dir: Path, storage: LocalStorage, sources: Sources) -> None:
        rows = [sources.row("file", b"%d" % number) for number in range(5)]
        run = await packed(storage, sources, rows, on_conflict="replace")
        assert run.counts == (5, 0, 0)
        await check_store(base_dir, {"file": b"4"})

    async def test_the_second_counts_where_the_first_cannot_be_packed(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        rows = [sources.row("file", b"") | {"source_path": "/nowhere"}, sources.row("file", b"second")]
        run = await packed(storage, sources, rows)
        assert run.counts == (1, 0, 1)
        await check_store(base_dir, {"file": b"second"})

    async def test_very_many_in_several_steps(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("des.pack.workshop.BATCH_FILES", 7)
        files = {f"file-{number}": b"%d" % number for number in range(40)}
        run = await packed(storage, sources, sources.rows(files) * 3)
        assert run.counts == (40, 80, 0)
        assert run.progress.files == 120
        await check_store(base_dir, files)

    async def test_the_same_uid_on_other_days_is_another_file(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        rows = [sources.row("file", b"%d" % day) | {"created_at": f"2024-02-0{day}"} for day in range(1, 5)]
        run = await packed(storage, sources, rows)
        assert run.counts == (4, 0, 0)
        for day in range(1, 5):
            await check_store(base_dir, {"file": b"%d" % day}, f"2024020{day}")


async def segment_files(storage: Storage, uid: str) -> list[set[str]]:
    """Return the uids in each segment of a shard."""
    head = await head_of(storage, uid)
    segments = []
    for ref in head.tables.segments:
        loaded = await load_segment(storage, head.identity, ref.name)
        segments.append({row.uid async for rows in read_rows(storage, loaded) for row in rows})
    return segments


class TestSegments:
    async def test_a_segment_is_closed_before_it_grows_too_big(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        uids = names_of_one_shard(10)
        files = {uid: os.urandom(1000) for uid in uids}
        run = await packed(storage, sources, sources.rows(files), max_segment_bytes=3100, compression=RAW)
        assert (run.report.segments, run.report.objects_written) == (4, 5)
        assert await segment_files(storage, uids[0]) == [set(uids[at : at + 3]) for at in range(0, 10, 3)]
        await check_store(base_dir, files)

    async def test_a_bigger_file_has_its_own(self, base_dir: Path, storage: LocalStorage, sources: Sources) -> None:
        uids = names_of_one_shard(6)
        sizes = [10, 5000, 10, BIG, 10, 5000]
        files = {uid: os.urandom(size) for uid, size in zip(uids, sizes, strict=True)}
        run = await packed(storage, sources, sources.rows(files), max_segment_bytes=1000, compression=RAW)
        assert run.report.segments == 6
        assert await segment_files(storage, uids[0]) == [{uid} for uid in uids]
        await check_store(base_dir, files)

    async def test_one_byte_is_room_for_one_file_each(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        uids = names_of_one_shard(5)
        files = {uid: b"" if at == 2 else b"%d" % at for at, uid in enumerate(uids)}
        run = await packed(storage, sources, sources.rows(files), max_segment_bytes=1)
        assert run.report.segments == 5
        await check_store(base_dir, files)

    async def test_a_full_shard_fails_as_a_whole_and_changes_nothing(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        await packed(storage, sources, [sources.row("before", b"content")], n_bits=1)
        before = await head_of(storage, "before")
        uids = names_of_one_shard(4098, index=before.identity.shard_index)
        rows = [sources.row(uid, b"x", content_type=f"text/x-{at}") for at, uid in enumerate(uids)]
        run = await packed(storage, sources, rows)
        assert run.counts == (0, 0, 4098)
        assert {row["status"] for row in run.failures} == {"invalid"}
        assert {row["row"] for row in run.failures} == set(range(1, 4099))
        assert (await head_of(storage, "before")).version == before.version
        await check_store(base_dir, {"before": b"content"})

    async def test_the_same_rows_give_the_same_segments(
        self, tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chance = random.Random(1)
        words = [chance.randbytes(5) for _ in range(500)]
        sizes = [chance.randrange(3000) for _ in range(700)] + [400_000, 700_000]
        files = {f"file-{at}": b"".join(chance.choices(words, k=size)) for at, size in enumerate(sizes)}
        rows = [sources.row(uid, content, metadata={"n": len(content)}) for uid, content in files.items()]
        made: list[list[bytes]] = []
        for threads, batch, n_bits in ((1, 256, 2), (4, 256, None), (4, 10, None)):
            monkeypatch.setattr("des.pack.workshop.BATCH_FILES", batch)
            base_dir = tmp_path / f"store-{threads}-{batch}"
            base_dir.mkdir()
            if made:
                (base_dir / "des.json").write_bytes((tmp_path / "store-1-256" / "des.json").read_bytes())
            local = LocalStorage(base_dir)
            await packed(local, sources, rows, threads=threads, max_segment_bytes=600_000, n_bits=n_bits)
            await local.aclose()
            objects = objects_under(base_dir)
            made.append(sorted(data for key, (data, _) in objects.items() if key.count("/") == 2))
            await check_store(base_dir, files)
        assert made[0] == made[1] == made[2]
        assert len(made[0]) > 8


class Between(StorageWrapper):
    """Does something before calls of a verb."""

    def __init__(self, inner: Storage, verb: str, act: Callable[[Call], Awaitable[None]]) -> None:
        super().__init__(inner)
        self._verb = verb
        self._act = act

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        if call.verb == self._verb:
            await self._act(call)
        async with super().around(call) as tally:
            yield tally


def grow(*paths: str) -> Callable[[Call], Awaitable[None]]:
    def append() -> None:
        for path in paths:
            os.truncate(path, Path(path).stat().st_size + 1)

    return lambda _: anyio.to_thread.run_sync(append)


class TestSourcesThatFailMidway:
    async def test_it_is_named_and_the_rest_packed(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        uids = names_of_one_shard(5)
        files = {uid: os.urandom(size) for uid, size in zip(uids, [10, 2 * BIG, 3 * BIG, 10, BIG], strict=True)}
        rows = sources.rows(files)
        hold = Hold()
        faulty = FaultyStorage(storage, [Fault(hold, verb="write", at=2)])
        run = Run()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: run.pack(faulty, sources.manifest(rows), compression=RAW))
            await hold.reached.wait()
            os.truncate(rows[2]["source_path"], 1)
            hold.release.set()
        assert run.counts == (4, 0, 1)
        ((row, uid, sentence),) = [(row["row"], row["uid"], row["error"]) for row in run.failures]
        assert (row, uid) == (3, uids[2])
        assert "became shorter" in sentence
        assert run.progress.files == 5
        files.pop(uids[2])
        found = await check_store(base_dir, files)
        assert not found.orphans, "the segment that was given up is not there"
        assert await segment_files(storage, uids[0]) == [set(files)]

    async def test_segments_that_are_complete_stay(
        self, base_dir: Path, storage: LocalStorage, sources: Sources
    ) -> None:
        """What is begun again is the segment with the failure in it, from its first file on."""
        uids = names_of_one_shard(7)
        sizes = [BIG, BIG, BIG, 10, BIG, 10, BIG]
        files = {uid: os.urandom(size) for uid, size in zip(uids, sizes, strict=True)}
        rows = sources.rows(files)
        recording = RecordingStorage(storage)
        faulty = Between(recording, "write", grow(rows[4]["source_path"]))
        run = await packed(faulty, sources, rows, compression=RAW, max_segment_bytes=5 * BIG // 2)
        assert run.counts == (6, 0, 1)
        files.pop(uids[4])
        assert await segment_files(storage, uids[0]) == [set(uids[:2]), {uids[2], uids[3], uids[5], uids[6]}]
        assert recording.count(verb="open_writer") == 3
        assert recording.count(verb="commit") == 2
        await check_store(base_dir, files)

    @pytest.mark.parametrize(
        "seed", [pytest.param(seed, marks=[pytest.mark.soak] if seed >= 5 else []) for seed in range(12)]
    )
    async def test_any_of_them_in_any_segment(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows of all kinds, in segments and batches that end anywhere: each counts once, and each good one reads."""
        chance = random.Random(seed)
        monkeypatch.setattr("des.pack.workshop.BATCH_FILES", chance.choice([1, 3, 256]))
        uids = names_of_one_shard(40)
        before = {uid: b"there %d" % at for at, uid in enumerate(uids[:12])}
        await packed(storage, sources, sources.rows(before))
        expected, rows, growing, failing = dict(before), [], [], set()
        packed_count = skipped = 0
        for number, uid in enumerate(chance.sample(uids, 40), start=1):
            kind = chance.choice(["small", "small", "big", "growing", "missing"])
            content = before.get(uid, b"") if chance.random() < 0.5 else chance.randbytes(chance.randrange(1, 4000))
            if kind in {"big", "growing"}:
                content = chance.randbytes(BIG)
            row = sources.row(uid, content)
            if kind == "growing":
                growing.append(row["source_path"])
            if kind == "missing":
                row["source_path"] = "/nowhere"
            rows.append(row)
            # What is there already is hashed before anything is written, so a growing one conflicts like any other.
            if uid in before and kind != "missing" and content == before[uid]:
                skipped += 1
            elif uid in before or kind in {"growing", "missing"}:
                failing.add(number)
            else:
                packed_count += 1
                expected[uid] = content
        faulty = Between(storage, "write", grow(*growing))
        run = await packed(faulty, sources, rows, max_segment_bytes=chance.choice([1, 2000, 3 * BIG]), compression=RAW)
        assert {row["row"] for row in run.failures} == failing
        assert len(run.failures) == len(failing)
        assert run.counts == (packed_count, skipped, len(failing))
        assert run.report.bytes_in == sum(len(expected[uid]) for uid in expected if uid not in before)
        assert run.progress.files == 40
        found = await check_store(base_dir, expected)
        assert not found.orphans
        assert run.report.segments == found.segments - 1

    @pytest.mark.parametrize("is_deleted", [True, False])
    async def test_a_big_one_that_changes_after_it_was_compared(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, is_deleted: bool
    ) -> None:
        maker = await make_store(storage, {"file": b"content"})
        if is_deleted:
            await maker.delete(["file"])
        row = sources.row("file", os.urandom(BIG))

        async def change(_: Call) -> None:
            await anyio.to_thread.run_sync(Path(row["source_path"]).write_bytes, os.urandom(BIG))

        faulty = Between(storage, "open_writer", change)
        run = await packed(faulty, sources, [row], on_conflict="replace")
        assert run.counts == (0, 0, 1)
        assert run.failures[0]["error"] == "the source changed while it was read."
        if is_deleted:
            with pytest.raises(DeletedError):
                await get(base_dir, "file")
        else:
            assert await get(base_dir, "file") == b"content"


class TestOtherWriters:
    """What another writer does between our base and our swap."""

    async def race(
        self,
        storage: LocalStorage,
        sources: Sources,
        rows: list[Row],
        act: Callable[[], Awaitable[None]],
        mode: OnConflict = "error",
    ) -> Run:
        """Pack, and act when the head is about to be swapped for the first time."""
        await packed(storage, sources, [sources.row("before", b"before")])
        hold = Hold()
        faulty = FaultyStorage(storage, [Fault(hold, verb="put")])
        run = Run()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: run.pack(faulty, sources.manifest(rows, "raced.json"), on_conflict=mode))
            await hold.reached.wait()
            await act()
            hold.release.set()
        assert sum(run.counts) == run.report.files == len(rows)
        assert run.progress.files == len(rows)
        return run

    @pytest.fixture
    async def shard(self, storage: LocalStorage, sources: Sources) -> int:
        await packed(storage, sources, [sources.row("before", b"before")])
        return (await head_of(storage, "before")).identity.shard_index

    async def test_other_files(self, base_dir: Path, storage: LocalStorage, sources: Sources, shard: int) -> None:
        mine, theirs = names_of_one_shard(2, index=shard)

        async def act() -> None:
            await packed(storage, sources, [sources.row(theirs, b"theirs")])

        run = await self.race(storage, sources, [sources.row(mine, b"mine")], act)
        assert run.counts == (1, 0, 0)
        assert (run.report.segments, run.report.objects_written) == (1, 2)
        await check_store(base_dir, {"before": b"before", mine: b"mine", theirs: b"theirs"})
        assert (await head_of(storage, mine)).tables.generation == 4

    async def test_other_files_do_not_make_me_decide_anew(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, shard: int
    ) -> None:
        replaced, revived, theirs = names_of_one_shard(3, index=shard)
        maker = await make_store(storage, {replaced: b"old", revived: b"old"})
        await maker.delete([revived])

        async def act() -> None:
            await packed(storage, sources, [sources.row(theirs, b"theirs")])

        rows = [sources.row(replaced, b"new"), sources.row(revived, b"new")]
        run = await self.race(storage, sources, rows, act, "replace")
        assert run.counts == (2, 0, 0)
        found = await check_store(base_dir, {"before": b"before", replaced: b"new", revived: b"new", theirs: b"theirs"})
        assert not found.orphans, "it was not written twice"

    @pytest.mark.parametrize("mode", MODES)
    async def test_the_same_content_counts_as_skipped(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, shard: int, mode: OnConflict
    ) -> None:
        both, mine = names_of_one_shard(2, index=shard)
        rows = [sources.row(both, b"both" * 100), sources.row(mine, b"mine")]

        async def act() -> None:
            await packed(storage, sources, rows[:1])

        run = await self.race(storage, sources, rows, act, mode)
        assert run.counts == (1, 1, 0)
        assert (run.report.bytes_in, run.report.bytes_stored) == (4, 4)
        await check_store(base_dir, {"before": b"before", both: b"both" * 100, mine: b"mine"})

    async def test_all_of_the_same_content_is_no_commit(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, shard: int
    ) -> None:
        files = dict.fromkeys(names_of_one_shard(3, index=shard), b"both")

        async def act() -> None:
            await packed(storage, sources, sources.rows(files))

        run = await self.race(storage, sources, sources.rows(files), act)
        assert run.counts == (0, 3, 0)
        assert (run.report.segments, run.report.objects_written, run.report.bytes_in) == (0, 0, 0)
        assert (await head_of(storage, "before")).tables.generation == 3
        found = await check_store(base_dir, {"before": b"before"} | files)
        assert len(found.orphans) == 1

    @pytest.mark.parametrize(
        ("mode", "counts", "status"),
        [("error", (1, 0, 1), ["conflict"]), ("skip", (1, 1, 0), []), ("replace", (2, 0, 0), [])],
    )
    async def test_other_content_is_decided_on_anew(
        self,
        base_dir: Path,
        storage: LocalStorage,
        sources: Sources,
        shard: int,
        mode: OnConflict,
        counts: tuple[int, int, int],
        status: list[str],
    ) -> None:
        both, mine = names_of_one_shard(2, index=shard)

        async def act() -> None:
            await packed(storage, sources, [sources.row(both, b"theirs")])

        rows = [sources.row(both, b"mine"), sources.row(mine, b"mine")]
        run = await self.race(storage, sources, rows, act, mode)
        assert run.counts == counts
        assert [row["status"] for row in run.failures] == status
        expected = {"before": b"before", both: b"mine" if mode == "replace" else b"theirs", mine: b"mine"}
        await check_store(base_dir, expected)
        entry = (await head_of(storage, both)).find(file_id(both))
        assert entry is not None
        assert entry.replaced == (mode == "replace")

    @pytest.mark.parametrize("mode", MODES)
    async def test_a_file_deleted_meanwhile(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, shard: int, mode: OnConflict
    ) -> None:
        (uid,) = names_of_one_shard(1, index=shard)
        maker = await make_store(storage)

        async def act() -> None:
            await maker.add({uid: b"mine"})
            await maker.delete([uid])

        run = await self.race(storage, sources, [sources.row(uid, b"mine")], act, mode)
        if mode == "replace":
            assert run.counts == (1, 0, 0)
            assert await get(base_dir, uid) == b"mine"
            return
        assert run.counts == ((0, 1, 0) if mode == "skip" else (0, 0, 1))
        with pytest.raises(DeletedError):
            await get(base_dir, uid)

    @pytest.mark.parametrize("mode", ["error", "replace"])
    async def test_what_was_decided_on_is_compacted_meanwhile(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, shard: int, mode: OnConflict
    ) -> None:
        mine, old = names_of_one_shard(2, index=shard)
        await packed(storage, sources, [sources.row(old, b"old")])

        async def act() -> None:
            maker = await make_store(storage)
            maker.files = {DAY: {}}
            await maker.add({"before": b"before", old: b"old"})  # elsewhere now
            await maker.compact()

        rows = [sources.row(mine, b"mine"), sources.row(old, b"new" if mode == "replace" else b"old")]
        run = await self.race(storage, sources, rows, act, mode)
        assert run.counts == ((2, 0, 0) if mode == "replace" else (1, 1, 0))
        expected = {"before": b"before", mine: b"mine", old: b"new" if mode == "replace" else b"old"}
        await check_store(base_dir, expected)

    async def test_my_segment_is_gone(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, shard: int
    ) -> None:
        mine, theirs = names_of_one_shard(2, index=shard)
        seen: list[str] = []

        async def act() -> None:
            head = await head_of(storage, "before")
            listed = {head.identity.segment_key(ref.name) for ref in head.tables.segments}
            infos = [info async for info in storage.list(head.identity.segment_prefix)]
            seen.extend(info.key for info in infos if info.key not in listed)
            await packed(storage, sources, [sources.row(theirs, b"theirs")])
            await storage.delete(seen[0])

        run = await self.race(storage, sources, [sources.row(mine, b"mine")], act)
        assert len(seen) == 1
        assert run.counts == (1, 0, 0)
        with pytest.raises(ObjectNotFoundError):
            await storage.head(seen[0])
        await check_store(base_dir, {"before": b"before", mine: b"mine", theirs: b"theirs"})

    async def test_my_segment_is_condemned(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, shard: int
    ) -> None:
        (mine,) = names_of_one_shard(1, index=shard)
        condemned: list[bytes] = []

        async def act() -> None:
            head = await head_of(storage, "before")
            listed = {ref.name for ref in head.tables.segments}
            infos = [info async for info in storage.list(head.identity.segment_prefix)]
            names = {bytes.fromhex(info.key[-36:-4]) for info in infos} - listed
            condemned.extend(names)

            async def condemn(head: WholeHead) -> Change:
                doomed = tuple(Condemned(name, now_microseconds()) for name in names)
                return replace_tables(head, doomed), bytes(head.entries)

            await swap(storage, head, condemn)

        run = await self.race(storage, sources, [sources.row(mine, b"mine")], act)
        assert run.counts == (1, 0, 0)
        head = await head_of(storage, mine)
        assert len(condemned) == 1
        assert condemned[0] not in {ref.name for ref in head.tables.segments}
        assert [item.name for item in head.tables.condemned] == condemned
        await check_store(base_dir, {"before": b"before", mine: b"mine"})

    async def test_one_who_never_stops_changing_it_ends_the_attempts(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, shard: int
    ) -> None:
        uid, other = names_of_one_shard(2, index=shard)
        maker = await make_store(storage)
        turns = 0

        async def change(call: Call) -> None:
            nonlocal turns
            if call.key.count("/") == 1:
                turns += 1
                await maker.add({uid: b"%d" % turns})

        faulty = Between(storage, "put", change)
        rows = [sources.row(uid, b"mine"), sources.row(other, b"other")]
        run = await packed(faulty, sources, rows, on_conflict="replace")
        assert turns == _ATTEMPTS
        assert run.counts == (0, 0, 2)
        assert {row["status"] for row in run.failures} == {"conflict"}
        assert all(row["error"].endswith("run again.") for row in run.failures)
        await check_store(base_dir, {"before": b"before", uid: b"%d" % turns})

    async def test_a_head_lost_meanwhile(self, storage: LocalStorage, sources: Sources, shard: int) -> None:
        (mine,) = names_of_one_shard(1, index=shard)

        async def act() -> None:
            await storage.delete((await head_of(storage, "before")).identity.head_key)

        run = await self.race(storage, sources, [sources.row(mine, b"mine")], act)
        assert run.counts == (0, 0, 1)
        assert run.failures[0]["status"] == "corrupt"
        assert "des repair" in run.failures[0]["error"]


def replace_tables(head: WholeHead, condemned: tuple[Condemned, ...]) -> HeadTables:
    return replace(head.tables, condemned=condemned)


class TestUnsoundShards:
    @pytest.mark.parametrize("harm", ["lost", "damaged"])
    async def test_its_rows_fail_and_the_other_shards_go_on(
        self, base_dir: Path, storage: LocalStorage, sources: Sources, harm: str
    ) -> None:
        maker = await make_store(storage, {"before": b"before"})
        identity = maker.identity("before")
        path = base_dir / identity.head_key
        if harm == "lost":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1])
        bad = names_of_one_shard(3, index=identity.shard_index)
        good = names_of_one_shard(3, index=1 - identity.shard_index)
        objects = set(objects_under(base_dir))
        run = await packed(storage, sources, sources.rows(dict.fromkeys([*bad, *good], b"new")))
        assert run.counts == (3, 0, 3)
        assert {row["uid"] for row in run.failures} == set(bad)
        assert {row["status"] for row in run.failures} == {"corrupt"}
        assert not [key for key in set(objects_under(base_dir)) - objects if identity.shard_hex in key.split("/")[1]]
        for uid in good:
            assert await get(base_dir, uid) == b"new"

    async def test_repeated_rows_of_a_lost_shard_fail_each(self, storage: LocalStorage, sources: Sources) -> None:
        maker = await make_store(storage, {"before": b"before"})
        identity = maker.identity("before")
        await storage.delete(identity.head_key)
        (uid,) = names_of_one_shard(1, index=identity.shard_index)
        run = await packed(storage, sources, [sources.row(uid, b"%d" % at) for at in range(3)])
        assert sorted(row["row"] for row in run.failures) == [1, 2, 3]
