"""Packing, packing again, deleting and compacting in any order, against a dict; read back by `Store` and by a reader that shares no code."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from des import NotFoundError, open_store
from des.shard.codecs import Compression
from des.storage.local import LocalStorage
from des.store.verifying import verify
from tests.independent_reader import list_day, read_file
from tests.making import File, make_store
from tests.pack.packing import Run, Sources, date_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.pack.decisions import OnConflict

DAYS = ("20240131", "20240201")
UIDS = tuple(f"file-{number}" for number in range(7))
CONTENTS = (b"", b"a", b"text " * 500, bytes(range(256)) * 4200)  # nothing, little, compressible, large


@dataclass(frozen=True, slots=True)
class Brought:
    """A row as a manifest brings it; `content` is a number, -1 for a source that is missing."""

    day: str
    uid: str
    content: int
    content_type: str | None = None
    second: int = 0


@dataclass(frozen=True, slots=True)
class Packing:
    rows: Sequence[Brought]
    mode: OnConflict
    max_segment_bytes: int
    codec: str


@dataclass(frozen=True, slots=True)
class Deleting:
    day: str
    uid: str


@dataclass(frozen=True, slots=True)
class Compacting:
    day: str


rows = st.builds(
    Brought,
    st.sampled_from(DAYS),
    st.sampled_from(UIDS),
    st.integers(-1, len(CONTENTS) - 1),
    st.sampled_from([None, None, "text/html"]),
    st.sampled_from([0, 0, 5]),
)
packings = st.builds(
    Packing,
    st.lists(rows, min_size=1, max_size=8),
    st.sampled_from(["error", "skip", "replace"]),
    st.sampled_from([1, 3000, 1 << 30]),
    st.sampled_from(["zstd", "lz4", "none"]),
)
steps = st.lists(
    st.one_of(
        packings,
        packings,
        packings,
        st.builds(Deleting, st.sampled_from(DAYS), st.sampled_from(UIDS)),
        st.builds(Compacting, st.sampled_from(DAYS)),
    ),
    min_size=1,
    max_size=7,
)


class Model:
    """What a store must hold and what each run must report."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], Brought] = {}
        self.deleted: set[tuple[str, str]] = set()

    def pack(self, packing: Packing) -> tuple[int, int, dict[int, str]]:
        """Take a run over; return how many were packed and skipped, and the status of each failed row."""
        packed, skipped, failed = 0, 0, dict[int, str]()
        for number, row in sorted(enumerate(packing.rows, start=1), key=lambda item: item[0]):
            key = (row.day, row.uid)
            if row.content < 0:
                failed[number] = "invalid"
            elif key not in self.deleted and self.files.get(key, row) != row and packing.mode != "replace":
                skipped += packing.mode == "skip"
                failed |= {} if packing.mode == "skip" else {number: "conflict"}
            elif key in self.deleted and packing.mode != "replace":
                skipped += packing.mode == "skip"
                failed |= {} if packing.mode == "skip" else {number: "deleted"}
            elif key in self.files:
                is_same = self.files[key] == row
                skipped += is_same
                packed += not is_same
                self.files[key] = row
            else:
                packed += 1
                self.files[key] = row
                self.deleted.discard(key)
        return packed, skipped, failed


async def carry_out(directory: Path, given_steps: Sequence[Packing | Deleting | Compacting]) -> None:
    sources, base_dir, model = Sources(directory / "sources"), directory / "store", Model()
    local = LocalStorage(base_dir)
    maker = await make_store(local, n_bits=1)
    for step in given_steps:
        if isinstance(step, Packing):
            run = Run()
            manifest = sources.manifest([row_of(sources, row) for row in step.rows])
            compression = Compression(step.codec)  # type: ignore[arg-type]  # one of the codecs
            await run.pack(
                local,
                manifest,
                on_conflict=step.mode,
                compression=compression,
                max_segment_bytes=step.max_segment_bytes,
            )
            packed, skipped, failed = model.pack(step)
            assert {row["row"]: row["status"] for row in run.failures} == failed
            assert run.counts == (packed, skipped, len(failed))
            assert run.progress.files == run.report.files == len(step.rows)
        elif isinstance(step, Deleting) and (step.day, step.uid) in model.files:
            maker.files = {step.day: {step.uid: File(b"")}}
            await maker.delete([step.uid], step.day)
            del model.files[step.day, step.uid]
            model.deleted.add((step.day, step.uid))
        elif isinstance(step, Compacting) and not model.deleted:  # the maker's keeps no tombstones
            live = {uid: file_of(row) for (day, uid), row in model.files.items() if day == step.day}
            if live:
                maker.files = {step.day: dict(live)}
                await maker.compact(step.day)
        await check(base_dir, model)
    await local.aclose()


def row_of(sources: Sources, row: Brought) -> dict[str, object]:
    made = sources.row(row.uid, CONTENTS[max(row.content, 0)])
    made["created_at"] = f"{row.day[:4]}-{row.day[4:6]}-{row.day[6:]}T00:00:{row.second:02}Z"
    made |= {"content_type": row.content_type} if row.content_type else {}
    return made if row.content >= 0 else made | {"source_path": "/nowhere"}


def file_of(row: Brought) -> File:
    return File(CONTENTS[row.content], row.content_type, None, timedelta(seconds=row.second))


async def check(base_dir: Path, model: Model) -> None:
    async with open_store(base_dir) as store:
        for day in DAYS:
            midnight = datetime.combine(date_of(day), time(), UTC)
            for uid in UIDS:
                row = model.files.get((day, uid))
                try:
                    content = await store.get(uid, date_of(day))
                except NotFoundError:
                    assert row is None
                else:
                    assert row is not None
                    assert content == CONTENTS[row.content] == read_file(base_dir, uid, midnight)
            expected = {uid: row for (its_day, uid), row in model.files.items() if its_day == day}
            listed = {info.uid: info async for info in store.list(day)}
            assert set(listed) == set(expected)
            for uid, row in expected.items():
                assert listed[uid].created_at.second == row.second
                assert listed[uid].content_type == (row.content_type or "application/octet-stream")
            if (base_dir / day).exists():
                assert set(list_day(base_dir, day)) == set(expected)
        assert (await verify(store)).damage == []


@pytest.mark.parametrize("examples", [12, pytest.param(350, marks=pytest.mark.soak)])
def test_any_history(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(steps)
    def holds(given_steps: list[Packing | Deleting | Compacting]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            anyio.run(carry_out, Path(directory), given_steps)

    holds()


def test_the_model_can_fail() -> None:
    model = Model()
    row = Brought(DAYS[0], UIDS[0], 1)
    assert model.pack(Packing([row, replace(row, content=2)], "error", 1, "zstd")) == (1, 0, {2: "conflict"})
