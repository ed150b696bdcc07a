"""Reading 4 KiB files from S3: what each way costs the client, as ratios to aiobotocore's `get_object` with a Range.

Run: `make bench-s3`, or `python -m benchmarks.s3 [--seconds 0.5] [--rounds 3] [--json FILE]`. It runs SeaweedFS on this machine.

- The files are packed by `des-pack` and do not compress, so that every way moves the same bytes; all of them are compared.
- The ways take turns within each round, so that a slow minute meets all of them. A ratio is the median of the rounds' ratios.
- CPU is the client's: this process with all its threads, or wrk's. wrk reads one range again and again and looks at no byte.
- A cold get finds nothing in its cache but the descriptor: three requests, one after the other. Those that run at once share them.
- `get_many` gets as many files a call as others have readers; time and rate are those of its files. Scattered files lie all over their
  shards; neighbours were packed one after another.
- The last line says how much of the machine others used meanwhile: above a tenth, rates and times mean little, and CPU ratios less.

Budgets: a warm `Store.get` for a fifth of the CPU of `get_object` at 32 and 256 readers (goal: a tenth); a cold one, alone, in 3.3 times its time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import aiohttp
import psutil
import yarl
from rich.console import Console
from rich.table import Table

from benchmarks.tables import Row, print_table
from des import open_store
from des.storage.s3 import open_s3
from tests.servers.s3_servers import REGION, run_seaweedfs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from types_aiobotocore_s3 import S3Client

    from des.store import Store
    from tests.servers.s3_servers import S3Server

DAY = "2024-01-31"
FILES = 8192  # in two shards: too many for their pages to come with the tail
FILE_BYTES = 4096
READERS = (1, 32, 256)
BASE, WARM, COLD, WRK = "get_object", "Store.get, warm", "Store.get, cold", "wrk, presigned once"
DISTURBED_SHARE = 0.1

CPU_BUDGET = 5.0
LATENCY_BUDGET = 3.3


@dataclass(frozen=True, slots=True)
class File:
    """A packed file, and where it lies.

    Attributes:
        uid: its name.
        content: what it holds.
        key: of the segment, in the bucket.
        start: its first byte there.
    """

    uid: str
    content: bytes
    key: str
    start: int

    @property
    def range(self) -> str:
        return f"bytes={self.start}-{self.start + FILE_BYTES - 1}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: microseconds of CPU and requests a second, of one request each; milliseconds that half and 99 % of them took at most."""

    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float


class Way(Protocol):
    """A way to read: so many readers for so many seconds."""

    async def __call__(self, readers: int, seconds: float) -> Sample: ...


