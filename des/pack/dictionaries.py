"""Choosing a dictionary for a run: is there one that pays?

A dictionary of a few dozen KiB makes small files that resemble each other much smaller. But it lies in every segment that uses it, so for few files a shard it
costs more than it saves. So: take a sample of the run's small files, train dictionaries of several sizes on most of it, and try them on the rest that they
have not seen. What they save there, taken over the whole run, less their own size in each segment, decides. A dictionary that the store has already
competes as well, and is preferred where it is nearly as good: readers keep each distinct one in memory once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from des.shard.codecs import DEFAULT_ZSTD_LEVEL
from des.shard.training import stored_bytes, train_dictionary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.shard.codecs import Compression

# Training takes about half a second of CPU a MiB, and twice as many gave no better one.
SAMPLE_FILES = 2_000
SAMPLE_BYTES = 8 << 20
# Above this a file's own content is dictionary enough.
MAX_SAMPLED_BYTES = 128 << 10
SIZES = (8 << 10, 32 << 10, 112 << 10)
_HELD_BACK_EVERY = 4
_LEAST_SAMPLES = 32
# One that the store has already is taken if it saves at least this share of what a new one would.
_GOOD_ENOUGH = 0.95


@dataclass(frozen=True, slots=True)
class Run:
    """What a dictionary would be used for.

    Attributes:
        files: how many, of those that may be sampled.
        segments: how many segments will hold a copy of it.
    """

    files: int
    segments: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome.

    Attributes:
        dictionary: None where none pays.
        is_known: it is one that the store has already.
        saved_share: of the bytes stored without one, as far as the held-back samples tell, its own size not counted; 0 without one.
        saved_bytes: over the whole run, its own size in each segment counted.
    """

    dictionary: bytes | None
    is_known: bool = False
    saved_share: float = 0.0
    saved_bytes: int = 0


def choose_dictionary(samples: Sequence[bytes], known: Sequence[bytes], compression: Compression, run: Run) -> Choice:
    """Find the dictionary that saves most over a run, or none. Takes seconds: for a worker thread.

    Args:
        samples: contents of small files of the run, in an order that has nothing to do with their content.
        known: dictionaries that the store has already.
        compression: of the run, without dictionary.
        run: see there.
    """
    held_back = samples[::_HELD_BACK_EVERY]
    training = [sample for number, sample in enumerate(samples) if number % _HELD_BACK_EVERY]
    if len(samples) < _LEAST_SAMPLES:
        return Choice(None)
    level = compression.level or DEFAULT_ZSTD_LEVEL
    plain = stored_bytes(held_back, compression)

    def judged(dictionary: bytes, *, is_known: bool) -> Choice:
        saved = plain - stored_bytes(held_back, replace(compression, dictionary=dictionary))
        over_all = int(saved / len(held_back) * run.files) - len(dictionary) * run.segments
        return Choice(dictionary, is_known, saved / plain if plain else 0.0, over_all)

    trained = (train_dictionary(training, size, level) for size in SIZES)
    fresh = [judged(dictionary, is_known=False) for dictionary in trained if dictionary]
    old = [judged(dictionary, is_known=True) for dictionary in dict.fromkeys(known)]
    best = max([Choice(None), *fresh], key=lambda choice: choice.saved_bytes)
    best_old = max([Choice(None), *old], key=lambda choice: choice.saved_bytes)
    if best_old.saved_bytes > 0 and best_old.saved_bytes >= best.saved_bytes * _GOOD_ENOUGH:
        return best_old
    return best
