"""What readers get while places do harm: as long as one place is good, the right bytes in time.

A reader who has seen the newest state reads everything while one or two of three places are slow, down, overloaded, behind or corrupt. It gets no
older version again, no mixture, and "not found" only of what is not there. A reader who knows nothing yet gets the same, unless a place is behind:
that is told from the others' answers only, and they may come late.

A good primary is asked for everything, so that harm to a copy would never show. There the primary has trouble with one shard, too: it refuses to
answer where one copy is good, and answers late where none is.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import product
from typing import TYPE_CHECKING

import anyio
import pytest

from des import open_store
from des.errors import DESError, NotFoundError, StorageError
from tests.making import DAY, WHEN
from tests.servers.fault_proxy import Answer, Delay, Down, Flip, OtherBucket
from tests.zones.sample import PLACES, Sample, make_sample, proxies, zone_settings, zones_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from des.store import Store
    from tests.servers.fault_proxy import Effect, Fault, FaultProxy, Request
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

PLACE_TIMEOUT = 0.15
DEADLINE = 20.0
AT_ONCE = 50
FAULTS = ("slow", "down", "503", "stale", "corrupt")
ABSENT = [f"absent-{number}" for number in range(8)]


def read_of_shards(request: Request) -> bool:
    return request.method in {"GET", "HEAD"} and request.key.endswith(".des")


def read_of_one_shard(request: Request) -> bool:
    return read_of_shards(request) and f"{DAY}/1" in request.key


def do_harm(stack: ExitStack, proxy: FaultProxy, kind: str, earlier: str) -> Fault:
    """Let a place do harm until the stack ends."""
    if kind == "stale":
        return stack.enter_context(proxy.fault(OtherBucket(earlier), when=read_of_shards, times=None))
    if kind == "corrupt":
        return stack.enter_context(proxy.fault(Flip(at=None), method="GET", when=read_of_shards, times=None))
    effects: dict[str, Effect] = {
        "slow": Delay(3 * PLACE_TIMEOUT),
        "down": Down(),
        "503": Answer(503, "SlowDown"),
    }
    return stack.enter_context(proxy.fault(effects[kind], times=None))


@contextmanager
def made_sample(server: S3Server, directory: Path, count: int) -> Iterator[Sample]:
    """Make a store of so many files, for as long as the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        made = make_sample(server, directory, count)
    yield made
    for bucket in (*made.buckets, *made.earlier):
        server.drop_bucket(bucket)


