"""`des repair`: rebuild lost or damaged heads."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import click

from des.cli.maintenance import conclude, shown_progress
from des.cli.measuring import measured
from des.cli.options import json_option, settings_for, store_option
from des.console import say, write_line
from des.lifecycle.repairing import Repair, repair_shard
from des.lifecycle.running import Outcome, chosen_shards, maintain, open_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.settings import Settings


@click.command("repair", short_help="Rebuild lost or damaged heads.")
@click.argument("names", metavar="SHARD|DATE...", nargs=-1, required=True)
@click.option(
    "--give-up-unreadable",
    is_flag=True,
    help="Go on without segments that cannot be read: their files will be not found.",
)
@json_option
@store_option
@measured("repair")
def repair(names: tuple[str, ...], give_up_unreadable: bool, as_json: bool, store: str | None) -> int:
    """Rebuild the heads of the shards SHARD (20240131/C1) or of the days DATE from their segments. Good heads are left alone.

    Exit status 1 where the segments do not tell everything: what had to be chosen, or cannot be read, is listed.
    """
    settings = settings_for(store)
    outcome = anyio.run(partial(_repair, settings, names, give_up_unreadable=give_up_unreadable))
    repairs = sorted(outcome.results, key=lambda one: one.shard)
    for one in repairs:
        _tell(one, as_json=as_json)
    if not repairs and not outcome.failed:
        say("there are no shards to repair.")
    return conclude(
        {"shards": [_json(one) for one in repairs]},
        outcome.failed,
        as_json=as_json,
        is_good=all(one.is_certain for one in repairs),
    )


async def _repair(settings: Settings, names: Sequence[str], *, give_up_unreadable: bool) -> Outcome[Repair]:
    async with open_place(settings) as place:
        shards = await chosen_shards(place, names)
        with shown_progress("repairing", len(shards)) as done:
            work = partial(repair_shard, place.storage, give_up_unreadable=give_up_unreadable)
            return await maintain(shards, work, done, at_once=1)


def _tell(one: Repair, *, as_json: bool) -> None:
    if not as_json:
        told = {
            "good": "its head is good.",
            "absent": "there is no such shard.",
            "refused": "not repaired; what cannot be read would be lost. Restore it, or give it up with --give-up-unreadable.",
            "rebuilt": f"rebuilt from {one.segments:,} segments: {one.files:,} files, {one.deleted:,} deleted.",
        }[one.outcome]
        write_line(f"{one.shard}: {told}")
    for key in one.unreadable:
        say(f"{key}: its catalog cannot be read.")
    for unclear in one.unclear:
        say(
            f"{one.shard}: of file {unclear.file_id.hex()} there are several versions; {unclear.taken} was taken, not {', '.join(unclear.others)}."
        )


def _json(one: Repair) -> dict[str, Any]:
    value = asdict(one)
    value["unclear"] = [item | {"file_id": item["file_id"].hex()} for item in value["unclear"]]
    return value
