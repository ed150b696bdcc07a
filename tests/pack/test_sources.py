from __future__ import annotations

import hashlib
import json
import os
import socket
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest

from des.pack.plan import PlannedRow
from des.pack.sources import PIECE_BYTES, SourceError, hash_large, read_large, read_small
from des.pack.tree import Tree
from des.routing import file_id
from des.shard.chunking import LARGE_BYTES
from des.storage.local import LocalStorage
from tests.pack.packing import CountedProgress, Run

if TYPE_CHECKING:
    from pathlib import Path

as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def row(path: Path | str, size: int | None = None) -> PlannedRow:
    return PlannedRow(1, file_id("uid"), "uid", 0, str(path), size, None, b"")


def refusal(source: PlannedRow) -> str:
    with pytest.raises(SourceError) as caught:
        read_small(source)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    return sentence


def test_content(tmp_path: Path) -> None:
    path = tmp_path / "source"
    for content in (b"", b"x", os.urandom(LARGE_BYTES)):
        path.write_bytes(content)
        assert read_small(row(path)) == read_small(row(path, len(content))) == content


def test_a_large_one_says_its_size(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(bytes(LARGE_BYTES + 1))
    assert read_small(row(path)) == LARGE_BYTES + 1


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    (tmp_path / "link").symlink_to("source")
    assert read_small(row(tmp_path / "link")) == b"content"


def test_missing(tmp_path: Path) -> None:
    assert "No such file" in refusal(row(tmp_path / "missing"))
    (tmp_path / "dangling").symlink_to("missing")
    assert "No such file" in refusal(row(tmp_path / "dangling"))
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(row(tmp_path / "file" / "below"))
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refusal(row(tmp_path / "loop"))


def test_paths_that_are_none(tmp_path: Path) -> None:
    assert "too long" in refusal(row(tmp_path / ("x" * 300)))
    assert "path cannot be used" in refusal(row("lone \ud800 surrogate"))


def test_no_regular_file(tmp_path: Path) -> None:
    assert "is a directory" in refusal(row(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(row(tmp_path / "pipe"))  # and does not wait for somebody to write
    assert "not a regular file" in refusal(row("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert refusal(row(tmp_path / "socket"))


@as_root
def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"secret")
    path.chmod(0)
    assert "Permission denied" in refusal(row(path))


def test_another_size_than_announced(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"12345")
    assert "has 5 bytes, but size_bytes says 4" in refusal(row(path, 4))
    assert "has 5 bytes, but size_bytes says 6" in refusal(row(path, 6))
    path.write_bytes(bytes(LARGE_BYTES + 1))
    assert "size_bytes says 5" in refusal(row(path, 5))


def test_too_big_for_any_container(tmp_path: Path) -> None:
    path = tmp_path / "source"
    with path.open("wb") as file:
        file.truncate(1 << 43)  # sparse
    assert "a file may have at most" in refusal(row(path))


class Changing:
    """Lets a file change right after its size was taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, size: int) -> None:
        self.fired = False
        taken = os.fstat

        def fstat(number: int) -> os.stat_result:
            status = taken(number)
            os.truncate(path, size)
            self.fired = True
            return status

        monkeypatch.setattr(os, "fstat", fstat)


@pytest.mark.parametrize("size", [0, 4, 6])
def test_changed_while_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"12345")
    changing = Changing(monkeypatch, path, size)
    assert "changed while it was read (it had 5 bytes)" in refusal(row(path))
    assert changing.fired


async def read_all(source: PlannedRow, size: int) -> bytes:
    return b"".join([piece async for piece in read_large(source, size)])


async def test_large_content_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "source"
    content = os.urandom(2 * PIECE_BYTES + 5)
    path.write_bytes(content)
    lengths = [len(piece) async for piece in read_large(row(path), len(content))]
    assert lengths == [PIECE_BYTES, PIECE_BYTES, 5]
    assert await read_all(row(path), len(content)) == content
    assert await hash_large(read_large(row(path), len(content))) == hashlib.sha256(content).digest()[:16]


@pytest.mark.parametrize("change", [-1, -PIECE_BYTES - 5, 1])
async def test_large_of_another_size_than_it_had(tmp_path: Path, change: int) -> None:
    path = tmp_path / "source"
    size = 2 * PIECE_BYTES + 5
    path.write_bytes(bytes(size + change))
    sentence = "longer" if change > 0 else "shorter"
    with pytest.raises(SourceError, match=rf"became {sentence} while it was read \(it had {size} bytes\)\.$"):
        await read_all(row(path), size)
    with pytest.raises(SourceError, match=sentence):
        await hash_large(read_large(row(path), size))


async def test_large_that_vanished_or_became_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "source"
    with pytest.raises(SourceError, match="No such file"):
        await read_all(row(path), 5)
    os.mkfifo(path)
    with pytest.raises(SourceError):
        await read_all(row(path), 5)


def open_files(path: Path) -> int:
    return sum(file.path == str(path) for file in psutil.Process().open_files())


async def test_a_large_source_is_closed_with_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(bytes(3 * PIECE_BYTES))
    async with aclosing(read_large(row(path), 3 * PIECE_BYTES)) as pieces:
        await anext(pieces)
        assert open_files(path) == 1
    assert open_files(path) == 0


@pytest.mark.parametrize("checkpoints", range(8))
async def test_a_large_source_is_closed_wherever_its_reader_is_cancelled(tmp_path: Path, checkpoints: int) -> None:
    path = tmp_path / "source"
    path.write_bytes(bytes(3 * PIECE_BYTES))
    seen = 0

    async def read(scope: anyio.CancelScope) -> None:
        nonlocal seen
        with scope:
            async with aclosing(read_large(row(path), 3 * PIECE_BYTES)) as pieces:
                async for _ in pieces:
                    seen += 1
                    await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        tasks.start_soon(read, scope)
        for _ in range(checkpoints):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
    assert scope.cancelled_caught or seen == 3
    assert open_files(path) == 0


ROWS_OF_SWAPPED = 7


class Swapping(CountedProgress):
    """Puts links where directories and files were, once they were looked at."""

    def __init__(self, root: Path, elsewhere: Path) -> None:
        super().__init__()
        self._root, self._elsewhere = root, elsewhere

    def planned(self, rows: int) -> None:
        if rows < ROWS_OF_SWAPPED:
            return
        (self._root / "directory").rename(self._root / "moved")
        (self._root / "directory").symlink_to(self._elsewhere)
        for name in ("small", "large"):
            (self._root / name).unlink()
            (self._root / name).symlink_to(self._elsewhere / name)


@pytest.mark.parametrize("named", ["by a manifest", "by their directory"])
async def test_a_link_that_is_put_in_the_way_after_the_check_leads_nowhere(tmp_path: Path, named: str) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for directory in (root, root / "directory", root / "kept", elsewhere):
        directory.mkdir()
        (directory / "small").write_bytes(b"content")
        (directory / "large").write_bytes(bytes(LARGE_BYTES + 1))
    (root / "kept" / "link").symlink_to("small")
    names = [f"{directory}{name}" for directory in ("", "directory/", "kept/") for name in ("small", "large")]
    manifest = tmp_path / "rows.json"
    rows = [{"uid": name, "created_at": "2024-01-31", "source_path": name} for name in [*names, "kept/link"]]
    manifest.write_text(json.dumps(rows))
    by_manifest = named == "by a manifest"
    run = Run(progress=Swapping(root, elsewhere))
    async with aclosing(LocalStorage(tmp_path / "store")) as storage:
        given = manifest if by_manifest else Tree(root, "2024-01-31")
        await run.pack(storage, given, source_root=root if by_manifest else None)
    assert sorted(row["uid"] for row in run.failures) == ["directory/large", "directory/small", "large", "small"]
    assert all("a symbolic link has taken its place" in row["error"] for row in run.failures)
    assert run.report.packed == 3


async def test_a_large_one_is_not_followed_elsewhere_between_its_two_openings(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(LARGE_BYTES + 1))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "source").symlink_to(tmp_path / "secret")
    confined = row(tmp_path / "root" / "source")._replace(root=f"{tmp_path}/root/")
    with pytest.raises(SourceError, match="a symbolic link"):
        await hash_large(read_large(confined, LARGE_BYTES + 1))
