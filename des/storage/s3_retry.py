"""The one retry layer of S3: how often, how long, and how much in all.

- Exponential backoff with full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015): the pause before
  the n-th retry is uniform in [0, base * 2**n], capped.
- A `Retry-After` of the server is kept where the deadline leaves room for it; where it does not, the error is raised at
  once.
- A *budget* shared by all requests to an endpoint bounds what retries add to an overload: a token bucket as in the
  "standard" retry mode of the AWS SDKs (retry quota: 500 tokens, 5 for a retry, 10 after a timeout, given back when the
  retry succeeds; 1 gained by a request that needed none). While a fraction f of all attempts fails, (1-f)/(5f) retries
  per request can be paid for in the long run: 0.2 in a storm that fails every second attempt, none where all fail.
- Progress clears the count of attempts, so that a long body may break as often as the budget and the deadline allow.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from des.storage.s3_errors import Failure

MAX_ATTEMPTS = 4
BASE_SECONDS = 0.05
CAP_SECONDS = 5.0

_CAPACITY = 500
_RETRY_COST = 5
_TIMEOUT_COST = 10
_GAIN = 1


class RetryBudget:
    """The tokens that pay for retries.

    Attributes:
        tokens: what is left.
    """

    def __init__(self) -> None:
        """Begin with a full bucket."""
        self.tokens = _CAPACITY

    def take(self, cost: int) -> bool:
        """Pay for a retry; False where it cannot be paid for."""
        if cost > self.tokens:
            return False
        self.tokens -= cost
        return True

    def give(self, amount: int) -> None:
        """Put tokens back, up to the capacity."""
        self.tokens = min(_CAPACITY, self.tokens + amount)


class Attempts:
    """The attempts of one request.

    Attributes:
        number: of the attempt under way, from 1.
        deadline: when the request must be over, by `time.monotonic`.
    """

    __slots__ = ("_budget", "_failed", "_paid", "deadline", "number")

    def __init__(self, budget: RetryBudget, deadline: float) -> None:
        """Begin the first attempt."""
        self.number = 1
        self.deadline = deadline
        self._budget = budget
        self._failed = 0
        self._paid = 0

    @property
    def seconds_left(self) -> float:
        """Time until the deadline."""
        return self.deadline - time.monotonic()

    async def retry(self, failure: Failure) -> None:
        """Wait before the next attempt, or give up.

        Raises:
            StorageError: what the failure carries, where another attempt is not worth it, not paid for, or too late.
        """
        self._failed += 1
        cost = _TIMEOUT_COST if failure.timed_out else _RETRY_COST
        pause = random.uniform(0, min(CAP_SECONDS, BASE_SECONDS * 2**self._failed))  # noqa: S311 - jitter, no secret
        pause = max(pause, failure.retry_after)
        hopeless = not failure.transient or self._failed >= MAX_ATTEMPTS or pause >= self.seconds_left
        if hopeless or not self._budget.take(cost):
            raise failure.error from failure
        self._paid = cost
        await anyio.sleep(pause)
        self.number += 1

    def progressed(self) -> None:
        """Note that the attempt moved bytes that need not be moved again."""
        self._failed = 0

    def succeeded(self) -> None:
        """Note the end of the request: its last retry is paid back, and one without retries earns a token."""
        self._budget.give(self._paid or _GAIN)
