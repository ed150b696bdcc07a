"""`des zones`, and where `--zones` is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.storage.zones_files import TWO_ZONES, written
from tests.test_cli import Outcome, fails, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["run"]


def test_a_good_file_is_shown(run: Callable[..., Outcome], tmp_path: Path) -> None:
    path = written(tmp_path, TWO_ZONES.replace("endpoint_url: ", "profile: p }\n    copies: [ { bucket: c } ] #", 1))
    outcome = run("zones", "check", path)
    assert (outcome.status, outcome.lines) == (
        0,
        [
            "zone-a\t0-127\tall\tprimary\ts3://des-zone-a\tAWS S3",
            "zone-a\t0-127\tall\tcopy\ts3://c\tAWS S3",
            "zone-b\t128-255\tall\tprimary\ts3://des-zone-b/des-b\thttps://s3.example.com",
        ],
    )
    answer = run("zones", "check", path, "--json").json
    assert [zone["places"][0]["place"] for zone in answer["zones"]] == ["s3://des-zone-a", "s3://des-zone-b/des-b"]
    assert (answer["n_bits"], answer["problems"]) == (8, [])


def test_a_bad_file_is_told_line_by_line(run: Callable[..., Outcome], tmp_path: Path) -> None:
    path = written(tmp_path, TWO_ZONES.replace("end: 127", "end: 128").replace("range", "rang", 1) + "x: 1\n")
    outcome = run("zones", "check", path)
    assert (outcome.status, outcome.out) == (2, b"")
    said = outcome.err.splitlines()
    assert [line.split(": ")[2] for line in said] == [
        "zones[0].range (line 3)",
        "zones[0].rang (line 4)",
        "x (line 9)",
    ]
    found = run("zones", "check", path, "--json")
    assert found.status == 2
    assert [(one["where"], one["line"]) for one in found.json["problems"]] == [
        ("zones[0].range", 3),
        ("zones[0].rang", 4),
        ("x", 9),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--zones", "F", "--store", "s", "ls"], "'s' and the zones file F are two stores; name one of them"),
        (["--zones", "F", "ls", "--store", "s"], "'s' and the zones file F are two stores; name one of them"),
        (["pack", "--zones", "F", "--output", "s", "--input", "m"], "'s' and the zones file F are two stores"),
        (["--zones", "F", "pack", "--input", "m"], "`des pack` takes no --zones before the verb"),
        (["--zones", "F", "zones", "check", "F"], "`des zones` takes no --zones before the verb"),
        (["init"], "give STORE, or --zones FILE"),
        (["init", "s", "--zones", "F"], "give STORE, or --zones FILE"),
        (["init", "--zones", "F", "--n-bits", "9", "--from", "2030-01-01"], "has one n_bits for all days"),
        (["--zones", "F", "ls"], "F: it cannot be read: No such file"),
        (["ls", "--zones", "F"], "F: it cannot be read: No such file"),
        (["serve", "--zones", "F"], "F: it cannot be read: No such file"),
        (["init", "--zones", "F"], "F: it cannot be read: No such file"),
    ],
)
def test_where_a_zones_file_is_taken(run: Callable[..., Outcome], arguments: list[str], sentence: str) -> None:
    fails(run(*arguments), 2, sentence)
