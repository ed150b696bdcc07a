"""`des export`: files as one tar archive on stdout, which `des-pack --from-tar` takes back.

Rules:

1. Small files are read stretch by stretch, the next one while one goes out; a large one is streamed. What is held is two stretches, whatever is exported.
2. A file that cannot be had is named on stderr and has no member; the rest goes on. Trouble of the storage, and a large file that turns out damaged
   after its member began, end the archive there: an archive without its end is not whole.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import click

from des.cli.options import settings_for, store_option
from des.console import say, write_bytes
from des.errors import EXIT_BAD_ANSWER, EXIT_DONE, DESError, StorageError
from des.pack.inputs import Manifests
from des.pack.manifest import UnreadableRow
from des.pack.spool import Spool
from des.routing import parse_created_at, parse_day
from des.store import open_store
from des.store.archive import END, member_header, padding, path_name
from des.tasks import mapped_in_order, run_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Sequence

    from des.routing import CreatedAt
    from des.settings import Settings
    from des.store import FoundFile, Store

# What a manifest has to have here.
_COLUMNS = ("uid", "created_at")
_STRETCH_BYTES = 4 << 20
_STRETCH_FILES = 256
_LOOKUPS_AT_ONCE = 64
_WRITE_BYTES = 256 << 10


@click.command("export", short_help="Write files as a tar archive to stdout.")
@click.argument("dates", nargs=-1, metavar="[DATE]...")
@click.option(
    "--input",
    "manifests",
    multiple=True,
    metavar="M",
    help="Instead of whole days: the files that a manifest names by uid and created_at, as of `des pack --input`. Repeatable.",
)
@store_option
def export(dates: tuple[str, ...], manifests: tuple[str, ...], store: str | None) -> int:
    """Write all files of the UTC days DATE, or those of a manifest, as a tar archive to stdout.

    A member's name is the uid where that is a safe relative path, its time created_at in whole seconds; the PAX record DES.uid has the exact uid. Content
    types and metadata stay behind. `des-pack --from-tar` takes the archive back.
    """
    if bool(dates) == bool(manifests):
        raise click.UsageError("give one or more DATEs, or --input M.")
    if sys.stdout is not None and sys.stdout.isatty():
        raise click.UsageError(
            "a tar archive is nothing for a terminal; send it somewhere, as in `des export … > files.tar`."
        )
    settings = settings_for(store)
    return anyio.run(partial(_export, settings, [parse_day(date) for date in dates], manifests))


async def _export(settings: Settings, days: Sequence[str], manifests: Sequence[str]) -> int:
    async with open_store(settings) as store:
        await store.check()
        names = (
            _of_manifests([Manifests(name, settings=settings, columns=_COLUMNS) for name in manifests])
            if manifests
            else _of_days(store, days)
        )
        return await _Export(store).run(names)


@dataclass(frozen=True, slots=True)
class _Name:
    """A file that is asked for; an unusable one is found out by looking it up."""

    uid: str | int
    created_at: CreatedAt


async def _of_days(store: Store, days: Sequence[str]) -> AsyncIterator[_Name | UnreadableRow]:
    for day in days:
        async for info in store.list(day):
            yield _Name(info.uid, info.created_at)


async def _of_manifests(manifests: Sequence[Manifests]) -> AsyncIterator[_Name | UnreadableRow]:
    with closing(_rows(manifests)) as rows:
        while (values := await anyio.to_thread.run_sync(next, rows, None)) is not None:
            for value in values:
                if isinstance(value, UnreadableRow):
                    yield value
                else:
                    yield _named(value)


def _named(value: object) -> _Name | UnreadableRow:
    fields = value if isinstance(value, dict) else {}
    uid, created_at = fields.get("uid"), fields.get("created_at")
    if not isinstance(uid, str | int) or not isinstance(created_at, str | date):
        return UnreadableRow(f"the row {str(value)[:80]!r} is not an object with uid and created_at.")
    return _Name(uid, created_at)


def _rows(manifests: Sequence[Manifests]) -> Generator[list[object], None, None]:
    with Spool() as spool:
        for part in (part for one in manifests for part in one.parts()):
            yield from (piece() for piece in part.pieces(spool))


@dataclass(slots=True)
class _Wanted:
    """A file on its way: looked up, and read if it is small."""

    name: _Name
    found: FoundFile | None = None
    content: bytes | None = None
    error: DESError | None = None


class _Export:
    """One archive."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failed = 0
        self._members = 0
        self._buffer = bytearray()

    async def run(self, names: AsyncIterator[_Name | UnreadableRow]) -> int:
        """Write the archive; return the exit status."""
        async with mapped_in_order(self._read, self._stretches(names), 2) as stretches:
            async for stretch in stretches:
                for one in stretch:
                    await self._write_one(one)
        await self._write(END)
        await self._flush()
        return EXIT_BAD_ANSWER if self._failed else EXIT_DONE

    def _fail(self, uid: object, error: object) -> None:
        self._failed += 1
        say(f"{uid}: {error}" if uid is not None else str(error))

    # ---- reading ------------------------------------------------------------------------------------------------------------

    async def _stretches(self, names: AsyncIterator[_Name | UnreadableRow]) -> AsyncIterator[list[_Wanted]]:
        group: list[_Wanted] = []
        async for name in names:
            if isinstance(name, UnreadableRow):
                self._fail(name.uid, name.error)
                continue
            group.append(_Wanted(name))
            if len(group) == _STRETCH_FILES:
                for stretch in await self._looked_up(group):
                    yield stretch
                group = []
        for stretch in await self._looked_up(group):
            yield stretch

    async def _looked_up(self, group: list[_Wanted]) -> list[list[_Wanted]]:
        """Find some files, and cut them into what is read at once: small ones together, each large one alone."""

        async def find(one: _Wanted) -> None:
            try:
                one.found = await self._store.find(one.name.uid, one.name.created_at)
            except StorageError:
                raise
            except DESError as error:
                one.error = error

        await run_all(find, group, _LOOKUPS_AT_ONCE)
        stretches: list[list[_Wanted]] = [[]]
        held = 0
        for one in group:
            size = one.found.entry.raw_size if one.found is not None else 0
            if held + size > _STRETCH_BYTES:
                stretches.append([])
                held = 0
            stretches[-1].append(one)
            held += size
        return [stretch for stretch in stretches if stretch]

    async def _read(self, stretch: list[_Wanted]) -> list[_Wanted]:
        waiting: dict[tuple[str, object], list[_Wanted]] = defaultdict(list)
        for one in stretch:
            if one.found is not None and not one.found.is_large:
                waiting[one.found.uid, parse_created_at(one.name.created_at)].append(one)
        asked = [(uid, some[0].name.created_at) for (uid, _), some in waiting.items() for _ in some]
        async for result in self._store.get_many(asked):
            one = waiting[result.uid, result.created_at].pop()
            if isinstance(result.error, StorageError):
                raise result.error
            one.content, one.error = result.data, result.error
        return stretch

    # ---- writing ------------------------------------------------------------------------------------------------------------

    async def _write_one(self, one: _Wanted) -> None:
        try:
            if one.error is not None:
                self._fail(one.name.uid, one.error)
            elif one.content is not None and one.found is not None:
                await self._write(self._header(one.found, len(one.content)))
                await self._write(one.content)
                await self._write(padding(len(one.content)))
            elif one.found is not None:
                await self._write_large(one, one.found)
        finally:
            one.content = None

    async def _write_large(self, one: _Wanted, found: FoundFile) -> None:
        has_begun = False
        try:
            async with self._store.open_whole(found) as (current, pieces):
                size = current.entry.raw_size
                piece = await anext(pieces, b"")
                has_begun = True
                await self._write(self._header(current, size))
                while piece:
                    await self._write(piece)
                    piece = await anext(pieces, b"")
            await self._write(padding(size))
        except StorageError:
            raise
        except DESError as error:
            self._fail(one.name.uid, error)
            if has_begun:
                say("the archive breaks off here.")
                raise

    def _header(self, found: FoundFile, size: int) -> bytes:
        self._members += 1
        name = path_name(self._members, found.uid)
        return member_header(name, size, int(found.created_at.timestamp()), found.uid)

    async def _write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _WRITE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        await anyio.to_thread.run_sync(write_bytes, data)
