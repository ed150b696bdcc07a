"""One deadline for a whole retrieval, however many requests it takes.

A retrieval that caches and the system's page cache answer never waits, and is the common one. A cancel scope with its timer would take a third
of its time, so the work is begun first, and a clock is started only where the work has begun to wait. That is also why the clock is asyncio's:
a cancel scope cannot be put around work that may have opened scopes of its own by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar

from des.errors import StorageTimeoutError

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")


async def within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns, if it does so in time.

    Args:
        seconds: how long it may wait; what it does before it first waits is not counted.
        work: a coroutine that has not begun.

    Raises:
        StorageTimeoutError: the time was up; the work was cancelled.
        Exception: what the work raised.
    """
    try:
        awaited = work.send(None)
    except StopIteration as answer:
        result: Result = answer.value
        return result
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            return await _Begun(work, awaited)
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise StorageTimeoutError(f"the storage did not answer within {seconds:g} seconds.") from error


class _Begun(Generator[Any, Any, Result]):
    """Goes on with a coroutine that waits for `awaited` already."""

    def __init__(self, work: Coroutine[Any, Any, Result], awaited: object) -> None:
        self._work = work
        self._awaited = [awaited]

    def __await__(self) -> Generator[Any, Any, Result]:
        return self

    def send(self, value: object) -> object:
        return self._awaited.pop() if self._awaited else self._work.send(value)

    def throw(self, *error: Any) -> object:  # noqa: ANN401 - as Python's own generators have it
        return self._work.throw(*error)
