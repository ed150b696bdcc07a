from __future__ import annotations

import json
import logging
import os
import pty
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from des import FileInfo, __version__, locate_shard, open_store
from des.cli import des
from des.cli.costs import cold_read, warm_read
from des.cli.presenting import human_size
from des.console import status_of
from des.routing import file_id
from des.settings import Settings
from des.shard.codecs import Compression
from des.storage.local import LocalStorage
from des.storage.testing import RecordingStorage
from des.store import Store
from tests.making import DAY, File, Maker, make_store
from tests.shard.forging import forged_footer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


MIB = 1 << 20
WORDS = b"the quick brown fox jumps over the lazy dog and looks back at it; "
BIG = random.Random(1).randbytes(3 * MIB + 17)

STRANGE = [
    "plain.txt", "a/b/c", "/leading", "trailing/", "a//b", "../up", "two words", "50%", "a+b", "what?", "a#b", "🦉/ü", "12345", "-o", "--help",
    "--", "-", "'quoted\"", "$HOME", "*",
]  # fmt: skip
FILES: dict[str, bytes | File] = {uid: b"content of " + uid.encode() for uid in STRANGE}
FILES |= {
    "big": BIG,
    "empty": b"",
    "page.html": File(WORDS * 9, "text/html", {"k": ["v", 1]}, timedelta(hours=13, seconds=5)),
    "gone": b"?",
}
CONTENTS = {uid: file.content if isinstance(file, File) else file for uid, file in FILES.items() if uid != "gone"}


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def json(self) -> Any:  # noqa: ANN401 - JSON
        return json.loads(self.out)


@pytest.fixture
def run(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Outcome]]:
    """Run a command line in this process, in a directory of its own, and give the log back as it was."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(*arguments: str | Path) -> Outcome:
        status = status_of(des, [str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        assert b"Traceback" not in err
        return Outcome(status, out, err.decode())

    yield call
    root.handlers = handlers
    root.setLevel(level)


async def build(base_dir: Path) -> Maker:
    maker = await make_store(LocalStorage(base_dir), FILES, n_bits=2)
    await maker.delete(["gone"])
    return maker


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base_dir = tmp_path_factory.mktemp("built") / "store"
    anyio.run(build, base_dir)
    return base_dir


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A store of one's own: a copy, which takes no waiting for a disk."""
    return shutil.copytree(built, tmp_path / "store")


def fails(outcome: Outcome, status: int, sentence: str) -> None:
    """Check that a command failed with one line on stderr, nothing on stdout, and a status."""
    assert (outcome.status, outcome.out) == (status, b"")
    assert outcome.err.startswith("des: error: ")
    assert outcome.err.count("\n") == 1
    assert re.search(sentence, outcome.err)


def segment_of(base_dir: Path, uid: str) -> tuple[Path, int]:
    """Return the segment that holds a file, and where its content begins in it."""

    async def find() -> tuple[Path, int]:
        async with open_store(base_dir) as opened:
            info = await opened.stat(uid, DAY_TEXT)
            return base_dir / info.segment, info.offset

    return anyio.run(find)


DAY_TEXT = "2024-01-31"
AT = ("--created-at", DAY_TEXT)


