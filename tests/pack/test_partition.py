from __future__ import annotations

import pytest

from des.errors import SettingsError
from des.pack.partition import Partition


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/3", "0/0", "1/3/5", "a/b", " 0/3", "\u0660/3"])
def test_what_is_no_partition(text: str) -> None:
    with pytest.raises(SettingsError, match="no partition"):
        Partition.parse(text)


def test_a_partition() -> None:
    assert Partition.parse("2/3") == Partition(2, 3)


@pytest.mark.parametrize("shards", [1, 2, 256])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_shares_are_even_and_apart(shards: int, count: int) -> None:
    owners = [
        [index for index in range(count) if Partition(index, count).owns(day, shard)]
        for day in range(19_700, 19_724)
        for shard in range(shards)
    ]
    assert {len(found) for found in owners} == {1}
    sizes = [sum(found == [index] for found in owners) for index in range(count)]
    assert max(sizes) - min(sizes) <= 24 * shards // count // 10 + 1
