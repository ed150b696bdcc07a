from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from des.errors import SettingsError
from des.pack.manifest import ManifestRow
from des.pack.plan import Plan, PlannedShard
from des.routing import file_id, shard_index
from des.storage.descriptor import Descriptor, Epoch, IndexRange

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = datetime(2024, 1, 31, 12, tzinfo=UTC)


def row(number: int, uid: str, created_at: datetime = NOON, size: int | None = None) -> ManifestRow:
    return ManifestRow(number, uid, created_at, f"/sources/{number}", size, "text/plain", b'{"a":1}')


@pytest.fixture
def plan() -> Iterator[Plan]:
    with Plan(Descriptor.new(2)) as plan:
        yield plan


def test_a_row_comes_back_as_it_was(plan: Plan) -> None:
    given = row(7, "ünï/çode", NOON + timedelta(microseconds=3), 5)
    plan.add([given])
    (shard,) = plan.finish()
    assert shard == PlannedShard("20240131", shard_index(file_id(given.uid), 2), 1, 5)
    (planned,) = plan.rows(shard, 0, 10)
    assert (planned.number, planned.uid, planned.file_id) == (7, given.uid, file_id(given.uid))
    assert planned.created_at == given.created_at_microseconds == int(NOON.timestamp()) * 1_000_000 + 3
    assert (planned.source_path, planned.size_bytes) == ("/sources/7", 5)
    assert (planned.content_type, planned.metadata) == ("text/plain", b'{"a":1}')


def test_rows_are_grouped_by_utc_day_and_shard_in_order(plan: Plan) -> None:
    days = [NOON + timedelta(days=day) for day in (1, 0)]
    given = [row(number, f"file-{number % 50}", days[number % 2], number) for number in range(1, 201)]
    plan.add(given[:80])
    plan.add(given[80:])
    shards = plan.finish()
    assert [(shard.day, shard.shard_index) for shard in shards] == [
        (day, index) for day in ("20240131", "20240201") for index in range(4)
    ]
    seen = []
    for shard in shards:
        rows = plan.rows(shard, 0, 1000)
        assert [planned.number for planned in rows] == sorted(planned.number for planned in rows)
        assert {shard_index(planned.file_id, 2) for planned in rows} == {shard.shard_index}
        assert (shard.rows, shard.size) == (len(rows), sum(planned.size_bytes or 0 for planned in rows))
        seen += [planned.number for planned in rows]
    assert sorted(seen) == list(range(1, 201))


def test_the_day_is_that_of_utc(plan: Plan) -> None:
    zone = timezone(timedelta(hours=14))
    plan.add(
        [row(1, "a", datetime(2024, 2, 1, 13, 59, tzinfo=zone)), row(2, "a", datetime(2024, 2, 1, 14, tzinfo=zone))]
    )
    assert [shard.day for shard in plan.finish()] == ["20240131", "20240201"]


def test_rows_in_steps(plan: Plan) -> None:
    plan.add([row(number, "same") for number in range(1, 8)])
    (shard,) = plan.finish()
    assert [planned.number for planned in plan.rows(shard, 0, 3)] == [1, 2, 3]
    assert [planned.number for planned in plan.rows(shard, 3, 3)] == [4, 5, 6]
    assert [planned.number for planned in plan.rows(shard, 6, 3)] == [7]
    assert plan.rows(shard, 7, 3) == []
    assert [planned.number for planned in plan.rows_by_number((5, 2))] == [5, 2]


def test_repeated_rows_by_their_turn(plan: Plan) -> None:
    plan.add(row(number, uid) for number, uid in enumerate("abacabaa", start=1))
    plan.add([row(9, "a", NOON + timedelta(hours=1)), row(10, "a", NOON + timedelta(days=1))])
    repeated = [found for shard in plan.finish() for found in plan.repeated(shard)]
    assert sorted(repeated) == [(3, 2), (5, 3), (6, 2), (7, 4), (8, 5), (9, 6)]
    assert [nth for _, nth in repeated if nth != 2] == [3, 4, 5, 6]


def test_n_bits_are_those_of_the_day() -> None:
    grown = Descriptor(b"s" * 16, (Epoch("00010101", 1), Epoch("20240201", 8)), IndexRange(1, 0, 1))
    with Plan(grown) as plan:
        plan.add([row(1, "file", NOON), row(2, "file", NOON + timedelta(days=1))])
        before, after = plan.finish()
    assert before.shard_index == shard_index(file_id("file"), 1)
    assert after.shard_index == shard_index(file_id("file"), 8)


def test_rows_of_another_zone_are_refused() -> None:
    uids = {shard_index(file_id(f"file-{number}"), 1): f"file-{number}" for number in range(20)}
    with Plan(Descriptor(b"s" * 16, (Epoch("00010101", 8),), IndexRange(1, 1, 1))) as plan:
        plan.add([row(1, uids[1])])
        with pytest.raises(SettingsError, match="zone"):
            plan.add([row(2, uids[0])])


def test_no_rows_no_shards(plan: Plan) -> None:
    assert plan.finish() == []
