"""Conditional requests: RFC 9110 section 13. Pure: header values and validators in, a verdict out.

The order of section 13.2.2, for GET and HEAD:

1. `If-Match`, compared strongly: no match is 412.
2. Without it, `If-Unmodified-Since`: modified after that date is 412.
3. `If-None-Match`, compared weakly: a match is 304.
4. Without it, `If-Modified-Since`: not modified after that date is 304.
5. `If-Range`, compared strongly, decides whether `Range` applies: no match is the whole file.

A date that is no HTTP-date, or stands for a file without a modification date, is ignored; the date conditions are also
ignored where the entity-tag condition they belong to is present. The entity tag is the one of the *selected*
representation. A list that is badly written counts for the tags in it that are well written.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

from des.http.dates import parse_http_date

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# RFC 9110 section 8.8.3: entity-tag = [ weak ] opaque-tag
_ENTITY_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_SEPARATORS = re.compile(r"[ \t,]*")
_ELEMENT_END = re.compile(r"[ \t]*(?:,|$)")
_FIELDS = frozenset({b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"})


class Verdict(Enum):
    """What the preconditions decide; the value is the status that says so."""

    PROCEED = 200
    NOT_MODIFIED = 304
    FAILED = 412


def evaluate(fields: Mapping[bytes, bytes], etag: str, modified: int | None) -> Verdict:
    """Evaluate the preconditions of a GET or HEAD (RFC 9110 section 13.2.2, steps 1 to 4).

    Args:
        fields: header fields by lower-case name, repeated ones joined by commas.
        etag: strong entity tag of the selected representation, with its quotes.
        modified: its Last-Modified in seconds since 1970, None where it has none.
    """
    if _FIELDS.isdisjoint(fields):
        return Verdict.PROCEED
    if b"if-match" in fields:
        if not _any_matches(_text(fields, b"if-match"), etag, weakly=False):
            return Verdict.FAILED
    elif _modified_after(fields, b"if-unmodified-since", modified):
        return Verdict.FAILED
    if b"if-none-match" in fields:
        if _any_matches(_text(fields, b"if-none-match"), etag, weakly=True):
            return Verdict.NOT_MODIFIED
    elif _modified_after(fields, b"if-modified-since", modified) is False:
        return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def range_applies(if_range: bytes | None, etag: str, modified: int | None) -> bool:
    """Decide whether a Range is to be honoured (RFC 9110 section 13.1.5).

    An entity tag must match strongly. A date must be the Last-Modified exactly; it then is a strong validator in the sense
    of section 8.8.2.2, because a file that ever changed has no Last-Modified here.

    Args:
        if_range: the field's value, None where it is absent.
        etag: as for `evaluate`.
        modified: as for `evaluate`.
    """
    if if_range is None:
        return True
    value = if_range.decode("latin-1")
    if value[:1] == '"' or value.startswith("W/"):
        return value == etag
    return modified is not None and parse_http_date(value) == modified


def parse_entity_tags(value: str) -> Iterator[tuple[bool, str]]:
    """Yield (is weak, opaque tag with its quotes) for each well-written entity tag of a list."""
    position = 0
    while (position := _end(_SEPARATORS, value, position)) < len(value):
        tag = _ENTITY_TAG.match(value, position)
        end = tag and _ELEMENT_END.match(value, tag.end())
        if tag and end:
            yield tag[1] is not None, tag[2]
            position = end.end()
        else:
            comma = value.find(",", position)
            if comma < 0:
                return
            position = comma


def _end(pattern: re.Pattern[str], value: str, position: int) -> int:
    match = pattern.match(value, position)
    return match.end() if match else position


def _any_matches(value: str, etag: str, *, weakly: bool) -> bool:
    """Compare as RFC 9110 section 8.8.3.2 says; `*` stands for any current representation."""
    if value.strip(" \t") == "*":
        return True
    return any(opaque == etag and (weakly or not weak) for weak, opaque in parse_entity_tags(value))


def _modified_after(fields: Mapping[bytes, bytes], name: bytes, modified: int | None) -> bool | None:
    """Tell whether the file was modified after the field's date; None where the field is to be ignored."""
    if modified is None or name not in fields:
        return None
    since = parse_http_date(_text(fields, name))
    return None if since is None else modified > since


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str:
    return fields[name].decode("latin-1")
