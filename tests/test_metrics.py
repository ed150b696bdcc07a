from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

from des import metrics
from tests.scraping import Growth, counting, grown

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["counting", "grown"]


def test_the_names_are_unique_and_follow_the_conventions() -> None:
    names = [one.name for one in metrics.INSTRUMENTS]
    assert len(set(names)) == len(names)
    for one in metrics.INSTRUMENTS:
        assert one.name.startswith("des_")
        assert (one.kind == "counter") == one.name.endswith("_total")


def test_every_function_feeds_its_instrument(grown: Growth) -> None:
    metrics.Retrievals("local").done("ok", 0.25)
    metrics.request_shed("bytes")
    metrics.bytes_out.add(5)
    metrics.files_packed("ok", 3)
    metrics.bytes_packed(10, 4)
    metrics.packing_took(1.5)
    metrics.requests_in_flight.add(1)
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
    metrics.requests_in_flight.add(-1)
    assert grown["des_http_requests_in_flight"] == 0


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
from des.metering import metered
metrics.Retrievals("local").done("ok", 1)
metrics.bytes_out.add(1)
print(metered(sys) is sys, "prometheus_client" in sys.modules)
metrics.activate()
metrics.bytes_out.add(2)
print("des_http_bytes_out_total 2.0" in metrics.exposition().decode())
"""
    assert run(code) == "True False\nTrue\n"


def test_processes_count_together_and_the_gauges_of_the_dead_go() -> None:
    code = """
import os, subprocess, sys
from des import metrics
child = '''
import os
from des import metrics
metrics.activate()
metrics.bytes_out.add(5)
metrics.requests_in_flight.add(1)
print(os.getpid())
'''
def shown():
    lines = metrics.exposition().decode().splitlines()
    return sorted(line for line in lines if line.startswith(("des_http_bytes_out_total ", "des_http_requests_in_flight ")))
with metrics.shared_between_processes():
    pids = [int(subprocess.run([sys.executable, "-c", child], capture_output=True, check=True).stdout) for _ in range(2)]
    metrics.activate()
    metrics.bytes_out.add(1)
    print(shown())
    for pid in pids:
        metrics.process_ended(pid)
    print(shown())
    directory = os.environ["PROMETHEUS_MULTIPROC_DIR"]
print(os.path.exists(directory), "PROMETHEUS_MULTIPROC_DIR" in os.environ)
"""
    first, second, left = run(code).splitlines()
    assert left == "False False"
    assert first == "['des_http_bytes_out_total 11.0', 'des_http_requests_in_flight 2.0']"
    assert second == "['des_http_bytes_out_total 11.0', 'des_http_requests_in_flight 0.0']"


async def test_what_is_gathered_is_counted_when_it_settles_and_at_the_end(grown: Growth) -> None:
    async def bytes_out() -> float:
        return await asyncio.to_thread(grown.__getitem__, "des_http_bytes_out_total")

    with metrics.gathering():
        metrics.bytes_out.add(3)
        metrics.bytes_out.add(4)
        metrics.requests_in_flight.add(1)
        metrics.requests_in_flight.add(-1)
        metrics.settle()
        assert await bytes_out() == 7
        with metrics.gathering():
            metrics.bytes_out.add(1)
        while await bytes_out() != 8:
            pass
        await asyncio.to_thread(metrics.bytes_out.add, 2)
        assert await bytes_out() == 10
        metrics.bytes_out.add(5)
    assert await bytes_out() == 15
    metrics.bytes_out.add(1)
    assert await bytes_out() == 16
    assert await asyncio.to_thread(grown.__getitem__, "des_http_requests_in_flight") == 0
