"""Locks between writers, of one process and of many: `flock` on files that are never deleted.

Rules:

1. A key's lock is one of 256 files, chosen by a hash of the key. Two keys may share one; that costs waiting, nothing else.
2. Lock files are never deleted. Else one writer could lock the file that was, and another the file that is.
3. `flock` belongs to the open file, not to the process: each holder opens its own, and the kernel lets go when it dies.
4. Whoever holds a lock needs no second thread to go on, so that waiting threads cannot keep the holder from its work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import xxhash

from des.storage.paths import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from des.storage.publishing import Directories

LOCK_FILES = 256

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})

_PROBE_SECONDS = 60
_PROBE_HELD = 75
_PROBE = f"""
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit({_PROBE_HELD})
"""


class KeyLocks:
    """The locks of all keys under one base directory. Everything here blocks and belongs in worker threads."""

    def __init__(self, directory: Path, directories: Directories, *, single_writer: bool) -> None:
        """Touch nothing yet.

        Args:
            directory: where the lock files are.
            directories: makes it.
            single_writer: where the file system has no locks, those between the threads of this process are enough.
        """
        self._directory = directory
        self._directories = directories
        self._single_writer = single_writer
        self._threads = tuple(threading.Lock() for _ in range(LOCK_FILES))

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Hold the lock of a key; waits as long as another thread or process holds it.

        Raises:
            OSError: the lock file cannot be opened or locked.
        """
        index = xxhash.xxh3_64_intdigest(os.fsencode(key)) % LOCK_FILES
        with self._threads[index]:
            number = self._open(self._directory / f"{index:02x}.lock", os.O_RDWR | os.O_CREAT)
            try:
                is_locked = self._lock(number)
                try:
                    yield
                finally:
                    if is_locked:  # closing is not enough where a fork meanwhile gave a child the same open file
                        fcntl.flock(number, fcntl.LOCK_UN)
            finally:
                os.close(number)

    def find_flaw(self) -> str | None:
        """Try with a second process whether locks hold here.

        Returns:
            What is wrong, None where they hold.

        Raises:
            OSError: the trial itself was not possible.
        """
        path = self._directory / (TEMPORARY_PREFIX + secrets.token_hex(16))
        number = self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                return f"flock failed: {error.strerror}"
            if _try_in_other_process(path) != _PROBE_HELD:
                return "a second process was not kept out of a lock that was held"
            fcntl.flock(number, fcntl.LOCK_UN)
            if _try_in_other_process(path) != 0:
                return "a second process did not get a lock that was free"
        except subprocess.TimeoutExpired:
            return f"a second process had no answer within {_PROBE_SECONDS} s"
        else:
            return None
        finally:
            os.close(number)
            path.unlink()

    def _open(self, path: Path, flags: int) -> int:
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:
            self._directories.forget()
            self._directories.make(self._directory)
            return os.open(path, flags, 0o666)

    def _lock(self, number: int) -> bool:
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
        except OSError as error:
            if self._single_writer and error.errno in _NO_LOCKS:
                return False
            raise
        return True


def _try_in_other_process(path: Path) -> int:
    command = [sys.executable, "-I", "-S", "-c", _PROBE, str(path)]
    return subprocess.run(command, check=False, timeout=_PROBE_SECONDS, stderr=subprocess.DEVNULL).returncode  # noqa: S603
