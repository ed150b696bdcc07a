"""`des.http.conditions`: RFC 9110 section 13."""

from __future__ import annotations

import pytest

from des.http.conditions import Verdict, evaluate, parse_entity_tags, range_applies
from des.http.dates import format_http_date

ETAG = '"abc"'
MODIFIED = 784_111_777
AT, BEFORE, AFTER = (format_http_date(MODIFIED + shift).decode() for shift in (0, -1, 1))
PROCEED, NOT_MODIFIED, FAILED = Verdict.PROCEED, Verdict.NOT_MODIFIED, Verdict.FAILED


def verdict(modified: int | None = MODIFIED, /, **fields: str) -> Verdict:
    encoded = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in fields.items()}
    return evaluate(encoded, ETAG, modified)


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ("", []),
        (" , ,, ", []),
        ('"a"', [(False, '"a"')]),
        ('W/"a"', [(True, '"a"')]),
        ('""', [(False, '""')]),
        ('"a", W/"b" ,"c"', [(False, '"a"'), (True, '"b"'), (False, '"c"')]),
        (',"a",,"b",', [(False, '"a"'), (False, '"b"')]),
        ('"a,b"', [(False, '"a,b"')]),
        ('"a\\"', [(False, '"a\\"')]),
        ('"\xe4\xff"', [(False, '"\xe4\xff"')]),
        ("abc", []),
        ('abc, "a"', [(False, '"a"')]),
        ('w/"a"', []),
        ('W/ "a"', []),
        ('"a"b, "c"', [(False, '"c"')]),
        ('"a b", "c"', [(False, '"c"')]),
        ('"a', []),
        ("*", []),
    ],
)
def test_entity_tags_of_a_list(value: str, tags: list[tuple[bool, str]]) -> None:
    assert list(parse_entity_tags(value)) == tags


def test_a_long_list_of_rubbish_takes_linear_time() -> None:
    assert list(parse_entity_tags('"' * 200_000)) == []
    assert list(parse_entity_tags(" \t" * 200_000 + "x")) == []
    assert len(list(parse_entity_tags('W/"a",' * 50_000))) == 50_000


def test_without_conditions_the_request_proceeds() -> None:
    assert verdict() is PROCEED
    assert verdict(range="bytes=0-1", if_range='"other"') is PROCEED


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ETAG, PROCEED),
        ("*", PROCEED),
        (" * ", PROCEED),
        (f'"other", {ETAG}', PROCEED),
        ('"other"', FAILED),
        (f"W/{ETAG}", FAILED),
        ("abc", FAILED),
        ("", FAILED),
        (f'"other", *, W/{ETAG}', FAILED),
    ],
)
def test_if_match_compares_strongly(value: str, expected: Verdict) -> None:
    assert verdict(if_match=value) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ETAG, NOT_MODIFIED),
        (f"W/{ETAG}", NOT_MODIFIED),
        ("*", NOT_MODIFIED),
        (f'"other", W/{ETAG}', NOT_MODIFIED),
        ('"other"', PROCEED),
        ("abc", PROCEED),
        ("", PROCEED),
    ],
)
def test_if_none_match_compares_weakly(value: str, expected: Verdict) -> None:
    assert verdict(if_none_match=value) is expected


@pytest.mark.parametrize(
    ("value", "modified", "expected"),
    [
        (AT, MODIFIED, NOT_MODIFIED),
        (AFTER, MODIFIED, NOT_MODIFIED),
        (BEFORE, MODIFIED, PROCEED),
        ("yesterday", MODIFIED, PROCEED),
        (f"{AT}, {AT}", MODIFIED, PROCEED),
        (AT, None, PROCEED),
    ],
)
def test_if_modified_since(value: str, modified: int | None, expected: Verdict) -> None:
    assert verdict(modified, if_modified_since=value) is expected


@pytest.mark.parametrize(
    ("value", "modified", "expected"),
    [
        (AT, MODIFIED, PROCEED),
        (AFTER, MODIFIED, PROCEED),
        (BEFORE, MODIFIED, FAILED),
        ("yesterday", MODIFIED, PROCEED),
        (f"{BEFORE}, {BEFORE}", MODIFIED, PROCEED),
        (BEFORE, None, PROCEED),
    ],
)
def test_if_unmodified_since(value: str, modified: int | None, expected: Verdict) -> None:
    assert verdict(modified, if_unmodified_since=value) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"if_match": ETAG, "if_unmodified_since": BEFORE}, PROCEED),
        ({"if_match": '"other"', "if_none_match": ETAG}, FAILED),
        ({"if_match": ETAG, "if_none_match": ETAG}, NOT_MODIFIED),
        ({"if_unmodified_since": BEFORE, "if_none_match": ETAG}, FAILED),
        ({"if_unmodified_since": AT, "if_modified_since": AT}, NOT_MODIFIED),
        ({"if_none_match": '"other"', "if_modified_since": AFTER}, PROCEED),
        ({"if_none_match": "rubbish", "if_modified_since": AFTER}, PROCEED),
        ({"if_none_match": ETAG, "if_modified_since": BEFORE}, NOT_MODIFIED),
    ],
)
def test_the_order_of_the_conditions(fields: dict[str, str], expected: Verdict) -> None:
    assert verdict(**fields) is expected


@pytest.mark.parametrize(
    ("value", "modified", "applies"),
    [
        (None, MODIFIED, True),
        (ETAG, MODIFIED, True),
        (f"W/{ETAG}", MODIFIED, False),
        ('"other"', MODIFIED, False),
        (f'{ETAG}, "other"', MODIFIED, False),
        ("*", MODIFIED, False),
        (AT, MODIFIED, True),
        (AFTER, MODIFIED, False),
        (BEFORE, MODIFIED, False),
        (AT, None, False),
        ("yesterday", None, False),
        ("", MODIFIED, False),
    ],
)
def test_if_range_compares_strongly(value: str | None, modified: int | None, applies: bool) -> None:
    field = None if value is None else value.encode()
    assert range_applies(field, ETAG, modified) is applies
