from __future__ import annotations

import io
import json
import os
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from rich.console import Console

from des.pack.dry_run import DryRun, _puts_of, dry_run
from des.pack.inputs import Manifests
from des.pack.report import Report
from des.pack.run import PackJob, Progress
from des.shard.codecs import Compression
from des.storage.local import LocalStorage
from des.storage.s3_multipart import FIRST_PART_BYTES, PARTS_PER_SIZE
from tests.pack.packing import CREATED_AT, Run, Sources, names_of_one_shard, objects_under

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def dry(base_dir: Path, manifest: Path, report: Report | None = None, **options: Any) -> DryRun:  # noqa: ANN401
    job = PackJob(
        [Manifests(str(manifest))],
        Compression("none"),
        "error",
        **({"n_bits": 2, "max_segment_bytes": 1 << 30, "memory": 64 << 20, "threads": 1} | options),
    )
    async with aclosing(LocalStorage(base_dir)) as storage:
        return await dry_run(storage, job, report or Report(store=""), Progress())


async def test_what_it_says_is_what_a_run_does(sources: Sources, tmp_path: Path) -> None:
    """Objects and bytes, on an empty store and on one that has some of the shards; and it writes nothing."""
    base_dir = tmp_path / "store"
    for number, stem in enumerate(["first", "second"]):
        files = {
            name: os.urandom(1000)
            for index in range(number, 4)
            for name in names_of_one_shard(5, 2, f"{stem}-{number}", index)
        }
        manifest = sources.manifest(sources.rows(files), f"{stem}.json")
        before = objects_under(base_dir)
        found = await dry(base_dir, manifest)
        assert objects_under(base_dir) == before
        assert base_dir.exists() == bool(before)
        run = Run()
        async with aclosing(LocalStorage(base_dir)) as storage:
            await run.pack(storage, manifest, n_bits=2, compression=Compression("none"))
        assert (found.files, found.failed, found.bytes_in) == (len(files), 0, 1000 * len(files))
        assert found.sized_by_stat == len(files)
        after = objects_under(base_dir)
        assert (found.shards, found.segments) == (run.report.shards, run.report.segments) == (4 - number, 4 - number)
        assert (found.heads_created, found.heads_rewritten) == ((4, 0), (0, 3))[number]
        assert found.objects == len(after) - len(before)
        assert found.put_requests == (4 * 3 + 1, 3 * 2)[number]


async def test_rows_that_cannot_be_packed_are_named(sources: Sources, tmp_path: Path) -> None:
    rows = [
        sources.row("said", b"xyz", size_bytes=3),
        sources.row("asked", b"wxyz"),
        {"uid": "remote", "created_at": CREATED_AT, "source_path": "s3://bucket/key"},
        {"uid": "gone", "created_at": CREATED_AT, "source_path": "/nowhere"},
        {"uid": "bad"},
    ]
    shown = io.StringIO()
    found = await dry(tmp_path / "store", sources.manifest(rows), Report(store="", shown=shown))
    assert (found.files, found.failed, found.bytes_in) == (5, 2, 7)
    assert (found.sized_by_stat, found.unknown_sizes) == (1, 1)
    failures = [json.loads(line) for line in shown.getvalue().splitlines()]
    assert [(row["uid"], row["status"]) for row in failures] == [("gone", "invalid"), ("bad", "invalid")]
    assert any("1 sources on S3" in warning for warning in found.warnings)


async def test_costs_and_warnings(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"uid": at, "created_at": CREATED_AT, "source_path": "/a", "size_bytes": 10 << 20} for at in range(40)]
    manifest = sources.manifest(rows)
    found = await dry(tmp_path / "store", manifest, n_bits=1)
    # Two shards: an object of some 200 MiB in its parts, its beginning and its end; two heads each; the descriptor.
    uploads = [(found.largest_shard * 10) << 20, ((40 - found.largest_shard) * 10) << 20]
    assert found.put_requests == sum(-(-size // FIRST_PART_BYTES) + 2 for size in uploads) + 2 * 2 + 1
    value = json.loads(found.to_json())
    assert value["as_single_objects"] == {"objects": 40, "put_requests": 40, "put_usd": 0.0002}
    assert value["put_usd"] == round(found.put_requests * 0.005 / 1000, 4)
    assert value["prices"]["source"].startswith("https://")
    assert found.warnings == []
    text = io.StringIO()
    Console(file=text, width=200).print(found.to_table())
    assert f"{found.put_requests:,} (0.00 USD)" in text.getvalue()
    assert "dry run: nothing is written" in text.getvalue()

    assert "the shards are small" in (await dry(tmp_path / "store", manifest, n_bits=8)).warnings[0]
    monkeypatch.setattr("des.pack.dry_run._MANY_FILES", 10)
    (warning,) = (await dry(tmp_path / "store", manifest, n_bits=1)).warnings
    assert "more than 10 files" in warning
    assert "with n_bits 3 instead of 1" in warning


def test_requests_of_an_object() -> None:
    assert [_puts_of(size) for size in (0, FIRST_PART_BYTES, FIRST_PART_BYTES + 1)] == [1, 1, 4]
    assert _puts_of(FIRST_PART_BYTES * (PARTS_PER_SIZE + 2)) == PARTS_PER_SIZE + 1 + 2
