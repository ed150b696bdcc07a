from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import psutil
import pytest

from des.errors import NotFoundError, SettingsError
from des.settings import Settings
from des.store import Store, open_store
from tests.making import WHEN, make_store

if TYPE_CHECKING:
    from des.storage.local import LocalStorage
    from des.storage.testing import RecordingStorage


@pytest.fixture
async def base_dir(local: LocalStorage) -> Path:
    await make_store(local, {"a": b"content"})
    return Path(local.address)


def open_files(base_dir: Path) -> list[str]:
    return [file.path for file in psutil.Process().open_files() if file.path.startswith(str(base_dir))]


async def require_closed(base_dir: Path) -> None:
    """A worker thread may hold a file for the moment that it needs to forget its work."""
    with anyio.fail_after(10):
        while open_files(base_dir):
            await anyio.lowlevel.checkpoint()


class TestTargets:
    @pytest.mark.parametrize(
        "as_target", [str, Path, lambda path: Settings(base_dir=path)], ids=["text", "path", "settings"]
    )
    async def test_what_names_a_store(self, base_dir: Path, as_target: Any) -> None:  # noqa: ANN401 - any target
        async with open_store(as_target(base_dir)) as store:
            assert await store.get("a", WHEN) == b"content"
            assert store.backend == "local"

    async def test_the_environment_is_read_at_the_call(self, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opening = open_store()
        monkeypatch.setenv("DES_BASE_DIR", str(base_dir))
        monkeypatch.setenv("DES_INDEX_TTL", "7")
        async with opening as store:
            assert await store.get("a", WHEN) == b"content"
            assert store.settings.index_ttl == 7

    async def test_settings_besides_a_target(self, base_dir: Path) -> None:
        settings = Settings(index_ttl=5, base_dir=Path("elsewhere"))
        async with open_store(base_dir, settings=settings) as store:
            assert await store.get("a", WHEN) == b"content"
            assert store.settings.index_ttl == 5

    async def test_a_store_may_come_after_its_reader(self, local: LocalStorage) -> None:
        async with open_store(local.address) as store:
            with pytest.raises(SettingsError, match="there is no store at"):
                await store.check()
            await make_store(local, {"a": b"content"})
            assert await store.get("a", WHEN) == b"content"

    async def test_no_target(self) -> None:
        with pytest.raises(SettingsError, match="address is empty"):
            async with open_store(""):
                pass


class Stop(BaseException):
    """Ends a program, like `SystemExit`."""


class TestLeaving:
    @pytest.mark.parametrize(
        "error",
        [NotFoundError("no"), ZeroDivisionError("no"), StopAsyncIteration("no"), SystemExit(3), Stop(), KeyError("k")],
        ids=repr,
    )
    async def test_an_error_of_the_body_comes_out_as_itself(self, base_dir: Path, error: BaseException) -> None:
        error.__cause__ = cause = ValueError("the cause")
        with pytest.raises(type(error)) as caught:
            await self.fail(base_dir, error)
        assert caught.value is error
        assert error.__cause__ is cause

    async def fail(self, base_dir: Path, error: BaseException) -> None:
        async with open_store(base_dir) as store:
            await store.get("a", WHEN)
            raise error

    async def test_a_group_of_errors_of_the_body_stays_whole(self, base_dir: Path) -> None:
        group = ExceptionGroup("of the body", [ValueError("one"), ZeroDivisionError("two")])
        with pytest.raises(ExceptionGroup) as caught:
            await self.fail(base_dir, group)
        assert caught.value is group

    async def test_an_error_while_an_answer_is_on_its_way(self, base_dir: Path) -> None:
        async with open_store(base_dir) as store:
            results = store.get_many([("a", WHEN)] * 1000)
            with pytest.raises(ZeroDivisionError):
                await self.fail_midway(base_dir)
            assert (await anext(results)).data == b"content"

    async def fail_midway(self, base_dir: Path) -> None:
        async with open_store(base_dir) as store:
            async for _ in store.get_many([("a", WHEN)] * 1000):
                raise ZeroDivisionError

    async def test_cancelled_by_a_scope(self, base_dir: Path) -> None:
        with anyio.CancelScope() as scope:
            async with open_store(base_dir) as store:
                await store.get("a", WHEN)
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        await require_closed(base_dir)

    async def test_cancelled_as_a_task(self, base_dir: Path) -> None:
        reached = asyncio.Event()

        async def read() -> None:
            async with open_store(base_dir) as store:
                await store.get("a", WHEN)
                reached.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(read())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await require_closed(base_dir)

    async def test_a_generator_around_it_that_is_closed_midway(self, base_dir: Path) -> None:
        async def contents() -> Any:  # noqa: ANN401 - an async generator
            async with open_store(base_dir) as store:
                for _ in range(3):
                    yield await store.get("a", WHEN)

        generator = contents()
        assert await anext(generator) == b"content"
        await generator.aclose()
        await require_closed(base_dir)

    async def test_the_files_are_closed(self, base_dir: Path) -> None:
        async with open_store(base_dir) as store:
            await store.get("a", WHEN)
            assert len(open_files(base_dir)) == 1
        await require_closed(base_dir)

    async def test_no_task_is_left(self, base_dir: Path) -> None:
        before = asyncio.all_tasks()
        async with open_store(base_dir) as store:
            async for result in store.get_many([("a", WHEN)] * 1000):
                assert result.data == b"content"
                break
        assert asyncio.all_tasks() == before


async def test_two_stores_know_nothing_of_each_other(local: LocalStorage, storage: RecordingStorage) -> None:
    maker = await make_store(storage, {"a": b"content"})
    async with open_store(local.address) as one, open_store(local.address) as two:
        assert isinstance(one, Store)
        assert await one.get("a", WHEN) == b"content"
        await maker.delete(["a"])
        with pytest.raises(NotFoundError):
            await two.get("a", WHEN)
