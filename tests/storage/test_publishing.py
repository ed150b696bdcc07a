from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Self

import pytest

from des.storage.publishing import Directories, PendingFile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    return Directories(tmp_path)


def test_short_writes_are_gone_on_with(
    tmp_path: Path, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda number, data: write(number, data[:3]))
    pending = PendingFile(tmp_path / "file", directories)
    pending.create()
    pending.write([b"0123456789", b"", b"abc"])
    pending.publish()
    assert (tmp_path / "file").read_bytes() == b"0123456789abc"


def test_discarded_before_its_thread_began(tmp_path: Path, directories: Directories) -> None:
    pending = PendingFile(tmp_path / "a/file", directories)
    pending.discard()
    pending.create()
    assert list(tmp_path.iterdir()) == []


def test_published_stays_and_published_as_new_can_go(tmp_path: Path, directories: Directories) -> None:
    for name, is_new in (("head", False), ("segment", True)):
        pending = PendingFile(tmp_path / name, directories)
        pending.create()
        if is_new:
            pending.publish_new()
        else:
            pending.publish()
        pending.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


class SignallingLock:
    """A lock that says when someone comes for it."""

    def __init__(self) -> None:
        self.comers = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.comers.release()
        self._lock.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def test_discard_waits_for_the_step_under_way(
    tmp_path: Path, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = PendingFile(tmp_path / "file", directories)
    pending.create()
    step = SignallingLock()
    monkeypatch.setattr(pending, "_step", step)
    entered, go_on = threading.Event(), threading.Event()
    written: list[int] = []
    write = os.write

    def slow_write(number: int, data: bytes) -> int:
        entered.set()
        assert go_on.wait(10)
        written.append(write(number, data))
        return written[-1]

    monkeypatch.setattr(os, "write", slow_write)
    writing = threading.Thread(target=pending.write, args=([b"data"],))
    writing.start()
    assert step.comers.acquire(timeout=10)
    assert entered.wait(10)
    discarding = threading.Thread(target=pending.discard)
    discarding.start()
    assert step.comers.acquire(timeout=10)
    go_on.set()
    writing.join()
    discarding.join()
    assert written == [4], "the file was still open"
    assert list(tmp_path.iterdir()) == []


def test_removal_is_durable_though_another_pruned_the_directory(
    tmp_path: Path, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = directories.sync

    def watched(directory: Path) -> None:
        sync(directory)
        synced.append(directory)

    monkeypatch.setattr(directories, "sync", watched)
    (tmp_path / "20240131").mkdir()
    directories.settle(tmp_path / "20240131/0A")
    assert synced == [tmp_path / "20240131"]
    assert list(tmp_path.iterdir()) == [], "what became empty is gone as well"


def test_a_removed_directory_is_made_again(tmp_path: Path, directories: Directories) -> None:
    directories.make(tmp_path / "a/b")
    directories.prune(tmp_path / "a/b")
    (tmp_path / "a").mkdir()
    pending = PendingFile(tmp_path / "a/b/file", directories)
    pending.create()
    pending.publish()
    (tmp_path / "a/b/file").unlink()
    (tmp_path / "a/b").rmdir()  # by another process
    again = PendingFile(tmp_path / "a/b/file", directories)
    again.create()
    again.publish()
    assert (tmp_path / "a/b/file").exists()
