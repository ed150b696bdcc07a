"""`des ls`: the days of a store, or the files of a day, as they come."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import anyio
import click

from des.cli.options import json_option, settings_for, store_option
from des.cli.presenting import human_size, is_for_people, write_table
from des.console import say, write_line
from des.routing import rfc3339
from des.store import open_store
from des.store.fileinfo import file_json
from des.store.listing import cursor_of, days_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from des.settings import Settings
    from des.store import FileInfo

_COLUMNS = ("uid", "created_at", "size", "stored", "codec", "type")
_ROWS_A_TABLE = 500


@click.command("ls", short_help="List days, or the files of a day.")
@click.argument("date", required=False)
@json_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N files; how to go on is said on stderr.")
@click.option("--after", metavar="CURSOR", help="Only the files after this cursor.")
@store_option
def ls(date: str | None, as_json: bool, limit: int | None, after: str | None, store: str | None) -> None:
    """List the days that have files, or the files of the UTC day DATE (20240131 or 2024-01-31).

    With --json, one object a line.
    """
    if date is None and (limit is not None or after is not None):
        raise click.UsageError("--limit and --after go with a DATE.")
    settings = settings_for(store)
    if date is None:
        anyio.run(partial(_list_days, settings, as_json=as_json))
    else:
        anyio.run(partial(_list_files, settings, date, after, limit, as_json=as_json))


async def _list_days(settings: Settings, *, as_json: bool) -> None:
    async with open_store(settings) as opened:
        await opened.check()
        days = await days_of(opened.storage)
    if as_json:
        for day in days:
            write_line(json.dumps({"date": day}))
    elif days:
        write_table(("date",), [(day,) for day in days])


async def _list_files(settings: Settings, date: str, after: str | None, limit: int | None, *, as_json: bool) -> None:
    cursor: str | None = None

    async def limited(files: AsyncIterator[FileInfo]) -> AsyncIterator[FileInfo]:
        nonlocal cursor
        last, count = None, 0
        async for info in files:
            if last is not None and count == limit:
                cursor = cursor_of(last)
                return
            last, count = info, count + 1
            yield info

    async with open_store(settings) as opened:
        files = limited(opened.list(date, after=after))
        if as_json:
            async for info in files:
                write_line(json.dumps(file_json(info), ensure_ascii=False))
        else:
            await _write_tables(files)
    if cursor is not None:
        say(f"there are more files; go on with --after {cursor}")


async def _write_tables(files: AsyncIterator[FileInfo]) -> None:
    """Write the files table by table, so that a day of millions is listed in constant memory."""
    rows: list[Sequence[str]] = []
    async for info in files:
        rows.append(_row(info))
        if len(rows) == _ROWS_A_TABLE:
            write_table(_COLUMNS, rows, numbers=("size", "stored"), folded=("uid", "type"))
            rows.clear()
    if rows:
        write_table(_COLUMNS, rows, numbers=("size", "stored"), folded=("uid", "type"))


def _row(info: FileInfo) -> Sequence[str]:
    size = human_size if is_for_people() else str
    sizes = (size(info.raw_size), size(info.stored_size))
    return (info.uid, rfc3339(info.created_at), *sizes, info.codec, info.content_type)
