from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from des.errors import ManifestError
from des.pack.manifest import BadRow, ManifestRow
from des.pack.tree import Tree
from tests.pack.manifests import read

if TYPE_CHECKING:
    from pathlib import Path

MTIME = 1_706_702_400


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    for name in ["b/2", "b/1", "a", "c/d/e.txt", "ünï çode"]:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        os.utime(path, (MTIME, MTIME))
    (directory / "empty").mkdir()
    return directory


def test_every_file_below_is_a_row_in_order(tree: Path) -> None:
    rows = read(Tree(tree))
    assert all(isinstance(row, ManifestRow) for row in rows)
    assert [row.uid for row in rows] == ["a", "b/1", "b/2", "c/d/e.txt", "ünï çode"]
    assert rows[3][2:] == ("c/d/e.txt", MTIME * 1_000_000, f"{tree}/c/d/e.txt", 9, None, b"")  # type: ignore[index]  # a row


def test_one_time_for_all(tree: Path) -> None:
    rows = read(Tree(tree, "2024-02-01"))
    assert {row.shard >> 16 for row in rows if isinstance(row, ManifestRow)} == {20240201}


def test_links_are_followed_within_the_directory_and_no_further(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "tree-beside").write_text("outside")
    links = {
        "to-a": "a",
        "to-c": str(tree / "c"),
        "to-itself": "to-itself",
        "to-nothing": "missing",
        "up": "../tree-beside",
        "out": "/etc/passwd",
        "through": "to-c/../../tree-beside",
    }
    for name, target in links.items():
        (tree / name).symlink_to(target)
    rows = {row.uid: row for row in read(Tree(tree))}
    inside = rows.pop("to-a")
    assert isinstance(inside, ManifestRow)
    assert inside.source_path == str(tree / "a")
    errors = {uid: row.error for uid, row in rows.items() if isinstance(row, BadRow)}
    assert set(errors) == set(links) - {"to-a"}
    assert all("leads out of the directory" in errors[uid] for uid in ("up", "out", "through"))
    assert "link to a directory" in errors["to-c"]


def test_what_is_no_file_is_reported(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    (tree / "bad\nname").touch()
    os.close(os.open(os.fsencode(tree) + b"/\xff", os.O_CREAT))
    errors = {row.uid: row.error for row in read(Tree(tree)) if isinstance(row, BadRow)}
    assert set(errors) == {"pipe", "bad\nname", "\udcff"}
    assert errors["pipe"] == "it is not a regular file."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read_is_reported(tree: Path) -> None:
    (tree / "b").chmod(0)
    try:
        errors = {row.uid: row.error for row in read(Tree(tree)) if isinstance(row, BadRow)}
    finally:
        (tree / "b").chmod(0o755)
    assert errors == {"b": "it cannot be read: Permission denied."}


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(ManifestError, match=name):
            read(Tree(tmp_path / name))