def sample_of(times: list[float], wall: float, cpu: float) -> Sample:
    times.sort()
    return Sample(
        cpu / len(times) * 1e6,
        len(times) / wall,
        times[len(times) // 2] * 1e3,
        times[min(len(times) - 1, len(times) * 99 // 100)] * 1e3,
    )


async def one_by_one(
    read: Callable[[File], Awaitable[bytes]], files: Sequence[File], readers: int, seconds: float
) -> Sample:
    """Let each reader read one file after another."""
    turn = itertools.cycle(files)
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def reader() -> None:
        while (began := time.perf_counter()) < end:
            file = next(turn)
            data = await read(file)
            times.append(time.perf_counter() - began)
            if data != file.content:
                raise RuntimeError("other bytes than were packed")

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(reader() for _ in range(readers)))
    return sample_of(times, time.perf_counter() - began, time.process_time() - cpu)


async def many_at_once(store: Store, files: Sequence[File], readers: int, seconds: float) -> Sample:
    """Let `get_many` read as many files as there would be readers, call after call."""
    turn = itertools.cycle(files)
    times: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    end = began + seconds
    while (asked := time.perf_counter()) < end:
        expected = {file.uid: file.content for file in itertools.islice(turn, readers)}
        async for result in store.get_many([(uid, DAY) for uid in expected]):
            times.append(time.perf_counter() - asked)
            if result.data != expected[result.uid]:
                raise RuntimeError("other bytes than were packed")
    return sample_of(times, time.perf_counter() - began, time.process_time() - cpu)


async def run_wrk(wrk: str, url: str, file: File, readers: int, seconds: float) -> Sample:
    """Let wrk read a range again and again."""
    command = [
        wrk,
        "-t1",
        f"-c{readers}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "-H",
        f"Range: {file.range}",
        url,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(f"wrk met errors:\n{done.stdout.replace(url, '<url>')}")
    requests, seconds_taken = _found(r"(\d+) requests in ([\d.]+)(s|m)", done.stdout)[:2]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    p50, p99 = (_milliseconds(*_found(rf" {share}%\s+([\d.]+)(us|ms|s)", done.stdout)) for share in (50, 99))
    return Sample(cpu / int(requests) * 1e6, int(requests) / float(seconds_taken), p50, p99)


def _found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"wrk did not say what was expected:\n{text}")
    return match.groups()


def _milliseconds(number: str, unit: str) -> float:
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def pack(server: S3Server, address: str) -> dict[str, bytes]:
    """Pack files that do not compress, by the real command; return them by uid."""
    source = random.Random(1)
    contents = {f"file-{number}": source.randbytes(FILE_BYTES) for number in range(FILES)}
    with tempfile.TemporaryDirectory() as name:
        rows = []
        for uid, content in contents.items():
            path = Path(name, uid)
            path.write_bytes(content)
            rows.append({"uid": uid, "created_at": DAY, "source_path": str(path)})
        manifest = Path(name, "manifest.json")
        manifest.write_text(json.dumps(rows))
        command = [
            sys.executable,
            "-m",
            "des.pack",
            "--input-json",
            str(manifest),
            "--output",
            address,
            "--n-bits",
            "1",
        ]
        environment = {"DES_S3_ENDPOINT_URL": server.endpoint, "DES_S3_REGION": REGION}
        subprocess.run([*command, "--quiet"], check=True, env={**os.environ, **environment})
    return contents


async def located(store: Store, contents: dict[str, bytes]) -> list[File]:
    """Find out where the files lie; in the order of their places."""
    files = []
    for uid, content in contents.items():
        info = await store.stat(uid, DAY)
        if (info.stored_size, info.codec) != (FILE_BYTES, "none"):
            raise RuntimeError("a file was compressed")
        files.append(File(uid, content, info.segment, info.offset))
    return sorted(files, key=lambda file: (file.key, file.start))


async def ways(server: S3Server, bucket: str, contents: dict[str, bytes], stack: AsyncExitStack) -> dict[str, Way]:
    """Open all ways to read, the base first."""
    most = max(READERS)
    # An index_ttl longer than the run: what is measured is a warm get, and not how often its head is asked for again.
    settings = partial(server.settings, bucket, max_connections=most, index_ttl=3600.0)
    warm = await stack.enter_async_context(open_store(settings()))
    cold = await stack.enter_async_context(open_store(settings(cache_bytes=0)))
    storage = await open_s3(server.config(bucket, max_connections=most))
    stack.push_async_callback(storage.aclose)
    plain = await open_s3(server.config(bucket, max_connections=most, presigned="off"))
    stack.push_async_callback(plain.aclose)
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None),
        )
    )
    client: S3Client = storage.endpoint.client
    neighbours = await located(warm, contents)
    files = random.Random(2).sample(neighbours, len(neighbours))

    async def presign(key: str) -> str:
        return await client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=3600)

    urls = {key: await presign(key) for key in {file.key for file in files}}

    async def get_object(file: File) -> bytes:
        reply = await client.get_object(Bucket=bucket, Key=file.key, Range=file.range)
        async with reply["Body"] as body:
            return await body.read()

    async def fetch(url: str, file: File) -> bytes:
        async with session.get(yarl.URL(url, encoded=True), headers={"Range": file.range}) as reply:
            return await reply.read()

    async def presigned_each(file: File) -> bytes:
        return await fetch(await presign(file.key), file)

    def reading(read: Callable[[File], Awaitable[bytes]]) -> Way:
        return partial(one_by_one, read, files)

    found: dict[str, Way] = {
        BASE: reading(get_object),
        "presigned each time, aiohttp": reading(presigned_each),
        "presigned once, aiohttp": reading(lambda file: fetch(urls[file.key], file)),
        "S3Storage, client": reading(lambda file: plain.read_range(file.key, file.start, file.start + FILE_BYTES)),
        "S3Storage, presigned": reading(lambda file: storage.read_range(file.key, file.start, file.start + FILE_BYTES)),
        WARM: reading(lambda file: warm.get(file.uid, DAY)),
        COLD: reading(lambda file: cold.get(file.uid, DAY)),
        "get_many, scattered": partial(many_at_once, warm, files),
        "get_many, neighbours": partial(many_at_once, warm, neighbours),
    }
    if wrk := shutil.which("wrk"):
        found[WRK] = partial(run_wrk, wrk, urls[files[0].key], files[0])
    return found


Samples = dict[int, dict[str, list[Sample]]]


