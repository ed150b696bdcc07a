from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.store.archive import END, member_header, member_name, padding, path_name, report_end, report_line

UIDS = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=0x20), min_size=1, max_size=300)


def read_member(archive: bytes) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        member = tar.next()
    assert member
    return member


@given(uid=UIDS, index=st.integers(0, 999_999), content=st.binary(max_size=2000))
def test_any_uid_comes_back_exactly(uid: str, index: int, content: bytes) -> None:
    name = member_name(index, uid)
    assert len(name) <= 107
    assert name.isascii()
    assert "/" not in name
    header = member_header(name, len(content), 1_706_659_200, uid)
    archive = header + content + padding(len(content)) + END
    assert len(archive) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        [member] = tar.getmembers()
        assert (member.name, member.mtime, member.mode) == (name, 1_706_659_200, 0o644)
        assert member.pax_headers["DES.uid"] == uid
        opened = tar.extractfile(member)
        assert opened
        assert opened.read() == content


@pytest.mark.parametrize("size", [0, 1, 511, 512, 8 << 30, 1 << 40])
def test_sizes_up_to_the_largest_file(size: int) -> None:
    member = read_member(member_header("name", size, -5, "uid"))
    assert (member.size, member.mtime) == (size, -5)
    assert (size + len(padding(size))) % 512 == 0


@pytest.mark.parametrize("uid", ["a", "mail/2024/0001.eml", "ünï/çode .txt", "...", "-rf", "a" * 255])
def test_a_safe_path_is_its_own_name(uid: str) -> None:
    assert path_name(7, uid) == uid


@pytest.mark.parametrize("uid", ["/a", "a/", "a//b", "../a", "a/../b", "./a", "a/.", "a\\..\\b", "a" * 256])
def test_others_are_made_safe(uid: str) -> None:
    assert path_name(7, uid) == member_name(7, uid)


def test_the_report_is_one_line_an_item() -> None:
    good = report_line(0, "a\nb\ud800", "2024-01-31", "ok", "000000-a_b_", 7, None)
    bad = report_line(1, 17, "x", "invalid", None, None, "why")
    lines = [json.loads(line) for line in (good + bad + report_end(2)).splitlines()]
    assert [list(line) for line in lines] == [
        ["index", "uid", "created_at", "status", "member", "size"],
        ["index", "uid", "created_at", "status", "member", "size", "error"],
        ["end", "items"],
    ]
    assert lines[0]["uid"] == "a\nb\ud800"
    assert lines[1]["uid"] == 17
