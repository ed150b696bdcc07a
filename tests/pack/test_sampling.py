"""`--dictionary auto` in a run: what it keeps, declines and reuses, and that all of it reads back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from des.pack.plan import Plan
from des.shard.codecs import Compression
from des.shard.layout import Codec, decode_entry
from des.shard.training import train_dictionary
from des.storage.local import LocalStorage
from tests.pack.packing import Row, Run, Sources, check_store, head_of, names_of_one_shard, objects_under
from tests.pack.test_dictionaries import letters, noise

if TYPE_CHECKING:
    from pathlib import Path

LETTERS = {f"{name}.json": content for name, content in zip(names_of_one_shard(900), letters(900), strict=True)}
LATER = {f"later/{number}": content for number, content in enumerate(letters(300, seed=5))}


async def pack(base_dir: Path, sources: Sources, rows: list[Row], **options: object) -> Run:
    run, local = Run(), LocalStorage(base_dir)
    try:
        await run.pack(local, sources.manifest(rows), **{"finds_dictionary": True} | options)  # type: ignore[arg-type]  # as of `Run.pack`
    finally:
        await local.aclose()
    return run


async def codecs_of(base_dir: Path, uids: list[str]) -> set[Codec]:
    local = LocalStorage(base_dir)
    try:
        heads = [await head_of(local, uid) for uid in uids]
    finally:
        await local.aclose()
    return {decode_entry(head.entries, at).codec for head in heads for at in range(0, len(head.entries), 64)}


async def test_one_that_pays_is_kept_and_reused(tmp_path: Path, sources: Sources) -> None:
    store, plain = tmp_path / "store", tmp_path / "plain"
    await pack(plain, sources, sources.rows(LETTERS), finds_dictionary=False)
    first = await pack(store, sources, [*sources.rows(LETTERS), sources.row("gone", b"") | {"source_path": "/nowhere"}])
    used = first.report.dictionary
    assert used is not None
    assert (used.origin, first.counts) == ("trained", (900, 0, 1))
    assert await codecs_of(store, list(LETTERS)[:20]) == {Codec.ZSTD_DICT}
    sizes = [sum(len(data) for data, _ in objects_under(place).values()) for place in (plain, store)]
    saved = sizes[0] - sizes[1]
    assert used.saved_bytes / 2 < saved < used.saved_bytes * 2
    second = await pack(store, sources, sources.rows(LATER))
    assert second.report.dictionary is not None
    assert (second.report.dictionary.origin, second.report.dictionary.size) == ("reused", used.size)
    report = await check_store(store, LETTERS | LATER)
    assert report.damage == []


async def test_one_that_does_not_pay_is_declined(tmp_path: Path, sources: Sources) -> None:
    contents = {f"noise-{number}": content for number, content in enumerate(noise(200))} | dict(
        list(LETTERS.items())[:20]
    )
    run = await pack(tmp_path / "store", sources, sources.rows(contents))
    assert run.report.dictionary is not None
    assert run.report.dictionary.origin == "none"
    assert Codec.ZSTD_DICT not in await codecs_of(tmp_path / "store", list(contents)[:20])
    await check_store(tmp_path / "store", contents)


async def test_the_same_rows_give_the_same_bytes(tmp_path: Path, sources: Sources) -> None:
    """What is compressed is for each the same, whatever the threads; names, ids and times differ as always."""
    rows = sources.rows(LETTERS)
    payloads = []
    for number, threads in enumerate((1, 4)):
        base_dir = tmp_path / f"store-{number}"
        run = await pack(base_dir, sources, rows, threads=threads)
        assert run.report.dictionary is not None
        segments = [data for key, (data, _) in objects_under(base_dir).items() if key.count("/") == 2]
        payloads.append(
            (run.report.dictionary, run.report.bytes_stored, sorted(data[64 : len(data) // 2] for data in segments))
        )
    assert payloads[0] == payloads[1]


async def test_a_damaged_one_is_not_reused(tmp_path: Path, sources: Sources) -> None:
    trained = train_dictionary(letters(900), 32 << 10, 3)
    store = tmp_path / "store"
    await pack(
        store, sources, sources.rows(LETTERS), finds_dictionary=False, compression=Compression(dictionary=trained)
    )
    local = LocalStorage(store)
    for uid in list(LETTERS)[:20]:
        head = await head_of(local, uid)
        for ref in head.tables.segments:
            assert ref.dictionary is not None
            path = store / head.identity.segment_key(ref.name)
            with path.open("r+b") as file:
                file.seek(ref.dictionary.offset + 40)
                file.write(os.urandom(8))
    await local.aclose()
    run = await pack(store, sources, sources.rows({**LATER, **{f"x{uid}": content for uid, content in LATER.items()}}))
    assert run.report.dictionary is not None
    assert run.report.dictionary.origin != "reused"
    assert run.counts == (600, 0, 0)


def test_rows_are_drawn_from_all_over_the_run() -> None:
    from des.pack.manifest import ManifestRow

    with Plan() as plan:
        plan.add(
            [ManifestRow(number, number // 100, f"{number}", 0, "/", None, None, b"") for number in range(1, 10_000)]
        )
        plan.finish()
        drawn = [row.number for row in plan.drawn(1_000)]
        assert drawn == [row.number for row in plan.drawn(1_000)]
        assert len(set(drawn)) == 1_000
        per_shard = [sum(number // 100 == shard for number in drawn) for shard in range(100)]
        assert min(per_shard) >= 5
        assert max(per_shard) <= 20
        assert drawn != sorted(drawn)
        assert len(plan.drawn(20_000)) == 9_999
