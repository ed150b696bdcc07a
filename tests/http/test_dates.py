"""`des.http.dates`: RFC 9110 section 5.6.7."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.http.dates import format_http_date, parse_http_date, whole_seconds

EXAMPLE = 784_111_777  # the RFC's example: 6 November 1994, 08:49:37
IN_2026 = datetime(2026, 7, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "value", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_all_three_forms_are_the_same_instant(value: str) -> None:
    assert parse_http_date(value, IN_2026) == EXAMPLE


@pytest.mark.parametrize(
    "value",
    [
        "",
        "now",
        "784111777",
        "1994-11-06T08:49:37Z",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 08:49:37",
        "sun, 06 nov 1994 08:49:37 gmt",
        "Sun,  06 Nov 1994 08:49:37 GMT",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT",
        "Sunday, 06 Nov 1994 08:49:37 GMT",
    ],
)
def test_what_is_no_http_date_is_none(value: str) -> None:
    assert parse_http_date(value, IN_2026) is None


@pytest.mark.parametrize(
    ("short", "year"),
    [("76", 2076), ("77", 1977), ("26", 2026), ("00", 2000), ("99", 1999)],
)
def test_a_two_digit_year_lies_at_most_fifty_years_ahead(short: str, year: int) -> None:
    expected = whole_seconds(datetime(year, 7, 1, tzinfo=UTC))
    assert parse_http_date(f"Sunday, 01-Jul-{short} 00:00:00 GMT", IN_2026) == expected


def test_a_leap_second_is_understood() -> None:
    assert parse_http_date("Sat, 31 Dec 2016 23:59:60 GMT") == parse_http_date("Sun, 01 Jan 2017 00:00:00 GMT")


@given(st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis adds the zone
def test_what_is_written_is_read_again(instant: datetime) -> None:
    seconds = whole_seconds(instant)
    written = format_http_date(seconds).decode()
    assert written == format_datetime(instant.replace(microsecond=0), usegmt=True)
    assert parse_http_date(written) == seconds
