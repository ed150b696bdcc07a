from __future__ import annotations

from datetime import timedelta

import pytest

from des.errors import InvalidRequestError
from des.lifecycle.clock import microseconds_now, parse_age
from tests.storage.memory import MemoryStorage


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("15m", 900), ("24h", 86_400), ("90d", 7_776_000), ("2 W", 1_209_600), ("7y", 7 * 365 * 86_400)],
)
def test_ages(text: str, seconds: int) -> None:
    assert parse_age(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "7", "m", "-1d", "1.5h", "7 months", "1d2h", "\u0667d", "999999999y"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="age"):
        parse_age(text)


async def test_the_storage_tells_the_time() -> None:
    storage = MemoryStorage()
    before = await microseconds_now(storage)
    storage.ahead = timedelta(hours=1)
    assert await microseconds_now(storage) - before >= 3_600_000_000
