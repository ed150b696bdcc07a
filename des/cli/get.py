"""`des get`: a file's content, to stdout or to a file that is whole or absent."""

from __future__ import annotations

import os
import secrets
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import click

from des.cli.options import file_arguments, settings_for, store_option
from des.console import write_bytes
from des.errors import InvalidRequestError, StorageUnavailableError
from des.store import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from des.settings import Settings


@click.command("get", short_help="Get a file's content.")
@file_arguments
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to FILE instead of stdout; it appears, or is replaced, only as a whole.",
)
@store_option
def get(uid: str, created_at: str, output: Path | None, store: str | None) -> None:
    """Write the content of the file UID to stdout, or to FILE."""
    anyio.run(partial(_get, settings_for(store), uid, created_at, output if output != Path("-") else None))


async def _get(settings: Settings, uid: str, created_at: str, output: Path | None) -> None:
    async with open_store(settings) as opened, opened.stream(uid, created_at) as pieces:
        if output is None:
            await _copy(pieces, write_bytes)
        else:
            async with _whole_file(output) as write:
                await _copy(pieces, write)


async def _copy(pieces: AsyncIterator[bytes], write: Callable[[bytes], object]) -> None:
    async for piece in pieces:
        await anyio.to_thread.run_sync(write, piece)


@asynccontextmanager
async def _whole_file(target: Path) -> AsyncIterator[Callable[[bytes], object]]:
    pending = await anyio.to_thread.run_sync(_PendingFile, target)
    try:
        yield pending.write
        await anyio.to_thread.run_sync(pending.publish)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(pending.discard)
        raise


class _PendingFile:
    """A file on its way: written beside its target under a temporary name, then renamed. What is no regular file is written as it is.

    Raises:
        InvalidRequestError: it cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self._target = Path(os.path.realpath(target))  # a link stays one
        self._shown = target
        self._temporary: Path | None = None
        try:
            if self._target.is_dir():
                raise InvalidRequestError(f"{target} is a directory; give a file for -o.")
            if self._target.is_file() or not self._target.exists():
                self._temporary = self._target.with_name(f".des-get-{secrets.token_hex(8)}")
            # The file belongs to this object: it is closed by `publish` or `discard`.
            self._file = open(self._temporary or self._target, "xb" if self._temporary else "wb")  # noqa: SIM115, PTH123
        except OSError as error:
            raise InvalidRequestError(f"cannot write {target}: {error.strerror}.") from error

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            StorageUnavailableError: the disk is full, or failing.
        """
        try:
            self._file.write(data)
        except OSError as error:
            raise self._trouble(error) from error

    def publish(self) -> None:
        """Give the file its name; raises as `write`."""
        try:
            self._file.close()
            if self._temporary is not None:
                self._temporary.replace(self._target)
        except OSError as error:
            raise self._trouble(error) from error

    def discard(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):
            self._file.close()
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _trouble(self, error: OSError) -> StorageUnavailableError:
        return StorageUnavailableError(f"cannot write {self._shown}: {error.strerror}.")
