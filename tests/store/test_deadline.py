from __future__ import annotations

import asyncio
import contextvars
import os
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from des.errors import StorageTimeoutError
from des.store.deadline import within
from tests.making import WHEN, make_store, reading

if TYPE_CHECKING:
    from des.storage.local import LocalStorage


async def answer_at_once() -> str:
    return "answer"


async def answer_after(steps: int) -> str:
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    return "answer"


class TestInTime:
    async def test_what_never_waits_needs_no_time(self) -> None:
        assert await within(0, answer_at_once()) == "answer"

    @pytest.mark.parametrize("steps", [1, 2, 100])
    async def test_what_waits_gets_its_answer(self, steps: int) -> None:
        assert await within(60, answer_after(steps)) == "answer"

    async def test_none_is_an_answer(self) -> None:
        async def nothing() -> None:
            await anyio.lowlevel.checkpoint()

        result: object = await within(60, nothing())
        assert result is None

    @pytest.mark.parametrize("steps", [0, 1, 5])
    async def test_errors_come_out_as_themselves(self, steps: int) -> None:
        async def fail() -> None:
            await answer_after(steps)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await within(60, fail())

    @pytest.mark.parametrize("steps", [0, 1, 5])
    async def test_a_time_out_of_the_works_own_is_no_time_out_of_ours(self, steps: int) -> None:
        async def fail() -> None:
            await answer_after(steps)
            raise TimeoutError("connection timed out")

        with pytest.raises(TimeoutError, match="connection timed out"):
            await within(60, fail())

    async def test_it_runs_in_the_callers_task_and_context(self) -> None:
        variable = contextvars.ContextVar("variable", default="before")
        tasks = []

        async def work() -> None:
            tasks.append(asyncio.current_task())
            await anyio.lowlevel.checkpoint()
            tasks.append(asyncio.current_task())
            variable.set("after")

        await within(60, work())
        assert tasks == [asyncio.current_task()] * 2
        assert variable.get() == "after"

    async def test_scopes_groups_and_threads_inside(self) -> None:
        async def work() -> str:
            with anyio.CancelScope():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(answer_after, 3)
                    with anyio.move_on_after(0.001):
                        await anyio.sleep_forever()
            return await anyio.to_thread.run_sync(lambda: "from a thread")

        assert await within(60, work()) == "from a thread"

    async def test_streams_of_values_into_the_work(self) -> None:
        """Whatever the work waits for reaches it: here, futures that give values and errors."""
        loop = asyncio.get_running_loop()

        async def work() -> list[object]:
            received: list[object] = []
            for number in range(4):
                future = loop.create_future()
                loop.call_soon(future.set_result, number) if number % 2 else loop.call_soon(
                    future.set_exception, KeyError(number)
                )
                try:
                    received.append(await future)
                except KeyError as error:
                    received.append(error.args)
            return received

        assert await within(60, work()) == [(0,), 1, (2,), 3]


class TestTooLate:
    async def test_the_sentence(self) -> None:
        with pytest.raises(StorageTimeoutError, match=r"^the storage did not answer within 0\.01 seconds\.$"):
            await within(0.01, anyio.sleep_forever())

    async def test_the_work_is_cancelled_and_may_tidy_up(self) -> None:
        done = []

        async def work() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await answer_after(3)
                    done.append("tidied")

        with pytest.raises(StorageTimeoutError):
            await within(0.01, work())
        assert done == ["tidied"]

    async def test_inside_scopes_and_groups(self) -> None:
        async def work() -> None:
            with anyio.CancelScope():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.sleep_forever)

        with pytest.raises(StorageTimeoutError):
            await within(0.01, work())
        await answer_after(3)

    @pytest.mark.parametrize(("outer", "inner"), [(0.01, 60), (60, 0.01), (0.01, 0.01)])
    async def test_one_in_another(self, outer: float, inner: float) -> None:
        for _ in range(10):
            with pytest.raises(StorageTimeoutError):
                await within(outer, within(inner, anyio.sleep_forever()))
            await answer_after(3)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

    async def test_a_hung_disk_is_not_waited_for(self, local: LocalStorage) -> None:
        """A thread that waits for a disk cannot be stopped, but it can be left behind."""
        maker = await make_store(local, {"a": b"content"})
        head = Path(local.address, maker.identity("a").head_key)
        aside = head.with_suffix(".aside")
        hang(head, aside)
        async with reading(local, request_timeout=0.1) as store:
            with pytest.raises(StorageTimeoutError):
                await store.get("a", WHEN)
            recover(head, aside)
            assert await store.get("a", WHEN) == b"content"


def hang(path: Path, aside: Path) -> None:
    """Put something in place of a file that cannot be opened, nor refused, before somebody writes to it."""
    path.rename(aside)
    os.mkfifo(path)


def recover(path: Path, aside: Path) -> None:
    os.close(os.open(path, os.O_WRONLY))
    aside.rename(path)


class TestCancelling:
    async def test_by_a_scope(self) -> None:
        with anyio.move_on_after(0.01) as scope:
            await within(60, anyio.sleep_forever())
        assert scope.cancelled_caught

    async def test_by_a_scope_inside(self) -> None:
        async def work() -> str:
            with anyio.move_on_after(0.01):
                await anyio.sleep_forever()
            return "went on"

        assert await within(60, work()) == "went on"

    async def test_as_a_task(self) -> None:
        task = asyncio.create_task(within(60, anyio.sleep_forever()))
        await answer_after(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_coroutine_that_is_closed(self) -> None:
        left = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                left.append("left")

        coroutine = within(60, work())

        async def begin() -> None:
            await coroutine

        task = asyncio.create_task(begin())
        await answer_after(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left == ["left"]
