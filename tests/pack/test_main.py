"""The packer as a command: what it prints, what it exits with, and how it ends when it is told to."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import zstandard

from des.console import status_of
from des.pack.__main__ import pack_command
from des.shard.chunking import LARGE_BYTES
from des.storage.local import LocalStorage
from des.storage.paths import TEMPORARY_PREFIX
from des.store import open_store
from tests.making import make_store
from tests.pack.packing import Row, Sources, check_store, names_of_one_shard, objects_under
from tests.shard.forging import forged_footer

if TYPE_CHECKING:
    from collections.abc import Callable

    from des.store.fileinfo import FileInfo
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

NAMES = [
    "files", "packed", "skipped", "failed", "bytes_in", "bytes_stored", "shards", "segments", "objects_written", "seconds", "store",
    "dictionary", "dictionary_saves",
]  # fmt: skip


FAILURE = ["row", "uid", "source_path", "status", "error"]


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value

    @property
    def failures(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.err.splitlines()]


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.setenv("DES_SINGLE_WRITER", "true")  # spares each run the two processes that prove locks

    def run(*arguments: object) -> Outcome:
        capfdbinary.readouterr()
        status = status_of(pack_command, [str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Outcome(status, out.decode(), err.decode())

    return run


def of_a_store(sources: Sources, rows: list[Row], base_dir: Path) -> list[object]:
    return ["--input-json", sources.manifest(rows), "--output-dir", base_dir, "--n-bits", 1]


def test_json_is_all_there_is_on_stdout(run: Callable[..., Outcome], sources: Sources, base_dir: Path) -> None:
    rows = [sources.row("a", b"content"), sources.row("b", b"xy"), sources.row("a", b"content")]
    outcome = run(*of_a_store(sources, rows, base_dir), "--json")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.endswith("}\n")
    assert outcome.out.count("\n") == 1
    assert list(outcome.json) == NAMES
    counts = {
        name: outcome.json[name] for name in NAMES if name not in {"seconds", "shards", "segments", "objects_written"}
    }
    assert counts == {
        "files": 3,
        "packed": 2,
        "skipped": 1,
        "failed": 0,
        "bytes_in": 9,
        "bytes_stored": 9,
        "store": str(base_dir),
        "dictionary": "none",
        "dictionary_saves": 0,
    }
    assert outcome.json["objects_written"] == outcome.json["segments"] + outcome.json["shards"]
    anyio.run(check_store, base_dir, {"a": b"content", "b": b"xy"})


def test_failed_rows_are_a_line_each(run: Callable[..., Outcome], sources: Sources, base_dir: Path) -> None:
    rows = [
        sources.row("good", b"content"),
        sources.row("missing", b"") | {"source_path": "/nowhere"},
        sources.row("bad\n", b"x"),
        sources.row("good", b"other"),
        sources.row(17, b"x", size_bytes=5),
    ]
    errors = sources.directory / "errors.ndjson"
    outcome = run(*of_a_store(sources, rows, base_dir), "--json", "--errors", errors)
    assert outcome.status == 1
    assert (outcome.json["packed"], outcome.json["failed"]) == (1, 4)
    assert errors.read_text() == outcome.err
    failures = sorted(outcome.failures, key=lambda failure: failure["row"])
    assert [list(failure)[:6] for failure in failures] == [[*FAILURE, "created_at"]] * 4
    assert [(failure["row"], failure["uid"], failure["status"]) for failure in failures] == [
        (2, "missing", "invalid"),
        (3, "bad\n", "invalid"),
        (4, "good", "conflict"),
        (5, "17", "invalid"),
    ]
    assert all(failure["source_path"] == rows[failure["row"] - 1]["source_path"] for failure in failures)


def test_a_table_for_people(run: Callable[..., Outcome], sources: Sources, base_dir: Path) -> None:
    outcome = run(*of_a_store(sources, [sources.row("a", b"content")], base_dir))
    assert (outcome.status, outcome.out) == (0, "")
    assert "packed into" in outcome.err
    assert "objects written" in outcome.err
    outcome = run(*of_a_store(sources, [sources.row("a", b"content")], base_dir), "--quiet")
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")


@pytest.mark.parametrize("rows", [[], [{"uid": "a"}]])
def test_nothing_to_pack(run: Callable[..., Outcome], sources: Sources, base_dir: Path, rows: list[Row]) -> None:
    outcome = run(*of_a_store(sources, rows, base_dir), "--json")
    assert outcome.status == bool(rows)
    assert outcome.json["files"] == outcome.json["failed"] == len(rows)
    assert not base_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--input"),
        (["--input-json", "MANIFEST", "--n-bits", "17"], "17"),
        (["--input-json", "MANIFEST", "--n-bits", "0"], "0"),
        (["--input-json", "MANIFEST", "--codec", "brotli"], "brotli"),
        (["--input-json", "MANIFEST", "--level", "23"], "23"),
        (["--input-json", "MANIFEST", "--codec", "lz4", "--level", "13"], "level 13"),
        (
            ["--input-json", "MANIFEST", "--codec", "lz4", "--dictionary", "auto"],
            "--dictionary works with --codec zstd",
        ),
        (["--input-json", "MANIFEST", "--dictionary", "/nowhere/trained"], "/nowhere/trained cannot be read"),
        (["--input-json", "MANIFEST", "--dictionary", "EMPTY"], "is empty"),
        (["--input-json", "MANIFEST", "--dictionary", "DAMAGED"], "the dictionary is damaged"),
        (["--input-json", "MANIFEST", "--on-conflict", "ask"], "ask"),
        (["--input-json", "MANIFEST", "--max-shard-size", "0"], "less than 1"),
        (["--input-json", "MANIFEST", "--max-shard-size", "many"], "no size"),
        (["--input-json", "MANIFEST", "--memory", "1MiB"], "less than"),
        (["--input-json", "MANIFEST", "--threads", "0"], "0"),
        (["--input-json", "MANIFEST", "--errors", "/nowhere/errors"], "/nowhere/errors"),
        (["--input-json", "/nowhere/manifest.json"], "/nowhere/manifest.json"),
        (["--input", "BARE"], "no manifest below"),
        (["--input", "/nowhere/*.csv"], "no manifest matches"),
        (["--input", "x" * 300], "cannot be read: File name too long"),
        (["--input-json", "MANIFEST", "--metrics-file", "x" * 300 + "/a.prom"], "is no directory"),
        (["--from-tar", "MANIFEST"], "damaged"),
        (["--from-tar", "/nowhere/in.tar"], "the archive /nowhere/in.tar cannot be read"),
        (["--from-tar", "-", "--input", "-"], "only once"),
        (["/nowhere/directory"], "/nowhere/directory"),
        (["STORE_PARENT"], "lies in"),
        (["--input-json", "MANIFEST", "--created-at", "2024-01-31"], "--created-at"),
        (["BARE", "--created-at", "2024-01-31T12:00:00"], "no time zone"),
        (["--input-json", "MANIFEST", "--partition", "3/3"], "no partition"),
        (["--input-json", "MANIFEST", "--source-root", "/nowhere"], "--source-root"),
        (["--input-json", "MANIFEST", "--source-root", "MANIFEST"], "is not a directory"),
        (["--input-json", "MANIFEST", "--errors", "MANIFEST"], "would be overwritten"),
        (["--input-json", "MANIFEST", "--metrics-file", "/nowhere/a.prom"], "is no directory"),
        (["--input-json", "BROKEN"], "not valid JSON"),
        (["--input-json", "MANIFEST", "--input-json", "BROKEN"], "not valid JSON"),
        (["--input-json", "OBJECT"], "not a JSON array"),
        (["--input-json", "EMPTY"], "not a JSON array"),
        (["--input-json", "MANIFEST", "--unknown"], "--unknown"),
    ],
)
def test_a_wrong_call_or_manifest_writes_nothing(
    run: Callable[..., Outcome], sources: Sources, base_dir: Path, arguments: list[str], sentence: str
) -> None:
    manifest = sources.manifest([sources.row("a", b"content")])
    texts = {"BROKEN": manifest.read_text()[:-1], "OBJECT": "{}", "EMPTY": ""}
    paths = {"MANIFEST": manifest, "BARE": sources.directory / "bare", "STORE_PARENT": base_dir.parent}
    paths["BARE"].mkdir()
    for name, text in texts.items():
        paths[name] = sources.directory / f"{name}.json"
        paths[name].write_text(text)
    paths["DAMAGED"] = sources.directory / "damaged"
    paths["DAMAGED"].write_bytes(
        b"\x37\xa4\x30\xec" + bytes(1000)
    )  # RFC 8878 section 5: the magic number of a dictionary
    outcome = run(*(paths.get(argument, argument) for argument in arguments), "--output-dir", base_dir)
    assert (outcome.status, outcome.out) == (2, "")
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
    *rest, last = outcome.err.splitlines()
    assert last.startswith("des: error: ")
    assert len(rest) < 20  # the table of a run that did nothing, at most
    assert not base_dir.exists()


def test_another_n_bits(run: Callable[..., Outcome], sources: Sources, base_dir: Path) -> None:
    rows = [sources.row("a", b"content")]
    assert run(*of_a_store(sources, rows, base_dir)).status == 0
    before = objects_under(base_dir)
    outcome = run(*of_a_store(sources, rows, base_dir), "--n-bits", 3, "--json")
    assert outcome.status == 2
    assert "n_bits is configured as 3" in outcome.err
    assert objects_under(base_dir) == before


@pytest.mark.parametrize("harm", ["newer descriptor", "newer head", "lost head", "damaged head"])
def test_unsound_stores(run: Callable[..., Outcome], sources: Sources, base_dir: Path, harm: str) -> None:
    maker = anyio.run(make_store, LocalStorage(base_dir), {"before": b"content"})
    head = base_dir / maker.identity("before").head_key
    descriptor = base_dir / "des.json"
    if harm == "newer descriptor":
        descriptor.write_text(descriptor.read_text().replace('"version": 1', '"version": 2'))
    elif harm == "newer head":
        head.write_bytes(forged_footer(head.read_bytes(), version=2))
    elif harm == "lost head":
        head.unlink()
    else:
        head.write_bytes(head.read_bytes()[:-1])
    before = objects_under(base_dir)
    outcome = run(*of_a_store(sources, [sources.row("before", b"content")], base_dir), "--json")
    assert outcome.status == (2 if harm.startswith("newer") else 1)
    assert "Traceback" not in outcome.err
    if harm.startswith("newer"):
        assert "upgrade DES" in outcome.err
    else:
        (failure,) = outcome.failures
        assert failure["status"] == "corrupt"
        assert harm != "lost head" or "des repair" in failure["error"]
    assert objects_under(base_dir) == before


def test_a_storage_that_cannot_be_written(run: Callable[..., Outcome], sources: Sources, base_dir: Path) -> None:
    base_dir.write_text("a file where the store should be")
    outcome = run(*of_a_store(sources, [sources.row("a", b"content")], base_dir))
    assert outcome.status == 3
    assert not outcome.out
    assert outcome.err == f"des: error: Cannot write {base_dir}/des.json: Not a directory.\n"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error::ResourceWarning", "-m", "des.pack", *map(str, arguments)]


def test_a_disk_that_is_full(sources: Sources, base_dir: Path) -> None:
    """Files may not grow past a limit here, which is as real as a full disk: the kernel refuses the write."""
    before, small, big = names_of_one_shard(3)
    anyio.run(make_store, LocalStorage(base_dir), {before: b"content"})
    manifest = sources.manifest([sources.row(small, b"small"), sources.row(big, os.urandom(900_000))])
    objects = objects_under(base_dir)
    process = subprocess.run(
        command("--input-json", manifest, "--output-dir", base_dir, "--json"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (400_000, 400_000)),
    )
    assert process.returncode == 3, process.stderr
    assert "File too large" in process.stderr
    assert "Traceback" not in process.stderr
    assert json.loads(process.stdout)["packed"] == 0
    assert {key: data for key, (data, _) in objects_under(base_dir).items()} == {
        key: data for key, (data, _) in objects.items()
    }
    assert list(base_dir.rglob(TEMPORARY_PREFIX + "*")) == []
    anyio.run(check_store, base_dir, {before: b"content"})


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGTERM])
def test_told_to_stop(sources: Sources, base_dir: Path, number: signal.Signals) -> None:
    """The first failed row comes when a shard is done and most are not begun: that is when it is told."""
    files = {f"file-{at}": b"%d" % at * 20 for at in range(800)}
    rows = sources.rows(files)
    for row in rows[::5]:
        row["source_path"] = "/nowhere"
        del files[row["uid"]]
    manifest = sources.manifest(rows)
    arguments = ["--input-json", manifest, "--output-dir", base_dir, "--json", "--threads", 1]
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(number)
        lines = [first, *process.stderr]
        out = process.stdout.read()
    assert process.returncode == 128 + number, lines[-5:]
    assert lines[-1] == f"des: stopped by {number.name}; run the same command again: what is done is skipped.\n"
    failures = [json.loads(line) for line in lines[:-1]]
    report = json.loads(out)
    assert report["failed"] == len(failures)
    done = report["packed"] + report["failed"]
    assert 0 < done < report["files"] == 800
    assert list(base_dir.rglob(TEMPORARY_PREFIX + "*")) == []
    again = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert again.returncode == 1
    outcome = json.loads(again.stdout)
    assert outcome["skipped"] == report["packed"]
    assert outcome["packed"] + outcome["skipped"] == len(files)
    anyio.run(check_store, base_dir, files)


def test_the_same_command_three_ways(sources: Sources, tmp_path: Path) -> None:
    manifest = sources.manifest([sources.row("-a", b"content")])
    ways = [[sys.executable, "-m", "des.pack"], [sys.executable, "-m", "des", "pack"]]
    script = shutil.which("des-pack", path=str(Path(sys.executable).parent))
    if script is not None:  # where the package is installed
        ways.append([script])
    for at, way in enumerate(ways):
        arguments = [*way, "--input", str(manifest), "--output", str(tmp_path / f"store-{at}"), "--json"]
        process = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert (process.returncode, process.stderr) == (0, "")
        assert json.loads(process.stdout)["packed"] == 1


def test_failed_rows_are_a_manifest(run: Callable[..., Outcome], sources: Sources, base_dir: Path) -> None:
    """What failed is mended, and its lines are packed again as they are."""
    missing = sources.directory / "missing"
    fields = {"size_bytes": 4, "content_type": "text/x-mended", "metadata": {"a": [1, "ü"]}}
    rows = [
        sources.row("good", b"good"),
        {"uid": "a", "created_at": "2024-01-31T13:00:00.000003+01:00", "source_path": str(missing), **fields},
        {"uid": 5, "created_at": "2024-01-31", "source_path": str(missing), "size_bytes": -1},
    ]
    errors = sources.directory / "errors.ndjson"
    assert run(*of_a_store(sources, rows, base_dir), "--quiet", "--errors", errors).status == 1
    missing.write_bytes(b"mend")
    errors.write_text(errors.read_text().replace('"size_bytes": -1', '"size_bytes": null'))
    outcome = run("--input", errors, "--output", base_dir, "--json")
    assert (outcome.status, outcome.json["packed"]) == (0, 2)
    anyio.run(check_store, base_dir, {"good": b"good", "a": b"mend", "5": b"mend"})

    async def described() -> FileInfo:
        async with open_store(base_dir) as store:
            return await store.stat("a", "2024-01-31", metadata=True)

    info = anyio.run(described)
    assert (info.content_type, info.metadata) == ("text/x-mended", {"a": [1, "ü"]})
    assert info.created_at == datetime(2024, 1, 31, 12, tzinfo=UTC)


def test_directories_and_archives(run: Callable[..., Outcome], tmp_path: Path, base_dir: Path) -> None:
    tree = tmp_path / "tree"
    files = {"a.txt": b"a", "b/c": b"content", "b/large": os.urandom(LARGE_BYTES + 7)}
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    (tree / "link").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tree, "./tar")
    outcome = run(
        tree, "--from-tar", tmp_path / "a.tar.gz", "--created-at", "2024-01-31", "--output", base_dir, "--json"
    )
    assert (outcome.status, outcome.json["packed"], outcome.json["failed"]) == (1, 6, 2)
    assert [(row["uid"], row["manifest"]) for row in outcome.failures] == [
        ("link", str(tree)),
        ("tar/link", str(tmp_path / "a.tar.gz")),
    ]
    anyio.run(check_store, base_dir, files | {f"tar/{name}": content for name, content in files.items()})
    (tree / "a.txt").write_bytes(b"changed")
    outcome = run(tree, "--created-at", "2024-01-31", "--output", base_dir, "--json")
    assert [(row["uid"], row["status"]) for row in outcome.failures] == [("link", "invalid"), ("a.txt", "conflict")]
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tree / "a.txt", "a.txt")
    outcome = run("--from-tar", tmp_path / "b.tar", "--created-at", "2024-01-31", "--output", base_dir, "--json")
    assert [(row["uid"], row["source_path"]) for row in outcome.failures] == [("a.txt", None)]


def test_a_dry_run(run: Callable[..., Outcome], sources: Sources, base_dir: Path) -> None:
    arguments = [*of_a_store(sources, [sources.row("a", b"content"), {"uid": "b"}], base_dir), "--dry-run"]
    outcome = run(*arguments, "--json")
    assert outcome.status == 1
    assert (outcome.json["dry_run"], outcome.json["files"], outcome.json["bytes_in"]) == (True, 2, 7)
    assert [row["uid"] for row in outcome.failures] == ["b"]
    outcome = run(*arguments)
    assert "nothing is written" in outcome.out
    assert not base_dir.exists()


def test_standard_input_and_metrics(sources: Sources, base_dir: Path) -> None:
    """Through a pipe, compressed; and the file of metrics keeps the last success when a later run fails."""
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in sources.rows({"a": b"aaa", "b": b"bb"}))
    metrics = sources.directory / "des.prom"
    arguments = command("--input", "-", "--output", base_dir, "--quiet", "--metrics-file", metrics)

    def figures(given: bytes, status: int) -> dict[str, float]:
        assert subprocess.run(arguments, input=given, check=False, capture_output=True).returncode == status
        found = (line.rsplit(" ", 1) for line in metrics.read_text().splitlines() if not line.startswith("#"))
        return {name: float(figure) for name, figure in found}

    first = figures(zstandard.compress(lines), 0)
    assert (first['des_pack_files_total{status="ok"}'], first['des_pack_bytes_total{direction="read"}']) == (2, 5)
    assert not any(name.startswith(("process_", "python_")) for name in first)
    second = figures(lines + b"{}\n", 1)
    assert (second['des_pack_files_total{status="skipped"}'], second['des_pack_files_total{status="invalid"}']) == (
        2,
        1,
    )
    third = figures(gzip.compress(lines)[:-5], 2)
    assert third['des_pack_files_total{status="ok"}'] == 0
    name = "des_pack_last_success_timestamp_seconds"
    assert first[name] == second[name] == third[name] > 1_700_000_000


def test_manifests_on_s3(
    run: Callable[..., Outcome],
    sources: Sources,
    base_dir: Path,
    seaweedfs: S3Server,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DES_S3_ENDPOINT_URL", seaweedfs.endpoint)
    rows = sources.rows({name: name.encode() for name in "abc"})
    bodies = {
        "m/1.jsonl.gz": gzip.compress(json.dumps(rows[0]).encode()),
        "m/deep/2.json": json.dumps([rows[1], {"uid": "bad"}]).encode(),
        "m/3.csv": b"uid,created_at,source_path\r\n" + ",".join(rows[2].values()).encode(),
        "m/readme.txt": b"no manifest",
        "other": json.dumps(rows[:1]).encode(),
    }
    for key, body in bodies.items():
        seaweedfs.client.put_object(Bucket=bucket, Key=key, Body=body)
    outcome = run("--input", f"s3://{bucket}/m/", "--output", base_dir, "--json")
    assert (outcome.status, outcome.json["packed"], outcome.json["failed"]) == (1, 3, 1)
    assert [(row["row"], row["manifest"]) for row in outcome.failures] == [(4, f"s3://{bucket}/m/deep/2.json")]
    anyio.run(check_store, base_dir, {name: name.encode() for name in "abc"})
    outcome = run("--input", f"s3://{bucket}/other", "--output", base_dir, "--json")
    assert (outcome.status, outcome.json["skipped"]) == (0, 1)
    for missing, sentence in [("none", "there is no object"), ("other/", "no manifest below")]:
        outcome = run("--input", f"s3://{bucket}/{missing}", "--output", base_dir)
        assert (outcome.status, sentence in outcome.err) == (2, True), outcome.err
