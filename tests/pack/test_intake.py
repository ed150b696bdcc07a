"""What becomes of inputs on their way into the plan, and of the runs that take them in."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from des.errors import ManifestError
from des.pack.inputs import Manifests
from des.pack.intake import Intake
from des.pack.partition import Partition
from des.pack.plan import Plan
from des.pack.report import Report
from des.pack.spool import Spool
from des.pack.taking import Order
from des.storage.descriptor import Descriptor
from des.storage.local import LocalStorage
from tests.pack.packing import CREATED_AT, Run, Sources, check_store, names_of_one_shard, objects_under

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from des.pack.inputs import Input
    from des.pack.plan import PlannedShard

MIB = 1 << 20


async def fill(intake: Intake, inputs: Sequence[Input], report: Report) -> list[PlannedShard]:
    def work() -> list[PlannedShard]:
        with Plan() as plan, Spool() as spool:
            return intake.fill(plan, inputs, spool, report, lambda _: None)

    return await anyio.to_thread.run_sync(work)


async def test_rows_are_numbered_on_and_failures_name_their_manifest(sources: Sources) -> None:
    first = sources.manifest([sources.row("a", b"a"), {"uid": "b"}], "first.json")
    second = sources.manifest([5, sources.row("c", b"c")], "second.json")
    run = Run()
    report = run.report
    shards = await fill(
        Intake(Order(Descriptor.new(1))), [Manifests(str(path)) for path in (first, second, first)], report
    )
    assert sum(shard.rows for shard in shards) == 3
    assert report.files == 6
    assert [(row["row"], row["uid"], row["manifest"]) for row in run.failures] == [
        (2, "b", str(first)),
        (3, None, str(second)),
        (6, "b", str(first)),
    ]


async def test_nothing_is_held(tmp_path: Path) -> None:
    """Neither good rows nor bad ones nor the manifest stay in memory."""
    path = tmp_path / "manifest.jsonl"
    rows = [
        json.dumps({"uid": f"file-{at}", "created_at": "now" if at % 2 else CREATED_AT, "source_path": "x" * 4000})
        for at in range(1000)
    ]
    with path.open("w") as file:
        for _ in range(5):
            file.write("\n".join(rows) + "\n")
    assert path.stat().st_size > 19 * MIB
    report = Report(store="")
    tracemalloc.start()
    try:
        await fill(Intake(Order(Descriptor.new(1))), [Manifests(str(path))], report)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (report.files, report.failed) == (5_000, 2_500)
    assert peak < 8 * MIB


async def test_it_stops_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that says nothing for ever must not keep a run from being stopped."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin, os.fdopen(writer, "wb"):
        monkeypatch.setattr(sys, "stdin", stdin)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fill, Intake(Order(Descriptor.new(1))), [Manifests("-")], Report(store=""))
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()


async def test_sources_stay_below_their_root(sources: Sources, tmp_path: Path) -> None:
    root = sources.directory
    good = sources.row("good", b"good")
    (root / "in").symlink_to(good["source_path"])
    (root / "out").symlink_to("/etc/passwd")
    (root / "up").symlink_to("..")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "sources-beside").write_bytes(b"secret")
    paths = {
        "link-in": "in",
        "relative": os.path.basename(good["source_path"]),  # noqa: PTH119
        "absolute": good["source_path"],
        "link-out": "out",
        "etc": "/etc/passwd",
        "dots": "../secret",
        "through": "up/secret",
        "beside": str(tmp_path / "sources-beside"),
        "root": ".",
        "s3": "s3://bucket/key",
    }
    rows = [{"uid": uid, "created_at": CREATED_AT, "source_path": path} for uid, path in paths.items()]
    run = Run()
    async with aclosing(LocalStorage(tmp_path / "store")) as storage:
        await run.pack(storage, sources.manifest(rows), source_root=root)
    assert [row["uid"] for row in run.failures] == ["link-out", "etc", "dots", "through", "beside", "root", "s3"]
    assert {row["status"] for row in run.failures} == {"invalid"}
    await check_store(tmp_path / "store", dict.fromkeys(["link-in", "relative", "absolute"], b"good"))


async def test_partitions_at_the_same_time_pack_what_one_run_packs(sources: Sources, tmp_path: Path) -> None:
    files = {f"file-{at}": os.urandom(at % 300) for at in range(300)}
    rows = [*sources.rows(files), {"uid": "bad"}, sources.row("gone", b"") | {"source_path": "/nowhere"}, 5]
    manifest = sources.manifest(
        [
            row | {"created_at": f"2024-01-{30 + at % 2}"} if isinstance(row, dict) and "source_path" in row else row
            for at, row in enumerate(rows)
        ]
    )
    whole, runs = Run(), [Run() for _ in range(3)]
    async with aclosing(LocalStorage(tmp_path / "whole")) as storage:
        await whole.pack(storage, manifest, n_bits=4)

    async def pack_share(at: int) -> None:
        async with aclosing(LocalStorage(tmp_path / "shared")) as storage:
            await runs[at].pack(storage, manifest, n_bits=4, partition=Partition(at, 3))

    async with anyio.create_task_group() as tasks:
        for at in range(3):
            tasks.start_soon(pack_share, at)
    assert all(run.report.packed > 50 for run in runs)
    assert sum(run.report.files for run in runs) == whole.report.files == 303
    assert sum(run.report.packed for run in runs) == whole.report.packed == 300
    failures = [failure for run in runs for failure in run.failures]
    assert sorted(failures, key=lambda one: one["row"]) == sorted(whole.failures, key=lambda one: one["row"])
    heads = [{key for key in objects_under(tmp_path / name) if key.count("/") == 1} for name in ("whole", "shared")]
    assert heads[0] == heads[1]
    for name in ("whole", "shared"):
        for day, at in (("20240130", 0), ("20240131", 1)):
            await check_store(tmp_path / name, dict(list(files.items())[at::2]), day)


async def test_a_broken_manifest_behind_others_reports_nothing(sources: Sources) -> None:
    bad = sources.manifest([{"uid": name} for name in names_of_one_shard(3)], "bad.json")
    run = Run()
    with pytest.raises(ManifestError):
        await fill(Intake(Order(Descriptor.new(1))), [Manifests(str(bad)), Manifests("/nowhere")], run.report)
    assert run.failures == []
