"""Packing small files, whole processes from start to exit, beside the tools one would use instead.

    python -m benchmarks.pack [--files 200000] [--rounds 3] [--only NAME …] [--json FILE]

The files are those of `pack_corpus`, read once before so that the cache is warm. The ways take turns within each round, so that a slow minute meets all
of them; a ratio is the median of the rounds' own. What DES packed is read back and compared, every byte. Two ways are no modes of DES but the same run
with one thing taken out, to say what it costs: `without fsync` and `without hashes`. The last line says how much of the machine others used meanwhile.

Budget: des-pack at least 0.9 times the files/s of `tar | zstd -3 -T2`, goal 1.25; peak memory at most 300 MiB. With `--dictionary auto`, at most 1.15 times
its size on the part that can be compressed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.pack_corpus import INCOMPRESSIBLE, Corpus, make_corpus
from benchmarks.processes import run_measured
from benchmarks.tables import Row, print_table
from des.settings import Settings
from des.store import open_store
from tests.servers.s3_servers import REGION, run_seaweedfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.s3_servers import S3Server

TAR, DES, ONE_THREAD, S3 = "tar | zstd -3 -T2", "des-pack", "des-pack, 1 thread", "des-pack to S3"
TAR_TEXTS, AUTO_TEXTS = "tar | zstd, no .bin", "--dictionary auto, no .bin"
BUDGET_RATIO, GOAL_RATIO, BUDGET_MIB, BUDGET_SIZE = 0.9, 1.25, 300, 1.15
READ_AT_ONCE = 500
MIB = 1 << 20

# Run as `python -c`, with the arguments of des-pack behind it.
_WITHOUT = {
    "des-pack without fsync": "import os; os.fsync = lambda number: None",
    "des-pack without hashes": "import des.pack.encoding as e; e.content_hash = lambda raw: bytes(16)",
}
_PACK = "import sys; from des.pack.__main__ import main; main()"
_ZIPFILE = """
import sys, zipfile, os
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as out:
    for folder, _, names in os.walk(sys.argv[2]):
        for name in names:
            out.write(os.path.join(folder, name))
"""


@dataclass(slots=True)
class Measured:
    """What the rounds of one way came to; wall and CPU in seconds, peak in MiB, size in bytes."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: float = 0.0
    size: int = 0


@dataclass(slots=True)
class Way:
    """A way to pack the corpus.

    Attributes:
        command: what to run, writing to `target`.
        target: a file or a directory, removed before each round.
        size: bytes of what came out.
        check: compares what came out with the corpus, after the last round.
    """

    command: list[str]
    target: Path
    size: Callable[[], int]
    check: Callable[[], None] | None = None
    measured: Measured = field(default_factory=Measured)

    def run(self) -> None:
        """Pack once."""
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.unlink(missing_ok=True)
        os.sync()  # what an earlier way left to be written is not this one's
        used = run_measured(self.command)
        self.measured.wall.append(used.seconds)
        self.measured.cpu.append(used.cpu_seconds)
        self.measured.peak = max(self.measured.peak, used.peak_mib)
        self.measured.size = self.size()


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files under a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def content_of(source: str) -> bytes:
    """Return the content of a file; blocks."""
    return Path(source).read_bytes()


async def compare(settings: Settings, manifest: bytes) -> None:
    """Read every file of a manifest back and compare it with its source."""
    rows = json.loads(manifest)
    async with open_store(settings) as store:
        for start in range(0, len(rows), READ_AT_ONCE):
            wanted = {row["uid"]: row for row in rows[start : start + READ_AT_ONCE]}
            found = store.get_many([(uid, row["created_at"]) for uid, row in wanted.items()])
            async for result in found:
                source = wanted.pop(result.uid)["source_path"]
                if result.error is not None or result.data != content_of(source):
                    sys.exit(f"{result.uid} came back different: {result.error}")
            if wanted:
                sys.exit(f"{next(iter(wanted))} did not come back")


def bucket_size(settings: Settings, server: S3Server) -> int:
    """Return the bytes of all objects of a bucket."""
    pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=settings.s3_bucket)
    return sum(item["Size"] for page in pages for item in page.get("Contents", []))


def other_ways(corpus: Corpus, folder: Path) -> dict[str, Way]:
    """Return the tools that everybody has."""
    files = corpus.directory
    tar, texts, zipped, python_zip = (
        folder / name for name in ("out.tar.zst", "texts.tar.zst", "out.zip", "python.zip")
    )
    shell = f"set -o pipefail; tar cf - -C {files} . | zstd -3 -T2 -q -o {tar}"
    some = f"set -o pipefail; tar cf - -C {files} --exclude='*.{INCOMPRESSIBLE}' . | zstd -3 -T2 -q -o {texts}"
    return {
        TAR: Way(["/bin/bash", "-c", shell], tar, lambda: size_of(tar)),
        TAR_TEXTS: Way(["/bin/bash", "-c", some], texts, lambda: size_of(texts)),
        "zip -r": Way(["/bin/bash", "-c", f"zip -q -r {zipped} {files}"], zipped, lambda: size_of(zipped)),
        "Python zipfile": Way(
            [sys.executable, "-c", _ZIPFILE, str(python_zip), str(files)], python_zip, lambda: size_of(python_zip)
        ),
    }