def flip(path: Path, at: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


# ---- the whole --------------------------------------------------------------------------------------------------------------


def test_help_and_version(run: Callable[..., Outcome]) -> None:
    outcome = run("--help")
    assert outcome.status == 0
    for verb in ("init", "pack", "get", "stat", "ls", "locate", "verify", "serve"):
        assert re.search(rf"^  {verb} +\w", outcome.text, re.MULTILINE)
        of_verb = run(verb, "-h")
        assert of_verb.status == 0, of_verb.err
        assert not of_verb.err
    assert run("--version").text == f"des, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gett"], "No such command 'gett'"),
        (["get", "a"], "Missing option '--created-at'"),
        (["get", *AT], "Missing argument 'UID'"),
        (["get", "a", "b", *AT], "unexpected extra argument"),
        (["stat", "a", *AT, "--frob"], "No such option '--frob'"),
        (["serve", "--port", "http"], "'http' is not a valid integer"),
        (["serve", "--workers", "0"], "0 is not in the range"),
        (["init", "x", "--n-bits", "17"], "17 is not in the range"),
        (["verify", "--sample", "2"], r"2\.0 is not in the range"),
        (["verify", "20240131", "--since", "20240131"], "give days or --since, not both"),
        (["ls", "--limit", "3"], "--limit and --after go with a DATE"),
        (["--store", "x", "pack"], "`des pack` takes no --store"),
        (["--store", "x", "locate", "a", *AT], "`des locate` takes no --store"),
        (["--store", "x", "init", "y"], "`des init` takes no --store"),
        (["get", "a", "--created-at", "2024-01-31T12:00:00"], "has no time zone"),
        (["get", "a", "--created-at", "2024-02-31"], "not a possible date"),
        (["get", "", *AT], "the uid has 0 bytes"),
        (["get", "a\nb", *AT], r"control character U\+000A"),
        (["get", "x" * 1025, *AT], "the uid has 1025 bytes"),
        (["get", "\udcff", *AT], "lone surrogate"),
        (["ls", "yesterday"], "'yesterday' is not a day"),
        (["ls", "20240131", "--after", "zz"], "is no cursor"),
        (["--store", "http://x/y", "ls"], "is no store"),
        (["--store", "", "ls"], "address is empty"),
    ],
)
def test_a_wrong_call(
    run: Callable[..., Outcome], store: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.setenv("DES_BASE_DIR", str(store))
    fails(run(*arguments), 2, sentence)


def test_the_store_may_be_named_before_or_after_the_verb_or_by_the_settings(
    run: Callable[..., Outcome], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = CONTENTS["a/b/c"]
    assert run("--store", store, "get", "a/b/c", *AT).out == content
    assert run("get", "a/b/c", *AT, "--store", store).out == content
    assert run("get", "--store", store, "a/b/c", *AT).out == content
    assert run("--store", tmp_path / "elsewhere", "get", "a/b/c", *AT, "--store", store).out == content
    monkeypatch.setenv("DES_BASE_DIR", str(store))
    assert run("get", "a/b/c", *AT).out == content
    fails(run("--store", tmp_path / "elsewhere", "get", "a/b/c", *AT), 2, "there is no store at .*elsewhere")


@pytest.mark.parametrize("verb", [["get", "a", *AT], ["stat", "a", *AT], ["ls"], ["ls", "20240131"], ["verify"]])
def test_where_there_is_no_store(run: Callable[..., Outcome], tmp_path: Path, verb: list[str]) -> None:
    fails(run("--store", tmp_path / "none", *verb), 2, r"there is no store at .*none \(no des\.json\)")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("DES_N_BITS", "8", "n_bits is configured as 8, but the store has 2"),
        ("DES_N_BITS", "many", "DES_N_BITS is 'many'"),
        ("DES_CACHE_BYTES", "-1", "DES_CACHE_BYTES is"),
        ("DES_BACKEND", "ftp", "DES_BACKEND is 'ftp'"),
        ("DES_LOG_LEVEL", "loud", "DES_LOG_LEVEL is 'loud'"),
    ],
)
def test_a_wrong_setting(
    run: Callable[..., Outcome], store: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    fails(run("--store", store, "get", "a/b/c", *AT), 2, sentence)


def test_a_newer_format_is_a_clear_error(run: Callable[..., Outcome], store: Path) -> None:
    head = store / locate_shard("a/b/c", DAY_TEXT, 2).object_key
    head.write_bytes(forged_footer(head.read_bytes(), incompat=1))
    for verb in (["get", "a/b/c", *AT], ["stat", "a/b/c", *AT], ["verify"]):
        fails(run("--store", store, *verb), 2, "upgrade DES")


def test_damage_is_a_bad_answer(run: Callable[..., Outcome], store: Path) -> None:
    path, at = segment_of(store, "a/b/c")
    flip(path, at)
    fails(run("--store", store, "get", "a/b/c", *AT), 1, r"the payload of 'a/b/c' is damaged")
    path.unlink()
    fails(run("--store", store, "get", "a/b/c", *AT), 1, "points at .* that is gone")


def test_a_storage_that_is_unwell_is_no_missing_file(run: Callable[..., Outcome], store: Path) -> None:
    head = store / locate_shard("a/b/c", DAY_TEXT, 2).object_key
    head.unlink()
    head.symlink_to(head)  # too many levels of symbolic links, for root too
    for verb in (["get", "a/b/c", *AT], ["stat", "a/b/c", *AT], ["verify"]):
        fails(run("--store", store, *verb), 3, "Cannot (read|list) .*symbolic links")


# ---- get --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", sorted(CONTENTS))
def test_get_writes_the_content_of_any_uid(run: Callable[..., Outcome], store: Path, uid: str) -> None:
    assert run("--store", store, "get", *AT, "--", uid) == Outcome(0, CONTENTS[uid], "")


def test_get_finds_by_any_time_of_the_day(run: Callable[..., Outcome], store: Path) -> None:
    for instant in ("2024-01-31T23:59:59Z", "2024-02-01T00:30:00+01:00", "2024-01-31"):
        assert run("--store", store, "get", "a/b/c", "--created-at", instant).status == 0
    fails(
        run("--store", store, "get", "a/b/c", "--created-at", "2024-02-01"), 1, "there is no file 'a/b/c' on 20240201"
    )


def test_get_says_what_is_not_there_and_what_was_deleted(run: Callable[..., Outcome], store: Path) -> None:
    fails(run("--store", store, "get", "nix", *AT), 1, "there is no file 'nix' on 20240131")
    fails(run("--store", store, "get", "gone", *AT), 1, "the file 'gone' of 20240131 was deleted")


@pytest.mark.parametrize("uid", ["a/b/c", "big", "empty"])
def test_get_to_a_file(run: Callable[..., Outcome], store: Path, tmp_path: Path, uid: str) -> None:
    target = tmp_path / "out" / "file"
    target.parent.mkdir()
    assert run("--store", store, "get", uid, *AT, "-o", target) == Outcome(0, b"", "")
    assert target.read_bytes() == CONTENTS[uid]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    target.write_bytes(b"what was there before")
    assert run("--store", store, "get", uid, *AT, "--output", target).status == 0
    assert target.read_bytes() == CONTENTS[uid]
    assert list(target.parent.iterdir()) == [target]


def test_get_to_stdout_by_name(run: Callable[..., Outcome], store: Path) -> None:
    assert run("--store", store, "get", "a/b/c", *AT, "-o", "-").out == CONTENTS["a/b/c"]


def test_a_failed_get_leaves_the_old_file_and_nothing_else(
    run: Callable[..., Outcome], store: Path, tmp_path: Path
) -> None:
    path, at = segment_of(store, "big")
    flip(path, at + 2 * MIB)  # the beginning is good
    target = tmp_path / "out" / "file"
    target.parent.mkdir()
    fails(run("--store", store, "get", "big", *AT, "-o", target), 1, "chunk 8 of a payload is damaged")
    assert list(target.parent.iterdir()) == []
    target.write_bytes(b"old")
    fails(run("--store", store, "get", "big", *AT, "-o", target), 1, "damaged")
    fails(run("--store", store, "get", "nix", *AT, "-o", target), 1, "no file")
    assert list(target.parent.iterdir()) == [target]
    assert target.read_bytes() == b"old"


def test_get_to_where_no_file_can_be(run: Callable[..., Outcome], store: Path, tmp_path: Path) -> None:
    fails(run("--store", store, "get", "big", *AT, "-o", tmp_path), 2, "is a directory")
    fails(run("--store", store, "get", "big", *AT, "-o", tmp_path / "no" / "f"), 2, "cannot write .*: No such file")
    fails(run("--store", store, "get", "big", *AT, "-o", "x" * 300), 2, "cannot write x*: File name too long")
    fails(run("--store", store, "get", "big", *AT, "-o", "/dev/full"), 3, "cannot write /dev/full: No space left")


def test_get_through_a_link_and_into_a_device_leaves_them_what_they_are(
    run: Callable[..., Outcome], store: Path, tmp_path: Path
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    assert run("--store", store, "get", "a/b/c", *AT, "-o", link).status == 0
    assert link.is_symlink()
    assert target.read_bytes() == CONTENTS["a/b/c"]
    assert run("--store", store, "get", "a/b/c", *AT, "-o", "/dev/null").status == 0
    assert Path("/dev/null").is_char_device()


# ---- stat -------------------------------------------------------------------------------------------------------------------


def test_stat_json_has_the_fields_of_file_info(run: Callable[..., Outcome], store: Path) -> None:
    answer = run("--store", store, "stat", "page.html", *AT, "--json").json
    assert list(answer) == [field.name for field in fields(FileInfo)]
    assert answer["uid"] == "page.html"
    assert answer["created_at"] == "2024-01-31T13:00:05Z"
    assert answer["raw_size"] == len(CONTENTS["page.html"])
    assert answer["metadata"] == {"k": ["v", 1]}
    assert answer["content_type"] == "text/html"
    assert answer["shard"] == locate_shard("page.html", DAY_TEXT, 2).object_key
    assert answer["etag"] == f'"{answer["content_hash"]}"'


def test_stat_explains(run: Callable[..., Outcome], store: Path) -> None:
    outcome = run("--store", store, "stat", "page.html", *AT)
    location = locate_shard("page.html", DAY_TEXT, 2)
    lines = dict(re.findall(r"^ *(\w+) +(.*)$", outcome.text, re.MULTILINE))
    assert outcome.status == 0
    assert lines["file_id"].startswith(file_id("page.html").hex())
    assert lines["shard_index"] == f"{location.shard_index} = {location.shard_hex} (its first 2 bits)"
    assert lines["shard"].startswith(location.object_key)
    assert lines["raw_size"] == "594 bytes"
    assert lines["codec"] == "zstd"
    assert lines["cold"].startswith("2 requests, ")
    assert lines["warm"].startswith("1 request, ")


def test_stat_of_what_is_not_there(run: Callable[..., Outcome], store: Path) -> None:
    fails(run("--store", store, "stat", "nix", *AT), 1, "there is no file 'nix'")
    fails(run("--store", store, "stat", "gone", *AT, "--json"), 1, "was deleted")


async def measured(base_dir: Path, uid: str) -> None:
    """Check the costs that `des stat` names against those of real reads."""
    storage = RecordingStorage(LocalStorage(base_dir))
    async with anyio.create_task_group() as tasks:
        opened = Store(storage, Settings(), tasks)
        await opened.check()
        for costs in (cold_read, warm_read):
            found = await Store(LocalStorage(base_dir), Settings(), tasks).find(uid, DAY_TEXT)
            storage.calls.clear()
            async with opened.stream(uid, DAY_TEXT) as pieces:
                assert sum([len(piece) async for piece in pieces]) == found.entry.raw_size
            assert spent(storage) == said(costs(found))
        tasks.cancel_scope.cancel()


def spent(storage: RecordingStorage) -> dict[str, tuple[int, int]]:
    counted = {}
    for kind in ("footer", "index", "payload"):
        calls = storage.select(purpose=kind)
        requests = sum(call.verb != "piece" for call in calls)
        if requests:
            counted[kind] = requests, sum(call.size for call in calls)
    return counted


def said(costs: Any) -> dict[str, tuple[int, int]]:  # noqa: ANN401
    named: dict[str, tuple[int, int]] = {}
    for cost in costs:
        requests, size = named.get(cost.kind, (0, 0))
        if cost.requests:
            named[cost.kind] = requests + cost.requests, size + cost.bytes
    return named


@pytest.mark.parametrize("uid", ["page.html", "big", "empty", "a/b/c"])
def test_stat_names_what_reads_really_cost(store: Path, uid: str) -> None:
    anyio.run(measured, store, uid)


def test_stat_names_what_reads_in_a_shard_of_many_files_cost(tmp_path: Path) -> None:
    async def check() -> None:
        maker = await make_store(LocalStorage(tmp_path), n_bits=1)
        uids = maker.uids_of_one_shard(3_000)
        await maker.add(dict.fromkeys(uids, WORDS), compression=Compression("zstd", 3, WORDS * 4))
        for uid in (uids[0], uids[1_500]):
            await measured(tmp_path, uid)
        pages = {await page_costs(tmp_path, uid) for uid in uids[::100]}
        assert pages == {False, True}, "some pages came along, some did not"

    anyio.run(check)


async def page_costs(base_dir: Path, uid: str) -> bool:
    async with open_store(base_dir) as opened:
        return any(cost.what == "the index page" for cost in cold_read(await opened.find(uid, DAY_TEXT)))


# ---- ls ---------------------------------------------------------------------------------------------------------------------


def test_ls_lists_the_days(run: Callable[..., Outcome], store: Path) -> None:
    anyio.run(partial(add_day, store))
    assert run("--store", store, "ls").lines == ["20240131", "20240301"]
    assert [json.loads(line) for line in run("--store", store, "ls", "--json").lines] == [
        {"date": "20240131"},
        {"date": "20240301"},
    ]


async def add_day(base_dir: Path) -> None:
    maker = await make_store(LocalStorage(base_dir), n_bits=2)
    await maker.add({"x": b"y"}, day="20240301")


def test_ls_of_an_empty_store(run: Callable[..., Outcome], tmp_path: Path) -> None:
    run("init", tmp_path)
    assert run("--store", tmp_path, "ls") == Outcome(0, b"", "")
    assert run("--store", tmp_path, "ls", "20240131") == Outcome(0, b"", "")


def test_ls_lists_the_files_of_a_day(run: Callable[..., Outcome], store: Path) -> None:
    lines = run("--store", store, "ls", "2024-01-31").lines
    cells = {line.split("\t")[0]: line.split("\t")[1:] for line in lines}
    assert len(lines) == len(cells)
    assert set(cells) == set(CONTENTS)
    assert cells["page.html"][:2] == ["2024-01-31T13:00:05Z", "594"]
    assert cells["page.html"][3:] == ["zstd", "text/html"]
    assert [file_id(line.split("\t")[0]) for line in lines] == sorted(map(file_id, CONTENTS))


def test_ls_json_is_one_file_info_a_line(run: Callable[..., Outcome], store: Path) -> None:
    files = [json.loads(line) for line in run("--store", store, "ls", "20240131", "--json").lines]
    assert {file["uid"]: file["raw_size"] for file in files} == {uid: len(data) for uid, data in CONTENTS.items()}
    for file in files:
        outcome = run("--store", store, "stat", "--json", *AT, "--", file["uid"])
        assert outcome.json == file


def test_ls_goes_on_where_it_stopped(run: Callable[..., Outcome], store: Path) -> None:
    seen: list[str] = []
    after: list[str] = []
    for _ in range(99):
        outcome = run("--store", store, "ls", "20240131", "--limit", "5", *after)
        assert outcome.status == 0
        seen += [line.split("\t")[0] for line in outcome.lines]
        assert len(outcome.lines) <= 5
        cursor = re.fullmatch(r"des: there are more files; go on with --after ([0-9a-f]{32})\n", outcome.err)
        if not cursor:
            assert outcome.err == ""
            break
        after = ["--after", cursor[1]]
    assert sorted(seen) == sorted(CONTENTS)
    assert run("--store", store, "ls", "20240131", "--limit", str(len(CONTENTS))).err == ""


# ---- locate and init --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uid", "n_bits"), [("a/b", 8), ("-o", 3), ("42", 16), ("🦉", 1)])
def test_locate_is_locate_shard(run: Callable[..., Outcome], uid: str, n_bits: int) -> None:
    location = locate_shard(uid, "2024-01-31T23:30:00-01:00", n_bits)
    arguments = ("locate", "--created-at", "2024-01-31T23:30:00-01:00", "--n-bits", n_bits)
    answer = run(*arguments, "--json", "--", uid).json
    assert answer == {
        "uid": uid,
        "created_at": "2024-02-01T00:30:00Z",
        "date_dir": "20240201",
        "shard_index": location.shard_index,
        "shard_hex": location.shard_hex,
        "object_key": location.object_key,
        "file_id": file_id(uid).hex(),
        "n_bits": n_bits,
    }
    lines = dict(line.split() for line in run(*arguments, "--", uid).lines)
    names = ("file_id", "date_dir", "shard_index", "shard_hex", "object_key")
    assert lines == {name: str(answer[name]) for name in names}


def test_locate_touches_no_store(run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("locate", "a", *AT).lines[-1].split() == ["object_key", locate_shard("a", DAY_TEXT, 8).object_key]
    monkeypatch.setenv("DES_N_BITS", "5")
    assert run("locate", "a", *AT).lines[-1].split() == ["object_key", locate_shard("a", DAY_TEXT, 5).object_key]
    assert list(tmp_path.iterdir()) == []
    fails(run("locate", "a", "--created-at", "noon"), 2, "is not RFC 3339")


def test_init_makes_a_store_once(run: Callable[..., Outcome], tmp_path: Path) -> None:
    place = tmp_path / "new" / "store"
    made = run("init", place, "--n-bits", "6")
    assert made.status == 0
    store_id = json.loads((place / "des.json").read_text())["store_id"]
    assert made.text == f"Made a store at {place}: n_bits 6, store id {store_id}.\n"
    before = (place / "des.json").read_bytes()
    for again in (run("init", place), run("init", place, "--n-bits", "6")):
        assert (again.status, again.text) == (0, f"{place} is a store already: n_bits 6, store id {store_id}.\n")
    fails(run("init", place, "--n-bits", "7"), 2, "n_bits is configured as 7, but the store has 6")
    assert (place / "des.json").read_bytes() == before


def test_init_takes_n_bits_from_the_settings_or_eight(
    run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "n_bits 8," in run("init", tmp_path / "a").text
    monkeypatch.setenv("DES_N_BITS", "4")
    assert "n_bits 4," in run("init", tmp_path / "b").text


def test_init_where_no_store_may_be_made(run: Callable[..., Outcome], store: Path, tmp_path: Path) -> None:
    (store / "des.json").unlink()
    fails(run("init", store), 2, "has shards but no des.json; restore it with `des init .* --adopt`")
    (store / "des.json").write_text('{"format": "des"')
    fails(run("init", store), 2, r"des\.json is damaged")
    (store / "des.json").write_text('{"format": "des", "version": 2}')
    fails(run("init", store), 2, "format version 2; .* upgrade DES")
    (tmp_path / "file").write_text("")
    fails(run("init", tmp_path / "file" / "store"), 3, "Not a directory")


# ---- verify -----------------------------------------------------------------------------------------------------------------


def test_verify_of_a_sound_store(run: Callable[..., Outcome], store: Path) -> None:
    outcome = run("--store", store, "verify")
    lines = dict(re.split("  +", line, maxsplit=1) for line in outcome.lines)
    assert (outcome.status, outcome.err) == (0, "")
    assert lines["damage"] == "none"
    assert lines["files"] == str(len(CONTENTS))
    report = run("--store", store, "verify", "--json").json
    assert (report["files"], report["damage"], report["orphans"]) == (len(CONTENTS), [], [])
    assert report["payloads"] == len(FILES)
    assert report["days"] == 1
    assert report["sample"] == 1


def test_verify_names_damage(run: Callable[..., Outcome], store: Path) -> None:
    path, at = segment_of(store, "🦉/ü")
    key = path.relative_to(store).as_posix()
    flip(path, at)
    outcome = run("--store", store, "verify")
    assert outcome.status == 1
    assert outcome.lines[0] == f"damage     {key} uid '🦉/ü': its stored bytes are damaged."
    assert outcome.lines[-1] == "damage      1"
    outcome = run("--store", store, "verify", "--json")
    assert outcome.status == 1
    assert outcome.json["damage"] == [{"key": key, "uid": "🦉/ü", "sentence": "its stored bytes are damaged."}]


def test_verify_names_a_lost_head(run: Callable[..., Outcome], store: Path) -> None:
    head = locate_shard("a/b/c", DAY_TEXT, 2).object_key
    (store / head).unlink()
    outcome = run("verify", "--store", store)
    assert outcome.status == 1
    assert outcome.lines[0].startswith(f"damage     {head}: the head is lost; `des repair`")


def test_verify_lists_what_is_no_damage(run: Callable[..., Outcome], store: Path) -> None:
    segment, _ = segment_of(store, "a/b/c")
    orphan = segment.with_name("0" * 32 + ".des")
    orphan.write_bytes(segment.read_bytes())
    (store / DAY / "notes.txt").write_text("?")
    outcome = run("--store", store, "verify", "20240131")
    assert outcome.status == 0
    assert (
        f"orphan     {orphan.relative_to(store)}: {human_size(orphan.stat().st_size)} that no head lists."
        in outcome.text
    )
    assert f"leftover   {DAY}/notes.txt: 1 B that are no part of a shard." in outcome.text
    report = run("--store", store, "verify", "--json").json
    assert [item["key"] for item in report["orphans"]] == [orphan.relative_to(store).as_posix()]
    assert [item["size"] for item in report["leftovers"]] == [1]


def test_verify_samples_and_says_how_to_repeat_it(run: Callable[..., Outcome], store: Path) -> None:
    report = run("--store", store, "verify", "--sample", "0.5", "--json").json
    assert 0 < report["payloads"] < len(FILES)
    again = run("--store", store, "verify", "--sample", "0.5", "--seed", str(report["seed"]), "--json").json
    assert again["payloads"] == report["payloads"]
    assert (
        f"(sample 0.5, seed {report['seed']})"
        in run("--store", store, "verify", "--sample", "0.5", "--seed", str(report["seed"])).text
    )
    assert run("--store", store, "verify", "--sample", "0", "--json").json["payloads"] == 0


def test_verify_of_days_without_shards_says_so(run: Callable[..., Outcome], store: Path) -> None:
    for choice in (["20230101"], ["--since", "2024-02-01"]):
        outcome = run("--store", store, "verify", *choice, "--json")
        assert (outcome.status, outcome.err) == (0, "des: there are no shards to verify.\n")
        assert outcome.json["shards"] == 0
    assert run("--store", store, "verify", "--since", "2024-01-31", "--json").json["shards"] == 4


# ---- in processes of their own ----------------------------------------------------------------------------------------------


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - Popen's own
    return subprocess.Popen([sys.executable, "-m", "des", *map(str, arguments)], **options)


def finish(*arguments: str | Path) -> Outcome:
    process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err.decode())


def test_a_real_process_answers_and_fails(store: Path) -> None:
    assert finish("--store", store, "get", *AT, "--", "--help") == Outcome(0, CONTENTS["--help"], "")
    fails(finish("--store", store, "get", "nix", *AT), 1, "there is no file 'nix'")
    fails(finish("--store", store, "get", "nix"), 2, "Missing option '--created-at'")


@pytest.mark.parametrize("verb", [["get", "big", *AT], ["ls", DAY, "--json"]])
def test_a_reader_that_goes_away(store: Path, verb: list[str]) -> None:
    reading, writing = os.pipe()
    process = start("--store", store, *verb, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.close(reading)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


def test_a_terminal_gets_a_table_and_no_control_characters(store: Path) -> None:
    async def add() -> None:
        maker = await make_store(LocalStorage(store), n_bits=2)
        await maker.add({"evil\x9b31m\u202e": b"x" * 5_000}, day="20240301")

    anyio.run(add)
    main, side = pty.openpty()
    process = start("--store", store, "ls", "20240301", stdout=side, stderr=subprocess.PIPE)
    os.close(side)
    shown = bytearray()
    while piece := read_terminal(main):
        shown += piece
    os.close(main)
    assert process.communicate(timeout=60)[1] == b""
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert "created_at" in text
    assert "4.9 KiB" in text
    assert "evil\\x9b31m" in text
    assert "\\u202e" in text
    assert "\x9b" not in text


def read_terminal(number: int) -> bytes:
    try:
        return os.read(number, 1 << 16)
    except OSError:  # EIO: the other side is closed
        return b""


def test_pack_and_serve_are_verbs_too(tmp_path: Path) -> None:
    source, manifest, place = tmp_path / "source", tmp_path / "manifest.json", tmp_path / "store"
    source.write_bytes(WORDS)
    row = {"uid": "a b/ü", "created_at": "2024-01-31T12:00:00Z", "source_path": str(source)}
    manifest.write_text(json.dumps([row]))
    packed = finish("pack", "--input-json", manifest, "--output-dir", place, "--json")
    assert packed.status == 0, packed.err
    assert packed.json["packed"] == 1
    assert finish("--store", place, "get", "a b/ü", *AT).out == WORDS
    process = start("--store", place, "serve", "--port", "0", stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        address = re.search(rb"http://[0-9.:]+", process.stderr.readline())
        assert address
        url = f"{address.group().decode()}/files/a%20b/%C3%BC?created_at=2024-01-31"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == WORDS
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
