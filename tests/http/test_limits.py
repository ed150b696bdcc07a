from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from des.http.limits import Limits
from des.http.problems import RefusedError
from des.storage.testing import Fault, FaultyStorage, Hold
from tests.http.live import running
from tests.making import DAY, make_store

if TYPE_CHECKING:
    from des.storage.testing import RecordingStorage

AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"


def test_requests_are_counted_in_and_out() -> None:
    limits = Limits(max_requests=2, max_bytes=10)
    limits.take_request()
    limits.take_request()
    with pytest.raises(RefusedError):
        limits.take_request()
    limits.give_request()
    limits.take_request()


def test_bytes_are_counted_in_and_out_and_one_body_always_passes() -> None:
    limits = Limits(max_requests=2, max_bytes=10)
    limits.take_bytes(100)
    with pytest.raises(RefusedError):
        limits.take_bytes(1)
    limits.give_bytes(100)
    limits.take_bytes(6)
    limits.take_bytes(4)
    with pytest.raises(RefusedError):
        limits.take_bytes(1)


@pytest.mark.parametrize("values", [{"http_max_requests": 1}, {"http_max_bytes": 10}])
async def test_beyond_the_limit_is_503_and_probes_are_answered(
    storage: RecordingStorage, values: dict[str, int]
) -> None:
    await make_store(storage, {"small": b"content"})
    hold = Hold()
    target = f"/files/small?{AT}"
    async with running(FaultyStorage(storage, [Fault(hold, verb="read_range")]), **values) as server:
        first = asyncio.create_task(server.ask(target))
        await hold.reached.wait()
        second = await server.ask(target)
        assert second.status == 503
        assert second.headers["retry-after"] == "1"
        for probe in ("/health", "/ready", "/metrics"):
            assert (await server.ask(probe)).status == 200
        hold.release.set()
        assert (await first).body == b"content"
        assert (await server.ask(target)).body == b"content"


async def test_what_goes_wrong_is_counted_out_as_well(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    async with running(storage, http_max_requests=1, http_max_bytes=1) as server:
        for target in (f"/files/none?{AT}", "/files/small", "/files/%FF", f"/files/small?{AT}"):
            assert (await server.ask(target)).status != 503
            assert (await server.ask(target, method="POST")).status == 405
        assert (await server.ask(f"/files/small?{AT}")).body == b"content"
