"""Structured concurrency without wrapped errors: a task group whose one error comes out as itself."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from anyio.abc import TaskGroup

Item = TypeVar("Item")
Result = TypeVar("Result")


@asynccontextmanager
async def open_tasks() -> AsyncIterator[TaskGroup]:
    """Run tasks beside the body; leaving the body cancels those that still run.

    Yields:
        The group.

    Raises:
        Exception: the first error of the body or a task, as itself: callers handle kinds of errors, not groups of them.
    """
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = _first(group)
        raise error from error.__cause__


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Slot(Generic[Result]):
    __slots__ = ("_result", "full")

    def __init__(self) -> None:
        self.full = anyio.Event()
        self._result: list[Result] = []

    def put(self, result: Result) -> None:
        self._result.append(result)
        self.full.set()

    def take(self) -> Result:
        return self._result.pop()


@asynccontextmanager
async def mapped_in_order(
    work: Callable[[Item], Awaitable[Result]], items: AsyncIterator[Item], ahead: int
) -> AsyncIterator[AsyncIterator[Result]]:
    """Do `work` for some items at once, and yield the results in the order of the items.

    Args:
        work: what to do with an item.
        items: asked for one at a time, no further than `ahead` items before the result being waited for.
        ahead: how many items may be under way.

    Yields:
        An async iterator of the results; leaving the context cancels what is under way.
    """
    slots_in, slots_out = anyio.create_memory_object_stream[_Slot[Result]](max(0, ahead - 1))

    async def fill(slot: _Slot[Result], item: Item) -> None:
        slot.put(await work(item))

    async def start_all() -> None:
        async with slots_in:
            async for item in items:
                slot: _Slot[Result] = _Slot()
                await slots_in.send(slot)
                tasks.start_soon(fill, slot, item)

    async def results() -> AsyncIterator[Result]:
        async for slot in slots_out:
            await slot.full.wait()
            yield slot.take()

    async with slots_out, open_tasks() as tasks:  # in this order: a closed stream would be an error to who still sends
        tasks.start_soon(start_all)
        yield results()


async def run_all(work: Callable[[Item], Awaitable[None]], items: Iterable[Item], at_once: int) -> None:
    """Do `work` for all items, `at_once` of them at a time. The first error cancels the rest and comes out as itself."""
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    try:
        async with anyio.create_task_group() as workers:
            for _ in range(at_once):
                workers.start_soon(worker)
    except BaseExceptionGroup as group:
        error = _first(group)
        raise error from error.__cause__
