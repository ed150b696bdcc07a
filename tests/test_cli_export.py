"""`des export`: what is in the archive, what is not, and that `des-pack --from-tar` takes it back."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from benchmarks.processes import run_measured
from des.cli import des
from des.console import status_of
from des.pack.__main__ import pack_command
from des.storage.local import LocalStorage
from des.store import open_store
from tests.making import make_store
from tests.pack.packing import Sources, head_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BIG = random.Random(1).randbytes((5 << 20) + 17)
STRANGE = [
    "plain.txt",
    "a/b/c",
    "/leading",
    "trailing/",
    "a//b",
    "../up",
    "./here",
    "two words",
    "🦉/ü",
    "-o",
    "n" * 300,
    "back\\slash",
]
CONTENTS = {uid: b"content of " + uid.encode() for uid in STRANGE} | {"big": BIG, "empty": b""}
TIMES = ["2024-01-31T23:59:59Z", "2024-02-01T00:00:00Z", "1965-03-04T05:06:07Z"]

Outcome = tuple[int, bytes, str]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.setenv("DES_SINGLE_WRITER", "true")

    def run(*arguments: object, command: Any = des) -> Outcome:  # noqa: ANN401 - a command of any kind
        capfdbinary.readouterr()
        status = status_of(command, [str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return run


@pytest.fixture
def store(tmp_path: Path, run: Callable[..., Outcome]) -> Path:
    """Return a store with each file on a day of its own choosing."""
    sources = Sources(tmp_path / "sources")
    rows = [
        sources.row(uid, content) | {"created_at": TIMES[at % 3]} for at, (uid, content) in enumerate(CONTENTS.items())
    ]
    manifest = sources.manifest(rows)
    assert (
        run("--input", manifest, "--output", tmp_path / "store", "--n-bits", 2, "--quiet", command=pack_command)[0] == 0
    )
    return tmp_path / "store"


def members_of(archive: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]  # all are files


async def files_of(place: Path) -> dict[tuple[str, datetime], bytes]:
    async with open_store(place) as store:
        infos = [info for day in ("20240131", "20240201", "19650304") async for info in store.list(day)]
        return {(info.uid, info.created_at): await store.get(info.uid, info.created_at) for info in infos}


def test_all_of_it_comes_back_through_a_tar(tmp_path: Path, store: Path, run: Callable[..., Outcome]) -> None:
    status, archive, err = run("export", "20240131", "2024-02-01", "19650304", "--store", store)
    assert (status, err) == (0, "")
    members = members_of(archive)
    assert {member.pax_headers["DES.uid"]: content for member, content in members} == CONTENTS
    for member, _ in members:
        uid = member.pax_headers["DES.uid"]
        at = list(CONTENTS).index(uid)
        assert datetime.fromtimestamp(member.mtime, UTC) == datetime.fromisoformat(TIMES[at % 3])
        if uid in {"plain.txt", "a/b/c", "two words", "🦉/ü", "-o", "big", "empty"}:
            assert member.name == uid
        else:
            assert "/" not in member.name
            assert member.name[:6].isdecimal()
    tar = tmp_path / "files.tar"
    tar.write_bytes(archive)
    again = tmp_path / "again"
    assert run("--from-tar", tar, "--output", again, "--n-bits", 3, "--quiet", command=pack_command) == (0, b"", "")
    assert anyio.run(files_of, again) == anyio.run(files_of, store)


def test_a_list_names_what_is_wanted(tmp_path: Path, store: Path, run: Callable[..., Outcome]) -> None:
    """Neither order nor repetition nor rows that cannot be change what the others are."""
    wanted = [("big", 12), ("plain.txt", 0), ("empty", 13), ("plain.txt", 0)]
    rows: list[object] = [{"uid": uid, "created_at": TIMES[at % 3]} for uid, at in wanted]
    rows[1:1] = [
        {"uid": "missing", "created_at": "2024-01-31"},
        {"uid": "half"},
        7,
        {"uid": "a/b/c", "created_at": "never"},
    ]
    manifest = tmp_path / "wanted.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    status, archive, err = run("export", "--input", manifest, "--store", store)
    assert status == 1
    assert [(member.pax_headers["DES.uid"], content) for member, content in members_of(archive)] == [
        (uid, CONTENTS[uid]) for uid, _ in wanted
    ]
    table = tmp_path / "wanted.csv"
    table.write_text(
        "".join(f"{uid},{TIMES[at % 3]}\n" for uid, at in [("uid", 0), *wanted]).replace(TIMES[0], "created_at", 1)
    )
    assert run("export", "--input", table, "--store", store) == (0, archive, "")
    lines = err.splitlines()
    assert len(lines) == 5
    assert sum("missing" in line for line in lines) == 1
    assert sum("a/b/c: " in line for line in lines) == 1


@pytest.mark.parametrize("uid", ["plain.txt", "big"])
def test_damage_is_named(store: Path, run: Callable[..., Outcome], uid: str) -> None:
    """A small damaged file has no member; a large one that is damaged at its end breaks the archive off, so that nobody takes it for whole."""
    day = "20240131"
    head = anyio.run(head_of, LocalStorage(store), uid, day)
    entry = next(
        entry for at in range(0, len(head.entries), 64)
        if (entry := head.find(bytes(head.entries[at : at + 16]))) and entry.raw_size == len(CONTENTS[uid])
    )  # fmt: skip
    path = store / head.identity.segment_key(head.tables.segments[entry.segment].name)
    with path.open("r+b") as file:
        file.seek(entry.offset + entry.stored_size - (3 if uid != "big" else 100_000))
        file.write(b"???")
    status, archive, err = run("export", day, "--store", store)
    assert status == 1
    assert f"{uid}: " in err
    if uid == "plain.txt":
        assert uid not in {member.name for member, _ in members_of(archive)}
        assert "big" in {member.name for member, _ in members_of(archive)}
    else:
        assert "breaks off" in err
        assert not archive.endswith(bytes(1024))


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ([], 2, "give one or more DATEs"),
        (["20240131", "--input", "m"], 2, "give one or more DATEs"),
        (["20241331"], 2, "20241331"),
        (["--input", "/nowhere/m"], 2, "/nowhere/m"),
        (["20240131", "--store", "/nowhere/store"], 2, "/nowhere/store"),
    ],
)
def test_a_wrong_call(
    store: Path, run: Callable[..., Outcome], arguments: list[str], status: int, sentence: str
) -> None:
    found = run("--store", store, "export", *arguments)
    assert (found[0], found[1]) == (status, b"")
    assert sentence in found[2]


def test_a_day_without_files_is_an_empty_archive(store: Path, run: Callable[..., Outcome]) -> None:
    status, archive, err = run("export", "20300101", "--store", store)
    assert (status, archive, err) == (0, bytes(1024), "")


def test_nothing_is_written_to_a_terminal(store: Path) -> None:
    main, side = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "des", "export", "20240131", "--store", store],
        stdout=side,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(side)
    os.close(main)
    assert process.returncode == 2
    assert b"terminal" in process.stderr


@pytest.mark.parametrize("mebibytes", [40, pytest.param(400, marks=pytest.mark.soak)])
def test_memory_is_bounded(tmp_path: Path, mebibytes: int) -> None:
    """Half of it in small files, half in a large one."""
    files = {f"file-{number}": os.urandom(1 << 20) for number in range(mebibytes // 2)}
    anyio.run(make_store, LocalStorage(tmp_path / "store"), files | {"large": os.urandom(mebibytes << 19)})
    out = tmp_path / "out.tar"
    module = f"{sys.executable} -m des --store {tmp_path / 'store'} export"
    least = run_measured(["/bin/sh", "-c", f"{module} 20300101 > {out}"]).peak_mib
    most = run_measured(["/bin/sh", "-c", f"{module} 20240131 > {out}"]).peak_mib
    assert out.stat().st_size > mebibytes << 20
    assert most - least < 28
