"""`des serve` as a process: what it says, how it ends, and several workers on one socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import pytest

from des.http.keys import new_api_key
from des.storage.local import LocalStorage
from tests.making import DAY, make_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
SMALL = f"/files/small?{AT}"
LARGE = f"/files/large?{AT}"
LARGE_BYTES = 24 << 20  # more than the buffers of two sockets hold


@pytest.fixture
def base(tmp_path: Path) -> Path:
    async def make() -> None:
        storage = LocalStorage(tmp_path / "store")
        await make_store(storage, {"small": b"content", "large": bytes(LARGE_BYTES)})
        await storage.aclose()

    asyncio.run(make())
    return tmp_path / "store"


@dataclass(slots=True)
class Service:
    """A running process, and what it said on stderr so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _said: threading.Condition = field(default_factory=threading.Condition)
    _reader: threading.Thread | None = None

    def listen(self) -> None:
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._said:
                self.lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._said.notify_all()

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until lines match, and return the last match."""
        with self._said:
            while True:
                found = [match for match in (re.search(pattern, line) for line in self.lines) if match]
                if len(found) >= times:
                    return found[-1]
                assert self.process.poll() is None, self.lines
                self._said.wait(1)

    @property
    def port(self) -> int:
        return int(self.wait_for(r"^des: serving .* on http://127\.0\.0\.1:(\d+)$")[1])

    def ask(self, target: str, *, port: int | None = None, token: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port)
        try:
            connection.request("GET", target, headers={"Authorization": f"Bearer {token}"} if token else {})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end, and return its exit status."""
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        status = self.process.wait()
        if self._reader:
            self._reader.join()
        return status


