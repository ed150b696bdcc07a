from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from des.errors import SettingsError
from des.settings import Settings
from des.storage.marked_document import MAX_BYTES, ProblemsError
from des.storage.zones_config import PlaceConfig, ZoneConfig, ZonesConfig, load_zones
from tests.storage.zones_files import TWO_ZONES, written

if TYPE_CHECKING:
    from pathlib import Path


def problems(path: Path) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        load_zones(path)
    assert isinstance(caught.value, SettingsError)
    found = [str(one) for one in caught.value.problems]
    assert str(caught.value).startswith(str(path))
    assert all(one in str(caught.value) for one in found), "all of them stand in the one sentence"
    return found


def zone(name: str, start: int, end: int, **more: object) -> dict[str, Any]:
    return {"name": name, "range": {"start": start, "end": end}, "s3": {"bucket": name}} | more


def whole(*zones: object, **more: object) -> dict[str, Any]:
    return {"n_bits": 8, "zones": list(zones)} | more


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (TWO_ZONES, "zones.yaml"),
        (yaml.safe_load(TWO_ZONES), "zones.json"),
        (yaml.safe_load(TWO_ZONES), "zones"),  # JSON that is indented by tabs is no YAML
        (b"\xef\xbb\xbf# made on Windows\r\n" + TWO_ZONES.replace("\n", "\r\n").encode(), "zones.yml"),
    ],
)
def test_the_example(content: str | bytes | dict[str, Any], name: str, tmp_path: Path) -> None:
    def place(letter: str) -> PlaceConfig:
        return PlaceConfig(f"des-zone-{letter}", f"des-{letter}", "us-east-1", "https://s3.example.com", None)

    path = written(tmp_path, content, name)
    assert load_zones(path) == ZonesConfig(
        path=path,
        n_bits=8,
        zones=(ZoneConfig("zone-a", 0, 127, place("a")), ZoneConfig("zone-b", 128, 255, place("b"))),
        allow_gaps=False,
        read_repair=False,
        hedge=0.05,
        place_timeout=2.0,
    )


def test_all_that_can_be_said(tmp_path: Path) -> None:
    copies = [{"bucket": "c1", "profile": "p", "region_name": None}, {"s3": {"bucket": "c2", "prefix": "/x//y/"}}]
    content = whole(
        zone("b", 100, 200, copies=copies, write_quorum="majority"),
        zone("a", 0, 50, copies=[]),
        allow_gaps=True,
        read_repair=True,
        hedge=0,
        place_timeout=5,
        write_quorum=1,
    )
    config = load_zones(written(tmp_path, content))
    assert [one.name for one in config.zones] == ["a", "b"], "in order of their ranges"
    assert [one.write_quorum for one in config.zones] == [1, "majority"]
    assert config.zones[1].copies == (PlaceConfig("c1", "", None, None, "p"), PlaceConfig("c2", "x//y"))
    assert [one.bucket for one in config.zones[1].places] == ["b", "c1", "c2"]
    assert (config.allow_gaps, config.read_repair, config.hedge, config.place_timeout) == (True, True, 0, 5)


