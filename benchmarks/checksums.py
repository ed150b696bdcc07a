"""Why XXH3: what each checksum costs, at the sizes that are checked on a read.

Run: `python -m benchmarks.checksums [--json FILE]`. Candidates are measured in turns within one run and shown as ratios to xxh3_64, so that
foreign load meets all of them. A page is checked when it is first used and a payload on every read, so at 4 KiB this decides
what a warm read costs, and at 32 and 64 KiB what a first lookup in a page costs. All have what is needed here (damage, not malice; the
content hash is for that), so the fastest that has specified, portable implementations in many languages is taken.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import random
import statistics
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (4 << 10, 32 << 10, 64 << 10, 256 << 10)
REFERENCE = "xxh3_64"
ROUNDS = 15
BYTES_A_ROUND = 8 << 20


def candidates() -> dict[str, Callable[[bytes], object]]:
    """Return the checksums this machine has; crc32c only where a package for it is installed."""
    found: dict[str, Callable[[bytes], object]] = {
        REFERENCE: xxhash.xxh3_64_intdigest,
        "xxh64": xxhash.xxh64_intdigest,
        "crc32 (zlib)": zlib.crc32,
        "sha256[:8]": lambda data: hashlib.sha256(data).digest()[:8],
        "blake2b-64": lambda data: hashlib.blake2b(data, digest_size=8).digest(),
    }
    for module, function in (("google_crc32c", "value"), ("crc32c", "crc32c")):
        try:
            found["crc32c"] = getattr(importlib.import_module(module), function)
        except ImportError:
            continue
    return found


def repeated(checksum: Callable[[bytes], object], data: bytes, calls: int) -> None:
    for _ in range(calls):
        checksum(data)


def measure(checksums: dict[str, Callable[[bytes], object]], data: bytes, meter: Meter) -> dict[str, float]:
    """Return CPU seconds a call, the median of rounds in which every candidate had its turn."""
    rounds: dict[str, list[float]] = {name: [] for name in checksums}
    for _ in range(ROUNDS):
        for name, checksum in checksums.items():
            calls = BYTES_A_ROUND // len(data)
            rounds[name].append(meter.time(partial(repeated, checksum, data, calls)) / calls)
    return {name: statistics.median(times) for name, times in rounds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checksums = candidates()
    meter = Meter()
    measured = {size: measure(checksums, random.Random(size).randbytes(size), meter) for size in SIZES}
    table = Table(title=f"CPU time of a checksum, as a ratio to {REFERENCE}")
    table.add_column("checksum")
    for size in SIZES:
        table.add_column(f"{size >> 10} KiB", justify="right")
    for name in checksums:
        ratios = [f"{times[name] / times[REFERENCE]:.1f}" for times in measured.values()]
        if name == REFERENCE:
            ratios = [f"1 ({times[name] * 1e6:.2f} µs)" for times in measured.values()]
        table.add_row(name, *ratios)
    Console(width=120).print(table, meter.report())
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
