"""Training zstd dictionaries, and telling what one saves. Pure; takes as long as it takes, so it belongs in a worker thread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import zstandard

from des.errors import InvalidRequestError
from des.shard.codecs import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from des.shard.codecs import Compression


def train_dictionary(samples: Sequence[bytes], size: int, level: int) -> bytes | None:
    """Train a dictionary (RFC 8878 section 5; the library's cover algorithm).

    Args:
        samples: contents like those that will be compressed; about a hundred times `size` in all serve best.
        size: bytes it may have.
        level: the compression level it will be used at.

    Returns:
        The dictionary, None where the samples are too few or too alike to make one.
    """
    try:
        return zstandard.train_dictionary(size, list(samples), level=level).as_bytes()
    except zstandard.ZstdError:
        return None


def stored_bytes(contents: Iterable[bytes], compression: Compression) -> int:
    """Return how many bytes contents take when they are stored, each by itself."""
    encoder = Encoder(compression)
    return sum(len(encoder.encode(content)[1]) for content in contents)


def check_dictionary(compression: Compression) -> None:
    """Refuse a dictionary that the library cannot use.

    Raises:
        InvalidRequestError: it is damaged.
    """
    try:
        Encoder(replace(compression, codec="zstd")).encode(b"a dictionary is loaded when it is first used" * 4)
    except zstandard.ZstdError as error:
        raise InvalidRequestError("the dictionary is damaged; train it anew with `zstd --train`.") from error
