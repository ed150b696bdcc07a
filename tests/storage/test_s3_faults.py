"""What S3 storage does when the storage, or the way to it, does harm: the right bytes or a typed error, and nothing left
behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from des.errors import (
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.storage.protocol import IfAbsent, IfVersion, Overwrite
from des.storage.s3 import S3Storage, open_s3
from des.storage.s3_retry import MAX_ATTEMPTS
from tests.servers.fault_proxy import (
    Answer,
    Cut,
    Drip,
    Exchange,
    FaultProxy,
    Flip,
    Hold,
    IgnoreRange,
    LoseReply,
    SetHeader,
    Shorten,
    Stall,
    change_etag,
    wrong_content_range,
)
from tests.storage.contract import content

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from des.storage.s3_requests import RequestRecord
    from tests.servers.fault_proxy import Effect
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

KEY = "20240131/0A.des"
SIZE = 1_500_000
DATA = content(SIZE)
MIB = 1024 * 1024
LARGE = content(21 * MIB)
# Long enough for a loaded machine, short enough that a stall, a third of it, can be sat through.
TIMEOUT = 4.5


@pytest.fixture(params=["auto", pytest.param("off", marks=pytest.mark.soak)])
def presigned(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def records() -> list[RequestRecord]:
    return []


def other_tasks() -> set[asyncio.Task[object]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


@pytest.fixture
async def storage(
    fault_proxy: FaultProxy, bucket: str, presigned: str, records: list[RequestRecord]
) -> AsyncIterator[S3Storage]:
    """A place behind the proxy; when a test is through, slots, sockets and tasks must be as before."""
    tasks = other_tasks()
    storage = await open_s3(
        fault_proxy.config(bucket, presigned=presigned, request_timeout=TIMEOUT), observe=records.append
    )
    await storage.put(KEY, DATA, Overwrite())
    fault_proxy.clear()
    yield storage
    assert storage.endpoint.requests_in_flight == 0
    await storage.aclose()
    with anyio.fail_after(20):
        await fault_proxy.quiet()
    assert storage.endpoint.wire_connections == 0
    assert other_tasks() == tasks


async def read_range(storage: S3Storage) -> bytes:
    return await storage.read_range(KEY, 1000, SIZE - 1000)


async def read_small(storage: S3Storage) -> bytes:
    return await storage.read_range(KEY, 1000, 5096)


async def read_suffix(storage: S3Storage) -> bytes:
    suffix = await storage.read_suffix(KEY, SIZE - 1000)
    assert suffix is not None
    assert suffix.total_size == SIZE
    return suffix.data


async def stream(storage: S3Storage) -> bytes:
    async with storage.stream_range(KEY, 1000, SIZE - 1000) as pieces:
        return b"".join([piece async for piece in pieces])


Read = Callable[[S3Storage], Coroutine[Any, Any, bytes]]
READS: dict[Read, bytes] = {
    read_range: DATA[1000:-1000],
    read_small: DATA[1000:5096],
    read_suffix: DATA[1000:],
    stream: DATA[1000:-1000],
}
reads = pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)

PASSING: dict[str, Effect] = {
    "cut_before_head": Cut(after=None),
    "cut_before_body": Cut(after=0),
    "cut_in_body": Cut(after=3000),
    "shortened": Shorten(by=7, honest=True),
    "ended_early": Shorten(by=7, honest=False),
    "range_ignored": IgnoreRange(),
    "other_content_range": wrong_content_range(),
    "no_content_range": SetHeader("content-range", None),
    "no_etag": SetHeader("etag", None),
    "500": Answer(500, "InternalError"),
    "503": Answer(503, "SlowDown"),
    "503_and_wait": Answer(503, "SlowDown", retry_after="1"),
    "429": Answer(429, "TooManyRequests"),
}


@pytest.mark.parametrize("effect", PASSING.values(), ids=PASSING)
async def test_trouble_that_passes_costs_a_retry(storage: S3Storage, fault_proxy: FaultProxy, effect: Effect) -> None:
    for read, expected in READS.items():
        fault_proxy.clear()
        with fault_proxy.fault(effect, method="GET") as fault:
            assert await read(storage) == expected
        assert fault.fired == 1
        assert len(fault_proxy.requests) == 2


@pytest.mark.parametrize("effect", [Stall(after=None), Stall(after=0), Stall(after=2000), Drip(after=2000)], ids=repr)
async def test_a_stall_that_passes_costs_a_retry(storage: S3Storage, fault_proxy: FaultProxy, effect: Effect) -> None:
    right: list[Read] = []

    async def check(read: Read) -> None:
        if await read(storage) == READS[read]:
            right.append(read)

    with fault_proxy.fault(effect, method="GET", times=len(READS)) as fault:
        async with anyio.create_task_group() as tasks:
            for read in READS:
                tasks.start_soon(check, read)
    assert fault.fired == len(READS)
    assert set(right) == set(READS)
    assert len(fault_proxy.requests) == 2 * len(READS)


@pytest.mark.parametrize(
    "effect",
    [
        Cut(after=None),
        Cut(after=0),
        Cut(after=10),
        Shorten(honest=True),
        IgnoreRange(),
        wrong_content_range(),
        SetHeader("etag", None),
        Answer(503),
        Answer(502, "BadGateway"),
    ],
    ids=repr,
)
async def test_trouble_that_stays_is_an_error_and_never_data(
    storage: S3Storage, fault_proxy: FaultProxy, records: list[RequestRecord], effect: Effect
) -> None:
    for read in READS:
        records.clear()
        with fault_proxy.fault(effect, method="GET", times=None) as fault, pytest.raises(StorageUnavailableError):
            await read(storage)
        assert len(records) == MAX_ATTEMPTS
        assert fault.fired >= MAX_ATTEMPTS  # aiohttp repeats a request whose kept connection turns out to be closed


@pytest.mark.parametrize("effect", [Stall(after=None), Stall(after=100), Drip(after=100)], ids=repr)
async def test_a_stall_that_stays_is_a_timeout(
    storage: S3Storage, fault_proxy: FaultProxy, bucket: str, presigned: str, effect: Effect
) -> None:
    hasty = await open_s3(fault_proxy.config(bucket, presigned=presigned, request_timeout=1))
    late: list[Read] = []

    async def check(read: Read) -> None:
        with pytest.raises(StorageTimeoutError):
            await read(hasty)
        late.append(read)

    with fault_proxy.fault(effect, method="GET", times=None) as fault, anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for read in READS:
                tasks.start_soon(check, read)
    assert len(READS) < fault.fired <= MAX_ATTEMPTS * len(READS)
    assert set(late) == set(READS)
    await hasty.aclose()


async def test_a_broken_body_resumes_where_it_broke_at_the_same_version(
    storage: S3Storage, fault_proxy: FaultProxy
) -> None:
    etag = (await storage.head(KEY)).version
    fault_proxy.clear()
    cuts = iter([600_000, 300_000])
    with fault_proxy.fault(Cut(after=next(cuts)), method="GET"), fault_proxy.fault(Cut(after=next(cuts)), method="GET"):
        assert await storage.read_range(KEY, 0, SIZE) == DATA
    first, second, third = fault_proxy.requests
    assert first.range == f"bytes=0-{SIZE - 1}"
    assert second.range == f"bytes=300000-{SIZE - 1}"
    assert third.range == f"bytes=900000-{SIZE - 1}"
    assert "if-match" not in first.headers
    assert second.headers["if-match"] == third.headers["if-match"] == f'"{etag}"'


@pytest.mark.parametrize("read", [read_range, stream], ids=lambda read: read.__name__)
async def test_a_body_that_breaks_often_but_moves_on_is_read(
    storage: S3Storage, fault_proxy: FaultProxy, read: Read
) -> None:
    with fault_proxy.fault(Cut(after=270_000), method="GET", times=None) as fault:
        assert await read(storage) == READS[read]
    assert fault.fired > MAX_ATTEMPTS


@pytest.mark.parametrize("read", [read_range, stream], ids=lambda read: read.__name__)
async def test_an_object_that_is_replaced_while_its_body_is_broken_is_not_mixed(
    storage: S3Storage, fault_proxy: FaultProxy, seaweedfs: S3Server, bucket: str, read: Read
) -> None:
    async def replace_then_reply(exchange: Exchange) -> None:
        seaweedfs.client.put_object(Bucket=bucket, Key=KEY, Body=content(SIZE, 2))
        await exchange.forward()
        await exchange.reply()

    with (
        fault_proxy.fault(replace_then_reply, method="GET", when=lambda request: "if-match" in request.headers) as late,
        fault_proxy.fault(Cut(after=600_000), method="GET") as cut,
        pytest.raises(PreconditionFailedError),
    ):
        await read(storage)
    assert (cut.fired, late.fired) == (1, 1)


async def test_a_suffix_that_is_replaced_while_its_body_is_broken_is_read_anew(
    storage: S3Storage, fault_proxy: FaultProxy, seaweedfs: S3Server, bucket: str
) -> None:
    async def replace_then_reply(exchange: Exchange) -> None:
        seaweedfs.client.put_object(Bucket=bucket, Key=KEY, Body=content(SIZE + 5, 2))
        await exchange.forward()
        await exchange.reply()

    with (
        fault_proxy.fault(replace_then_reply, method="GET", when=lambda request: "if-match" in request.headers) as late,
        fault_proxy.fault(Cut(after=600_000), method="GET") as cut,
    ):
        suffix = await storage.read_suffix(KEY, SIZE - 1000)
    assert suffix is not None
    assert (suffix.data, suffix.total_size) == (content(SIZE + 5, 2)[-(SIZE - 1000) :], SIZE + 5)
    assert (cut.fired, late.fired) == (1, 1)


@pytest.mark.parametrize("resumed", [False, True])
async def test_another_etag_in_the_reply_is_never_data(
    storage: S3Storage, fault_proxy: FaultProxy, resumed: bool
) -> None:
    version = None if resumed else (await storage.head(KEY)).version
    with (
        fault_proxy.fault(change_etag(), method="GET", when=lambda request: "if-match" in request.headers) as other,
        fault_proxy.fault(Cut(after=600_000), method="GET", when=lambda request: resumed),
        pytest.raises(PreconditionFailedError),
    ):
        await storage.read_range(KEY, 0, SIZE, version=version)
    assert other.fired == 1


@pytest.mark.parametrize(("start", "end"), [(0, SIZE), (0, SIZE + 10)])
async def test_200_is_good_where_all_of_the_object_was_asked_for(
    storage: S3Storage, fault_proxy: FaultProxy, start: int, end: int
) -> None:
    with fault_proxy.fault(IgnoreRange(), method="GET", times=None) as fault:
        assert await storage.read_range(KEY, start, end) == DATA
        suffix = await storage.read_suffix(KEY, end)
    assert suffix is not None
    assert (suffix.data, suffix.total_size) == (DATA, SIZE)
    assert fault.fired == 2


async def test_200_to_a_part_of_the_object_is_named(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    with (
        fault_proxy.fault(IgnoreRange(), method="GET", times=None),
        pytest.raises(
            StorageUnavailableError, match=r"answered .* when bytes 1000-5095 of s3://.*0A\.des was asked for"
        ),
    ):
        await read_small(storage)


async def test_416_to_a_range_that_exists_is_not_believed(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    async def unsatisfied(exchange: Exchange) -> None:
        exchange.status, exchange.headers = 416, {"content-range": f"bytes */{SIZE}", "content-length": "0"}
        await exchange.reply()

    with fault_proxy.fault(unsatisfied, method="GET") as fault:
        assert await read_small(storage) == READS[read_small]
    assert fault.fired == 1


async def test_a_flipped_bit_is_not_for_storage_to_find(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    with fault_proxy.fault(Flip(at=5), method="GET") as fault:
        assert await read_small(storage) != READS[read_small]
    assert fault.fired == 1


# Waiting as the server asks


async def test_retry_after_past_the_deadline_is_an_error_at_once(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    with fault_proxy.fault(Answer(retry_after="3600"), times=None) as fault, pytest.raises(StorageUnavailableError):
        await read_small(storage)
    assert fault.fired == 1


async def test_a_storm_of_503_costs_no_more_than_the_budget_and_passes(
    storage: S3Storage, fault_proxy: FaultProxy, records: list[RequestRecord], bucket: str, presigned: str
) -> None:
    await storage.aclose()
    config = fault_proxy.config(bucket, presigned=presigned, max_connections=16, request_timeout=120)
    storage = await open_s3(config, observe=records.append)
    chance = random.Random(20240131)
    wanted, right, failed = 600, 0, 0

    async def read(start: int) -> None:
        nonlocal right, failed
        try:
            assert await storage.read_range(KEY, start, start + 100) == DATA[start : start + 100]
            right += 1
        except StorageUnavailableError:
            failed += 1

    records.clear()
    with fault_proxy.fault(Answer(503), method="GET", times=None, when=lambda _: chance.random() < 0.5) as storm:
        async with anyio.create_task_group() as tasks:
            for number in range(wanted):
                tasks.start_soon(read, number)
    assert storm.fired > wanted / 4
    assert right + failed == wanted
    assert right > wanted / 3
    # 100 retries from the full budget, and one for every 5 requests that needed none; a retry that succeeds is paid back.
    assert len(fault_proxy.requests) <= 1.5 * wanted
    assert len(records) == len(fault_proxy.requests)
    assert {record.status for record in records} == {"ok", "unavailable"}
    assert await read_small(storage) == READS[read_small]
    await storage.aclose()


# Limits


async def test_no_more_requests_at_once_than_configured(fault_proxy: FaultProxy, bucket: str, presigned: str) -> None:
    storage = await open_s3(fault_proxy.config(bucket, presigned=presigned, max_connections=4))
    await storage.put(KEY, DATA, Overwrite())
    async with anyio.create_task_group() as tasks:
        for start in range(0, 50_000, 1000):
            tasks.start_soon(storage.read_range, KEY, start, start + 1000)
    await storage.aclose()
    assert fault_proxy.peak == 4
    assert len(fault_proxy.requests) == 51


async def test_waiting_for_a_slot_ends_at_the_deadline(fault_proxy: FaultProxy, bucket: str, presigned: str) -> None:
    storage = await open_s3(fault_proxy.config(bucket, presigned=presigned, max_connections=1, request_timeout=0.5))
    await storage.endpoint.enter(time.monotonic())
    with pytest.raises(StorageTimeoutError, match="DES_MAX_CONNECTIONS"):
        await storage.read_range(KEY, 0, 1)
    storage.endpoint.leave()
    await storage.aclose()
    assert fault_proxy.requests == []


@reads
@pytest.mark.parametrize("effect", [Stall(after=None), Stall(after=0), Stall(after=700)], ids=repr)
async def test_a_cancelled_read_leaves_nothing_behind(
    storage: S3Storage, fault_proxy: FaultProxy, read: Read, effect: Effect
) -> None:
    with fault_proxy.fault(effect, method="GET", times=None) as fault:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(read, storage)
            await fault_proxy.arrived(20)
            tasks.cancel_scope.cancel()
    assert fault.fired == 20
    assert storage.endpoint.requests_in_flight == 0
    assert await read(storage) == READS[read]


async def write_in_parts(storage: S3Storage) -> bytes:
    async with storage.open_writer("parts") as writer:
        await writer.write(LARGE[: 9 * MIB])
    return b""


async def put(storage: S3Storage) -> bytes:
    await storage.put("whole", DATA, Overwrite())
    return b""


async def list_all(storage: S3Storage) -> bytes:
    return b"".join([info.key.encode() async for info in storage.list("")])


@pytest.mark.parametrize(
    ("call", "strides"),
    [(read_small, 1), (stream, 1), (read_suffix, 1), (put, 3), (list_all, 3), (write_in_parts, 40)],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_cancelled_at_every_await(storage: S3Storage, call: Read, strides: int) -> None:
    """The n-th turn of the loop is where it is cancelled, for one n after another."""
    cancelled = 0
    for turns in range(0, 50 * strides, strides):
        task = asyncio.create_task(call(storage))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled += task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert storage.endpoint.requests_in_flight == 0
    assert cancelled > 5
    assert await call(storage) == READS.get(call, await call(storage))


# Writing


async def test_a_plain_put_whose_reply_is_lost_is_repeated(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    with fault_proxy.fault(LoseReply(), method="PUT") as fault:
        version = await storage.put("other", b"new", Overwrite())
    assert fault.fired == 1
    assert [request.method for request in fault_proxy.requests] == ["PUT", "PUT"]
    assert (await storage.head("other")).version == version


@pytest.mark.parametrize("existing", [False, True])
async def test_a_conditional_put_whose_reply_is_lost_may_report_its_own_success(
    storage: S3Storage, fault_proxy: FaultProxy, existing: bool
) -> None:
    key = KEY if existing else "other"
    mode = IfVersion((await storage.head(KEY)).version) if existing else IfAbsent()
    with fault_proxy.fault(LoseReply(), method="PUT") as fault, pytest.raises(PreconditionFailedError):
        await storage.put(key, b"mine", mode)
    assert fault.fired == 1
    assert await storage.read_range(key, 0, 100) == b"mine", "it was applied, and reading tells"


@pytest.mark.parametrize(
    "effect", [Answer(409, "ConditionalRequestConflict"), Answer(412, "PreconditionFailed"), Answer(404, "NoSuchKey")]
)
async def test_a_refused_condition_is_not_retried(storage: S3Storage, fault_proxy: FaultProxy, effect: Effect) -> None:
    with fault_proxy.fault(effect, method="PUT") as fault, pytest.raises(PreconditionFailedError):
        await storage.put(KEY, b"mine", IfVersion("0" * 32))
    assert fault.fired == 1
    assert len(fault_proxy.requests) == 1


@pytest.mark.parametrize("effect", [Answer(503), Cut(after=None), Stall(after=None)], ids=repr)
@pytest.mark.parametrize("verb", ["put", "head", "list", "delete"])
async def test_other_verbs_retry_too(storage: S3Storage, fault_proxy: FaultProxy, verb: str, effect: Effect) -> None:
    call: dict[str, Callable[[], Awaitable[object]]] = {
        "put": lambda: storage.put("other", DATA, Overwrite()),
        "head": lambda: storage.head(KEY),
        "list": lambda: storage.list_level(""),
        "delete": lambda: storage.delete("other"),
    }
    with fault_proxy.fault(effect) as fault:
        await call[verb]()
    assert fault.fired == 1
    assert len(fault_proxy.requests) == 2


# Writing in parts


async def write_large(storage: S3Storage) -> None:
    async with storage.open_writer("large") as writer:
        for start in range(0, len(LARGE), MIB):
            await writer.write(LARGE[start : start + MIB])


def uploads(seaweedfs: S3Server, bucket: str) -> list[str]:
    found = seaweedfs.client.list_multipart_uploads(Bucket=bucket)
    return [upload["Key"] for upload in found.get("Uploads", [])]


@pytest.mark.parametrize(
    "fault", [("POST", "uploads"), ("PUT", "partNumber"), ("POST", "uploadId")], ids=["create", "part", "complete"]
)
@pytest.mark.parametrize("effect", [Answer(503), LoseReply()], ids=repr)
async def test_every_step_of_an_upload_survives_trouble(
    storage: S3Storage, fault_proxy: FaultProxy, fault: tuple[str, str], effect: Effect
) -> None:
    method, parameter = fault
    with fault_proxy.fault(effect, method=method, when=lambda request: parameter in request.query) as trouble:
        await write_large(storage)
    assert trouble.fired == 1
    assert await storage.read_range("large", 0, len(LARGE)) == LARGE


async def test_an_upload_that_fails_is_aborted(
    storage: S3Storage, fault_proxy: FaultProxy, seaweedfs: S3Server, bucket: str
) -> None:
    second = fault_proxy.fault(
        Answer(503), method="PUT", when=lambda request: request.query.get("partNumber") == "2", times=None
    )
    with second as trouble, pytest.raises(StorageUnavailableError):
        await write_large(storage)
    assert trouble.fired == MAX_ATTEMPTS
    assert fault_proxy.requests[-1].method == "DELETE"
    assert uploads(seaweedfs, bucket) == []
    with pytest.raises(ObjectNotFoundError):
        await storage.head("large")


async def test_an_upload_that_is_cancelled_with_parts_under_way_is_aborted(
    storage: S3Storage, fault_proxy: FaultProxy, seaweedfs: S3Server, bucket: str
) -> None:
    hold = Hold()
    with fault_proxy.fault(hold, method="PUT", times=None):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write_large, storage)
            await hold.reached.wait()
            tasks.cancel_scope.cancel()
    assert "DELETE" in [request.method for request in fault_proxy.requests]
    assert uploads(seaweedfs, bucket) == []


async def test_an_abort_that_fails_is_told_and_bounded(
    storage: S3Storage, fault_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        async with storage.open_writer("large") as writer:
            await writer.write(LARGE)
            raise ZeroDivisionError

    with fault_proxy.fault(Answer(503), method="DELETE", times=None) as fault, pytest.raises(ZeroDivisionError):
        await fail()
    assert fault.fired == MAX_ATTEMPTS
    assert "could not be dropped" in caplog.text


async def test_what_the_observer_sees_is_what_the_server_saw(
    storage: S3Storage, fault_proxy: FaultProxy, records: list[RequestRecord]
) -> None:
    records.clear()
    with fault_proxy.fault(Answer(503), method="GET"):
        await read_small(storage)
    with pytest.raises(ObjectNotFoundError):
        await storage.read_suffix("absent", 10)
    with pytest.raises(PreconditionFailedError):
        await storage.put(KEY, b"1", IfAbsent())
    await storage.delete(KEY)
    assert [(r.verb, r.status, r.size, r.attempt) for r in records] == [
        ("read_range", "unavailable", 0, 1),
        ("read_range", "ok", 4096, 2),
        ("read_suffix", "not_found", 0, 1),
        ("put", "conflict", 1, 1),
        ("delete", "ok", 0, 1),
    ]
    assert len(records) == len(fault_proxy.requests)


async def test_every_error_is_of_the_tree(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    async def nonsense(exchange: Exchange) -> None:
        exchange.client.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        await exchange.client.drain()
        exchange.client.write_eof()
        await exchange.client_gone.wait()

    with fault_proxy.fault(nonsense, times=None):
        for call in (read_small, stream, lambda storage: storage.head(KEY), lambda storage: storage.list_level("")):
            with pytest.raises(StorageError):
                await call(storage)
