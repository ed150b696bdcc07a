"""What the tests of the local backend ask the disk itself."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from des.storage.protocol import Storage

CHECKOUT = Path(__file__).parents[2]
SEGMENT = "20240131/0A/0123456789abcdef0123456789abcdef.des"


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
