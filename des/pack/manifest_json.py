"""Manifests in JSON: one array, or one object a line. Bytes in, the raw value of each row out, in lists of rows that follow each other.

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
from typing import TYPE_CHECKING, Any, NoReturn, cast

import orjson

from des.errors import ManifestError
from des.pack.manifest import MAX_ROW_BYTES, READ_BYTES, TOO_LONG, UnreadableRow

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


def json_array(stream: BufferedReader, name: str) -> Iterator[list[object]]:
    """Yield the values of one JSON array.

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


def _json_items(window: _Window, name: str) -> Iterator[list[object]]:
    values: list[object] = []
    text, position, between = window.text, window.position, _BETWEEN.match
    while True:
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
                yield values
                values = []
            if not _may_go_on(text, failure, end) or not window.more():
                raise ManifestError(f"the manifest {name} is not valid JSON: {window.complaint(failure)}.") from failure
            text = window.text
            position = len(text) - len(text.lstrip(_SPACE))
            continue
        values.append(value)
        position = match.end()
        if match[1] == "]":
            window.position = position
            yield values
            return


def _check_nothing_follows(window: _Window, name: str) -> None:
    while True:
        rest = window.text[window.position :].lstrip(_SPACE)
        if rest:
            raise ManifestError(f"the manifest {name} is not valid JSON: something follows the array.")
        window.position = len(window.text)
        if not window.more():
            return


# ---- JSON lines ---------------------------------------------------------------------------------------------------------------------


def json_lines(stream: BufferedReader, name: str) -> Iterator[list[object]]:  # noqa: ARG001 - as all readers
    """Yield the value of each line that is not blank. Arguments as for `json_array`."""
    for lines in _batches_of_lines(stream):
        yield [_json_line(line) for line in lines if line and not line.isspace()]


def _batches_of_lines(stream: BufferedReader) -> Iterator[list[bytes]]:
    """Yield lines without their ends; what is longer than a row may be is cut, and so too long for one still."""
    rest = stream.read(READ_BYTES).removeprefix(codecs.BOM_UTF8)
    skipping = False
    while data := stream.read(READ_BYTES):
        if not skipping:
            data = rest + data
        lines = data.split(b"\n")
        rest = lines.pop()
        if skipping and lines:
            del lines[0]
        skipping = skipping and not lines and b"\n" not in data
        if len(rest) > MAX_ROW_BYTES and not skipping:
            lines.append(rest)
            skipping = True
        yield lines
    if not skipping:
        yield rest.split(b"\n")


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
