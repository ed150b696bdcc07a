"""Ages: by the storage's own clock, because segments and uploads are dated by it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

from des.errors import InvalidRequestError
from des.shard.layout import to_microseconds

if TYPE_CHECKING:
    from des.storage.protocol import Storage

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_AGE = re.compile(r"([0-9]{1,9})\s*([smhdwy])")


async def microseconds_now(storage: Storage) -> int:
    """Return the time by the storage's clock, in microseconds since 1970.

    Raises:
        StorageError: the storage is unwell.
    """
    return to_microseconds(await storage.now())


def parse_age(text: str) -> timedelta:
    """Return the time that an age such as `15m`, `24h`, `90d` or `7y` (of 365 days) means.

    Raises:
        InvalidRequestError: it is no age.
    """
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise InvalidRequestError(
            f"{text[:32]!r} is no age; write a number and a unit of s, m, h, d, w or y: 15m, 24h, 7y."
        )
    try:
        return timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    except OverflowError as error:
        raise InvalidRequestError(f"the age {text[:32]!r} is too long.") from error