A, B = zone("a", 0, 127), zone("b", 128, 255)
URL = "https://s3.example.com"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (whole(A, zone("b", 100, 255)), "zones[1].range: it shares 100 to 127 with zones[0].range"),
        (whole(zone("b", 3, 9), zone("a", 0, 255)), "zones[0].range: it shares 3 to 9 with zones[1].range"),
        (whole(A, zone("b", 128, 256)), "zones[1].range: 128 to 256 does not lie within 0 to 255"),
        (whole(A, zone("b", 129, 250)), "zones: no zone holds the indices 128 to 128, 251 to 255; extend"),
        (whole(zone("b", 1, 255)), "zones: no zone holds the indices 0 to 0; extend"),
        (whole(A, zone("b", 255, 128)), "zones[1].range: start 255 is after end 128; exchange them."),
        (whole(A, B | {"name": "a"}), "zones[1].name: 'a' is the name of zones[0] too; choose another."),
        (whole(A, B | {"s3": {"bucket": "a"}}), "zones[1].s3: it lies in zones[0].s3; give each place a bucket"),
        (whole(A | {"copies": [{"bucket": "a"}]}, B), "zones[0].copies[0]: it lies in zones[0].s3;"),
        (
            whole(A | {"s3": {"bucket": "x", "prefix": "p/q"}}, B | {"s3": {"bucket": "x", "prefix": "/p/"}}),
            "zones[0].s3: it lies in zones[1].s3; give each place a bucket or prefix of its own.",
        ),
        (
            whole(
                A | {"s3": {"bucket": "x", "endpoint_url": URL}},
                B | {"s3": {"bucket": "x", "endpoint_url": "https://S3.example.com:443/"}},
            ),
            "zones[1].s3: it lies in zones[0].s3;",
        ),
        (whole(A, B, hegde=1), "hegde: there is no such key; did you mean hedge?"),
        (whole(A | {"rnge": 1}, B), "zones[0].rnge: there is no such key; did you mean range?"),
        (
            whole(A | {"s3": {"bucket": "a", "region": "x"}}, B),
            "zones[0].s3.region: there is no such key; did you mean region_name?",
        ),
        (
            whole(A | {"range": {"start": 0, "end": 127, "zzz": 1}}, B),
            "zones[0].range.zzz: there is no such key; there are start, end.",
        ),
        (
            whole(A | {"copies": [{"bucket": "c", "key": 1}]}, B),
            "zones[0].copies[0].key: there is no such key; there are bucket, prefix,",
        ),
        ({"zones": [A, B]}, "n_bits: it is missing; add it."),
        ({"n_bits": 8}, "zones: it is missing; add it."),
        (whole(), "zones: it is []; it should"),
        (whole(A, B) | {"n_bits": 17}, "n_bits: it is 17; it should be less than or equal to 16."),
        (whole(A, B) | {"n_bits": "8"}, "n_bits: it is '8'; it should be a valid integer."),
        (whole(A, B) | {"n_bits": True}, "n_bits: it is True; it should be a valid integer."),
        (whole(A, 7), "zones[1]: it is 7; write keys and values here."),
        (whole(A, B | {"name": False}), "zones[1].name: it is False; write a text, in quotes."),
        (whole(A, B | {"s3": None}), "zones[1].s3: it is nothing; write keys and values here."),
        (whole(A, B | {"s3": {"bucket": ""}}), "zones[1].s3.bucket: it is ''; it is no bucket's name"),
        (whole(A, B | {"s3": {"bucket": "a/b"}}), "zones[1].s3.bucket: it is 'a/b'; it is no bucket's"),
        (
            whole(A, B | {"s3": {"bucket": "b", "endpoint_url": "s3.example.com"}}),
            "zones[1].s3.endpoint_url: it is 's3.example.com'; write it as https://host:port",
        ),
        (
            whole(A, B | {"s3": {"bucket": "b", "endpoint_url": "https://h:99999"}}),
            "zones[1].s3.endpoint_url: it is 'https://h:99999'; write it as https://host:port",
        ),
        (whole(A, B | {"copies": {"bucket": "c"}}), "zones[1].copies: it is {'bucket': 'c'}; it should"),
        (whole(A, B, write_quorum=True), "write_quorum: it is True; write all, majority or 1."),
        (whole(A, B, write_quorum=2), "write_quorum: it is 2; it should be 'all', 'majority' or 1."),
        (whole(A, B, hedge=1.5), "hedge: it is 1.5; it should be less than or equal to 1."),
        (whole(A, B, hedge=float("nan")), "hedge: it is nan; it should"),
        (whole(A, B, hedge=True), "hedge: it is True; it should be a valid number."),
        (whole(A, B, place_timeout=0), "place_timeout: it is 0; it should be greater than 0."),
        (whole(A, B, allow_gaps="yes"), "allow_gaps: it is 'yes'; it should be a valid boolean."),
    ],
)
def test_each_mistake_has_its_place_and_its_cure(content: dict[str, Any], expected: str, tmp_path: Path) -> None:
    text = yaml.safe_dump(content, sort_keys=False)
    found = problems(written(tmp_path, text))
    assert len(found) == 1, found
    problem, line = re.subn(r" \(line \d+\)", "", found[0])[0], re.findall(r"\(line (\d+)\)", found[0])
    assert problem.startswith(expected)
    assert problem.endswith((".", "?"))
    key = problem.partition(":")[0].rpartition(".")[2]
    if f"{key}:" in text:  # else it is missing, or an item of a list
        assert f"{key}:" in text.splitlines()[int(line[0]) - 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it is empty."),
        ("# nothing\n", "it is empty."),
        ("- 1", "(line 1): it is [1]; write keys and values here."),
        (TWO_ZONES + "n_bits: 9\n", "n_bits (line 9): it is there twice; remove one."),
        ("n_bits: 8\n a: [", "(line 2): it is not YAML as it should be: mapping values are not allowed here."),
        ("n_bits: 8\nzones: &a [*a]", "(line 2): anchors and aliases are not taken"),
        (
            "a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]",
            "(line 1): anchors and aliases are not taken; write the value out.",
        ),
        ("n_bits: 8\n---\nn_bits: 8", "(line 2): it is not YAML as it should be: but found another document."),
        ("a: " + "[" * 5000, "(line 1): it is nested too deeply."),
        (b"n_bits: \xff", "it is not UTF-8."),
        ("n_bits: \x00", "it cannot be understood:"),
        ("n_bits: 2024-13-13", "it cannot be understood: month must be in 1..12."),
        ("#" * (MAX_BYTES + 1), f"it is larger than {MAX_BYTES} bytes; is it the right file?"),
    ],
)
def test_what_is_no_plain_file(text: str | bytes, expected: str, tmp_path: Path) -> None:
    assert problems(written(tmp_path, text))[0].startswith(expected)


