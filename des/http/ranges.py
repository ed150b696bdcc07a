"""Range requests: RFC 9110 section 14. Pure: a header value and a size in, what to send out.

- One satisfiable byte range: that part (206).
- Several ranges: the whole file (200); a server may ignore them, section 14.2.
- Another unit, a range that ends before it begins (`9-3`), anything else the grammar does not know: ignored, the whole file.
- One range that is not satisfiable: 416 with `Content-Range: bytes */size`.
- A suffix of more bytes than there are is the whole file as 206. Of an empty file no byte range is satisfiable, except a
  suffix: that is the whole (empty) file as 200, as no Content-Range can name zero bytes.

Positions may have any number of digits; none is ever converted that cannot lie within a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE_SPEC = re.compile(rb"([0-9]*)-([0-9]*)")
_MAX_DIGITS = 18
_BEYOND = 10**_MAX_DIGITS


@dataclass(frozen=True, slots=True)
class Slice:
    """The bytes `[start, end)` of the file, at least one."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """No byte of the file lies in the range."""


def select_range(value: bytes, size: int) -> Slice | Unsatisfiable | None:
    """Read a Range field.

    Args:
        value: the field's value.
        size: bytes of the whole file.

    Returns:
        The part to send, `Unsatisfiable`, or None for the whole file.
    """
    unit, equals, ranges = value.partition(b"=")
    if not equals or unit.lower() != b"bytes" or ranges[:1] in (b" ", b"\t"):
        return None
    specs = [spec for spec in (element.strip(b" \t") for element in ranges.split(b",")) if spec]
    match = _RANGE_SPEC.fullmatch(specs[0]) if len(specs) == 1 else None
    if match is None or match[0] == b"-":
        return None
    first, last = match[1], match[2]
    if not first:
        return _suffix(_position(last), size)
    if last and _is_less(last, first):
        return None
    start = _position(first)
    if start >= size:
        return Unsatisfiable()
    return Slice(start, min(_position(last) + 1, size) if last else size)


def _suffix(length: int, size: int) -> Slice | Unsatisfiable | None:
    if length == 0:
        return Unsatisfiable()
    return Slice(max(0, size - length), size) if size else None


def _position(digits: bytes) -> int:
    significant = digits.lstrip(b"0") or b"0"
    return int(significant) if len(significant) <= _MAX_DIGITS else _BEYOND


def _is_less(left: bytes, right: bytes) -> bool:
    left, right = left.lstrip(b"0"), right.lstrip(b"0")
    return (len(left), left) < (len(right), right)
