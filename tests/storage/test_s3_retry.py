from __future__ import annotations

import time

import anyio
import pytest

from des.errors import StorageTimeoutError, StorageUnavailableError
from des.storage.s3_errors import Failure
from des.storage.s3_retry import CAP_SECONDS, MAX_ATTEMPTS, Attempts, RetryBudget


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no time pass, and keep what was to be waited."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return waited


def failure(*, transient: bool = True, retry_after: float = 0.0, timed_out: bool = False) -> Failure:
    return Failure(StorageUnavailableError("."), transient=transient, retry_after=retry_after, timed_out=timed_out)


def attempts(budget: RetryBudget | None = None, seconds: float = 1e6) -> Attempts:
    return Attempts(budget or RetryBudget(), time.monotonic() + seconds)


async def give_up(tried: Attempts, trouble: Failure) -> int:
    """Retry until the error comes; return how many attempts there were."""
    while True:
        try:
            await tried.retry(trouble)
        except StorageUnavailableError:
            return tried.number


async def test_attempts_are_bounded(pauses: list[float]) -> None:
    assert await give_up(attempts(), failure()) == MAX_ATTEMPTS


async def test_what_will_not_pass_is_not_retried(pauses: list[float]) -> None:
    assert await give_up(attempts(), failure(transient=False)) == 1


async def test_the_last_error_is_raised_with_its_cause(pauses: list[float]) -> None:
    trouble = Failure(StorageTimeoutError("late."))
    with pytest.raises(StorageTimeoutError, match=r"late\.") as caught:
        await attempts().retry(trouble)
    assert caught.value.__cause__ is trouble


async def test_pauses_grow_and_are_random(pauses: list[float]) -> None:
    for _ in range(300):
        await give_up(attempts(), failure())
    longest = [max(pauses[n :: MAX_ATTEMPTS - 1]) for n in range(MAX_ATTEMPTS - 1)]
    assert longest == sorted(longest)
    assert all(0 <= pause <= CAP_SECONDS for pause in pauses)
    assert len(set(pauses)) > 50


async def test_the_server_may_ask_for_more_time(pauses: list[float]) -> None:
    await attempts().retry(failure(retry_after=7))
    assert pauses == [7]


async def test_a_pause_past_the_deadline_is_not_begun(pauses: list[float]) -> None:
    assert await give_up(attempts(seconds=5), failure(retry_after=7)) == 1
    assert await give_up(attempts(seconds=0), failure()) == 1
    assert pauses == []


async def test_progress_clears_the_count(pauses: list[float]) -> None:
    tried = attempts()
    for _ in range(20):
        await tried.retry(failure())
        tried.progressed()
    assert tried.number == 21


async def test_the_budget_bounds_retries_while_everything_fails(pauses: list[float]) -> None:
    budget = RetryBudget()
    requests = sum([await give_up(attempts(budget), failure()) for _ in range(1000)])
    assert requests == 1100


async def test_a_timeout_costs_twice(pauses: list[float]) -> None:
    budget = RetryBudget()
    requests = sum([await give_up(attempts(budget), failure(timed_out=True)) for _ in range(1000)])
    assert requests == 1050


async def test_the_budget_recovers_with_success(pauses: list[float]) -> None:
    budget = RetryBudget()
    for _ in range(200):
        await give_up(attempts(budget), failure())
    assert await give_up(attempts(budget), failure()) == 1
    for _ in range(5):
        attempts(budget).succeeded()
    assert await give_up(attempts(budget), failure()) == 2
    for _ in range(10_000):
        attempts(budget).succeeded()
    assert budget.tokens == 500


async def test_a_retry_that_succeeds_is_paid_back(pauses: list[float]) -> None:
    budget = RetryBudget()
    tried = attempts(budget)
    await tried.retry(failure())
    assert budget.tokens == 495
    tried.succeeded()
    assert budget.tokens == 500