async def measure(server: S3Server, seconds: float, rounds: int) -> Samples:
    """Measure all ways at each number of readers."""
    bucket = server.make_bucket()
    contents = await asyncio.to_thread(pack, server, f"s3://{bucket}")
    samples: Samples = {}
    async with AsyncExitStack() as stack:
        all_ways = await ways(server, bucket, contents, stack)
        for readers in READERS:
            samples[readers] = {name: [] for name in all_ways}
            for name, way in all_ways.items():
                if name != WRK:
                    await way(readers, seconds / 4)  # connections are open now, and caches full
            for _ in range(rounds):
                for name, way in all_ways.items():
                    samples[readers][name].append(await way(readers, seconds))
    return samples


@dataclass(frozen=True, slots=True)
class Line:
    """A way at a number of readers: medians, and medians of the rounds' ratios to the base; above 1 is always better."""

    readers: int
    way: str
    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float
    cheaper: float
    faster: float
    p50_sooner: float
    p99_sooner: float


def lines_of(samples: Samples) -> Iterator[Line]:
    def median(values: Iterator[float]) -> float:
        return statistics.median(list(values))

    for readers, by_way in samples.items():
        for name, ours in by_way.items():
            rounds = list(zip(ours, by_way[BASE], strict=True))
            yield Line(
                readers,
                name,
                median(s.cpu_us for s in ours),
                median(s.rate for s in ours),
                median(s.p50_ms for s in ours),
                median(s.p99_ms for s in ours),
                median(base.cpu_us / s.cpu_us for s, base in rounds),
                median(s.rate / base.rate for s, base in rounds),
                median(base.p50_ms / s.p50_ms for s, base in rounds),
                median(base.p99_ms / s.p99_ms for s, base in rounds),
            )


def print_lines(lines: list[Line]) -> None:
    table = Table(title="one 4 KiB file from S3; as a multiple of get_object at as many readers: higher is better")
    table.add_column("readers", justify="right")
    table.add_column("way")
    for heading in ("CPU ratio", "rate ratio", "p50 ratio", "p99 ratio", "CPU, µs", "requests/s", "p50, ms", "p99, ms"):
        table.add_column(heading, justify="right")
    for line in lines:
        ratios = (line.cheaper, line.faster, line.p50_sooner, line.p99_sooner)
        figures = (f"{line.cpu_us:,.0f}", f"{line.rate:,.0f}", f"{line.p50_ms:.2f}", f"{line.p99_ms:.2f}")
        if line.way == BASE:
            table.add_section()
        table.add_row(str(line.readers), line.way, *(f"{ratio:.1f}" for ratio in ratios), *figures)
    Console(width=130).print(table)


def budgets_of(lines: list[Line]) -> list[Row]:
    at = {(line.readers, line.way): line for line in lines}
    return [
        *(
            Row(
                f"CPU of get_object / of a warm Store.get, {n} readers",
                at[n, WARM].cheaper,
                "",
                CPU_BUDGET,
                at_least=True,
            )
            for n in READERS[1:]
        ),
        Row("time of a cold Store.get / of get_object, alone", 1 / at[1, COLD].p50_sooner, "", LATENCY_BUDGET),
    ]


class Machine:
    """What others use of the machine while we measure."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._busy = self._busy_seconds()
        self._ours = self._our_seconds()

    def used_by_others(self) -> float:
        """Return the share of all processors that neither we, nor what we ran, nor the S3 server used so far."""
        others = self._busy_seconds() - self._busy - (self._our_seconds() - self._ours)
        return max(0.0, others / (time.perf_counter() - self._began) / (psutil.cpu_count() or 1))

    @staticmethod
    def _busy_seconds() -> float:
        return sum(psutil.cpu_times()[:3])

    @staticmethod
    def _our_seconds() -> float:
        ours = psutil.Process()
        used = ours.cpu_times()  # with that of children that have ended
        return sum(used[:4]) + sum(sum(child.cpu_times()[:2]) for child in ours.children(recursive=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with run_seaweedfs() as server:
        os.environ.update(server.environment)
        machine = Machine()
        lines = list(lines_of(asyncio.run(measure(server, options.seconds, options.rounds))))
        others = machine.used_by_others()
    budgets = budgets_of(lines)
    print_lines(lines)
    print_table("S3 reads", budgets)
    if not shutil.which("wrk"):
        print("There is no wrk here (Debian: apt-get install wrk), so its line is missing.")
    spoiled = others > DISTURBED_SHARE
    print(f"{'Foreign load: others' if spoiled else 'Quiet run: others'} used {others:.0%} of the machine.")
    if options.json:
        result = {
            "lines": [asdict(line) for line in lines],
            "budgets": [row.to_dict() for row in budgets],
            "used_by_others": others,
        }
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
