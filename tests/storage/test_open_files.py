from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import (
    ObjectNotFoundError,
    PreconditionFailedError,
)
from des.storage.open_files import Descriptor, DescriptorCache
from des.storage.protocol import Overwrite
from tests.storage.contract import KEY, MIB, content
from tests.storage.on_disk import SEGMENT, open_files_under, write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from des.storage.local import LocalStorage


class TestOpenFiles:
    async def test_kept_open_within_bounds_and_closed_at_the_end(self, local: LocalStorage, base: Path) -> None:
        for number in range(150):
            await local.put(f"20240131/{number}", b"%d" % number, Overwrite())
        for number in range(150):
            assert await local.read_range(f"20240131/{number}", 0, 10) == b"%d" % number
        assert len(open_files_under(base)) == 128
        await local.aclose()
        assert open_files_under(base) == []

    async def test_nothing_else_stays_open(self, local: LocalStorage, base: Path) -> None:
        version = await local.put(KEY, content(MIB), Overwrite())
        await local.read_suffix(KEY, 64)
        await local.read_range(KEY, 0, 64, version=version)
        with pytest.raises(PreconditionFailedError) as caught:
            await local.read_range(KEY, 0, 64, version="other")
        await local.head(KEY)
        async with local.stream_range(KEY, 0, MIB) as pieces:
            await anext(pieces)
            assert len(open_files_under(base)) == 1
        assert open_files_under(base) == []
        del caught  # it was there all the while, with its traceback

    async def test_a_replaced_object_is_opened_anew(self, local: LocalStorage) -> None:
        await local.put(SEGMENT, b"first", Overwrite())
        assert await local.read_range(SEGMENT, 0, 10) == b"first"
        await local.put(SEGMENT, b"second", Overwrite())
        assert await local.read_range(SEGMENT, 0, 10) == b"second"
        await write_whole(local, SEGMENT, b"third")
        assert await local.read_range(SEGMENT, 0, 10) == b"third"
        await local.delete(SEGMENT)
        with pytest.raises(ObjectNotFoundError):
            await local.read_range(SEGMENT, 0, 10)

    def test_least_recently_used_goes_first(self, tmp_path: Path) -> None:
        cache = DescriptorCache(limit=2)
        for name in ("a", "b", "c"):
            (tmp_path / name).write_bytes(b"1")
        cache.add("a", Descriptor(tmp_path / "a"))
        cache.add("b", Descriptor(tmp_path / "b"))
        assert cache.get("a")
        cache.add("c", Descriptor(tmp_path / "c"))
        assert (cache.get("a") is None, cache.get("b") is None, cache.get("c") is None) == (False, True, False)
        assert len(open_files_under(tmp_path)) == len(cache) == 2

    def test_old_files_are_opened_anew(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"1")
        cache = DescriptorCache(max_age=0)
        cache.add("a", Descriptor(tmp_path / "a"))
        assert cache.get("a") is None
        cache.add("a", Descriptor(tmp_path / "a"))
        cache.add("b", Descriptor(tmp_path / "a"))
        assert len(cache) == 1, "old ones make room without being asked for"
        cache.clear()
        assert open_files_under(tmp_path) == []

    def test_a_file_is_closed_after_its_last_reader(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"still there")
        cache = DescriptorCache(limit=1)
        cache.add("a", Descriptor(tmp_path / "a"))
        reader = cache.get("a")
        assert reader is not None
        cache.clear()
        assert reader.read(0, 100) == b"still there"
        del reader
        assert open_files_under(tmp_path) == []

    def test_a_directory_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Descriptor(tmp_path)
        assert open_files_under(tmp_path) == []
