"""`des gc`: collect what nobody needs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import anyio
import click

from des.cli.maintenance import AgeType, conclude, microseconds, shown_progress
from des.cli.measuring import measured
from des.cli.options import json_option, settings_for, store_option
from des.console import say, visible, write_line
from des.lifecycle.clock import microseconds_now
from des.lifecycle.collecting import Collected, Limits, collect_leftovers, collect_shard
from des.lifecycle.running import Outcome, chosen_shards, maintain, open_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.settings import Settings

_GRACE = timedelta(minutes=15)


@click.command("gc", short_help="Collect what nobody needs.")
@click.argument("names", metavar="[DATE|SHARD]...", nargs=-1)
@click.option("--apply", is_flag=True, help="Delete; without it, only list.")
@click.option(
    "--older-than", default="24h", show_default=True, type=AgeType(), help="Only what is older, by the storage's clock."
)
@click.option(
    "--discard-unknown",
    is_flag=True,
    help="Also segments with files that no head knows: a packer that was killed may not have packed them anywhere else.",
)
@json_option
@store_option
@measured("gc")
def gc(
    names: tuple[str, ...], apply: bool, older_than: timedelta, discard_unknown: bool, as_json: bool, store: str | None
) -> int:
    """Collect segments that no head lists, condemned ones whose grace is over, temporary files and parts of uploads.

    Shards whose head is lost are not touched. Files that only an unlisted segment holds are listed, not deleted. Exit status 1 where a head is lost.
    """
    settings = settings_for(store)
    outcome, total = anyio.run(
        partial(_collect, settings, names, older_than, apply=apply, discard_unknown=discard_unknown)
    )
    if not as_json:
        _write(total, apply=apply)
    for shard in total.lost_heads:
        say(f"{shard}: its head is lost or damaged, so nothing was touched; run `des repair {shard}`.")
    summary = asdict(total) | {"applied": apply}
    return conclude(summary, outcome.failed, as_json=as_json, is_good=not total.lost_heads)


async def _collect(
    settings: Settings, names: Sequence[str], older_than: timedelta, *, apply: bool, discard_unknown: bool
) -> tuple[Outcome[Collected], Collected]:
    async with open_place(settings, for_writing=apply) as place:
        now = await microseconds_now(place.storage)
        grace = max(_GRACE, timedelta(seconds=2 * settings.index_ttl))
        limits = Limits(now - microseconds(older_than), now - microseconds(grace), discard_unknown, apply)
        shards = await chosen_shards(place, names)
        with shown_progress("collecting", len(shards)) as done:
            outcome = await maintain(shards, partial(collect_shard, place.storage, limits=limits), done)
        total = Collected()
        for one in outcome.results:
            total.add(one)
        if not names:
            total.add(await collect_leftovers(place.storage, limits))
        for listed in (
            total.condemned,
            total.orphans,
            total.unknown,
            total.unreadable,
            total.lost_heads,
            total.leftovers,
        ):
            listed.sort()
        return outcome, total


def _write(total: Collected, *, apply: bool) -> None:
    parts = [
        ("condemned", total.condemned),
        ("orphan", total.orphans),
        ("unknown", [key for key in total.unknown if key not in total.orphans]),
        ("unreadable", [key for key in total.unreadable if key not in total.orphans]),
        ("leftover", total.leftovers),
    ]
    for word, keys in parts:
        for key in keys:
            write_line(f"{word:<10}  {visible(key)}")
    count = len(total.condemned) + len(total.orphans) + len(total.leftovers)
    verb = "deleted" if apply else "may go; --apply deletes them"
    say(f"{count:,} object{'' if count == 1 else 's'} {verb}; {total.young:,} not old enough.")
