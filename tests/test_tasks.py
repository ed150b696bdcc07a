from __future__ import annotations

import gc
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from des.tasks import mapped_in_order, open_tasks, run_all

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable


async def all_of(items: Iterable[int]) -> AsyncGenerator[int, None]:
    for item in items:
        await anyio.lowlevel.checkpoint()
        yield item


async def fail(cause: Exception | None = None) -> None:
    await anyio.lowlevel.checkpoint()
    raise LookupError("this one") from cause


async def test_leaving_the_body_cancels_the_tasks() -> None:
    ended = anyio.Event()

    async def run() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with open_tasks() as tasks:
        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
    assert ended.is_set()


async def test_an_error_of_a_task_comes_out_as_itself_with_its_cause() -> None:
    cause = OSError("the reason")

    async def run() -> None:
        async with open_tasks() as tasks:
            tasks.start_soon(fail, cause)
            await anyio.sleep_forever()

    with pytest.raises(LookupError, match="this one") as caught:
        await run()
    assert caught.value.__cause__ is cause


async def test_an_error_of_the_body_comes_out_as_itself() -> None:
    cause = OSError("the reason")

    async def run() -> None:
        async with open_tasks() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            await fail(cause)

    with pytest.raises(LookupError) as caught:
        await run()
    assert caught.value.__cause__ is cause


async def test_an_error_of_nested_groups_comes_out_as_itself() -> None:
    async def run() -> None:
        async with open_tasks() as outer, open_tasks() as inner, anyio.create_task_group() as innermost:
            outer.start_soon(anyio.sleep_forever)
            inner.start_soon(anyio.sleep_forever)
            innermost.start_soon(fail)

    with pytest.raises(LookupError):
        await run()


async def test_cancelling_from_outside_is_no_error() -> None:
    with anyio.CancelScope() as scope:
        async with open_tasks() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("ahead", [1, 2, 5])
async def test_results_come_in_order_and_no_more_than_ahead_are_under_way(ahead: int) -> None:
    under_way, most = 0, 0
    gates = [anyio.Event() for _ in range(20)]

    async def work(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        # The later ones of the first few are done first.
        if item < ahead - 1:
            await gates[item + 1].wait()
        await anyio.lowlevel.checkpoint()
        gates[item].set()
        under_way -= 1
        return item * item

    async with mapped_in_order(work, all_of(range(20)), ahead) as results:
        assert [result async for result in results] == [item * item for item in range(20)]
    assert most == ahead


@pytest.mark.parametrize("ahead", [1, 2, 5])
async def test_items_are_not_asked_for_further_ahead(ahead: int) -> None:
    asked: list[int] = []

    async def items() -> AsyncIterator[int]:
        for item in range(50):
            asked.append(item)
            yield item

    async def work(item: int) -> int:
        await anyio.lowlevel.checkpoint()
        return item

    async with mapped_in_order(work, items(), ahead) as results:
        for expected in range(10):
            assert await anext(results) == expected
            await anyio.wait_all_tasks_blocked()
            assert len(asked) <= expected + 1 + ahead


async def test_no_items_no_results() -> None:
    async with mapped_in_order(anyio.sleep, all_of([]), 3) as results:
        assert [result async for result in results] == []


async def test_an_error_of_the_work_comes_out_in_its_turn_or_before() -> None:
    seen: list[int] = []

    async def work(item: int) -> int:
        await anyio.lowlevel.checkpoint()
        if item == 3:
            raise LookupError("this one")
        return item

    async def consume() -> None:
        async with mapped_in_order(work, all_of(range(10)), 2) as results:
            async for result in results:
                seen.append(result)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(LookupError):
        await consume()
    assert seen == list(range(len(seen)))
    assert len(seen) <= 3


async def test_an_error_of_the_items_comes_out() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise LookupError("this one")

    async def work(item: int) -> int:
        return item

    with pytest.raises(LookupError):
        async with mapped_in_order(work, items(), 2) as results:
            assert [result async for result in results] == [1]


async def test_leaving_early_cancels_what_is_under_way() -> None:
    running = 0

    async def work(item: int) -> int:
        nonlocal running
        running += 1
        try:
            if item:
                await anyio.sleep_forever()
        finally:
            running -= 1
        return item

    async with aclosing(all_of(range(10))) as items, mapped_in_order(work, items, 4) as results:
        assert await anext(results) == 0
        await anyio.wait_all_tasks_blocked()
        assert running == 3
    assert running == 0
    gc.collect()  # an unclosed stream would warn, which is an error here


@pytest.mark.parametrize("ahead", [1, 2, 5])
async def test_being_cancelled_is_no_error(ahead: int) -> None:
    async def work(item: int) -> int:
        await anyio.lowlevel.checkpoint()
        return item

    async def consume() -> None:
        async with mapped_in_order(work, all_of(range(100)), ahead) as results:
            async for _ in results:
                await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert tasks.cancel_scope.cancelled_caught


async def test_run_all_runs_so_many_at_once() -> None:
    running, most, done = 0, 0, []

    async def work(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        done.append(item)

    await run_all(work, range(20), 3)
    assert sorted(done) == list(range(20))
    assert most == 3
    await run_all(work, [], 3)
    assert len(done) == 20


async def test_run_all_stops_at_the_first_error() -> None:
    cause = OSError("the reason")
    begun: list[int] = []

    async def work(item: int) -> None:
        begun.append(item)
        if item == 4:
            await fail(cause)
        await anyio.sleep_forever() if item in {3, 5} else await anyio.lowlevel.checkpoint()

    with pytest.raises(LookupError) as caught:
        await run_all(work, range(100), 3)
    assert caught.value.__cause__ is cause
    assert len(begun) < 10
