from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import InvalidRequestError, LostHeadError, SettingsError
from des.lifecycle.deleting import Deletion, delete_files
from tests.lifecycle.living import check, shards
from tests.making import DAY, WHEN, make_store

if TYPE_CHECKING:
    from des.lifecycle.deleting import Outcome
    from des.storage.protocol import Storage

FILES = {f"file-{number}": b"content %d" % number for number in range(20)}


async def test_deleted_files_are_gone_and_the_others_are_not(storage: Storage) -> None:
    maker = await make_store(storage, FILES)
    deletions = await delete_files(
        storage, [("file-3", WHEN), ("file-4", WHEN), ("other", WHEN), ("file-3", "2024-01-31")]
    )
    outcomes: dict[str, Outcome] = {"file-3": "deleted", "file-4": "deleted", "other": "not_found"}
    assert deletions == [
        Deletion(uid, DAY, maker.identity(uid).shard_name, outcome) for uid, outcome in outcomes.items()
    ]
    left = {uid: content for uid, content in FILES.items() if uid not in {"file-3", "file-4"}}
    await check(storage, left, ["file-3", "file-4"])
    assert [one.outcome for one in await delete_files(storage, [("file-3", WHEN)])] == ["already_deleted"]


async def test_nothing_is_written_where_nothing_is_deleted(storage: Storage) -> None:
    await make_store(storage, FILES)
    before = [info async for info in storage.list("")]
    assert (await delete_files(storage, [("other", WHEN), ("file-1", "1999-01-01")]))[0].outcome == "not_found"
    assert [info async for info in storage.list("")] == before


async def test_a_file_that_came_back_can_be_deleted_again(storage: Storage) -> None:
    maker = await make_store(storage, FILES)
    await delete_files(storage, [("file-3", WHEN)])
    await maker.add({"file-3": b"back"})
    await check(storage, FILES | {"file-3": b"back"})
    await delete_files(storage, [("file-3", WHEN)])
    await check(storage, {uid: content for uid, content in FILES.items() if uid != "file-3"}, ["file-3"])


async def test_trouble_is_told(storage: Storage) -> None:
    with pytest.raises(SettingsError, match="no store"):
        await delete_files(storage, [("a", WHEN)])
    maker = await make_store(storage, FILES)
    with pytest.raises(InvalidRequestError):
        await delete_files(storage, [("file-1", WHEN), ("", WHEN)])
    await check(storage, FILES)
    for identity in await shards(maker):
        await storage.delete(identity.head_key)
    with pytest.raises(LostHeadError, match="des repair"):
        await delete_files(storage, [("file-1", WHEN)])
