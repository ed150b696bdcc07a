"""Shares of a manifest: so that several machines pack one manifest together without talking to each other.

Each keeps the rows of its own shards, before they reach its plan. Whose a shard is follows from its day and index alone: on every day the
shards go round, and each day begins one further, so that days of few shards spread too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from des.errors import SettingsError

_TEXT = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Partition:
    """Share `index` (from 0) of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Partition:
        """Parse `i/N`.

        Raises:
            SettingsError: it is something else, or i is not below N.
        """
        match = _TEXT.fullmatch(text)
        if match is None or int(match[1]) >= int(match[2]):
            raise SettingsError(f"{text!r} is no partition; write 0/3, 1/3 and 2/3 for three machines.")
        return cls(int(match[1]), int(match[2]))

    def owns(self, day_number: int, shard_index: int) -> bool:
        """Tell whether a shard, by the days of its date since 1970 and its index, is of this share."""
        return (day_number + shard_index) % self.count == self.index
