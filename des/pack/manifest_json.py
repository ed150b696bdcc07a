"""Manifests in JSON: one array, or one object a line. Bytes in, pieces of rows that follow each other out: what calling a piece takes is left to others.

Rules:

1. Nothing is held but the rows being handed out: a row takes at most `MAX_ROW_BYTES`.
2. Where a line ends is known without understanding it: a bad line fails alone, as an `UnreadableRow`. A syntax error anywhere in an array spoils all
   of it, because nothing behind it can be trusted.
3. Numbers are exact: a uid or a value of `metadata` is what the manifest says, however many digits it has.
4. An escaped lone surrogate is no text that could be written as UTF-8; it stays one, and its row is refused.
5. A byte order mark before the first row is passed over.
"""

from __future__ import annotations

import codecs
import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

import orjson

from des.errors import ManifestError
from des.pack.manifest import MAX_ROW_BYTES, READ_BYTES, TOO_LONG, Piece, UnreadableRow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

# ---- JSON array ---------------------------------------------------------------------------------------------------------------------

# What stands between two values, or behind the last one. A value counts once this was seen: a number might go on otherwise.
_BETWEEN = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")
_OPENING = re.compile(r"[ \t\n\r]*\[[ \t\n\r]*(\])?")
_SPACE = " \t\n\r"
# A number, a literal or an escape that is cut short shows within so many characters of the end.
_LOOSE_END = 16
# Where the last row of a text begins is guessed, from the last of these many { that has no more space than this before it.
_GUESSES = 8
_MOST_SPACE = 256


class _ConstantError(ValueError):
    """NaN or Infinity, which Python's parser takes and JSON does not have."""


def _no_constant(name: str) -> NoReturn:
    raise _ConstantError(f"{name} is no JSON")


def _number_of_any_length(digits: str) -> int | float:
    """Return an integer; one of more digits than any field takes becomes what no field takes."""
    try:
        return int(digits)
    except ValueError:
        return float("inf")


_parse = json.JSONDecoder(parse_constant=_no_constant).raw_decode
_exact = json.JSONDecoder(parse_constant=_no_constant, parse_int=cast("Any", _number_of_any_length))


