"""What hedged reads do to the slowest answers, and how many requests they cost.

    python -m benchmarks.zones [--reads 2000] [--rounds 3] [--json FILE]

One zone of two places, a primary and a copy, on SeaweedFS, each behind a proxy that counts what arrives. The primary's proxy answers 3 % of
the requests 300 ms late. A store that knows its index reads small files, eight at once, with hedging and without; both take turns within
each round. A figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from benchmarks.tables import Row, print_table
from des import open_store
from tests.making import WHEN
from tests.servers.fault_proxy import Delay, FaultProxy, Request
from tests.servers.s3_servers import REGION, run_seaweedfs
from tests.zones.sample import PREFIX, fill_zone, zone_settings, zones_file

if TYPE_CHECKING:
    from des.store import Store
    from tests.servers.s3_servers import S3Server

AT_ONCE = 8
LATE_SHARE, LATE_SECONDS = 0.03, 0.3
FILES = 200
# What the quantile has to have seen before it can say anything.
WARM_UP_READS = 400
P99_BUDGET, REQUESTS_BUDGET = 1 / 3, 1.05


@dataclass(slots=True)
class Figures:
    """What was measured of one way, round by round: latencies in seconds, requests in all."""

    median: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)


async def read(store: Store, uids: list[str], seconds: list[float]) -> None:
    """Read files, some at once, and note what each took."""
    waiting = iter(uids)

    async def work() -> None:
        for uid in waiting:
            began = time.perf_counter()
            await store.get(uid, WHEN)
            seconds.append(time.perf_counter() - began)

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(work)


async def measure(path: Path, ways: tuple[FaultProxy, ...], reads: int, seed: int, into: Figures) -> None:
    """Read with a store that knows its index, and note latencies and requests."""
    generator = random.Random(seed)

    def is_late(request: Request) -> bool:
        return (
            request.method == "GET"
            and request.key.count("/") > PREFIX.count("/") + 2
            and generator.random() < LATE_SHARE
        )

    uids = [f"file-{generator.randrange(FILES)}" for _ in range(reads)]
    async with open_store(zone_settings(path, log_level="error", index_ttl=600.0)) as store:
        with ways[0].fault(Delay(LATE_SECONDS), when=is_late, times=None) as late:
            await read(store, [f"file-{number % FILES}" for number in range(WARM_UP_READS)], [])
            for way in ways:
                way.clear()
            seconds: list[float] = []
            await read(store, uids, seconds)
        if not late.fired:
            raise SystemExit("no answer was late: the run says nothing.")
    into.requests.append(sum(len(way.requests) for way in ways))
    quantiles = statistics.quantiles(seconds, n=100)
    into.median.append(quantiles[49])
    into.p99.append(quantiles[98])


async def run(server: S3Server, folder: Path, options: argparse.Namespace) -> list[Row]:
    buckets = (server.make_bucket(), server.make_bucket())
    files = {f"file-{number}": random.Random(number).randbytes(4096) for number in range(FILES)}
    hedged, plain = Figures(), Figures()
    async with FaultProxy.before(server) as primary, FaultProxy.before(server) as copy:
        ways = (primary, copy)
        endpoints = [way.endpoint for way in ways]
        paths = {
            hedge: zones_file(folder / f"zones-{hedge}.json", buckets, endpoints, hedge=hedge) for hedge in (0.0, 0.05)
        }
        await fill_zone(paths[0.0], files)
        for number in range(options.rounds):
            turns = [(paths[0.05], hedged), (paths[0.0], plain)]
            for path, figures in turns if number % 2 else reversed(turns):
                await measure(path, ways, options.reads, number, figures)
    p99s = [one / other for one, other in zip(hedged.p99, plain.p99, strict=True)]
    requests = [one / other for one, other in zip(hedged.requests, plain.requests, strict=True)]
    return [
        Row("99th percentile with hedging, of that without", statistics.median(p99s), "", P99_BUDGET),
        Row("requests with hedging, of those without", statistics.median(requests), "", REQUESTS_BUDGET),
        *(
            Row(f"{name}: {what}", statistics.median(values) * 1000, "ms")
            for name, figures in (("hedged", hedged), ("not hedged", plain))
            for what, values in (("median", figures.median), ("99th percentile", figures.p99))
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reads", type=int, default=2000, help="reads in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, run_seaweedfs(Path(folder)) as server:
        os.environ.update(server.environment | {"DES_S3_REGION": REGION})
        rows = anyio.run(run, server, Path(folder), options)
    print_table(f"two places, one of them {LATE_SECONDS * 1000:.0f} ms late with {LATE_SHARE:.0%} of its answers", rows)
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows]), encoding="utf-8")


if __name__ == "__main__":
    main()
