"""HTTP dates: RFC 9110 section 5.6.7.

Written in the one preferred form (IMF-fixdate); understood in all three, with the case as the grammar has it. A date is a
whole second of UTC, kept as seconds since 1970: what finer time a file has never shows in HTTP.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY = f"(?:{'|'.join(_DAYS)})"
_LONG_DAY = "(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>\d{2}):(?P<minute>\d{2}):(?P<second>\d{2})"
_FORMS = (
    re.compile(rf"{_DAY}, (?P<day>\d{{2}}) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT", re.ASCII),  # IMF-fixdate
    re.compile(rf"{_LONG_DAY}, (?P<day>\d{{2}})-{_MONTH}-(?P<year>\d{{2}}) {_TIME} GMT", re.ASCII),  # RFC 850
    re.compile(rf"{_DAY} {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})", re.ASCII),  # asctime
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_SHORT_YEAR_DIGITS = 2
_LEAP_SECOND = 60


def parse_http_date(value: str, now: datetime | None = None) -> int | None:
    """Parse an HTTP-date.

    Args:
        value: the field's value.
        now: what a two-digit year is read against: more than 50 years ahead of it means the century before. None: the clock.

    Returns:
        Seconds since 1970, or None where it is no HTTP-date; the sections on conditions then ignore the field.
    """
    match = next(filter(None, (form.fullmatch(value) for form in _FORMS)), None)
    if match is None:
        return None
    year, second = int(match["year"]), int(match["second"])
    month, day = _MONTHS.index(match["month"]) + 1, int(match["day"])
    leap = second == _LEAP_SECOND  # the grammar allows 23:59:60
    try:
        if len(match["year"]) == _SHORT_YEAR_DIGITS:
            year = _full_year(year, month, day, now or datetime.now(UTC))
        instant = datetime(year, month, day, int(match["hour"]), int(match["minute"]), second - leap, tzinfo=UTC)
    except ValueError:
        return None
    return whole_seconds(instant) + leap


def _full_year(short_year: int, month: int, day: int, now: datetime) -> int:
    year = now.year - now.year % 100 + short_year
    ahead = (year, month, day) > (now.year + 50, now.month, now.day)
    return year - 100 if ahead else year


def whole_seconds(instant: datetime) -> int:
    """Return an aware instant as whole seconds since 1970, rounded down."""
    return (instant - _EPOCH) // _SECOND


@lru_cache(maxsize=4096)
def format_http_date(seconds: int) -> bytes:
    """Write seconds since 1970 as IMF-fixdate."""
    at = _EPOCH + timedelta(seconds=seconds)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    return f"{day}, {at.day:02} {month} {at.year:04} {at.hour:02}:{at.minute:02}:{at.second:02} GMT".encode()