def test_tags_are_refused_and_nothing_is_made_of_them(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = TWO_ZONES.replace("n_bits: 8", f"n_bits: !!python/object/apply:pathlib.Path.touch [{mark}]")
    assert problems(written(tmp_path, text))[0].startswith("n_bits (line 1): the tag 'tag:yaml.org,2002:python/object")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"n_bits": 8,\n}', "(line 2): it is not JSON: "),
        ('{"n_bits": 8, "n_bits": 8, "zones": []}', "n_bits: it is there twice; remove one."),
        ("n_bits: 8", "(line 1): it is not JSON: "),
    ],
)
def test_json_that_is_none(text: str, expected: str, tmp_path: Path) -> None:
    assert problems(written(tmp_path, text, "zones.json"))[0].startswith(expected)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == ["it cannot be read: No such file or directory."]
    assert problems(tmp_path) == ["it cannot be read: Is a directory."]


def test_all_problems_are_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    bad = whole(A | {"range": {"start": 0, "end": 130}}, zone("a", 128, 300, s3={"buckt": "a"}), hedge=9, x=1)
    found = problems(written(tmp_path, yaml.safe_dump(bad, sort_keys=False)))
    assert [one.partition(" ")[0] for one in found] == [
        "zones[1].name",
        "zones[1].range",
        "zones[1].range",
        "zones[1].s3.bucket",
        "zones[1].s3.buckt",
        "hedge",
        "x",
    ]


def test_places_are_apart_whose_prefixes_only_begin_alike(tmp_path: Path) -> None:
    places: list[dict[str, Any]] = [
        {"bucket": "x", "prefix": "a"},
        {"bucket": "x", "prefix": "ab"},
        {"bucket": "x", "prefix": "b/a"},
        {"bucket": "y"},
        {"bucket": "x", "prefix": "a", "endpoint_url": "https://elsewhere"},
        {"bucket": "x", "prefix": "a", "endpoint_url": "http://elsewhere"},
    ]
    config = load_zones(written(tmp_path, whole(zone("a", 0, 255, s3=places[0], copies=places[1:]))))
    assert len(config.zones[0].places) == 6


def test_settings_hold_where_a_place_says_nothing() -> None:
    settings = Settings(
        backend="multi_s3",
        s3_bucket="other",
        s3_prefix="other",
        s3_region="eu",
        s3_endpoint_url="http://here:1",
        s3_profile="p",
        s3_presigned="off",
        request_timeout=7,
    )
    bare = PlaceConfig("b").s3_config(settings)
    assert (bare.address, bare.region, bare.endpoint_url, bare.profile) == ("s3://b", "eu", "http://here:1", "p")
    full = PlaceConfig("b", "x", "us", "http://there:2", "q").s3_config(settings)
    assert (full.address, full.region, full.endpoint_url, full.profile) == ("s3://b/x", "us", "http://there:2", "q")
    assert (full.presigned, full.request_timeout) == ("off", 7)


def test_places_that_only_the_settings_make_one_are_refused(tmp_path: Path) -> None:
    content = whole(zone("z", 0, 255, s3={"bucket": "x"}, copies=[{"bucket": "x", "endpoint_url": "http://here:80"}]))
    config = load_zones(written(tmp_path, content))
    config.check_apart(Settings())
    with pytest.raises(SettingsError, match=r"s3://x of zone z lies in s3://x of zone z, since DES_S3_ENDPOINT_URL"):
        config.check_apart(Settings(s3_endpoint_url="http://HERE/"))


def test_a_megabyte_of_keys_takes_no_square_of_its_time(tmp_path: Path) -> None:
    keys = {f"{number:x}": 0 for number in range(70_000)}
    path = written(tmp_path, json.dumps(whole(zone("a", 0, 255)) | {"n_bits": keys}), "zones.json")
    assert any(one.startswith("n_bits: ") for one in problems(path))


@pytest.mark.parametrize(
    "places",
    [
        {"s3": {"bucket": "b", "endpoint_url": "https://name:secret@host"}},
        {"s3": {"bucket": "name:secret@b"}},
        {"s3": "s3://name:secret@b"},
        {"copies": ["https://name:secret@host"]},
    ],
)
def test_credentials_in_a_place_are_refused_and_not_repeated(places: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, whole(zone("a", 0, 255) | places))
    assert not any("secret" in one for one in problems(path))
