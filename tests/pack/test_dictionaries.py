from __future__ import annotations

import json
import random

import pytest

from des.errors import InvalidRequestError
from des.pack.dictionaries import Choice, Run, choose_dictionary
from des.shard.codecs import Compression
from des.shard.training import check_dictionary, stored_bytes, train_dictionary

MANY = Run(files=100_000, segments=10)


def letters(count: int, seed: int = 0) -> list[bytes]:
    """Return small contents that resemble each other: what a dictionary is for."""
    source = random.Random(seed)
    words = ["invoice", "customer", "shipping", "address", "amount", "currency", "reference", "comment"]
    return [
        json.dumps({word: source.randrange(10**6) for word in source.sample(words, 6)} | {"number": number}).encode()
        for number in range(count)
    ]


def noise(count: int) -> list[bytes]:
    return [random.Random(number).randbytes(500) for number in range(count)]


def test_one_that_pays_is_taken() -> None:
    choice = choose_dictionary(letters(400), [], Compression(), MANY)
    assert choice.dictionary is not None
    assert not choice.is_known
    assert choice.saved_share > 0.3
    unseen = letters(200, seed=1)
    assert stored_bytes(unseen, Compression(dictionary=choice.dictionary)) < stored_bytes(unseen, Compression()) * 0.8


@pytest.mark.parametrize(
    ("samples", "run"),
    [
        (letters(400), Run(files=400, segments=256)),  # costs more in the segments than it saves
        (noise(400), MANY),  # nothing in common
        (letters(5), MANY),  # too few to tell
        ([b"the same"] * 400, Run(files=400, segments=4)),
        ([b""] * 400, MANY),
        ([], MANY),
    ],
    ids=["few files a segment", "noise", "few samples", "all the same", "empty", "none"],
)
def test_one_that_does_not_pay_is_not(samples: list[bytes], run: Run) -> None:
    assert choose_dictionary(samples, [], Compression(), run) == Choice(None)


def test_one_that_the_store_has_is_reused_where_it_serves() -> None:
    known = train_dictionary(letters(2_000, seed=2), 32 << 10, 3)
    assert known is not None
    strange = train_dictionary(noise(400), 8 << 10, 3) or b"some raw content that is of no use at all" * 50
    choice = choose_dictionary(letters(400), [strange, known], Compression(), MANY)
    assert choice.dictionary == known
    assert choice.is_known
    assert choose_dictionary(letters(400), [strange], Compression(), MANY).is_known is False


def test_a_damaged_dictionary_is_refused() -> None:
    good = train_dictionary(letters(2_000), 32 << 10, 3)
    assert good is not None
    check_dictionary(Compression(dictionary=good))
    check_dictionary(Compression(dictionary=b"raw content is a dictionary too"))
    with pytest.raises(InvalidRequestError, match="damaged"):
        check_dictionary(Compression(dictionary=good[:4] + bytes(len(good) - 4)))
