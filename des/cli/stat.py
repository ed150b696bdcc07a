"""`des stat`: what is known of a file, where it lies and why, and what reading it costs."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import anyio
import click

from des.cli.costs import cold_read, warm_read
from des.cli.options import file_arguments, json_option, settings_for, store_option
from des.cli.presenting import exact_size, write_fields
from des.console import visible, write_line
from des.routing import rfc3339
from des.store import open_store
from des.store.fileinfo import file_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.cli.costs import Cost
    from des.settings import Settings
    from des.store import FileInfo, FoundFile


@click.command("stat", short_help="Say what is known of a file, and where it lies.")
@file_arguments
@json_option
@store_option
def stat(uid: str, created_at: str, as_json: bool, store: str | None) -> None:
    """Say what is known of the file UID without reading it, where it lies, and what reading it costs.

    With --json, the fields of FileInfo.
    """
    info, found = anyio.run(partial(_stat, settings_for(store), uid, created_at))
    if as_json:
        write_line(json.dumps(file_json(info), ensure_ascii=False))
        return
    write_fields(_facts(info))
    write_line("\nWhere it lies")
    write_fields(_place(found))
    write_line("\nWhat reading it costs")
    write_fields(_costs(found))


async def _stat(settings: Settings, uid: str, created_at: str) -> tuple[FileInfo, FoundFile]:
    async with open_store(settings) as opened:
        info = await opened.stat(uid, created_at, metadata=True)
        return info, await opened.find(uid, created_at)


def _facts(info: FileInfo) -> Sequence[tuple[str, str]]:
    return (
        ("uid", visible(info.uid)),
        ("created_at", rfc3339(info.created_at)),
        ("raw_size", exact_size(info.raw_size)),
        ("stored_size", exact_size(info.stored_size)),
        ("codec", info.codec),
        ("content_type", info.content_type),
        ("metadata", json.dumps(info.metadata, ensure_ascii=False)),
        ("etag", info.etag),
        ("content_hash", f"{info.content_hash} (SHA-256 of the content, first 16 bytes)"),
    )


def _place(found: FoundFile) -> Sequence[tuple[str, str]]:
    identity, entry, tables = found.identity, found.entry, found.loaded.head.tables
    segments = len(tables.segments)
    return (
        ("file_id", f"{entry.file_id.hex()} (SHA-256 of the uid, first 16 bytes)"),
        ("day", f"{identity.date} (of created_at, in UTC)"),
        ("shard_index", f"{identity.shard_index} = {identity.shard_hex} (its first {identity.n_bits} bits)"),
        (
            "shard",
            f"{identity.head_key} (generation {tables.generation:,}: {tables.files:,} files in {segments:,} segments)",
        ),
        ("segment", f"{found.segment_key} ({exact_size(found.segment.size)})"),
        ("offset", f"{entry.offset:,} to {entry.offset + entry.stored_size:,}"),
    )


def _costs(found: FoundFile) -> Sequence[tuple[str, str]]:
    once = "(besides, once a process, the descriptor: 1 request)"
    return [*_lines("cold", cold_read(found), once), *_lines("warm", warm_read(found), "(while the index is cached)")]


def _lines(read: str, costs: Sequence[Cost], remark: str) -> Sequence[tuple[str, str]]:
    total = _moved(sum(cost.requests for cost in costs), sum(cost.bytes for cost in costs))
    each = [(f"  {cost.kind}", f"{_moved(cost.requests, cost.bytes)}: {cost.what}") for cost in costs]
    return [(read, f"{total} {remark}"), *each]


def _moved(requests: int, count: int) -> str:
    return f"{requests:,} request{'' if requests == 1 else 's'}, {exact_size(count)}"
