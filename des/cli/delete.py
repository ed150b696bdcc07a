"""`des delete`: delete files; `--erase`: leave no byte of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import click

from des.cli.erasure import erase
from des.cli.measuring import measured, tell_counts
from des.cli.options import json_option, settings_for, store_option
from des.console import say, visible, write_line
from des.errors import EXIT_BAD_ANSWER, EXIT_DONE, NotFoundError
from des.lifecycle.bulk import COLUMNS, BulkDeletion, NotDeleted, delete_listed
from des.lifecycle.deleting import Deletion, delete_files
from des.lifecycle.rewriting import Rewriting
from des.lifecycle.running import open_place
from des.pack.inputs import Manifests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.settings import Settings

_OUTCOMES = ("deleted", "already_deleted", "not_found", "failed")


@click.command("delete", short_help="Delete files.")
@click.argument("uid", required=False)
@click.option("--created-at", metavar="T", help="RFC 3339 time with zone, or a date.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="M",
    help="A manifest of what to delete: rows with uid and created_at. Repeatable; - is stdin.",
)
@click.option(
    "--erase", "erasing", is_flag=True, help="Then compact the shards so that no byte is left; prints a certificate."
)
@json_option
@store_option
@measured("delete")
def delete(
    uid: str | None,
    created_at: str | None,
    inputs: tuple[str, ...],
    erasing: bool,
    as_json: bool,
    store: str | None,
) -> int:
    """Delete the file UID, or all that manifests name. Readers say "deleted" when their DES_INDEX_TTL is over; the bytes go with the next compaction.

    Deleting what was deleted before is done already. Packing it again does not bring it back, except with --on-conflict replace.
    """
    if (uid is None) == (not inputs) or (uid is None) != (created_at is None):
        raise click.UsageError("give UID with --created-at, or --input.")
    settings = settings_for(store)
    if uid is None or created_at is None:
        return _delete_all(settings, inputs, erasing=erasing, as_json=as_json)
    [deletion] = anyio.run(partial(_delete, settings, uid, created_at))
    tell_counts({deletion.outcome: 1})
    if as_json and not erasing:
        write_line(json.dumps(asdict(deletion), ensure_ascii=False))
    if deletion.outcome == "not_found":
        raise NotFoundError(f"there is no file {deletion.uid!r} on {deletion.day}.")
    if not as_json:
        say(f"{visible(deletion.uid)} {'is' if deletion.outcome == 'deleted' else 'was'} deleted.")
    return erase(settings, [deletion.shard], Rewriting(), as_json=as_json) if erasing else EXIT_DONE


async def _delete(settings: Settings, uid: str, created_at: str) -> list[Deletion]:
    async with open_place(settings) as place:
        return await delete_files(place.storage, [(uid, created_at)])


def _delete_all(settings: Settings, names: Sequence[str], *, erasing: bool, as_json: bool) -> int:
    done = anyio.run(partial(_delete_listed, settings, names))
    counts: dict[str, Any] = {outcome: done.outcomes[outcome] for outcome in _OUTCOMES}
    tell_counts(counts)
    if as_json and not erasing:
        write_line(json.dumps(counts))
    say(", ".join(f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in counts.items()) + ".")
    status = EXIT_BAD_ANSWER if counts["not_found"] or counts["failed"] else EXIT_DONE
    if erasing and done.shards:
        status = max(status, erase(settings, done.shards, Rewriting(), as_json=as_json))
    return status


async def _delete_listed(settings: Settings, names: Sequence[str]) -> BulkDeletion:
    inputs = [Manifests(name, settings=settings, columns=COLUMNS) for name in names]
    async with open_place(settings) as place:
        return await delete_listed(place, inputs, _tell)


def _tell(row: NotDeleted) -> None:
    named = "" if row.uid is None else f" ({visible(row.uid)})"
    say(f"row {row.row}{named}: {row.error}")
