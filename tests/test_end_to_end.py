"""Real files, packed by the command, come back byte-identical by every way out."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import anyio
import pytest

from des import Store, open_store
from des.store.verifying import verify
from tests.pack.packing import CREATED_AT, DAY, Row, Sources, check_store, date_of, objects_under
from tests.servers.processes import server_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

REAL_FILES = 10_000
SPELLINGS = 3
SERVES = re.compile(r"serving .* on http://127\.0\.0\.1:(\d+)")
# Beyond its imports a run may take its memory setting and what the interpreter wastes.
MOST_MEMORY_BYTES = 300 << 20


def pack(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "des.pack", *map(str, arguments), "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, ""), process.stderr[-2000:]
    report: dict[str, Any] = json.loads(process.stdout)
    return report


def real_files(count: int) -> Iterator[Path]:
    """Yield regular files of the interpreter's library and of what is installed beside it, in a fixed order."""
    paths = sysconfig.get_paths()
    for base in dict.fromkeys([paths["stdlib"], paths["purelib"]]):
        for directory, names, files in os.walk(base):
            names[:] = sorted(name for name in names if name != "__pycache__")  # others write there now
            for name in sorted(files):
                path = Path(directory, name)
                if path.is_file() and os.access(path, os.R_OK):
                    yield path
                    count -= 1
                    if not count:
                        return


def get_by_command(base_dir: Path | str, uid: str) -> bytes:
    command = [sys.executable, "-m", "des", "--store", str(base_dir), "get", "--created-at", CREATED_AT, "--", uid]
    return subprocess.run(command, capture_output=True, check=True).stdout


def get_by_http(base_dir: Path | str, uids: Sequence[str]) -> dict[str, list[bytes]]:
    """Return what a real server answers to each spelling of each uid, at any time of the day."""
    found: dict[str, list[bytes]] = {}
    command = [sys.executable, "-m", "des", "--store", str(base_dir), "serve", "--port", "0"]
    with server_process(command, SERVES) as served:
        connection = http.client.HTTPConnection("127.0.0.1", int(served[1]))
        for uid in uids:
            targets = (
                f"/files/{quote(uid, safe='/')}?{urlencode({'created_at': CREATED_AT})}",
                f"/files/{quote(uid, safe='')}?created_at={date_of(DAY)}",
                f"/files?{urlencode({'uid': uid, 'created_at': f'{date_of(DAY)}T23:00:00+00:00'})}",
            )
            for target in targets:
                connection.request("GET", target)
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == 200, (target, answer.status, body)
                found.setdefault(uid, []).append(body)
        connection.close()
    return found


async def get_all(base_dir: Path | str, paths: Mapping[str, Path]) -> None:
    """Get every file by `Store.get`, and find no damage."""

    async def get_some(store: Store, uids: Sequence[str]) -> None:
        for uid in uids:
            content = await store.get(uid, date_of(DAY))
            assert content == await anyio.to_thread.run_sync(paths[uid].read_bytes), f"{uid} has other content"

    uids = list(paths)
    async with open_store(base_dir) as store:
        async with anyio.create_task_group() as tasks:
            for first in range(8):
                tasks.start_soon(get_some, store, uids[first::8])
        report = await verify(store)
    assert report.damage == []
    assert report.files == len(paths)


def test_ten_thousand_real_files(tmp_path: Path) -> None:
    base_dir = tmp_path / "store"
    paths = {f"lib/{path.relative_to(path.anchor)}": path for path in real_files(REAL_FILES)}
    assert len(paths) == REAL_FILES
    rows: list[Row] = [
        {"uid": uid, "created_at": CREATED_AT, "source_path": str(path), "size_bytes": path.stat().st_size}
        for uid, path in paths.items()
    ]
    manifest = Sources(tmp_path / "sources").manifest(rows)
    report = pack("--input-json", manifest, "--output-dir", base_dir)
    assert (report["files"], report["packed"], report["failed"]) == (REAL_FILES, REAL_FILES, 0)
    assert report["bytes_in"] == sum(row["size_bytes"] for row in rows)
    assert report["shards"] == report["segments"] == 256
    assert report["bytes_stored"] < report["bytes_in"] * 0.7
    anyio.run(get_all, base_dir, paths)
    sample = random.Random(1).sample(list(paths), 60)
    for uid in sample[:3]:
        assert get_by_command(base_dir, uid) == paths[uid].read_bytes()
    for uid, contents in get_by_http(base_dir, sample).items():
        assert contents == [paths[uid].read_bytes()] * SPELLINGS

    # The same again writes nothing; only the descriptor is written anew with its own bytes, to prove that conditions hold.
    before = objects_under(base_dir)
    again = pack("--input-json", manifest, "--output-dir", base_dir)
    assert (again["packed"], again["skipped"], again["segments"], again["objects_written"]) == (0, REAL_FILES, 0, 0)
    after = objects_under(base_dir)
    assert after.pop("des.json")[0] == before.pop("des.json")[0]
    assert after == before


