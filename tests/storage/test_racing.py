from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.lowlevel
import pytest

from des.errors import StorageUnavailableError
from des.storage.racing import race

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE, NEVER = 0.0, 3600.0


class Runners:
    """Contenders that do what a test says, and tell what became of them."""

    def __init__(self, plan: dict[str, object]) -> None:
        self.plan = plan
        self.running: set[str] = set()
        self.cancelled: set[str] = set()

    async def run(self, name: str) -> str:
        self.running.add(name)
        try:
            what = self.plan[name]
            if isinstance(what, anyio.Event):
                await what.wait()
            await anyio.lowlevel.checkpoint()
            if isinstance(what, Exception):
                raise what
        except anyio.get_cancelled_exc_class():
            self.cancelled.add(name)
            raise
        finally:
            self.running.discard(name)
        return name


def trouble() -> StorageUnavailableError:
    return StorageUnavailableError("down on purpose.")


class Pace:
    """The next may begin after so many seconds; `then` is done at that time."""

    def __init__(self, seconds: float, then: Callable[[], None] = lambda: None) -> None:
        self.seconds = seconds
        self.then = then

    def delay(self, _: str) -> float:
        return self.seconds

    async def patience(self, _: str, waited: float) -> None:
        assert waited == self.seconds
        await anyio.lowlevel.checkpoint()
        self.then()


async def run(runners: Runners, seconds: float) -> tuple[list[str], list[str], list[str]]:
    with anyio.fail_after(5):
        outcome = await race(iter(runners.plan), runners.run, Pace(seconds))
    assert not runners.running, "an attempt outlived the race"
    return [name for name, _ in outcome.results], [name for name, _ in outcome.errors], outcome.started


async def test_the_first_that_succeeds_is_the_only_one_asked() -> None:
    assert await run(Runners({"a": None, "b": None}), NEVER) == (["a"], [], ["a"])


async def test_the_next_is_asked_when_one_fails() -> None:
    assert await run(Runners({"a": trouble(), "b": trouble(), "c": None}), NEVER) == (
        ["c"],
        ["a", "b"],
        ["a", "b", "c"],
    )


async def test_all_that_fail_are_told_in_order() -> None:
    assert await run(Runners({"a": trouble(), "b": trouble()}), NEVER) == ([], ["a", "b"], ["a", "b"])


async def test_who_takes_long_is_cancelled_when_another_wins() -> None:
    runners = Runners({"a": anyio.Event(), "b": anyio.Event(), "c": None})
    assert await run(runners, AT_ONCE) == (["c"], [], ["a", "b", "c"])
    assert runners.cancelled == {"a", "b"}


async def test_who_takes_long_may_still_win() -> None:
    late = anyio.Event()
    runners = Runners({"a": late, "b": trouble()})

    outcome = await race(iter(runners.plan), runners.run, Pace(AT_ONCE, late.set))
    assert [name for name, _ in outcome.results] == ["a"]
    assert not runners.running


async def test_a_mistake_ends_all_and_comes_out_as_itself() -> None:
    runners = Runners({"a": anyio.Event(), "b": ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        await run(runners, AT_ONCE)
    assert (runners.cancelled, runners.running) == ({"a"}, set())


async def test_a_race_that_is_cancelled_ends_all() -> None:
    runners = Runners({"a": anyio.Event(), "b": anyio.Event()})
    with anyio.move_on_after(0.02) as scope:
        await run(runners, AT_ONCE)
    assert scope.cancelled_caught
    assert (runners.cancelled, runners.running) == ({"a", "b"}, set())


async def test_a_mistake_of_the_first_ends_the_others() -> None:
    ready = anyio.Event()
    runners = Runners({"a": ready, "b": anyio.Event()})

    async def attempt(name: str) -> str:
        if name == "b":
            ready.set()
        await runners.run(name)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await race(iter(runners.plan), attempt, Pace(AT_ONCE))
    assert (runners.cancelled, runners.running) == ({"b"}, set())


async def test_the_next_begins_at_once_where_the_first_fails_while_it_is_being_waited_for() -> None:
    class Slow(Pace):
        async def patience(self, name: str, waited: float) -> None:
            del name, waited
            failing.set()
            await anyio.sleep(NEVER)

    failing = anyio.Event()
    runners = Runners({"a": failing, "b": None})

    async def attempt(name: str) -> str:
        await runners.run(name)
        if name == "a":
            raise trouble()
        return name

    with anyio.fail_after(5):
        outcome = await race(iter(runners.plan), attempt, Slow(AT_ONCE))
    assert [name for name, _ in outcome.results] == ["b"]
