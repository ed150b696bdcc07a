from __future__ import annotations

from dataclasses import replace

import pytest

from des.pack.decisions import Candidate, OnConflict, Verdict, candidate_of, decide
from des.shard.layout import Codec, Entry, Flag
from des.shard.tables import HeadTables

ID, HASH, OTHER_HASH = bytes(range(16)), b"h" * 16, b"o" * 16
TABLES = HeadTables(generation=3, lineage=b"l" * 16, content_types=("text/plain", "text/html"))
ENTRY = Entry(ID, HASH, 1, 0, 1, Codec.ZSTD, 0, 42, 50, 100, 43_200)
TOMBSTONE = Entry(ID, HASH, 0, 0, 0, Codec.NONE, Flag.DELETED, 0, 0, 0, 43_200)
SAME = Candidate(HASH, 100, "text/plain", 43_200)
DIFFERENT = {
    "content": replace(SAME, content_hash=OTHER_HASH),
    "size": replace(SAME, raw_size=101),
    "content type": replace(SAME, content_type="text/html"),
    "no content type": replace(SAME, content_type=None),
    "second": replace(SAME, second=43_201),
}
MODES: tuple[OnConflict, ...] = ("error", "skip", "replace")
OF_A_CONFLICT = {"error": Verdict.CONFLICT, "skip": Verdict.KEPT, "replace": Verdict.REPLACE}
OF_A_TOMBSTONE = {"error": Verdict.DELETED, "skip": Verdict.KEPT, "replace": Verdict.REPLACE}


def test_candidate_of_an_entry() -> None:
    assert candidate_of(ENTRY, TABLES) == SAME
    assert candidate_of(ENTRY._replace(content_type=2), TABLES) == DIFFERENT["content type"]
    assert candidate_of(ENTRY._replace(content_type=0), TABLES) == DIFFERENT["no content type"]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_there_is_packed(mode: OnConflict) -> None:
    assert decide(SAME, None, TABLES, mode) is Verdict.PACK


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flags", [0, Flag.REPLACED])
def test_the_same_is_there_already(mode: OnConflict, flags: int) -> None:
    assert decide(SAME, ENTRY._replace(flags=flags), TABLES, mode) is Verdict.SAME


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", DIFFERENT)
def test_anything_else_follows_on_conflict(mode: OnConflict, what: str) -> None:
    assert decide(DIFFERENT[what], ENTRY, TABLES, mode) is OF_A_CONFLICT[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("candidate", [SAME, *DIFFERENT.values(), Candidate(HASH, 0, None, 43_200)])
def test_a_tombstone_wins_unless_replacing(mode: OnConflict, candidate: Candidate) -> None:
    assert decide(candidate, TOMBSTONE, TABLES, mode) is OF_A_TOMBSTONE[mode]
