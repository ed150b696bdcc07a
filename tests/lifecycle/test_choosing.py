from __future__ import annotations

import pytest

from des.lifecycle.choosing import Choice, Rules, choose, maybe_sparse, parted
from des.shard.layout import HEADER
from des.shard.tables import DictionaryPlace, HeadTables, SegmentRef

MIB = 1 << 20
RULES = Rules()


def segment(
    name: str, *, stored: int = 100 * MIB, entries: int = 1000, size: int | None = None, dictionary: bytes | None = None
) -> SegmentRef:
    place = DictionaryPlace(HEADER.size, 1_000, dictionary) if dictionary else None
    return SegmentRef(name.encode().ljust(16), stored + 5_000 if size is None else size, 0, entries, stored, place)


def chosen(refs: list[SegmentRef], rules: Rules = RULES, garbage: dict[str, int] | None = None) -> list[str]:
    """Choose among segments of which some have so many bytes of garbage."""
    tables = HeadTables(1, bytes(16), segments=tuple(refs))
    ends = {}
    for ref in maybe_sparse(tables, rules):
        dictionary = ref.dictionary.length if ref.dictionary else 0
        extra = (garbage or {}).get(ref.name.decode().strip(), 0)
        ends[ref.name] = HEADER.size + dictionary + ref.stored_bytes + extra
    return [name.decode().strip() for name in choose(tables, rules, ends).names]


def test_nothing_is_worth_it() -> None:
    assert chosen([]) == []
    assert chosen([segment("a"), segment("b")]) == []
    assert choose(HeadTables(1, bytes(16)), RULES, {}) == Choice()


def test_empty_ones() -> None:
    assert chosen([segment("a", entries=0, stored=0), segment("b")]) == ["a"]


@pytest.mark.parametrize(("garbage", "names"), [(29, []), (31, ["a"])])
def test_sparse_ones(garbage: int, names: list[str]) -> None:
    refs = [segment("a", stored=100 * MIB - garbage * MIB, size=100 * MIB), segment("b")]
    assert chosen(refs, garbage={"a": garbage * MIB}) == names


def test_a_large_catalog_is_no_garbage() -> None:
    refs = [segment("a", stored=MIB, size=100 * MIB)]
    assert maybe_sparse(HeadTables(1, bytes(16), segments=tuple(refs)), RULES) == refs
    assert chosen(refs) == []


def test_small_ones_are_joined_when_there_are_several() -> None:
    small = [segment(name, stored=MIB) for name in "abc"]
    assert chosen([*small, segment("big")]) == []
    assert chosen([*small, segment("big"), segment("d", stored=MIB)]) == ["a", "b", "c", "d"]
    assert chosen(small, Rules(small_segments=2)) == ["a", "b", "c"]


def test_many_files_are_not_small() -> None:
    assert chosen([segment(name, stored=MIB, entries=10_000) for name in "abcdef"]) == []


def test_what_cannot_be_joined_is_left_alone() -> None:
    refs = [segment(name, stored=MIB, dictionary=name.encode() * 16) for name in "abcdef"]
    assert chosen(refs) == []
    same = [segment(name, stored=MIB, dictionary=b"x" * 16) for name in "ghij"]
    assert chosen([*refs, *same]) == ["g", "h", "i", "j"]


def test_those_without_a_dictionary_go_with_the_only_one() -> None:
    plain, one, two = segment("a"), segment("b", dictionary=b"x" * 16), segment("c", dictionary=b"y" * 16)
    assert parted([plain, one]) == [[plain, one]]
    assert parted([plain, one, two]) == [[plain], [one], [two]]


def test_the_reason_says_why() -> None:
    refs = (segment("a", entries=0, stored=0), *(segment(name, stored=MIB) for name in "bcde"), segment("f"))
    choice = choose(HeadTables(1, bytes(16), segments=refs), RULES, {})
    assert choice.reason == "1 empty, 4 small of 6 segments"
    assert (choice.live_bytes, choice.garbage_bytes) == (4 * MIB, refs[0].size)
