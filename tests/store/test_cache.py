from __future__ import annotations

import gc
import weakref

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.errors import StorageTimeoutError, StorageUnavailableError
from des.store.cache import ITEM_BYTES, ByteLRU, SingleFlight
from des.store.deadline import within
from des.tasks import open_tasks


class TestByteLRU:
    def test_a_value_comes_back(self) -> None:
        cache = ByteLRU(10_000)
        cache.put("a", b"value", 5)
        assert cache.get("a", bytes) == b"value"
        assert (cache.hits, cache.misses, cache.used_bytes) == (1, 0, 5 + ITEM_BYTES)

    def test_nothing_is_there_for_an_unknown_key_or_another_kind(self) -> None:
        cache = ByteLRU(10_000)
        cache.put("a", b"value", 5)
        assert cache.get("b", bytes) is None
        assert cache.get("a", str) is None
        assert (cache.hits, cache.misses) == (0, 2)

    def test_a_peek_counts_hits_alone(self) -> None:
        cache = ByteLRU(10_000)
        cache.put("a", b"value", 5)
        assert cache.peek("a", bytes) == b"value"
        assert cache.peek("b", bytes) is None
        assert (cache.hits, cache.misses) == (1, 0)

    @pytest.mark.parametrize("look", ["get", "peek"])
    def test_the_least_recently_used_goes_first(self, look: str) -> None:
        cache = ByteLRU(3 * (10 + ITEM_BYTES))
        for key in "abc":
            cache.put(key, key, 10)
        getattr(cache, look)("a", str)
        cache.put("d", "d", 10)
        assert [cache.peek(key, str) for key in "abcd"] == ["a", None, "c", "d"]
        assert cache.evictions == 1

    def test_putting_again_replaces_value_and_weight(self) -> None:
        cache = ByteLRU(10_000)
        cache.put("a", "old", 100)
        cache.put("a", "new", 7)
        assert cache.get("a", str) == "new"
        assert (cache.used_bytes, cache.evictions) == (7 + ITEM_BYTES, 0)

    def test_what_is_heavier_than_the_bound_is_not_kept_and_pushes_nothing_out(self) -> None:
        cache = ByteLRU(1000)
        cache.put("a", "a", 10)
        cache.put("b", "b", 1001 - ITEM_BYTES)
        assert (cache.get("a", str), cache.get("b", str)) == ("a", None)
        cache.put("a", "heavier", 1001)
        assert cache.get("a", str) is None, "the old value is no longer true either"
        assert cache.used_bytes == 0

    def test_no_bytes_keep_nothing(self) -> None:
        cache = ByteLRU(0)
        cache.put("a", "", 0)
        assert cache.get("a", str) is None

    def test_discarding(self) -> None:
        cache = ByteLRU(10_000)
        cache.put("a", "a", 10)
        cache.discard("a")
        cache.discard("never there")
        assert (cache.get("a", str), cache.used_bytes) == (None, 0)

    @given(
        st.integers(0, 5000),
        st.lists(st.tuples(st.sampled_from(["put", "get", "discard"]), st.integers(0, 9), st.integers(0, 2000))),
    )
    def test_the_weight_is_right_and_bounded_after_any_history(
        self, max_bytes: int, history: list[tuple[str, int, int]]
    ) -> None:
        cache = ByteLRU(max_bytes)
        kept: dict[int, int] = {}
        for action, key, weight in history:
            if action == "put":
                cache.put(key, weight, weight)
                kept[key] = weight
            elif action == "get":
                assert cache.get(key, int) in {None, kept.get(key)}
            else:
                cache.discard(key)
                kept.pop(key, None)
            held = [weight for weight in (cache.peek(key, int) for key in range(10)) if weight is not None]
            assert cache.used_bytes == sum(held) + ITEM_BYTES * len(held) <= max_bytes


