"""A service whose S3 says SlowDown to every second request: it asks for little more than it needs, refuses in order, and recovers at once."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import pytest

from des.storage.s3 import open_s3
from tests.http.live import running
from tests.s3.sample import FILES, NAMES, PREFIX
from tests.servers.fault_proxy import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.fault_proxy import FaultProxy, Request

pytest_plugins = ["tests.servers.fixtures"]

CLIENTS = 20
UIDS = NAMES[::60]  # of every page


def wanted(least: int, seconds: float) -> Iterator[str]:
    """Yield uids, so many at least, and for so long."""
    chance, end = random.Random(1), time.monotonic() + seconds
    for number in range(1 << 30):
        if number >= least and time.monotonic() > end:
            return
        yield chance.choice(UIDS)


@pytest.mark.parametrize("seconds", [0, pytest.param(60, marks=pytest.mark.soak)])
async def test_a_storm_of_503(
    fault_proxy: FaultProxy, sample_bucket: str, s3_credentials: None, seconds: float
) -> None:
    storage = await open_s3(fault_proxy.config(sample_bucket, prefix=PREFIX))
    chance = random.Random(20240131)
    statuses: list[int] = []

    def falls(_: Request) -> bool:
        return chance.random() < 0.5

    async with running(storage, index_ttl=3600, negative_ttl=3600) as server:

        async def ask(uids: Iterator[str]) -> None:
            for uid in uids:
                reply = await server.ask(f"/files/{uid}?created_at=2024-01-31")
                statuses.append(reply.status)
                if reply.status == 200:
                    assert reply.body == FILES[uid]
                else:
                    assert (reply.status, reply.headers["retry-after"]) == (503, "5")

        for uid in UIDS:  # pages are read beforehand: what follows takes one request each
            assert (await server.ask(f"/files/{uid}?created_at=2024-01-31", method="HEAD")).status == 200
        fault_proxy.clear()
        with fault_proxy.fault(Answer(503, "SlowDown"), method="GET", times=None, when=falls) as storm:
            uids = wanted(600, seconds)
            await asyncio.gather(*(ask(uids) for _ in range(CLIENTS)))
        asked = len(statuses)
        assert storm.fired > asked / 4
        assert statuses.count(200) > asked / 3
        assert statuses.count(503) > 0
        # What retries may add (see `s3_retry`): one for every 5 requests, and 100 from the full budget, paid back where they succeed.
        assert asked <= len(fault_proxy.requests) <= 1.2 * asked + 250
        statuses.clear()
        await ask(wanted(50, 0))
        assert statuses == [200] * 50, "when it has passed, all is well at once"
    assert storage.endpoint.requests_in_flight == 0
    await storage.aclose()
