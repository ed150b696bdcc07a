from __future__ import annotations

import fcntl
import os
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from des.storage.locks import LOCK_FILES, KeyLocks
from des.storage.publishing import Directories

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def locks(tmp_path: Path) -> KeyLocks:
    return KeyLocks(tmp_path / ".locks", Directories(tmp_path), single_writer=False)


def is_free(path: Path) -> bool:
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_one_file_a_key_and_a_bounded_number_of_them(tmp_path: Path, locks: KeyLocks) -> None:
    for number in range(2 * LOCK_FILES):
        with locks.hold(f"20240131/{number}"):
            pass
    with locks.hold("20240131/0"):
        held = [path for path in (tmp_path / ".locks").iterdir() if not is_free(path)]
    assert len(held) == 1
    assert LOCK_FILES // 2 < len(list((tmp_path / ".locks").iterdir())) <= LOCK_FILES
    assert is_free(held[0])
    with locks.hold("20240131/0"):
        assert not is_free(held[0]), "every process chooses the same file"


def test_let_go_although_a_child_inherited_the_open_file(
    tmp_path: Path, locks: KeyLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited: list[int] = []
    flock = fcntl.flock

    def lock_and_fork(number: int, operation: int) -> None:
        flock(number, operation)
        inherited.append(os.dup(number))

    monkeypatch.setattr(fcntl, "flock", lock_and_fork)
    with locks.hold("key"):
        pass
    monkeypatch.undo()
    (path,) = (tmp_path / ".locks").iterdir()
    assert is_free(path)
    for number in inherited:
        os.close(number)


def test_let_go_after_a_failure(tmp_path: Path, locks: KeyLocks) -> None:
    def fail() -> None:
        with locks.hold("key"):
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
    (path,) = (tmp_path / ".locks").iterdir()
    assert is_free(path)


def test_threads_take_turns(locks: KeyLocks) -> None:
    inside: list[int] = []
    seen: list[int] = []

    def enter(number: int) -> None:
        with locks.hold("key"):
            inside.append(number)
            seen.append(len(inside))
            inside.remove(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 20


def test_a_store_that_was_removed_is_begun_again(tmp_path: Path) -> None:
    base = tmp_path / "store"
    locks = KeyLocks(base / ".locks", Directories(base), single_writer=False)
    for _ in range(2):
        with locks.hold("key"):
            pass
        shutil.rmtree(base)
    assert list(tmp_path.iterdir()) == []
