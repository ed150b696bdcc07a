"""What a batch asks for: `[{"uid": …, "created_at": …}, …]`. Pure.

A list that is not of this shape is refused as a whole, and the sentence names the item. An item of the right shape whose
uid or time cannot be (too long, without a zone) fails alone, as any other that cannot be had.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus

from des.errors import InvalidRequestError
from des.http.problems import Problem, RefusedError

# Of a request, for each item it may have: the longest uid, every character of it escaped, and a time.
BYTES_AN_ITEM = 4096
# Of values in the JSON, for each item: two are needed. Empty lists take thirty times their length in memory, so what has more is never parsed.
VALUES_AN_ITEM = 16

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class BatchItem:
    """A file that a batch asks for, as the client wrote it."""

    index: int
    uid: str | int
    created_at: str


def parse_batch(content: bytes, max_items: int) -> list[BatchItem]:
    """Read the content of a request.

    Args:
        content: JSON in UTF-8.
        max_items: how many items it may have.

    Raises:
        InvalidRequestError: it is not a list of such items.
        RefusedError: it has too many items, or values in them.
    """
    try:
        text = content.decode("utf-8-sig")
        _check_values(text, VALUES_AN_ITEM * max_items)
        batch = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the content is no JSON in UTF-8: {_reason(error)}.") from error
    if not isinstance(batch, list):
        raise InvalidRequestError('the content is no JSON array; send [{"uid": …, "created_at": …}, …].')
    if len(batch) > max_items:
        detail = f"The batch has {len(batch)} items, but may have {max_items}; send it in parts."
        raise RefusedError(Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail))
    return [_item(index, value) for index, value in enumerate(batch)]


def _check_values(text: str, limit: int) -> None:
    """Refuse JSON of more values than a batch can have, before they are made."""
    # Each value but the first of its list or object stands behind a comma, and the first behind a bracket.
    outside = _STRING.sub("", text)
    if sum(map(outside.count, ",[{")) > limit:
        detail = (
            f"The batch has more than {limit} values, {VALUES_AN_ITEM} for each item it may have; send it in parts."
        )
        raise RefusedError(Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail))


def _item(index: int, value: object) -> BatchItem:
    if not isinstance(value, dict):
        raise InvalidRequestError(f'item {index} is no object; send {{"uid": …, "created_at": …}}.')
    for name in ("uid", "created_at"):
        if name not in value:
            raise InvalidRequestError(f"item {index} has no {name}.")
    uid, created_at = value["uid"], value["created_at"]
    if isinstance(uid, bool) or not isinstance(uid, str | int):
        raise InvalidRequestError(f"the uid of item {index} is neither a string nor an integer.")
    if not isinstance(created_at, str):
        raise InvalidRequestError(f"the created_at of item {index} is no string; write 2024-01-31T12:00:00Z or a date.")
    return BatchItem(index, uid, created_at)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a byte or a number in it is impossible"
