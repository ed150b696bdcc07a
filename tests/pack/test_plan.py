from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from des.pack.manifest import ManifestRow
from des.pack.plan import Plan, PlannedShard
from des.routing import file_id, locate_shard, shard_index
from des.shard.layout import to_microseconds

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = datetime(2024, 1, 31, 12, tzinfo=UTC)


def row(number: int, uid: str, created_at: datetime = NOON, size: int | None = None) -> ManifestRow:
    place = locate_shard(uid, created_at, 2)
    shard = int(place.date_dir) << 16 | place.shard_index
    return ManifestRow(
        number, shard, uid, to_microseconds(created_at), f"/sources/{number}", size, "text/plain", b'{"a":1}'
    )


@pytest.fixture
def plan() -> Iterator[Plan]:
    with Plan() as plan:
        yield plan


def test_a_row_comes_back_as_it_was(plan: Plan) -> None:
    given = row(7, "ünï/çode", NOON + timedelta(microseconds=3), 5)
    plan.add([given])
    (shard,) = plan.finish()
    assert shard == PlannedShard("20240131", shard_index(file_id(given.uid), 2), 1, 5)
    (planned,) = plan.rows(shard, 0, 10)
    assert (planned.number, planned.uid, planned.file_id) == (7, given.uid, file_id(given.uid))
    assert planned.created_at == given.created_at == int(NOON.timestamp()) * 1_000_000 + 3
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
    assert [planned.number for planned in plan.rows_by_number(shard, (2, 5))] == [2, 5]


def test_repeated_rows_by_their_turn(plan: Plan) -> None:
    plan.add([row(number, uid) for number, uid in enumerate("abacabaa", start=1)])
    plan.add([row(9, "a", NOON + timedelta(hours=1)), row(10, "a", NOON + timedelta(days=1))])
    repeated = [found for shard in plan.finish() for found in plan.repeated(shard)]
    assert sorted(repeated) == [(3, 2), (5, 3), (6, 2), (7, 4), (8, 5), (9, 6)]
    assert [nth for _, nth in repeated if nth != 2] == [3, 4, 5, 6]


def test_many_rows_at_once(plan: Plan) -> None:
    """Rows go in by statements of many rows, and the rest one by one."""
    given = [row(number, f"file-{number}", size=number) for number in range(1, 1024)]
    plan.add(given)
    shards = plan.finish()
    rows = [planned for shard in shards for planned in plan.rows(shard, 0, 2000)]
    assert sorted((planned.number, planned.uid) for planned in rows) == [(one.number, one.uid) for one in given]
    assert sum(shard.size for shard in shards) == sum(range(1, 1024))


def test_no_rows_no_shards(plan: Plan) -> None:
    assert plan.finish() == []
