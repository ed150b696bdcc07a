"""What one 4 KiB range-GET costs the client, way by way, as ratios to aiobotocore's `get_object`.

    python -m benchmarks.s3_client [--seconds 1.0] [--rounds 3]

It runs SeaweedFS on this machine. The ways take turns within each round, so that a slow minute meets all of them; a
ratio is the median of the rounds'. CPU is this process's alone. The last line says how much of the machine others used
meanwhile: above a tenth, the rates mean little, and the CPU ratios a little less.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import psutil
import yarl

from des.storage.protocol import Overwrite
from des.storage.s3 import open_s3
from tests.servers.s3_servers import run_seaweedfs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.servers.s3_servers import S3Server

KEY = "20240101/0A/segment.des"
OBJECT_BYTES = 1 << 20
READ_BYTES = 4096
BASE = "get_object"
HEADERS_TO_SKIP = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


@dataclass(slots=True)
class Measured:
    cpu_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


async def ways(
    server: S3Server, bucket: str, stack: AsyncExitStack
) -> dict[str, Callable[[int, int], Awaitable[bytes]]]:
    plain = await open_s3(server.config(bucket, presigned="off", max_connections=256))
    stack.push_async_callback(plain.aclose)
    hot = await open_s3(server.config(bucket, presigned="auto", max_connections=256))
    stack.push_async_callback(hot.aclose)
    await plain.put(KEY, os.urandom(OBJECT_BYTES), Overwrite())
    client = plain.endpoint.client
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=HEADERS_TO_SKIP,
            timeout=aiohttp.ClientTimeout(total=None),
        )
    )
    params = {"Bucket": bucket, "Key": KEY}
    reused = yarl.URL(await client.generate_presigned_url("get_object", Params=params, ExpiresIn=3600), encoded=True)

    async def get_object(start: int, end: int) -> bytes:
        reply = await client.get_object(Bucket=bucket, Key=KEY, Range=f"bytes={start}-{end - 1}")
        async with reply["Body"] as body:
            return await body.read()

    async def fetch(url: yarl.URL, start: int, end: int) -> bytes:
        async with session.get(url, headers={"Range": f"bytes={start}-{end - 1}"}) as reply:
            return await reply.read()

    async def presigned_each(start: int, end: int) -> bytes:
        url = await client.generate_presigned_url("get_object", Params=params, ExpiresIn=3600)
        return await fetch(yarl.URL(url, encoded=True), start, end)

    return {
        BASE: get_object,
        "S3Storage, client": lambda start, end: plain.read_range(KEY, start, end),
        "presigned each time, aiohttp": presigned_each,
        "presigned once, aiohttp": lambda start, end: fetch(reused, start, end),
        "S3Storage, presigned": lambda start, end: hot.read_range(KEY, start, end),
    }


async def measure(
    way: Callable[[int, int], Awaitable[bytes]], concurrency: int, seconds: float, into: Measured
) -> None:
    """Read for some seconds with so many readers at once."""
    offsets = itertools.cycle(range(0, OBJECT_BYTES, READ_BYTES))
    done = 0
    end = time.perf_counter() + seconds

    async def read() -> None:
        nonlocal done
        while time.perf_counter() < end:
            start = next(offsets)
            data = await way(start, start + READ_BYTES)
            if len(data) != READ_BYTES:
                raise RuntimeError("a short read")
            done += 1

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(read() for _ in range(concurrency)))
    into.cpu_us.append((time.process_time() - cpu) / done * 1e6)
    into.rate.append(done / (time.perf_counter() - began))


async def run(server: S3Server, seconds: float, rounds: int) -> None:
    async with AsyncExitStack() as stack:
        all_ways = await ways(server, server.make_bucket(), stack)
        print(f"{'CPU per request relative to get_object, higher is cheaper':<58}{'rate':>7}{'CPU, µs':>9}")
        for concurrency in (1, 32, 256):
            results = {name: Measured() for name in all_ways}
            for way in all_ways.values():
                await measure(way, concurrency, seconds / 4, Measured())
            for _ in range(rounds):
                for name, way in all_ways.items():
                    await measure(way, concurrency, seconds, results[name])
            for name, result in results.items():
                cpu = statistics.median(b / w for b, w in zip(results[BASE].cpu_us, result.cpu_us, strict=True))
                rate = statistics.median(w / b for b, w in zip(results[BASE].rate, result.rate, strict=True))
                spent = statistics.median(result.cpu_us)
                print(f"{concurrency:>5} at once  {name:<32}{cpu:>10.1f}{rate:>9.1f}{spent:>9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with run_seaweedfs() as server:
        os.environ.update(server.environment)
        machine, began = psutil.cpu_times(), time.perf_counter()
        ours = psutil.Process()
        server_process = next(child for child in ours.children() if "weed" in child.name())
        before = sum(ours.cpu_times()[:2]) + sum(server_process.cpu_times()[:2])
        asyncio.run(run(server, arguments.seconds, arguments.rounds))
        used = sum(ours.cpu_times()[:2]) + sum(server_process.cpu_times()[:2]) - before
        busy = sum(psutil.cpu_times()[:3]) - sum(machine[:3])
        others = (busy - used) / (time.perf_counter() - began) / (psutil.cpu_count() or 1)
        print(f"others used {max(0.0, others):.0%} of the machine")


if __name__ == "__main__":
    main()
