from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des import open_store
from des.errors import DeletedError, InvalidRequestError, NotFoundError, SettingsError
from des.lifecycle import open_writer
from des.settings import Settings
from des.storage.local import LocalStorage
from tests.making import WHEN, make_store

if TYPE_CHECKING:
    from pathlib import Path

ALONE = Settings(single_writer=True)


async def test_deleting_from_inside_a_program(tmp_path: Path) -> None:
    local = LocalStorage(tmp_path / "store")
    await make_store(local, {"a": b"a", "b": b"b", "c": b"c", "7": b"seven"})
    await local.aclose()
    async with open_writer(tmp_path / "store", settings=ALONE) as writer:
        assert await writer.delete("a", "2024-01-31T23:59:59Z")
        assert not await writer.delete("a", WHEN)
        with pytest.raises(NotFoundError, match="no file 'z' on 20240131"):
            await writer.delete("z", WHEN)
        with pytest.raises(InvalidRequestError):
            await writer.delete("", WHEN)
        outcomes = await writer.delete_many([("b", WHEN), (7, WHEN), ("z", WHEN), ("a", WHEN)])
    assert [one.outcome for one in outcomes] == ["deleted", "deleted", "not_found", "already_deleted"]
    async with open_store(tmp_path / "store") as store:
        assert await store.get("c", WHEN) == b"c"
        with pytest.raises(DeletedError):
            await store.get("b", WHEN)


async def test_there_must_be_a_store(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no store"):
        async with open_writer(tmp_path / "store", settings=ALONE):
            pass
    assert not (tmp_path / "store").exists()


async def test_two_writers_must_not_both_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = LocalStorage(tmp_path / "store")
    await make_store(local, {"a": b"a"})
    await local.aclose()
    monkeypatch.setattr("des.storage.locks.KeyLocks.find_flaw", lambda _: "flock does not keep others out")
    with pytest.raises(SettingsError, match="cannot keep two writers apart"):
        async with open_writer(tmp_path / "store", settings=Settings()):
            pass
