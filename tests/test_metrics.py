from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from des import metrics
from des.errors import ObjectNotFoundError, PreconditionFailedError, StorageTimeoutError
from des.storage.local import LocalStorage
from des.storage.protocol import IfAbsent, Overwrite
from des.storage.testing import Fail, Fault, FaultyStorage

if TYPE_CHECKING:
    from pathlib import Path

    from des.errors import Status
    from des.storage.protocol import Storage


@pytest.fixture(scope="session", autouse=True)
def counting() -> None:
    """Import what counts before there is an event loop to block."""
    metrics.activate()


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


def samples() -> dict[str, float]:
    lines = [line for line in metrics.exposition().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


class Growth:
    """What a scrape shows more than one before."""

    def __init__(self) -> None:
        self._before = samples()

    def __getitem__(self, name: str) -> float:
        return samples().get(name, 0) - self._before.get(name, 0)


@pytest.fixture
def grown() -> Growth:
    return Growth()


def test_the_names_are_unique_and_follow_the_conventions() -> None:
    names = [one.name for one in metrics.INSTRUMENTS]
    assert len(set(names)) == len(names)
    for one in metrics.INSTRUMENTS:
        assert one.name.startswith("des_")
        assert (one.kind == "counter") == one.name.endswith("_total")


def test_every_function_feeds_its_instrument(grown: Growth) -> None:
    metrics.retrieval_done("local", "ok", 0.25)
    metrics.request_shed("bytes")
    metrics.bytes_out(5)
    metrics.files_packed("ok", 3)
    metrics.bytes_packed(10, 4)
    metrics.packing_took(1.5)
    metrics.requests_in_flight(1)
    metrics.serving("0.0.0")
    assert grown['des_build_info{version="0.0.0"}'] == 1
    assert grown['des_retrievals_total{backend="local",status="ok"}'] == 1
    assert grown['des_retrieval_seconds_sum{backend="local"}'] == 0.25
    assert grown['des_http_requests_shed_total{limit="bytes"}'] == 1
    assert grown["des_http_bytes_out_total"] == 5
    assert grown['des_pack_files_total{status="ok"}'] == 3
    assert grown['des_pack_bytes_total{direction="read"}'] == 10
    assert grown['des_pack_bytes_total{direction="stored"}'] == 4
    assert grown["des_pack_seconds_total"] == 1.5
    assert grown["des_http_requests_in_flight"] == 1
    metrics.requests_in_flight(-1)
    assert grown["des_http_requests_in_flight"] == 0


class Counts:
    used_bytes = hits = misses = evictions = 0


def test_a_cache_meter_reports_what_changed(grown: Growth) -> None:
    counts = Counts()
    meter = metrics.CacheMeter(counts)
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

    asyncio.run(use(metrics.metered(local)))
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
    asyncio.run(fail(metrics.metered(faulty)))
    for verb in ("read_range", "list"):
        name = f'des_storage_requests_total{{place="{local.address}",status="timeout",verb="{verb}"}}'
        assert grown[name] == 1
    assert grown['des_s3_range_calls_total{backend="local",type="payload"}'] == 1


def test_a_storage_that_reports_its_requests_has_only_its_range_calls_counted(
    local: LocalStorage, grown: Growth
) -> None:
    asyncio.run(use(metrics.metered(local, reports_requests=True)))
    assert grown['des_s3_range_calls_total{backend="local",type="payload"}'] == 2
    assert grown['des_s3_range_calls_total{backend="local",type="footer"}'] == 1
    assert f'place="{local.address}"' not in metrics.exposition().decode()


@dataclass(frozen=True, slots=True)
class Record:
    verb: str
    status: Status
    size: int
    attempt: int


def test_requests_that_a_storage_reports_itself(grown: Growth) -> None:
    metrics.request_made("somewhere", Record("read_range", "timeout", 0, 1))
    metrics.request_made("somewhere", Record("read_range", "ok", 5, 2))
    metrics.request_made("somewhere", Record("put", "ok", 7, 1))
    assert grown['des_storage_requests_total{place="somewhere",status="timeout",verb="read_range"}'] == 1
    assert grown['des_storage_requests_total{place="somewhere",status="ok",verb="read_range"}'] == 1
    assert grown['des_storage_retries_total{place="somewhere",verb="read_range"}'] == 1
    assert grown['des_storage_bytes_total{direction="read",place="somewhere"}'] == 5
    assert grown['des_storage_bytes_total{direction="written",place="somewhere"}'] == 7


def test_a_file_for_the_textfile_collector(tmp_path: Path) -> None:
    path = tmp_path / "des.prom"
    metrics.bytes_packed(1, 1)
    metrics.write_file(path)
    assert "des_pack_bytes_total" in path.read_text()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_counting_is_off_and_costs_no_import_until_it_is_activated() -> None:
    code = """
import sys
from des import metrics
metrics.retrieval_done("local", "ok", 1)
metrics.bytes_out(1)
print(metrics.metered(sys) is sys, "prometheus_client" in sys.modules)
metrics.activate()
metrics.bytes_out(2)
print("des_http_bytes_out_total 2.0" in metrics.exposition().decode())
"""
    assert run(code) == "True False\nTrue\n"


def test_processes_count_together_and_the_gauges_of_the_dead_go(tmp_path: Path) -> None:
    code = f"""
import os, subprocess, sys
from des import metrics
metrics.share_between_processes({str(tmp_path)!r})
child = '''
import os
from des import metrics
metrics.activate()
metrics.bytes_out(5)
metrics.requests_in_flight(1)
print(os.getpid())
'''
pids = [int(subprocess.run([sys.executable, "-c", child], capture_output=True, check=True).stdout) for _ in range(2)]
metrics.activate()
metrics.bytes_out(1)
def shown():
    lines = metrics.exposition().decode().splitlines()
    return sorted(line for line in lines if line.startswith(("des_http_bytes_out_total ", "des_http_requests_in_flight ")))
print(shown())
for pid in pids:
    metrics.process_ended(pid)
print(shown())
"""
    first, second = run(code).splitlines()
    assert first == "['des_http_bytes_out_total 11.0', 'des_http_requests_in_flight 2.0']"
    assert second == "['des_http_bytes_out_total 11.0', 'des_http_requests_in_flight 0.0']"


async def test_what_is_gathered_is_counted_when_it_settles_and_at_the_end(grown: Growth) -> None:
    async def bytes_out() -> float:
        return await asyncio.to_thread(grown.__getitem__, "des_http_bytes_out_total")

    with metrics.gathering():
        metrics.bytes_out(3)
        metrics.bytes_out(4)
        metrics.requests_in_flight(1)
        metrics.requests_in_flight(-1)
        metrics.settle()
        assert await bytes_out() == 7
        with metrics.gathering():
            metrics.bytes_out(1)
        while await bytes_out() != 8:
            pass
        await asyncio.to_thread(metrics.bytes_out, 2)
        assert await bytes_out() == 10
        metrics.bytes_out(5)
    assert await bytes_out() == 15
    metrics.bytes_out(1)
    assert await bytes_out() == 16
    assert await asyncio.to_thread(grown.__getitem__, "des_http_requests_in_flight") == 0