class Counted:
    """A call that waits to be let go, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.started = anyio.Event()
        self.release = anyio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> str:
        self.calls += 1
        self.started.set()
        await self.release.wait()
        if self.error:
            raise self.error
        return f"value {self.calls}"


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


class TestSingleFlight:
    async def test_a_thousand_waiters_one_call(self) -> None:
        flights: SingleFlight[str] = SingleFlight()
        call = Counted()
        results: list[str] = []

        async def ask() -> None:
            results.append(await flights.run("key", call))

        async with open_tasks() as tasks:
            for _ in range(1000):
                tasks.start_soon(ask)
            await settle()
            assert len(flights) == 1
            call.release.set()
            await settle()
        assert results == ["value 1"] * 1000
        assert (call.calls, len(flights)) == (1, 0)

    async def test_keys_do_not_wait_for_each_other(self) -> None:
        flights: SingleFlight[str] = SingleFlight()
        slow, quick = Counted(), Counted()
        quick.release.set()
        async with open_tasks() as tasks:
            tasks.start_soon(flights.run, "slow", slow)
            await slow.started.wait()
            assert await flights.run("quick", quick) == "value 1"

    async def test_a_value_is_not_kept(self) -> None:
        flights: SingleFlight[str] = SingleFlight()
        call = Counted()
        call.release.set()
        assert [await flights.run("key", call) for _ in range(2)] == ["value 1", "value 2"]

    async def test_none_is_a_value(self) -> None:
        flights: SingleFlight[None] = SingleFlight()
        release = anyio.Event()
        calls: list[int] = []

        async def call() -> None:
            calls.append(1)
            await release.wait()

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(flights.run, "key", call)
            await settle()
            release.set()
        assert calls == [1]

    async def test_a_cancelled_leader_hands_over(self) -> None:
        flights: SingleFlight[str] = SingleFlight()
        call = Counted()
        results: list[str] = []
        leader = anyio.CancelScope()

        async def lead() -> None:
            with leader:
                await flights.run("key", call)

        async def follow() -> None:
            results.append(await flights.run("key", call))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lead)
            await call.started.wait()
            for _ in range(10):
                tasks.start_soon(follow)
            await settle()
            leader.cancel()
            await settle()
            assert (call.calls, len(flights)) == (2, 1), "one of the waiters leads anew"
            call.release.set()
        assert results == ["value 2"] * 10
        assert len(flights) == 0

    async def test_the_deadline_of_a_leader_is_its_own(self) -> None:
        flights: SingleFlight[str] = SingleFlight()
        call = Counted()
        outcomes: list[object] = []

        async def lead() -> None:
            try:
                await within(0.01, flights.run("key", call))
            except StorageTimeoutError as error:
                outcomes.append(type(error))
                call.release.set()

        async def follow() -> None:
            outcomes.append(await within(60, flights.run("key", call)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lead)
            await call.started.wait()
            tasks.start_soon(follow)
        assert outcomes == [StorageTimeoutError, "value 2"]

    async def test_each_leader_in_turn_may_be_cancelled(self) -> None:
        flights: SingleFlight[str] = SingleFlight()
        call = Counted()
        scopes = [anyio.CancelScope() for _ in range(20)]

        async def ask(scope: anyio.CancelScope) -> None:
            with scope:
                await flights.run("key", call)

        async with anyio.create_task_group() as tasks:
            for scope in scopes:
                tasks.start_soon(ask, scope)
            await settle()
            for number, scope in enumerate(scopes, start=1):
                assert call.calls == number
                scope.cancel()
                await settle()
        assert len(flights) == 0

    async def test_a_cancelled_follower_disturbs_nobody(self) -> None:
        flights: SingleFlight[str] = SingleFlight()
        call = Counted()
        results: list[str] = []
        quitter = anyio.CancelScope()

        async def ask(scope: anyio.CancelScope) -> None:
            with scope:
                results.append(await flights.run("key", call))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, anyio.CancelScope())
            await call.started.wait()
            tasks.start_soon(ask, quitter)
            tasks.start_soon(ask, anyio.CancelScope())
            await settle()
            quitter.cancel()
            await settle()
            assert len(flights) == 1
            call.release.set()
        assert results == ["value 1"] * 2
        assert (call.calls, len(flights)) == (1, 0)

    async def test_an_error_reaches_all_who_waited_and_nobody_after(self) -> None:
        flights: SingleFlight[str] = SingleFlight()
        call = Counted()
        call.error = StorageUnavailableError("down")
        errors: list[StorageUnavailableError] = []

        async def ask() -> None:
            try:
                await flights.run("key", call)
            except StorageUnavailableError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
            await settle()
            call.release.set()
        assert [str(error) for error in errors] == ["down"] * 5
        assert len({id(error) for error in errors}) == 5, (
            "each waiter raises its own, or their tracebacks grow together"
        )
        assert [error.__cause__ for error in errors] == [None, *[errors[0]] * 4]
        call.error = None
        assert await flights.run("key", call) == "value 2"

    async def test_a_failure_leaves_nothing_behind(self) -> None:
        class Big:
            pass

        flights: SingleFlight[str] = SingleFlight()
        alive: weakref.ref[Big] | None = None

        async def call() -> str:
            nonlocal alive
            big = Big()
            alive = weakref.ref(big)
            raise StorageUnavailableError("down")

        gc.disable()
        try:
            with pytest.raises(StorageUnavailableError) as caught:
                await flights.run("key", call)
            del caught
            assert alive is not None
            assert alive() is None, "freed without the garbage collector"
        finally:
            gc.enable()
        assert len(flights) == 0

    async def test_a_call_may_fly_under_another_key_itself(self) -> None:
        flights: SingleFlight[str] = SingleFlight()

        async def inner() -> str:
            return "inner"

        async def outer() -> str:
            return "outer and " + await flights.run("inner", inner)

        assert await flights.run("outer", outer) == "outer and inner"
