"""What readers get while the way to S3 does harm: the right bytes or a typed error in time, and nothing left behind.

Three days have one fault each, at the head's tail, at an index page and at the segment; on each, every way to read is
tried at once, by a reader who knows nothing yet. First each fault passes, then it stays.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import psutil
import pytest

from des.errors import CorruptShardError, DESError, StorageError
from des.storage.s3 import open_s3
from tests.http.live import running
from tests.making import reading
from tests.pack.packing import date_of
from tests.s3.sample import FAULTY_DAYS, FAULTY_FILES, NAMES, PREFIX, kind
from tests.servers.fault_proxy import (
    Answer,
    Cut,
    Drip,
    Flip,
    IgnoreRange,
    SetHeader,
    Shorten,
    Stall,
    change_etag,
    wrong_content_range,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from des.storage.s3 import S3Storage
    from tests.servers.fault_proxy import Effect, Fault, FaultProxy, Request

pytest_plugins = ["tests.servers.fixtures"]

LARGE, SMALL, ANOTHER = NAMES[0], NAMES[1], NAMES[2]
TARGETS = dict(zip(FAULTY_DAYS, ("tail", "page", "segment"), strict=True))


class HTTPError(Exception):
    """An answer that is none, with its status; 0 where it broke off in the body."""


async def get(storage: S3Storage, day: str, **settings: float) -> None:
    async with reading(storage, **settings) as store:
        assert await store.get(SMALL, date_of(day)) == FAULTY_FILES[SMALL]


async def get_large(storage: S3Storage, day: str, **settings: float) -> None:
    async with reading(storage, **settings) as store:
        assert await store.get(LARGE, date_of(day)) == FAULTY_FILES[LARGE]


async def stream(storage: S3Storage, day: str, **settings: float) -> None:
    received = bytearray()
    try:
        async with reading(storage, **settings) as store, store.stream(LARGE, date_of(day), start=5) as pieces:
            async for piece in pieces:
                received += piece
    finally:
        assert FAULTY_FILES[LARGE][5:].startswith(received), "what came before an error is right as well"
    assert len(received) == len(FAULTY_FILES[LARGE]) - 5


async def get_many(storage: S3Storage, day: str, **settings: float) -> None:
    wanted = (SMALL, ANOTHER)
    async with reading(storage, **settings) as store:
        results = [result async for result in store.get_many((uid, date_of(day)) for uid in wanted)]
    assert {result.uid for result in results} == set(wanted)
    for result in results:
        if result.error:
            raise result.error
        assert result.data == FAULTY_FILES[result.uid]


async def ask(storage: S3Storage, day: str, **settings: float) -> None:
    async with running(storage, **settings) as server:
        target = f"/files/{LARGE}?created_at={date_of(day)}"
        reply = await server.ask(target)
    if reply.status != 200:
        raise HTTPError(reply.status)
    assert FAULTY_FILES[LARGE].startswith(reply.body)
    if not reply.is_whole:
        raise HTTPError(0)


WAYS: tuple[Callable[..., Awaitable[None]], ...] = (get, get_large, stream, get_many, ask)

OTHER_ETAG = change_etag()
QUICK: dict[str, Effect] = {
    "cut before the head": Cut(after=None),
    "cut before the body": Cut(after=0),
    "cut in the body": Cut(after=10),
    "503": Answer(503, "SlowDown"),
    "shortened": Shorten(by=7, honest=True),
    "ended early": Shorten(by=7, honest=False),
    "200 to a range": IgnoreRange(),
    "wrong content-range": wrong_content_range(),
    "no content-range": SetHeader("content-range", None),
    "other etag": OTHER_ETAG,
    "no etag": SetHeader("etag", None),
}
SLOW: dict[str, Effect] = {
    "silence": Stall(after=None),
    "stall in the body": Stall(after=10),
    "drip": Drip(after=10, interval=0.5),
}
# Those that pass and those that stay which are tried always; the others are of the same kind.
OFTEN_PASSING = (
    "cut before the head", "cut in the body", "503", "shortened", "200 to a range", "wrong content-range", "other etag",
    "silence", "stall in the body", "drip",
)  # fmt: skip
OFTEN_STAYING = ("cut in the body", "200 to a range", "other etag", "silence")
# Long enough for a loaded machine, short enough that a third of it can be sat through.
PATIENCE = 4.5
HASTE = 1.2


def descriptors(proxy: FaultProxy) -> int:
    """Return how many there are, less those between the proxy and its server."""
    process = psutil.Process()
    links = sum(link.raddr[1:] == proxy.upstream[1:] for link in process.net_connections("tcp"))
    return int(process.num_fds()) - links


@asynccontextmanager
async def baseline(proxy: FaultProxy, bucket: str, request_timeout: float) -> AsyncIterator[S3Storage]:
    """Open the place; when the context is through, slots, connections, tasks and descriptors are as before."""
    await proxy.quiet()
    tasks, files = asyncio.all_tasks(), descriptors(proxy)
    storage = await open_s3(proxy.config(bucket, prefix=PREFIX, request_timeout=request_timeout))
    yield storage
    assert storage.endpoint.requests_in_flight == 0
    await storage.aclose()
    with anyio.fail_after(20):
        await proxy.quiet()
        while asyncio.all_tasks() != tasks or descriptors(proxy) > files:
            await anyio.lowlevel.checkpoint()
    assert storage.endpoint.wire_connections == 0


def faults(proxy: FaultProxy, stack: ExitStack, effect: Effect, times: int | None) -> list[Fault]:
    """Hit each day's target."""

    def hits(day: str) -> Callable[[Request], bool]:
        # A tail that broke is read on by what looks like the read of a page.
        harmed = {"tail", "page"} if TARGETS[day] == "tail" else {TARGETS[day]}
        return lambda request: f"/{day}/" in request.key and kind(request) in harmed

    return [stack.enter_context(proxy.fault(effect, when=hits(day), times=times)) for day in TARGETS]


