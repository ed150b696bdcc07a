from __future__ import annotations

import io
import json

from des.pack.manifest import BadRow, RowChecker
from des.pack.plan import PlannedRow
from des.pack.report import DictionaryUse, Failure, Report, Tally
from des.storage.descriptor import Descriptor

NAMES = [
    "files", "packed", "skipped", "failed", "bytes_in", "bytes_stored", "shards", "segments", "objects_written", "seconds", "store",
    "dictionary", "dictionary_saves",
]  # fmt: skip
ROW = PlannedRow(7, b"i" * 16, "a\n😀", 0, "/sources/a", None, None, b"")


def test_failure_is_one_line_of_json() -> None:
    line = Failure.of_row(ROW, "conflict", "one\nsentence.").to_json()
    assert "\n" not in line
    assert "😀" in line
    assert json.loads(line) == {
        "row": 7,
        "uid": "a\n😀",
        "source_path": "/sources/a",
        "status": "conflict",
        "error": "one\nsentence.",
        "created_at": "1970-01-01T00:00:00+00:00",
    }
    assert list(json.loads(line))[:5] == ["row", "uid", "source_path", "status", "error"]


def test_failure_has_all_it_takes_to_pack_it_again() -> None:
    row = PlannedRow(7, b"i" * 16, "a", 1_706_702_400_000_003, "/sources/a", 5, "text/plain", b'{"b":[1,2.5]}')
    value = json.loads(Failure.of_row(row, "conflict", "a sentence.").to_json())
    again = RowChecker(Descriptor.new(1)).check_all(1, [value]).good[0]
    assert again[2:] == ("a", row.created_at, "/sources/a", 5, "text/plain", b'{"b":[1,2.5]}')


def test_failure_names_its_manifest_where_there_are_several() -> None:
    shown = io.StringIO()
    report = Report(store="", shown=shown, manifests=[(1, "first")])
    report.fail(Failure.of_bad_row(BadRow(1, None, None, "bad.")))
    report.manifests += [(3, "empty"), (3, "second"), (10, "third")]
    for number in (2, 3, 9, 10):
        report.fail(Failure.of_bad_row(BadRow(number, None, None, "bad.")))
    lines = [json.loads(line) for line in shown.getvalue().splitlines()]
    assert [line.get("manifest") for line in lines] == [None, "first", "second", "second", "third"]
    assert report.statuses == {"invalid": 5}


def test_failure_of_a_row_that_was_none() -> None:
    failure = Failure.of_bad_row(BadRow(3, None, None, "it is no object."))
    assert json.loads(failure.to_json()) == {
        "row": 3,
        "uid": None,
        "source_path": None,
        "status": "invalid",
        "error": "it is no object.",
    }


def test_a_failure_can_be_written_whatever_its_text() -> None:
    """Paths of files may hold bytes that are no UTF-8; Python keeps them as lone surrogates."""
    written = io.BytesIO()
    errors = io.TextIOWrapper(written, encoding="utf-8")
    report = Report(store="", errors=errors)
    report.fail(Failure(1, "a\ud800", "/sources/\udcff", "invalid", "no such file."))
    errors.flush()
    assert json.loads(written.getvalue())["source_path"] == "/sources/\udcff"


def test_a_failure_does_nothing_to_a_terminal() -> None:
    uid = "\x1b[2J\x9b2J\x7f\u2028\u202e\ud800 ü"
    line = Failure(1, uid, None, "invalid", "no such file.").to_json()
    assert line.isprintable()
    assert json.loads(line)["uid"] == uid
    assert "ü" in line


def test_tallies_add_up() -> None:
    first, second = Tally(1, 2, 3, 4), Tally(10, 20, 30, 40, [Failure.of_row(ROW, "invalid", "x.")])
    first.add(second)
    assert (first.packed, first.skipped, first.bytes_in, first.bytes_stored, len(first.failures)) == (11, 22, 33, 44, 1)


def test_a_report_takes_over_and_tells_at_once() -> None:
    errors, shown = io.StringIO(), io.StringIO()
    report = Report(store="place", errors=errors, shown=shown)
    failure = Failure.of_row(ROW, "invalid", "x.")
    report.take(Tally(1, 2, 3, 4, [failure]))
    report.take(Tally(1, 0, 3, 4, [failure]))
    assert (report.packed, report.skipped, report.failed, report.bytes_in, report.bytes_stored) == (2, 2, 2, 6, 8)
    assert errors.getvalue() == shown.getvalue() == f"{failure.to_json()}\n" * 2


def test_summary_has_exactly_its_keys() -> None:
    report = Report(store="s3://bucket/prefix", files=3, packed=2, skipped=1, bytes_in=10, bytes_stored=7, shards=1)
    report.segments, report.objects_written, report.seconds = 1, 2, 0.4
    value = json.loads(report.to_json())
    assert list(value) == NAMES
    assert value == {
        "files": 3,
        "packed": 2,
        "skipped": 1,
        "failed": 0,
        "bytes_in": 10,
        "bytes_stored": 7,
        "shards": 1,
        "segments": 1,
        "objects_written": 2,
        "seconds": 0.4,
        "store": "s3://bucket/prefix",
        "dictionary": "none",
        "dictionary_saves": 0,
    }
    report.dictionary = DictionaryUse("trained", 32_768, 1_234_567)
    value = json.loads(report.to_json())
    assert (value["dictionary"], value["dictionary_saves"]) == ("trained", 1_234_567)
    assert str(report.dictionary) == "trained, 32,768 bytes; saves about 1,234,567"
