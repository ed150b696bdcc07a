"""Publishing files: whole or absent, whatever fails and whenever the machine stops.

A new file is written under a temporary name beside its target, synced, renamed over the target, and then the directory is
synced, in this order: before the rename nobody sees it, after the last sync nothing can take it back. A directory made on
the way is synced into its parent before anything in it counts as durable. Another writer may have made it a moment
ago and not have synced it yet, so each process syncs the way to a directory once, whoever made it.

Directories that become empty are removed, so that a listing shows no prefix without objects. Who finds that a directory was
removed between making and using it makes it again.

Everything here blocks and belongs in worker threads.
"""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from des.storage.paths import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MADE_AGAIN = 16
_REMEMBERED = 4096


class Directories:
    """The directories under a base directory, made so that they survive a power cut."""

    def __init__(self, base: Path) -> None:
        """Touch nothing yet; `base` is made with the first directory in it."""
        self._base = base
        self._durable: set[Path] = set()

    def make(self, directory: Path) -> None:
        """Make a directory with its parents, each synced into its own parent.

        Raises:
            OSError: that failed; FileNotFoundError where someone removed a parent meanwhile.
        """
        if directory in self._durable:
            return
        # Above the base only what is missing is ours: the rest may not even be readable.
        if self._is_inside(directory) or not directory.is_dir():
            self.make(directory.parent)
            with suppress(FileExistsError):
                directory.mkdir()
            self.sync(directory.parent)
        if len(self._durable) >= _REMEMBERED:
            self._durable.clear()
        self._durable.add(directory)

    def forget(self) -> None:
        """Forget what is durable: someone removed a directory."""
        self._durable.clear()

    def prune(self, directory: Path) -> None:
        """Remove a directory and its parents below the base as far as they are empty."""
        while self._is_inside(directory):
            try:
                directory.rmdir()
            except FileNotFoundError:  # gone already, or never made: its parent may still be empty
                pass
            except OSError:  # not empty, or not ours to remove: it stays
                return
            self._durable.discard(directory)
            directory = directory.parent

    def settle(self, directory: Path) -> None:
        """Make the removal of an entry durable, then `prune`.

        Raises:
            OSError: the entry may come back with the next power cut.
        """
        emptied = directory
        while True:
            try:
                self.sync(emptied)
            except FileNotFoundError:  # pruned by another: that is in the parent now
                emptied = emptied.parent
            else:
                return self.prune(directory)

    def sync(self, directory: Path) -> None:
        """Make the entries of a directory durable.

        Raises:
            OSError: they may not be.
        """
        number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def _is_inside(self, directory: Path) -> bool:
        return self._base in directory.parents


class PendingFile:
    """A file under its temporary name, until `publish` or `discard`.

    Each step waits for the one before, also for one that a cancelled task left behind in its thread; after `discard`
    no step does anything any more.
    """

    def __init__(self, target: Path, directories: Directories) -> None:
        """Touch nothing yet."""
        self._target = target
        self._directory = target.parent
        self._temporary = self._directory / (TEMPORARY_PREFIX + secrets.token_hex(16))
        self._directories = directories
        self._step = threading.Lock()
        self._number: int | None = None
        self._leftover: Path | None = None
        self._is_over = False

    def create(self) -> None:
        """Create the temporary file, and the directories that are missing.

        Raises:
            OSError: that failed.
        """
        with self._step:
            self._create()

    def create_and_tell_time(self) -> datetime:
        """Create the temporary file, and return when that was by the file system's clock.

        Raises:
            OSError: that failed.
        """
        self.create()
        with self._step:
            return datetime.fromtimestamp(os.fstat(self._open_number()).st_mtime, UTC)

    def write(self, pieces: Iterable[bytes]) -> None:
        """Append bytes; the first ones create the file.

        Raises:
            OSError: they could not all be written.
        """
        with self._step:
            self._append(pieces)

    def complete_new(self, pieces: Iterable[bytes]) -> None:
        """Append the last bytes, and do as `publish_new`: in one step, because handing over to a thread costs too.

        Raises:
            OSError: as for `write` and `publish_new`.
        """
        with self._step:
            self._append(pieces)
            self._publish_new()

    def publish(self) -> None:
        """Put the file in its target's place, durably.

        Raises:
            OSError: that failed. Where only the last sync failed, the file is in place already.
        """
        with self._step:
            self._place()
            self._leftover = None
            self._directories.sync(self._directory)

    def publish_new(self) -> None:
        """Put the file in its place, durably, where nobody looks for it yet: `discard` can still remove it.

        Raises:
            OSError: that failed.
        """
        with self._step:
            self._publish_new()

    def discard(self) -> None:
        """Remove what was written, unless `publish` put it in place."""
        with self._step:
            self._is_over = True
            # What led here is worth reporting, what stands in the way of tidying up is not: a listing hides the leftover.
            with suppress(OSError):
                self._close()
            if self._leftover is not None:
                with suppress(OSError):
                    self._leftover.unlink()
            self._directories.prune(self._directory)

    def _create(self) -> None:
        for attempts_left in reversed(range(_MADE_AGAIN)):
            if self._is_over:
                return
            try:
                self._directories.make(self._directory)
                self._number = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileNotFoundError:
                if not attempts_left:
                    raise
                self._directories.forget()
            else:
                self._leftover = self._temporary
                return

    def _append(self, pieces: Iterable[bytes]) -> None:
        if self._leftover is None:
            self._create()
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._open_number(), rest) :]

    def _publish_new(self) -> None:
        self._place()
        self._leftover = self._target
        self._directories.sync(self._directory)

    def _place(self) -> None:
        os.fsync(self._open_number())
        self._close()
        self._temporary.replace(self._target)

    def _open_number(self) -> int:
        if self._number is None:
            msg = f"the new file for {self._target} is not open"
            raise ValueError(msg)
        return self._number

    def _close(self) -> None:
        number, self._number = self._number, None
        if number is not None:
            os.close(number)