def local_way(corpus: Corpus, folder: Path, name: str, start: list[str], *flags: str) -> Way:
    """Return a way that packs into a directory with des-pack."""
    store = folder / "".join(letter for letter in name if letter.isalnum())
    manifest = corpus.compressible if name == AUTO_TEXTS else corpus.manifest
    arguments = ["--input-json", str(manifest), "--output-dir", str(store), "--quiet", *flags]

    def check() -> None:
        anyio.run(compare, Settings(base_dir=store), manifest.read_bytes())

    is_whole = name in {DES, ONE_THREAD, AUTO_TEXTS}
    return Way([sys.executable, *start, *arguments], store, lambda: size_of(store), check if is_whole else None)


def s3_way(corpus: Corpus, folder: Path, stack: ExitStack) -> Way:
    """Return a way that packs to an S3 server on this machine, into an empty bucket each round."""
    server = stack.enter_context(run_seaweedfs(folder))
    os.environ.update(server.environment, DES_S3_ENDPOINT_URL=server.endpoint, DES_S3_REGION=REGION)
    bucket = server.make_bucket()
    settings = server.settings(bucket)

    def emptied_size() -> int:
        return bucket_size(settings, server)

    def check() -> None:
        anyio.run(compare, settings, corpus.manifest.read_bytes())

    command = [
        sys.executable, "-m", "des.pack", "--input-json", str(corpus.manifest), "--output", f"s3://{bucket}/", "--quiet"
    ]  # fmt: skip
    return Way(command, folder / "none", emptied_size, check)


def others_share(before: Any, ours: float) -> float:  # noqa: ANN401 - psutil's own tuple, which differs from system to system
    """Return how much of the machine others used since a reading of its CPU times."""
    after = psutil.cpu_times()
    busy = sum(after) - after.idle - sum(before) + before.idle
    return max(0.0, float(busy - ours) / float(sum(after) - sum(before)))


def run_all(ways: dict[str, Way], rounds: int) -> float:
    """Run the ways in turns, then check what came out; return how much of the machine others used."""
    before, started = psutil.cpu_times(), time.process_time()
    for number in range(rounds):
        for title, way in ways.items():
            if title != S3 or number == 0:  # later rounds would find the files of the first
                way.run()
    ours = sum(sum(way.measured.cpu) for way in ways.values()) + time.process_time() - started
    share = others_share(before, ours)
    for way in ways.values():
        if way.check is not None:
            way.check()
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="ways to run, besides tar and des-pack")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        corpus = make_corpus(folder, options.files)
        for path in corpus.directory.rglob("*.*"):
            path.read_bytes()
        module = ["-m", "des.pack"]
        others = other_ways(corpus, folder)
        ways = {TAR: others[TAR]}
        ways[DES] = local_way(corpus, folder, DES, module)
        ways[ONE_THREAD] = local_way(corpus, folder, ONE_THREAD, module, "--threads", "1")
        for title, patch in _WITHOUT.items():
            ways[title] = local_way(corpus, folder, title, ["-c", f"{patch}\n{_PACK}"])
        ways[AUTO_TEXTS] = local_way(corpus, folder, AUTO_TEXTS, module, "--dictionary", "auto")
        ways |= others
        if options.only is None or S3 in options.only:
            ways[S3] = s3_way(corpus, folder, stack)
        if options.only is not None:
            ways = {title: way for title, way in ways.items() if title in {TAR, DES, *options.only}}
        share = run_all(ways, options.rounds)
    show(corpus, {title: way.measured for title, way in ways.items()}, share)
    if options.json:
        options.json.write_text(
            json.dumps({title: asdict(way.measured) for title, way in ways.items()}, indent=1), encoding="utf-8"
        )


def show(corpus: Corpus, found: dict[str, Measured], share: float) -> None:
    """Print the table of all ways, and that of the budget."""
    table = Table(title=f"packing {corpus.files:,} files, {corpus.size / 1e6:,.0f} MB")
    for heading in ("way", "files/s", "MB/s", "CPU s", "CPU µs/file", "peak MiB", "MB out", f"files/s of {TAR}"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    base = found[TAR]
    for title, one in found.items():
        wall, cpu = statistics.median(one.wall), statistics.median(one.cpu)
        files, size = corpus.files, corpus.size
        if title in {TAR_TEXTS, AUTO_TEXTS}:
            files, size = corpus.compressible_files, corpus.compressible_size
        table.add_row(
            title,
            f"{files / wall:,.0f}",
            f"{size / wall / 1e6:,.0f}",
            f"{cpu:,.1f}",
            f"{cpu / files * 1e6:,.0f}",
            f"{one.peak:,.0f}",
            f"{one.size / 1e6:,.1f}",
            f"{_ratio(base, one) * files / corpus.files:.2f}",
        )
    Console(width=150).print(table)
    rows = [
        Row("files/s of des-pack to tar | zstd", _ratio(base, found[DES]), "times", BUDGET_RATIO, at_least=True),
        Row("the same, by CPU seconds", statistics.median(base.cpu) / statistics.median(found[DES].cpu), "times"),
        Row("goal", GOAL_RATIO, "times"),
        Row("peak memory of des-pack", found[DES].peak, "MiB", BUDGET_MIB),
    ]
    if {TAR_TEXTS, AUTO_TEXTS} <= found.keys():
        ratio = found[AUTO_TEXTS].size / found[TAR_TEXTS].size
        rows.append(Row("size of des-pack --dictionary auto to tar | zstd, no .bin", ratio, "times", BUDGET_SIZE))
    print_table("budget", rows)
    print(f"Others used {share:.0%} of this machine meanwhile.")


def _ratio(base: Measured, one: Measured) -> float:
    """Return how many times faster than the base a way was, the median of the rounds' own ratios."""
    return statistics.median(ours and theirs / ours for theirs, ours in zip(base.wall, one.wall, strict=False))


if __name__ == "__main__":
    main()