@contextmanager
def serving(base: Path, **values: object) -> Iterator[Service]:
    given = {"base_dir": base, "http_port": 0, "log_format": "json", **values}
    environment = {**os.environ, **{f"DES_{name.upper()}": str(value) for name, value in given.items()}}
    command = [sys.executable, "-m", "des", "serve"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        service = Service(process)
        service.listen()
        try:
            yield service
        finally:
            process.kill()
            service.finish()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_it_says_where_it_serves_and_ends_when_told(base: Path, number: int) -> None:
    with serving(base) as service:
        assert service.ask(SMALL) == (200, b"content")
        assert service.wait_for("^des: serving")[0]
        assert service.lines[0] == f"des: serving {base} on http://127.0.0.1:{service.port}"
        assert "access control is off" in service.lines[1]
        assert service.end(number) == 0
        entries = [json.loads(line) for line in service.lines[2:]]
        [entry] = [entry for entry in entries if entry["logger"] == "des.http.access"]
        assert (entry["status"], entry["bytes"], entry["target"]) == (200, 7, SMALL)


def test_the_access_log_can_be_switched_off(base: Path) -> None:
    with serving(base, log_level="warning") as service:
        assert service.ask(SMALL)[0] == 200
        assert service.end() == 0
        assert len(service.lines) == 2


def test_a_port_in_use_is_one_sentence(base: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, serving(base, http_port=taken.getsockname()[1]) as service:
        assert service.finish() == 2
        assert len(service.lines) == 1
        assert "is in use" in service.lines[0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"http_host": "no.such.host.invalid"}, "DES_HTTP_HOST"),
        pytest.param({"http_host": "203.0.113.1"}, "203.0.113.1", marks=pytest.mark.soak),
        ({"http_cache_control": "a\tb\x7f"}, "DES_HTTP_CACHE_CONTROL"),
        ({"http_api_keys_file": "/no/such/file"}, "the keys file /no/such/file cannot be read"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(base: Path, values: dict[str, str], sentence: str) -> None:
    with serving(base, **values) as service:
        assert service.finish() == 2
        assert len(service.lines) == 1
        assert sentence in service.lines[0]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_keys_and_a_port_for_probes(base: Path, tmp_path: Path, workers: int) -> None:
    token, line = new_api_key("k", {"actions": ["read"]})
    keys = tmp_path / "keys"
    keys.write_text(line)
    with serving(base, http_api_keys_file=keys, http_admin_port=0, http_workers=workers) as service:
        assert f"access control is on, by {keys}" in service.wait_for("access control.*")[0]
        admin = int(service.wait_for(r"^des: probes and metrics are on http://127\.0\.0\.1:(\d+)$")[1])
        assert service.ask(SMALL, token=token) == (200, b"content")
        for target in ("/health", "/ready", "/metrics"):
            assert service.ask(target, port=admin)[0] == 200
            assert service.ask(target)[0] == 401
        while b'status="ok"} 1.0' not in service.ask("/metrics", port=admin)[1]:
            pass
        assert service.ask(SMALL, port=admin, token=token)[0] == 404
        assert service.end() == 0
        text = "\n".join(service.lines)
        assert "des.http.audit" in text
        assert token.partition(".")[2] not in text


def test_a_port_for_probes_without_keys(base: Path) -> None:
    with serving(base, http_admin_port=0) as service:
        admin = int(service.wait_for(r"probes and metrics are on http://127\.0\.0\.1:(\d+)$")[1])
        assert service.ask("/health")[0] == 404
        assert service.ask("/health", port=admin)[0] == 200


@dataclass(slots=True)
class Caller:
    """A client that asks again and again on one connection, until it is told to close it."""

    port: int
    answers: int = 0
    error: BaseException | None = None
    warm: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            while True:
                connection.request("GET", SMALL)
                reply = connection.getresponse()
                assert (reply.status, reply.read()) == (200, b"content")
                self.answers += 1
                if self.answers == 20:
                    self.warm.set()
                if reply.getheader("connection") == "close":
                    return
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.error = error
            self.warm.set()
        finally:
            connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_lost_when_it_ends_under_load(base: Path, workers: int) -> None:
    with serving(base, http_workers=workers, log_level="warning") as service:
        callers = [Caller(service.port) for _ in range(8)]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        for caller in callers:
            caller.warm.wait()
        assert service.end() == 0
        for thread in threads:
            thread.join()
        assert [caller.error for caller in callers] == [None] * 8
        assert all(caller.answers > 20 for caller in callers)


def open_download(service: Service) -> socket.socket:
    """Ask for the large file, and take only its first bytes."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", service.port))
    client.sendall(f"GET {LARGE} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    assert client.recv(9) == b"HTTP/1.1 "
    return client


def rest_of(client: socket.socket) -> bytes:
    received = bytearray()
    try:
        while piece := client.recv(1 << 20):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def test_a_download_is_finished_while_nobody_new_is_let_in(base: Path) -> None:
    with serving(base) as service:
        port = service.port
        with open_download(service) as client:
            service.process.terminate()
            refused = False
            while not refused:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                except ConnectionRefusedError:
                    refused = True
                except ConnectionResetError:  # in the queue of the listener as it closed
                    continue
            body = rest_of(client).partition(b"\r\n\r\n")[2]
            assert len(body) == LARGE_BYTES
        assert service.finish() == 0


def test_what_does_not_end_in_time_is_cut(base: Path) -> None:
    with serving(base, http_drain=0.2) as service, open_download(service) as client:
        assert service.end() == 0
        assert len(rest_of(client)) < LARGE_BYTES
        assert any("cut" in line for line in service.lines)


def workers_of(service: Service) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(service.process.pid).children()
        if any("spawn_main" in argument for argument in child.cmdline())
    ]


def test_two_workers_count_together_and_one_that_dies_is_replaced(base: Path) -> None:
    with serving(base, http_workers=2) as service:
        service.wait_for(r"worker \d+ is ready", times=2)
        for _ in range(30):
            assert service.ask(SMALL) == (200, b"content")
        counted = ('des_retrievals_total{backend="local",status="ok"} 30.0\n', "des_http_requests_in_flight 0.0\n")

        def scrapes() -> list[bool]:
            texts = [service.ask("/metrics")[1].decode() for _ in range(10)]
            return [one in text for one in counted for text in texts]

        while not all(scrapes()):  # what a worker counted reaches the others a moment later
            pass
        assert all(scrapes())
        first, second = workers_of(service)
        first.kill()
        service.wait_for("another one takes its place")
        service.wait_for(r"worker \d+ is ready", times=3)
        assert second in workers_of(service)
        for _ in range(10):
            assert service.ask(SMALL) == (200, b"content")
        left = workers_of(service)
        assert len(left) == 2
        assert service.end() == 0
        assert not any(worker.is_running() for worker in left)


def test_workers_that_die_before_they_are_ready_end_it(base: Path) -> None:
    with serving(base, http_workers=1 + 1, log_level="warning") as service:
        while not (workers := workers_of(service)):
            assert service.process.poll() is None
        workers[0].kill()
        assert service.finish() == 3
        assert "before it was ready" in service.lines[-1]


def test_workers_end_with_their_parent(base: Path) -> None:
    with serving(base, http_workers=2) as service:
        service.wait_for(r"worker \d+ is ready", times=2)
        workers = workers_of(service)
        service.process.kill()
        gone, alive = psutil.wait_procs(workers)
        assert (len(gone), alive) == (2, [])
