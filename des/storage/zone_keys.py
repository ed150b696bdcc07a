"""What a key of a store in zones is, and which shard it belongs to: `des.json`, `YYYYMMDD/HH.des`, `YYYYMMDD/HH/<32 hex>.des`."""

from __future__ import annotations

import re

from des.routing import is_day, shard_hex

_SHARD = re.compile(r"(\d{8})/([0-9A-F]{1,4})(\.des|/.*)?", re.ASCII | re.DOTALL)


def is_head(key: str) -> bool:
    """Tell whether a key is a head's."""
    return key.endswith(".des") and key.count("/") == 1


def index_of(key: str, n_bits: int) -> int | None:
    """Return the index of the shard that a key, or the prefix of a listing, belongs to; None: it is no single shard's."""
    match = _SHARD.fullmatch(key)
    if match is None or match.group(3) is None or not is_day(match.group(1)):
        return None
    index = int(match.group(2), 16)
    return index if index < 1 << n_bits and shard_hex(index, n_bits) == match.group(2) else None
