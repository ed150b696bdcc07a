"""What the tests of the local backend ask the disk itself."""

from __future__ import annotations

import errno
import gc
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from des.storage.protocol import Storage

CHECKOUT = Path(__file__).parents[2]
SEGMENT = "20240131/0A/0123456789abcdef0123456789abcdef.des"
# What writing asks of the operating system, and what reading does in threads.
WRITING = ("fsync", "mkdir", "open", "replace", "write")
READING = ("fstat", "open", "pread")


def files_under(base: Path) -> set[str]:
    """All files but the locks."""
    found = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".lock")}


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def open_files_under(base: Path) -> list[str]:
    gc.collect()
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return [link for link in links if link.startswith(str(base))]


async def write_whole(storage: Storage, key: str, data: bytes) -> None:
    async with storage.open_writer(key) as writer:
        await writer.write(data)


class OsCalls:
    """What the storage asks of the operating system under one directory, and a failure of one of these calls.

    Attributes:
        log: the calls since it was armed.
        fail_at: which of them fails, from 1; None: none does.
        fail_with: the error number.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, names: Sequence[str] = WRITING) -> None:
        self.log: list[str] = []
        self.fail_at: int | None = None
        self.fail_with = errno.EIO
        self._root = root
        for name in names:
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands for any call
            where = Path(f"/proc/self/fd/{args[0]}").readlink() if isinstance(args[0], int) else args[0]
            if str(where).startswith(str(self._root)):
                relative = os.path.relpath(where, self._root)
                self.log.append(f"{name} {'<temporary>' if '.des-tmp-' in relative else relative}")
                if len(self.log) == self.fail_at:
                    raise OSError(self.fail_with, os.strerror(self.fail_with), str(where))
            return call(*args, **kwargs)

        return watched

    @property
    def has_failed(self) -> bool:
        return self.fail_at is not None and len(self.log) >= self.fail_at

    def arm(self, fail_at: int | None = None) -> None:
        self.log.clear()
        self.fail_at = fail_at