async def outcomes(storage: S3Storage, request_timeout: float) -> dict[tuple[str, str], Exception | None]:
    """Try every way on every day at once."""
    ended: dict[tuple[str, str], Exception | None] = {}

    async def attempt(way: Callable[..., Awaitable[None]], day: str) -> None:
        error: Exception | None = None
        try:
            await way(storage, day, request_timeout=request_timeout)
        except (DESError, HTTPError) as failure:
            error = failure
        ended[way.__name__, TARGETS[day]] = error

    async with anyio.create_task_group() as tasks:
        for way in WAYS:
            for day in TARGETS:
                tasks.start_soon(attempt, way, day)
    return ended


def effects(often: tuple[str, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "effect",
        [
            pytest.param(effect, id=name, marks=[] if name in often else [pytest.mark.soak])
            for name, effect in (QUICK | SLOW).items()
        ],
    )


@effects(OFTEN_PASSING)
async def test_a_fault_that_passes_is_not_noticed(
    fault_proxy: FaultProxy, sample_bucket: str, s3_credentials: None, effect: Effect
) -> None:
    async with baseline(fault_proxy, sample_bucket, PATIENCE) as storage:
        with ExitStack() as stack:
            fired = faults(fault_proxy, stack, effect, len(WAYS))
            ended = await outcomes(storage, 60)
    assert ended == dict.fromkeys(ended)
    assert len(ended) == len(WAYS) * len(TARGETS)
    assert [fault.fired for fault in fired] == [len(WAYS)] * len(TARGETS)


@effects(OFTEN_STAYING)
async def test_a_fault_that_stays_is_a_typed_error_in_time(
    fault_proxy: FaultProxy, sample_bucket: str, s3_credentials: None, effect: Effect
) -> None:
    async with baseline(fault_proxy, sample_bucket, HASTE) as storage:
        with ExitStack() as stack:
            fired = faults(fault_proxy, stack, effect, None)
            with anyio.fail_after(30):
                ended = await outcomes(storage, 2 * HASTE)
        assert all(fault.fired for fault in fired)
        for (way, target), error in ended.items():
            if effect == OTHER_ETAG and target == "segment":
                assert error is None, "nobody asks for a version of what never changes"
            elif isinstance(error, HTTPError):
                assert error.args[0] in {0, 503, 504}, target
            elif error is None:
                assert target == "segment", "a few bytes at a time are enough for a small payload, not for an index"
                assert way in {"get", "get_many"}
            else:
                assert isinstance(error, StorageError), (way, target)
        assert max(fault.fired for fault in fired) < 40 * len(WAYS), "nobody asks in a circle"
        # And when it has passed, all is well again.
        assert not any((await outcomes(storage, 60)).values())


async def test_a_flipped_bit_is_found_wherever_it_is(
    fault_proxy: FaultProxy, sample_bucket: str, s3_credentials: None
) -> None:
    async with baseline(fault_proxy, sample_bucket, PATIENCE) as storage:
        with ExitStack() as stack:
            fired = faults(fault_proxy, stack, Flip(at=-10), None)
            ended = await outcomes(storage, 60)
    assert all(fault.fired for fault in fired)
    for (way, target), error in ended.items():
        assert isinstance(error, CorruptShardError) or (isinstance(error, HTTPError) and error.args[0] in {0, 500}), (
            way,
            target,
        )
