"""`des delete`: delete files; `--erase`: leave no byte of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import anyio
import click

from des.cli.erasure import erase
from des.cli.options import json_option, settings_for, store_option
from des.console import say, visible, write_line
from des.errors import EXIT_BAD_ANSWER, EXIT_DONE
from des.lifecycle.deleting import Deletion, delete_files
from des.lifecycle.rewriting import Rewriting
from des.lifecycle.running import open_place

if TYPE_CHECKING:
    from des.settings import Settings


@click.command("delete", short_help="Delete files.")
@click.argument("uid")
@click.option("--created-at", required=True, metavar="T", help="RFC 3339 time with zone, or a date.")
@click.option(
    "--erase",
    "erasing",
    is_flag=True,
    help="Then compact its shard so that no byte of it is left; prints a certificate.",
)
@json_option
@store_option
def delete(uid: str, created_at: str, erasing: bool, as_json: bool, store: str | None) -> int:
    """Delete the file UID. Readers say "deleted" when their DES_INDEX_TTL is over; its bytes go with the next compaction.

    Deleting what was deleted before is done already. Packing it again does not bring it back, except with --on-conflict replace.
    """
    settings = settings_for(store)
    [deletion] = anyio.run(partial(_delete, settings, uid, created_at))
    if as_json and not erasing:
        write_line(json.dumps(asdict(deletion), ensure_ascii=False))
    if deletion.outcome == "not_found":
        say(f"there is no file {visible(deletion.uid)} on {deletion.day}.")
        return EXIT_BAD_ANSWER
    if not as_json:
        say(f"{visible(deletion.uid)} {'is' if deletion.outcome == 'deleted' else 'was'} deleted.")
    return erase(settings, [deletion.shard], Rewriting(), as_json=as_json) if erasing else EXIT_DONE


async def _delete(settings: Settings, uid: str, created_at: str) -> list[Deletion]:
    async with open_place(settings) as place:
        return await delete_files(place.storage, [(uid, created_at)])