ODD_UIDS: list[str | int] = [
    "a/b/c", "/leading", "//two", "trailing/", "/", "//", "a//b", "a///b", "..", ".", "../up", "a/../b", "./x", "two words", " ",
    " leading space", "50%", "%41", "%2F", "%zz", "a+b", "+", "what?", "?", "a=b&c=d", "a#b", "#", "😀", "🦉/ü", "ü", "u\u0308", "\u202e", "\xa0",
    "\x7f", "12345", "007", "-o", "--help", "--", "-", "'quoted\"", "$HOME", "*", "a\\b", "\\", "~", "a:b", "a;b", "a,b", "[a]", "{a}", "a|b",
    "<a>", "a&b=c;d", "0123456789", "--json", "ünïcödé/文書", "😀/🗂️", "'\"`$(x)\\", "x" * 1024, "ü" * 512, 0, 42, -7, 2**62,
]  # fmt: skip


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    sources = Sources(tmp_path / "sources")
    files = {str(uid): b"content of " + str(uid).encode() for uid in ODD_UIDS}
    assert len(files) == len(ODD_UIDS)
    manifest = sources.manifest([sources.row(uid, files[str(uid)]) for uid in ODD_UIDS])
    report = pack("--input-json", manifest, "--output-dir", tmp_path / "store", "--n-bits", 2)
    assert report["packed"] == len(ODD_UIDS)
    return tmp_path / "store", files


async def get_numbers(base_dir: Path) -> None:
    async with open_store(base_dir) as store:
        for uid in ODD_UIDS:
            assert await store.get(uid, CREATED_AT) == b"content of " + str(uid).encode()


def test_odd_uids(odd: tuple[Path, dict[str, bytes]]) -> None:
    base_dir, files = odd
    anyio.run(get_numbers, base_dir)
    anyio.run(check_store, base_dir, files)
    assert get_by_http(base_dir, list(files)) == {uid: [content] * SPELLINGS for uid, content in files.items()}
    for uid in ("--json", "../up", "😀/🗂️", " "):
        assert get_by_command(base_dir, uid) == files[uid]


def test_a_second_manifest_loses_nothing(tmp_path: Path) -> None:
    sources, base_dir = Sources(tmp_path / "sources"), tmp_path / "store"
    first = {f"file-{number}": b"first %d" % number for number in range(200)}
    second = {f"file-{number}": b"second %d" % number for number in range(200, 400)}
    for name, files in (("first.json", first), ("second.json", second)):
        report = pack(
            "--input-json", sources.manifest(sources.rows(files), name), "--output-dir", base_dir, "--n-bits", 2
        )
        assert (report["packed"], report["shards"]) == (200, 4)
    anyio.run(check_store, base_dir, first | second)


# A new process starts with its parent's peak: a small one between the tests' own, which may be large, and the packer.
MEASURING = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_memory(*arguments: object) -> int:
    """Pack in a process of its own; return the most memory it held, in bytes."""
    packing = [sys.executable, "-m", "des.pack", *map(str, arguments), "--quiet"]
    measured = subprocess.run([sys.executable, "-c", MEASURING, *packing], capture_output=True, text=True, check=True)
    return int(measured.stdout) * 1024


def test_a_huge_file_takes_little_memory(tmp_path: Path) -> None:
    """Neither read, nor compressed, nor written, nor compared whole; and small files beside it in the same shards."""
    sources, base_dir = Sources(tmp_path / "sources"), tmp_path / "store"
    rows = sources.rows({f"file-{number}": os.urandom(60_000) for number in range(300)})
    huge = sources.directory / "huge"
    with huge.open("wb") as file:
        file.truncate(300 << 20)  # sparse: it takes no room as a source
    rows.append({"uid": "huge", "created_at": CREATED_AT, "source_path": str(huge)})
    manifest = sources.manifest(rows)
    packing = partial(peak_memory, "--input-json", manifest, "--output-dir", base_dir, "--n-bits", 1)
    for codec in ("none", "zstd"):
        assert packing("--codec", codec) < MOST_MEMORY_BYTES
    # The second run compared it; this one replaces it.
    rows[-1]["content_type"] = "application/x-other"
    sources.manifest(rows)
    assert packing("--on-conflict", "replace") < MOST_MEMORY_BYTES

    async def stream() -> int:
        size = 0
        async with open_store(base_dir) as store, store.stream("huge", CREATED_AT) as pieces:
            async for piece in pieces:
                assert not any(piece[:4096])
                size += len(piece)
        return size

    assert anyio.run(stream) == 300 << 20
    shutil.rmtree(base_dir)  # the last few runs of the tests stay on the disk
