"""Files that a run unpacks before it packs them: what came as a stream lies in a temporary directory until the run is over.

It lies where temporary files lie (TMPDIR) and takes what the content takes; what would not fit is refused before it is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from des.errors import ManifestError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_FILES_A_DIRECTORY = 1_000
# Left free on the disk, for others and for the plan.
RESERVED_BYTES = 64 << 20


class Spool:
    """A temporary directory, made when it is first used; `with` removes it."""

    def __init__(self) -> None:
        """Make nothing yet."""
        self._root: Path | None = None
        self._directory: Path | None = None
        self._files = 0
        self._free = 0

    def __enter__(self) -> Self:
        """Return the spool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the directory."""
        self.close()

    def close(self) -> None:
        """Remove the directory."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    def holds(self, path: str) -> bool:
        """Tell whether a file lies here."""
        return self._root is not None and path.startswith(f"{self._root}{os.sep}")

    def create(self, size: int) -> BinaryIO:
        """Open a new file for writing `size` bytes.

        Raises:
            ManifestError: there is not enough room.
            OSError: it cannot be made.
        """
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="des-pack-"))
        if self._directory is None or self._files % _FILES_A_DIRECTORY == 0:
            self._directory = self._root / str(self._files // _FILES_A_DIRECTORY)
            self._directory.mkdir()
        if self._free < size + RESERVED_BYTES or self._files % _FILES_A_DIRECTORY == 0:
            self._free = shutil.disk_usage(self._root).free
        if self._free < size + RESERVED_BYTES:
            raise ManifestError(
                f"a file of {size:,} bytes does not fit into {self._root.parent}, which has {self._free:,} bytes free; name a larger"
                " place with TMPDIR."
            )
        self._free -= size
        self._files += 1
        return open(f"{self._directory}/{self._files}", "xb")  # noqa: PTH123 - text, not objects: there may be millions