def parse_json(text: str) -> object:
    """Parse JSON whose numbers are exact.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    return _exact.decode(text)


def _value_at(text: str, position: int) -> tuple[object, int]:
    try:
        return _parse(text, position)
    except (json.JSONDecodeError, _ConstantError):
        raise
    except ValueError:  # an integer past sys.get_int_max_str_digits()
        return _exact.raw_decode(text, position)


# What orjson makes no mistake about: it takes integers past 64 bits for floats, and they may stand in any list or object, too.
_PLAIN = frozenset({str, int, bool, type(None)})


class _RowTooLongError(Exception):
    """A row of an array goes on and on."""


class _Window:
    """The part of a text that is being parsed; `position` is where."""

    def __init__(self, stream: BufferedReader) -> None:
        self.text = ""
        self.position = 0
        self._passed = 0
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._at_end = False

    def more(self) -> bool:
        """Drop what was parsed, and take in more; False where there is no more."""
        if self._at_end:
            return False
        if len(self.text) - self.position > MAX_ROW_BYTES:
            raise _RowTooLongError
        data = self._stream.read(READ_BYTES)
        self._at_end = not data
        self._passed += self.position
        self.text = self.text[self.position :] + self._decoder.decode(data, final=self._at_end)
        self.position = 0
        return True

    def complaint(self, error: Exception | None) -> str:
        """Say what is wrong here."""
        if error is None:
            why, at = "a comma or ] is missing behind a row", self.position
        elif isinstance(error, json.JSONDecodeError):
            why, at = error.msg, error.pos
        else:
            why, at = "a row is nested too deeply" if isinstance(error, RecursionError) else str(error), self.position
        return f"{why} (character {self._passed + at + 1:,})"


def _may_go_on(text: str, failure: Exception | None, end: int) -> bool:
    """Tell whether a row may only seem wrong because the text ends within it.

    Args:
        text: as far as it is known.
        failure: why its value cannot be parsed, or None.
        end: of its value, where that could be parsed.
    """
    if failure is None:
        return len(text) - end < _LOOSE_END or text[end:].isspace()
    if isinstance(failure, json.JSONDecodeError):
        return len(text) - failure.pos < _LOOSE_END or failure.msg.startswith("Unterminated string")
    return False


def json_array(stream: BufferedReader, name: str) -> Iterator[Piece]:
    """Yield the values of one JSON array, in pieces.

    Args:
        stream: the manifest, unpacked.
        name: for messages.

    Raises:
        ManifestError: it is not one JSON array to its very end.
    """
    window = _Window(stream)
    try:
        while _is_too_short_to_tell(window.text) and window.more():
            pass
        opening = _OPENING.match(window.text)
        if opening is None:
            hint = "; where it has an object a line, name it .jsonl" if window.text.lstrip(_SPACE)[:1] == "{" else ""
            raise ManifestError(f"the manifest {name} is not a JSON array of rows{hint}.")
        window.position = opening.end()
        if not opening[1]:
            yield from _json_items(window, name)
        _check_nothing_follows(window, name)
    except UnicodeDecodeError as error:
        raise ManifestError(f"the manifest {name} is not valid JSON: it is not UTF-8 ({error.reason}).") from error
    except _RowTooLongError as error:
        raise ManifestError(
            f"the manifest {name} has a row, or what should be one, that is longer than {MAX_ROW_BYTES:,} bytes."
        ) from error


def _is_too_short_to_tell(text: str) -> bool:
    """Tell whether a text is not enough to know what kind of manifest it begins, and whether it has rows."""
    beginning = text.lstrip(_SPACE)
    return not beginning or (beginning[0] == "[" and not beginning[1:].lstrip(_SPACE))


def _json_items(window: _Window, name: str) -> Iterator[Piece]:
    values: list[object] = []
    text, position, between = window.text, window.position, _BETWEEN.match
    is_new = True
    while True:
        if is_new:
            is_new = False
            end = _last_row(text, position)
            piece = _rows_within(text, position, end)
            if piece is not None:
                yield piece
                position = end
        failure: Exception | None = None
        match, end, value = None, position, None
        try:
            value, end = _value_at(text, position)
            match = between(text, end)
        except (ValueError, RecursionError) as error:
            failure = error
        if match is None:
            window.position = position
            if values:
                yield partial(list, values)
                values = []
            if not _may_go_on(text, failure, end) or not window.more():
                raise ManifestError(f"the manifest {name} is not valid JSON: {window.complaint(failure)}.") from failure
            text = window.text
            position = len(text) - len(text.lstrip(_SPACE))
            is_new = True
            continue
        values.append(value)
        position = match.end()
        if match[1] == "]":
            window.position = position
            yield partial(list, values)
            return


def _last_row(text: str, start: int) -> int:
    """Guess where the last row of a text begins, of which a row begins at `start`: `start` itself where no guess is good."""
    at = len(text)
    for _ in range(_GUESSES):
        at = text.rfind("{", start, at)
        if at <= start:
            break
        before = text[max(start, at - _MOST_SPACE) : at].rstrip(_SPACE)
        if before.endswith(",") and before[:-1].rstrip(_SPACE).endswith("}"):
            return at
    return start


def _rows_within(text: str, start: int, end: int) -> Piece | None:
    """Return the rows from one that begins at `start` to the comma before `end`; None: one by one, they may turn out to be rows or not.

    A guess of `end` proves right: JSON is read from left to right, so what is a list of values within brackets is one here, too.
    """
    if not start < end <= start + MAX_ROW_BYTES:
        return None
    rows = f"[{text[start:end].rstrip(_SPACE)[:-1]}]"
    try:
        values = orjson.loads(rows)
        if all(type(value) is dict and _PLAIN.issuperset(map(type, value.values())) for value in values):
            return partial(orjson.loads, rows)
        return partial(list, _exact.decode(rows))
    except (ValueError, RecursionError):
        return None


def _check_nothing_follows(window: _Window, name: str) -> None:
    while True:
        rest = window.text[window.position :].lstrip(_SPACE)
        if rest:
            raise ManifestError(f"the manifest {name} is not valid JSON: something follows the array.")
        window.position = len(window.text)
        if not window.more():
            return


# ---- JSON lines ---------------------------------------------------------------------------------------------------------------------


def json_lines(stream: BufferedReader, name: str) -> Iterator[Piece]:  # noqa: ARG001 - as all readers
    """Yield the value of each line that is not blank, in pieces. Arguments as for `json_array`."""
    return (partial(_values_of_lines, lines) for lines in _whole_lines(stream))


def _values_of_lines(lines: bytes) -> list[object]:
    return [_json_line(line) for line in lines.split(b"\n") if line and not line.isspace()]


def _whole_lines(stream: BufferedReader) -> Iterator[bytes]:
    """Yield many lines at once; what is longer than a row may be is cut, and so too long for one still."""
    data = stream.read(READ_BYTES).removeprefix(codecs.BOM_UTF8)
    rest = b""
    skipping = False
    while data:
        if skipping:
            _, end, data = data.partition(b"\n")
            skipping = not end
        *whole, last = data.rsplit(b"\n", 1)
        if whole:
            yield rest + whole[0]
            rest = b""
        rest += last
        if len(rest) > MAX_ROW_BYTES:
            yield rest
            rest, skipping = b"", True
        data = stream.read(READ_BYTES)
    yield rest


def _json_line(line: bytes) -> object:
    if len(line) > MAX_ROW_BYTES:
        return TOO_LONG
    try:
        value = orjson.loads(line)
        # orjson makes a float of an integer past 64 bits; only there does it matter that numbers are exact.
        if type(value) is dict and (value.get("metadata") or type(value.get("uid")) is float):
            return parse_json(line.decode())
    except (ValueError, RecursionError) as error:
        return UnreadableRow(f"the line is not valid JSON: {str(error).splitlines()[0].rstrip('.')}.")
    return value