@pytest.fixture(scope="module")
def sample(seaweedfs: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    """A store of 100 files."""
    with made_sample(seaweedfs, tmp_path_factory.mktemp("zones"), 100) as made:
        yield made


@pytest.fixture(scope="module")
def large_sample(seaweedfs: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    """A store of 5,000 files."""
    with made_sample(seaweedfs, tmp_path_factory.mktemp("zones"), 5000) as made:
        yield made


@asynccontextmanager
async def reader(path: Path) -> AsyncIterator[Store]:
    """Open a store that asks for heads again and again, and keeps little."""
    settings = zone_settings(
        path, index_ttl=0.05, negative_ttl=0.0, request_timeout=DEADLINE, cache_bytes=1 << 20, log_level="error"
    )
    async with open_store(settings) as store:
        yield store


async def ask(store: Store, uid: str, turn: asyncio.Semaphore) -> bytes | DESError:
    async with turn:
        try:
            return await store.get(uid, WHEN)
        except DESError as error:
            return error


async def read_all(store: Store, sample: Sample, one_in: int = 1) -> None:
    """Read every file, or one in so many, and ask for some that are not there."""
    turn = asyncio.Semaphore(AT_ONCE)
    uids = list(sample.files)[::one_in]
    answers = await asyncio.gather(*(ask(store, uid, turn) for uid in uids))
    wrong = {uid: answer for uid, answer in zip(uids, answers, strict=True) if answer != sample.files[uid]}
    assert not wrong, {uid: answer if isinstance(answer, DESError) else "other bytes" for uid, answer in wrong.items()}
    for answer in await asyncio.gather(*(ask(store, uid, turn) for uid in ABSENT)):
        assert isinstance(answer, NotFoundError | StorageError), answer


async def read_under_harm(seaweedfs: S3Server, sample: Sample, directory: Path, harm: dict[int, str]) -> None:
    """Read everything while places do harm, by one who has seen the newest state and by one who knows nothing yet."""
    async with proxies(seaweedfs) as ways:
        path = zones_file(
            directory / "zones.json",
            sample.buckets,
            [way.endpoint for way in ways],
            place_timeout=PLACE_TIMEOUT,
        )
        async with reader(path) as store:
            await read_all(store, sample, one_in=7)  # at least one of each shard
            with ExitStack() as stack:
                fired = [do_harm(stack, ways[at], kind, sample.earlier[at]) for at, kind in harm.items()]
                if 0 not in harm:
                    trouble = Answer(503, "SlowDown") if len(harm) == 1 else Delay(2 * PLACE_TIMEOUT)
                    fired.append(stack.enter_context(ways[0].fault(trouble, when=read_of_one_shard, times=None)))
                await asyncio.sleep(store.settings.index_ttl)  # what is known has to be asked for again
                await read_all(store, sample)
                if "stale" not in harm.values():
                    async with reader(path) as another:
                        await read_all(another, sample, one_in=3)
                with anyio.fail_after(DEADLINE):  # whom a read asks is a matter of who was quick before
                    while not all(fault.fired for fault in fired):
                        await asyncio.sleep(store.settings.index_ttl)
                        await read_all(store, sample)
            await read_all(store, sample, one_in=7)


ALONE = [pytest.param({at: kind}, id=f"{PLACES[at]} {kind}") for at, kind in product((0, 1), FAULTS)]
PAIRS = [
    pytest.param(
        {one: kind, other: another},
        id=f"{PLACES[one]} {kind}, {PLACES[other]} {another}",
        marks=() if (one, other) == (0, 1) else pytest.mark.soak,
    )
    for one, other in ((0, 1), (1, 2))  # copies are alike to whoever reads
    for kind, another in product(FAULTS, FAULTS)
]


@pytest.mark.parametrize("harm", [*ALONE, *PAIRS])
async def test_right_bytes_as_long_as_one_place_is_good(
    seaweedfs: S3Server, s3_credentials: None, sample: Sample, tmp_path: Path, harm: dict[int, str]
) -> None:
    await read_under_harm(seaweedfs, sample, tmp_path, harm)


# Each kind once on the primary and once on copy 1, beside the next kind on the other.
CYCLE = [
    pytest.param({0: kind, 1: another}, id=f"primary {kind}, copy 1 {another}")
    for kind, another in zip(FAULTS, (*FAULTS[1:], FAULTS[0]), strict=True)
]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("harm", CYCLE)
async def test_right_bytes_of_many_files(
    seaweedfs: S3Server, s3_credentials: None, large_sample: Sample, tmp_path: Path, harm: dict[int, str]
) -> None:
    await read_under_harm(seaweedfs, large_sample, tmp_path, harm)


async def test_a_place_that_is_down_is_left_alone_until_it_is_back(
    seaweedfs: S3Server, s3_credentials: None, sample: Sample, tmp_path: Path
) -> None:
    def primary_is_well(store: Store) -> bool:
        return next(state.is_well for state in store.storage.states() if state.is_primary)

    async with proxies(seaweedfs) as ways:
        endpoints = [way.endpoint for way in ways]
        path = zones_file(tmp_path / "zones.json", sample.buckets, endpoints, place_timeout=PLACE_TIMEOUT)
        async with reader(path) as store:
            assert primary_is_well(store)
            with ways[0].fault(Down(), times=None) as down, anyio.fail_after(DEADLINE):
                while primary_is_well(store):
                    await read_all(store, sample, one_in=7)
            assert down.fired
            with anyio.fail_after(DEADLINE):
                while not primary_is_well(store):
                    await read_all(store, sample, one_in=7)
