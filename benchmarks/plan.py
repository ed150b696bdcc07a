"""Planning ten million rows: read, checked, routed and put into the plan by a whole process, once for each format of manifest.

Run: `python -m benchmarks.plan [--rows N] [--formats jsonl,json,csv,parquet] [--json FILE]`. What is timed is `des-pack --dry-run` on an empty store,
from start to exit. The manifests are made on disk, one at a time: some 1.7 GB for ten million rows, and as much again for the plan.
Budgets, for JSON lines: 100,000 rows a second, 300 MiB.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.pack_memory import run_measured
from benchmarks.tables import Row, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("jsonl", "json", "csv", "parquet")
BATCH = 10_000
BYTES_A_ROW = 400
RATE_BUDGET = 100_000
MEMORY_BUDGET_MIB = 300

Rows = list[dict[str, object]]


def batches(rows: int) -> Iterator[Rows]:
    """Yield rows as a mail archive would have them: a day's files follow each other, every second another time."""
    for start in range(0, rows, BATCH):
        yield [
            {
                "uid": f"mail/2024/{at:09}.eml",
                "created_at": f"2024-{1 + at * 12 // rows:02}-{1 + at * 336 // rows % 28:02}T{at // 3600 % 24:02}:{at // 60 % 60:02}:{at % 60:02}Z",
                "source_path": f"/data/input/{at % 1000:03}/{at:09}.eml",
                "size_bytes": at % 9999,
                "content_type": "message/rfc822",
            }
            for at in range(start, min(rows, start + BATCH))
        ]


def write_jsonl(path: Path, rows: int) -> None:
    with path.open("wb") as file:
        for batch in batches(rows):
            file.write(b"".join(orjson.dumps(row) + b"\n" for row in batch))


def write_json(path: Path, rows: int) -> None:
    with path.open("wb") as file:
        opening = b"["
        for batch in batches(rows):
            file.write(opening + orjson.dumps(batch)[1:-1])
            opening = b",\n"
        file.write(b"]")


def write_csv(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for batch in batches(rows):
            if writer is None:
                writer = csv.DictWriter(file, list(batch[0]))
                writer.writeheader()
            writer.writerows(batch)


def write_parquet(path: Path, rows: int) -> None:
    writer: pq.ParquetWriter | None = None
    for batch in batches(rows):
        table = pa.Table.from_pylist(batch)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


WRITERS = {"jsonl": write_jsonl, "json": write_json, "csv": write_csv, "parquet": write_parquet}


def measure(form: str, rows: int, folder: Path) -> list[Row]:
    path = folder / f"manifest.{form}"
    WRITERS[form](path, rows)
    command = [
        sys.executable,
        "-m",
        "des.pack",
        "--input",
        str(path),
        "--output",
        str(folder / "store"),
        "--dry-run",
        "--json",
    ]
    wall, cpu, peak = run_measured(*command)
    path.unlink()
    is_judged = form == "jsonl"
    return [
        Row(f"{form}: rows a second", rows / wall, "1/s", RATE_BUDGET if is_judged else None, at_least=True),
        Row(f"{form}: rows a CPU second", rows / cpu, "1/s"),
        Row(f"{form}: peak memory", peak, "MiB", MEMORY_BUDGET_MIB if is_judged else None),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        needed = options.rows * BYTES_A_ROW
        if shutil.disk_usage(folder).free < needed:
            sys.exit(f"{options.rows:,} rows need about {needed:,} bytes in {folder.parent}")
        rows = [row for form in options.formats.split(",") for row in measure(form, options.rows, folder)]
    print_table(f"planning {options.rows:,} rows", rows)
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
