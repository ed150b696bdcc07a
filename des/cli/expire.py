"""`des expire`: remove days that are old enough."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import click

from des.cli.maintenance import AgeType, conclude, shown_progress
from des.cli.measuring import measured
from des.cli.options import json_option, settings_for, store_option
from des.cli.presenting import human_size, write_table
from des.console import say
from des.lifecycle.clock import microseconds_now
from des.lifecycle.expiring import ExpiredShard, days_to_expire, expire_shard, measure_shard
from des.lifecycle.running import Outcome, chosen_shards, maintain, open_place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from des.settings import Settings


@click.command("expire", short_help="Remove days that are old enough.")
@click.option(
    "--older-than",
    required=True,
    type=AgeType(),
    metavar="AGE",
    help="Remove whole days that ended longer ago than this: 90d, 7y.",
)
@click.option("--hold", multiple=True, metavar="DATE", help="A day that stays. Repeatable.")
@click.option("--apply", is_flag=True, help="Remove; without it, only list.")
@json_option
@store_option
@measured("expire")
def expire(older_than: timedelta, hold: tuple[str, ...], apply: bool, as_json: bool, store: str | None) -> int:
    """Remove whole days. Readers are told "not found" from the first moment on; a run that was killed is finished by the next."""
    settings = settings_for(store)
    outcome = anyio.run(partial(_expire, settings, older_than, hold, apply=apply))
    days = _by_day(outcome.results)
    if not as_json and days:
        rows = [
            (one.day, f"{one.shards:,}", f"{one.files:,}", human_size(one.stored_bytes), f"{one.objects:,}")
            for one in days
        ]
        columns = ("date", "shards", "files", "stored", "objects")
        write_table(columns, rows, numbers=columns[1:])
    verb = "removed" if apply else "would be removed; --apply removes them"
    say(f"{len(days):,} day{'' if len(days) == 1 else 's'} {verb}.")
    return conclude({"days": [asdict(one) for one in days], "applied": apply}, outcome.failed, as_json=as_json)


@dataclass(slots=True)
class _Day:
    day: str
    shards: int = 0
    files: int = 0
    stored_bytes: int = 0
    objects: int = 0


def _by_day(shards: Sequence[ExpiredShard]) -> list[_Day]:
    days: dict[str, _Day] = {}
    for one in shards:
        day = days.setdefault(one.shard.partition("/")[0], _Day(one.shard.partition("/")[0]))
        day.shards += 1
        day.files += one.files
        day.stored_bytes += one.stored_bytes
        day.objects += one.objects
    return [days[name] for name in sorted(days)]


async def _expire(
    settings: Settings, older_than: timedelta, hold: Sequence[str], *, apply: bool
) -> Outcome[ExpiredShard]:
    async with open_place(settings, for_writing=apply) as place:
        days = await days_to_expire(place.storage, older_than, hold)
        shards = await chosen_shards(place, days) if days else []
        now = await microseconds_now(place.storage)
        work = partial(expire_shard, place.storage, now=now) if apply else partial(measure_shard, place.storage)
        with shown_progress("expiring", len(shards)) as done:
            return await maintain(shards, work, done, at_once=16)
