"""Memory of our processes while gigabytes go to S3 and back: the packer, a program that streams, and the service.

Run: `python -m benchmarks.s3_large [--bytes N] [--directory DIR] [--json FILE]`, or `make bench-s3 LARGE=1`. Budget: 200 MiB
for each process; 300 MiB, as on local disks, for a packer that writes many shards at once.

One file of 4 GiB is packed by `des-pack`, streamed by `Store.stream`, and streamed over HTTP by `des serve`; then as many bytes as
that are packed in files of 64 MiB, so that many shards are written at once. Everything that comes back is compared by its SHA-256.
It runs SeaweedFS on this machine and takes disk space for twice the bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import MIB, Used, peak_mib_of_children, run_measured
from benchmarks.tables import Row, print_table
from tests.servers.processes import server_process
from tests.servers.s3_servers import REGION, run_seaweedfs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.servers.s3_servers import S3Server

BUDGET_MIB = 200
MANY_BUDGET_MIB = 300
DAY = "2024-01-31"
BLOCK = 16 * MIB
SMALLER = 64 * MIB
SERVES = re.compile(r"serving .* on http://127\.0\.0\.1:(\d+)")

# Prints the SHA-256 of each file it is given, read by `Store.stream`.
STREAMING = """
import asyncio, hashlib, sys
from des import open_store

async def main(address, day, *uids):
    async with open_store(address) as store:
        for uid in uids:
            digest = hashlib.sha256()
            async with store.stream(uid, day) as pieces:
                async for piece in pieces:
                    digest.update(piece)
            print(digest.hexdigest())

asyncio.run(main(*sys.argv[1:]))
"""


def make_source(path: Path, size: int) -> str:
    """Write a file that does not compress; return its SHA-256."""
    block, digest = random.Random(1).randbytes(BLOCK), hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, BLOCK):
            piece = block[: min(BLOCK, size - start)]
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def pack(folder: Path, uids: Sequence[str], source: Path, address: str, environment: Mapping[str, str]) -> Used:
    """Pack the source under each uid, by the real command."""
    manifest = folder / "manifest.json"
    rows = [{"uid": uid, "created_at": DAY, "source_path": str(source)} for uid in uids]
    manifest.write_text(json.dumps(rows))
    command = [sys.executable, "-m", "des.pack", "--input-json", str(manifest), "--output", address, "--quiet"]
    return run_measured(command, environment)


def stream(uids: Sequence[str], address: str, environment: Mapping[str, str], expected: str) -> Used:
    """Stream the files back by `Store.stream` and compare them."""
    used = run_measured([sys.executable, "-c", STREAMING, address, DAY, *uids], environment)
    if used.output.split() != [expected] * len(uids):
        sys.exit("Store.stream gave other bytes than were packed.")
    return used


def stream_by_http(uid: str, address: str, environment: Mapping[str, str], expected: str) -> float:
    """Stream a file back from `des serve` and compare it; return the server's peak memory in MiB."""
    command = [sys.executable, "-m", "des", "--store", address, "serve", "--port", "0"]
    with server_process(command, SERVES, environment) as served:
        connection = http.client.HTTPConnection("127.0.0.1", int(served[1]))
        connection.request("GET", f"/files/{uid}?created_at={DAY}")
        answer, digest = connection.getresponse(), hashlib.sha256()
        while piece := answer.read(MIB):
            digest.update(piece)
        connection.close()
        if (answer.status, digest.hexdigest()) != (200, expected):
            sys.exit("the service gave other bytes than were packed.")
        return peak_mib_of_children("serve")


def measure(folder: Path, server: S3Server, size: int) -> list[Row]:
    """Send the bytes to S3 and back, as one file and as many."""
    environment = {**server.environment, "DES_S3_ENDPOINT_URL": server.endpoint, "DES_S3_REGION": REGION}
    source, bucket = folder / "source", server.make_bucket()
    expected = make_source(source, size)
    packed = pack(folder, ["large"], source, f"s3://{bucket}/one", environment)
    streamed = stream(["large"], f"s3://{bucket}/one", environment, expected)
    began = time.perf_counter()
    served_mib = stream_by_http("large", f"s3://{bucket}/one", environment, expected)
    served_seconds = time.perf_counter() - began
    server.drop_bucket(bucket)

    bucket, smaller = server.make_bucket(), min(SMALLER, size)
    expected = make_source(source, smaller)
    uids = [f"file-{number}" for number in range(max(1, size // smaller))]
    packed_many = pack(folder, uids, source, f"s3://{bucket}/many", environment)
    streamed_many = stream(uids, f"s3://{bucket}/many", environment, expected)
    server.drop_bucket(bucket)
    one, many = f"one file of {size / MIB:,.0f} MiB", f"{len(uids)} files of {smaller / MIB:,.0f} MiB"
    return [
        Row(f"{one}: peak of des-pack", packed.peak_mib, "MiB", BUDGET_MIB),
        Row(f"{one}: peak of Store.stream", streamed.peak_mib, "MiB", BUDGET_MIB),
        Row(f"{one}: peak of des serve", served_mib, "MiB", BUDGET_MIB),
        Row(f"{many}: peak of des-pack", packed_many.peak_mib, "MiB", MANY_BUDGET_MIB),
        Row(f"{many}: peak of Store.stream", streamed_many.peak_mib, "MiB", BUDGET_MIB),
        Row(f"{one}: packed", size / MIB / packed.seconds, "MiB/s"),
        Row(f"{one}: streamed", size / MIB / streamed.seconds, "MiB/s"),
        Row(f"{one}: served", size / MIB / served_seconds, "MiB/s"),
        Row(f"{one}: CPU of des-pack per GiB", packed.cpu_seconds / size * 1024 * MIB, "s"),
        Row(f"{one}: CPU of Store.stream per GiB", streamed.cpu_seconds / size * 1024 * MIB, "s"),
        Row(f"{many}: packed", len(uids) * smaller / MIB / packed_many.seconds, "MiB/s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=4 << 30)
    parser.add_argument(
        "--directory", type=Path, help="where to put source and store; default: the system's for temporary files"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="des-large-", dir=options.directory) as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < 2.5 * options.bytes:
            sys.exit(f"{folder} has {free / MIB:,.0f} MiB free; this takes {2.5 * options.bytes / MIB:,.0f}.")
        with run_seaweedfs(folder) as server:
            rows = measure(folder, server, options.bytes)
    print_table(f"{options.bytes / MIB:,.0f} MiB to S3 and back", rows)
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
