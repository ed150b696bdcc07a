from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from des import metrics
from des.errors import ObjectNotFoundError, PreconditionFailedError, StorageTimeoutError
from des.metering import CacheMeter, metered, request_observer
from des.storage.local import LocalStorage
from des.storage.protocol import IfAbsent, Overwrite
from des.storage.s3_requests import RequestRecord
from des.storage.testing import Fail, Fault, FaultyStorage
from tests.scraping import Growth, counting, grown

if TYPE_CHECKING:
    from pathlib import Path

    from des.storage.protocol import Storage

__all__ = ["counting", "grown"]


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


class Counts:
    used_bytes = hits = misses = evictions = 0


def test_a_cache_meter_reports_what_changed(grown: Growth) -> None:
    counts = Counts()
    meter = CacheMeter(counts)
    meter.report()
    counts.hits, counts.misses, counts.evictions, counts.used_bytes = 5, 4, 3, 200
    meter.report()
    meter.report()
    counts.hits, counts.used_bytes = 6, 150
    meter.report()
    assert [grown[f"des_cache_{name}"] for name in ("hits_total", "misses_total", "evictions_total", "bytes")] == [
        6, 4, 3, 150,
    ]  # fmt: skip


async def use(storage: Storage) -> None:
    """Call every verb that counts."""
    await storage.put("a", b"0123456789", Overwrite())
    await storage.read_range("a", 2, 5)
    await storage.read_range("a", 2, 5, purpose="index")
    await storage.read_suffix("a", 4)
    async with storage.stream_range("a", 0, 10) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"0123456789"
    async with storage.open_writer("b") as writer:
        await writer.write(b"x" * 7)
    await storage.head("a")
    await storage.list_level("")
    assert [info.key async for info in storage.list("")] == ["a", "b"]
    with pytest.raises(ObjectNotFoundError):
        await storage.head("c")
    with pytest.raises(PreconditionFailedError):
        await storage.put("a", b"", IfAbsent())
    await storage.delete("a")
    await storage.aclose()


def test_a_metered_storage_counts_every_call(local: LocalStorage, grown: Growth) -> None:
    place = f'place="{local.address}"'

    def requests(verb: str, status: str = "ok") -> float:
        return grown[f'des_storage_requests_total{{{place},status="{status}",verb="{verb}"}}']

    def ranges(purpose: str) -> float:
        return grown[f'des_s3_range_calls_total{{backend="local",type="{purpose}"}}']

    asyncio.run(use(metered(local)))
    assert [ranges(purpose) for purpose in ("footer", "index", "payload")] == [1, 1, 2]
    assert requests("read_range") == 2
    once = "put read_suffix stream_range open_writer write commit head list_level list delete"
    for verb in once.split():
        assert requests(verb) == 1, verb
    assert requests("head", "not_found") == 1
    assert requests("put", "conflict") == 1
    assert grown[f'des_storage_bytes_total{{direction="read",{place}}}'] == 3 + 3 + 4 + 10
    assert grown[f'des_storage_bytes_total{{direction="written",{place}}}'] == 10 + 7


async def fail(storage: Storage) -> None:
    with pytest.raises(StorageTimeoutError):
        await storage.read_range("a", 0, 1)
    with pytest.raises(StorageTimeoutError):
        [info async for info in storage.list("")]


def test_a_failed_call_is_counted_with_its_status(local: LocalStorage, grown: Growth) -> None:
    faulty = FaultyStorage(local, [Fault(Fail(StorageTimeoutError("slow")), at=None)])
    asyncio.run(fail(metered(faulty)))
    for verb in ("read_range", "list"):
        name = f'des_storage_requests_total{{place="{local.address}",status="timeout",verb="{verb}"}}'
        assert grown[name] == 1
    assert grown['des_s3_range_calls_total{backend="local",type="payload"}'] == 1


def test_a_storage_that_reports_its_requests_has_only_its_range_calls_counted(
    local: LocalStorage, grown: Growth
) -> None:
    asyncio.run(use(metered(local, reports_requests=True)))
    assert grown['des_s3_range_calls_total{backend="local",type="payload"}'] == 2
    assert grown['des_s3_range_calls_total{backend="local",type="footer"}'] == 1
    assert f'place="{local.address}"' not in metrics.exposition().decode()


def test_requests_that_a_storage_reports_itself(grown: Growth) -> None:
    observe = request_observer("somewhere")
    assert observe is not None
    observe(RequestRecord("read_range", "timeout", 0, 1))
    observe(RequestRecord("read_range", "ok", 5, 2))
    observe(RequestRecord("put", "ok", 7, 1))
    assert grown['des_storage_requests_total{place="somewhere",status="timeout",verb="read_range"}'] == 1
    assert grown['des_storage_requests_total{place="somewhere",status="ok",verb="read_range"}'] == 1
    assert grown['des_storage_retries_total{place="somewhere",verb="read_range"}'] == 1
    assert grown['des_storage_bytes_total{direction="read",place="somewhere"}'] == 5
    assert grown['des_storage_bytes_total{direction="written",place="somewhere"}'] == 7
