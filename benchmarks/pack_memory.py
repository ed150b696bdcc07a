"""Peak memory of packing 100,000 small files and one of 2 GiB with default settings, read back and compared afterwards.

Run: `python -m benchmarks.pack_memory [--files N] [--large-bytes N] [--json FILE]`. Budget: 300 MiB for the packing process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import anyio

from benchmarks.tables import Row, print_table
from des.store import open_store

MIB = 1 << 20
BUDGET_MIB = 300
DAY = "2024-01-31"
BLOCK = 16 * MIB


def make_files(folder: Path, files: int, large_bytes: int) -> Path:
    """Write the sources and their manifest; half of a small file's bytes repeat, the large one repeats a random block."""
    source = random.Random(1)
    rows = []
    for number in range(files):
        size = int(source.lognormvariate(7.6, 1.0)) + 1
        path = folder / f"{number % 100:02}" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        noise = source.randbytes(size // 2)
        path.write_bytes(noise + b" the same words again" * (size // 42) + b"\n")
        rows.append({"uid": f"doc/{number}", "created_at": f"{DAY}T10:00:00Z", "source_path": str(path)})
    block, large = source.randbytes(BLOCK), folder / "large.bin"
    with large.open("wb") as out:
        for _ in range(large_bytes // BLOCK):
            out.write(block)
    rows.insert(files // 2, {"uid": "large", "created_at": DAY, "source_path": str(large)})
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(rows))
    return manifest


def run_measured(*command: str) -> tuple[float, float, float]:
    """Run a command; return its wall seconds, CPU seconds and peak memory in MiB."""
    started = time.perf_counter()
    child = os.spawnv(os.P_NOWAIT, command[0], list(command))
    _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


async def compare(store: Path, manifest: Path) -> None:
    """Read everything back and compare it with the sources."""
    async with open_store(store) as opened:
        for row in json.loads(manifest.read_text()):  # noqa: ASYNC240 - as below
            expected = hashlib.sha256()
            with Path(row["source_path"]).open("rb") as file:  # noqa: ASYNC230 - nothing else runs on this loop
                while piece := file.read(MIB):
                    expected.update(piece)
            found = hashlib.sha256()
            async with opened.stream(row["uid"], row["created_at"]) as pieces:
                async for piece in pieces:
                    found.update(piece)
            if found.digest() != expected.digest():
                sys.exit(f"{row['uid']} came back different")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--large-bytes", type=int, default=2 << 30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_files(folder, options.files, options.large_bytes)
        store = folder / "store"
        command = (
            sys.executable,
            "-m",
            "des.pack",
            "--input-json",
            str(manifest),
            "--output-dir",
            str(store),
            "--quiet",
        )
        wall, cpu, peak = run_measured(*command)
        anyio.run(compare, store, manifest)
    rows = [
        Row("peak memory of the packer", peak, "MiB", BUDGET_MIB),
        Row("wall time", wall, "s"),
        Row("CPU time", cpu, "s"),
        Row("files a second, wall", (options.files + 1) / wall, "1/s"),
    ]
    print_table(f"packing {options.files:,} small files and one of {options.large_bytes / MIB:,.0f} MiB", rows)
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
