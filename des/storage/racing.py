"""Attempts at the same thing in several ways: the next begins when one fails or takes too long, the first that succeeds wins.

Rules:

1. When `race` returns or raises, no attempt runs any more. Losers are cancelled and awaited, so that what they held (a connection, a slot) has been
   given back.
2. An attempt that takes too long is not given up: it runs beside the next one, and still may win.
3. What an attempt raises of `DESError` makes it a failed attempt; anything else is a mistake, ends all others and comes out as itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import anyio

from des.errors import DESError
from des.tasks import open_tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from anyio.abc import TaskGroup

T = TypeVar("T")
C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


@dataclass(slots=True)
class Outcome(Generic[T, C]):
    """How a race ended.

    Attributes:
        results: of the contender that won, and of those that came in with it; empty where all failed.
        errors: of those that failed before, in the order in which they did.
        started: all that were asked, in order.
    """

    results: list[tuple[C, T]] = field(default_factory=list)
    errors: list[tuple[C, DESError]] = field(default_factory=list)
    started: list[C] = field(default_factory=list)


class Pace(Protocol[C_contra]):
    """When the next attempt begins although the one before it still runs."""

    def delay(self, contender: C_contra, /) -> float:
        """Return the seconds before which nothing need be done."""

    async def patience(self, contender: C_contra, waited: float, /) -> None:
        """Return when the next one may begin, after the delay has gone by; cancelled when any attempt ends first."""


async def race(contenders: Iterator[C], attempt: Callable[[C], Awaitable[T]], pace: Pace[C]) -> Outcome[T, C]:
    """Run attempts until one succeeds or all have failed.

    The first attempt runs in the caller's own task, and nothing is made for the others until its delay is over: most races end before.

    Args:
        contenders: in the order in which they are asked, at least one; each is taken only when its turn has come.
        attempt: asks one of them.
        pace: see there.

    Returns:
        What came of it; errors of attempts are no errors of the race.
    """
    loop = asyncio.get_running_loop()
    first = next(contenders)
    outcome: Outcome[T, C] = Outcome(started=[first])
    running, waiting = anyio.CancelScope(), anyio.CancelScope()
    others: asyncio.Task[Outcome[T, C]] | None = None

    async def run_others() -> Outcome[T, C]:
        with waiting:
            await pace.patience(first, delay)
        return await _race_in_tasks(contenders, attempt, pace)

    def begin() -> None:
        nonlocal others
        # Not in a task group, which would have to be there from the start: this function awaits it, however it ends.
        others = loop.create_task(run_others())
        others.add_done_callback(ended)

    def ended(task: asyncio.Task[Outcome[T, C]]) -> None:
        if not task.cancelled() and (task.exception() is not None or task.result().results):
            running.cancel()

    delay = pace.delay(first)
    timer = loop.call_later(delay, begin)
    try:
        with running:
            try:
                outcome.results.append((first, await attempt(first)))
            except DESError as error:
                outcome.errors.append((first, error))
        timer.cancel()
        if outcome.results:
            return outcome
        if others is None:
            rest = await _race_in_tasks(contenders, attempt, pace)
        else:
            waiting.cancel()
            await asyncio.wait([others])
            rest = others.result()
    finally:
        timer.cancel()
        if others is not None and not others.done():
            others.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([others])
    return Outcome(rest.results, [*outcome.errors, *rest.errors], [*outcome.started, *rest.started])


async def _race_in_tasks(contenders: Iterator[C], attempt: Callable[[C], Awaitable[T]], pace: Pace[C]) -> Outcome[T, C]:
    async def patience(contender: C) -> None:
        delay = pace.delay(contender)
        await anyio.sleep(delay)
        await pace.patience(contender, delay)

    async with Poll(attempt) as poll:
        for contender in contenders:
            poll.ask(contender)
            await poll.wait(lambda: patience(contender))  # noqa: B023 - it is over before the loop goes on
            if poll.outcome.results:
                break
        while poll.running and not poll.outcome.results:
            await poll.wait(anyio.sleep_forever)
    return poll.outcome


class Poll(Generic[T, C]):
    """Asks contenders at once, each in a task of its own, until the context ends.

    Attributes:
        outcome: what came in so far.
        unanswered: who is still to answer.
    """

    def __init__(self, attempt: Callable[[C], Awaitable[T]]) -> None:
        """Ask by `attempt`."""
        self.outcome: Outcome[T, C] = Outcome()
        self.unanswered: set[C] = set()
        self._attempt = attempt
        self._opened = open_tasks()
        self._waiting = anyio.CancelScope()
        self._tasks: TaskGroup

    async def __aenter__(self) -> Poll[T, C]:
        """Begin."""
        self._tasks = await self._opened.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        """Cancel who has not answered, and wait for the end of it."""
        return await self._opened.__aexit__(*exc)  # type: ignore[arg-type]  # the three that it was given

    @property
    def running(self) -> int:
        """How many are still to answer."""
        return len(self.unanswered)

    def ask(self, contender: C) -> None:
        """Begin an attempt; each contender is asked once."""
        self.outcome.started.append(contender)
        self.unanswered.add(contender)
        self._tasks.start_soon(self._run, contender)

    async def wait(self, patience: Callable[[], Awaitable[None]]) -> None:
        """Wait until any attempt ends, or `patience` returns. Nothing may be awaited between looking at the outcome and calling this."""
        with anyio.CancelScope() as self._waiting:
            await patience()

    async def _run(self, contender: C) -> None:
        try:
            result = await self._attempt(contender)
        except DESError as error:
            self.outcome.errors.append((contender, error))
        else:
            self.outcome.results.append((contender, result))
        self.unanswered.discard(contender)
        self._waiting.cancel()
