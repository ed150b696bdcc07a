"""What an answer of the service costs the server, beside other servers that hand out the same bytes.

    python -m benchmarks.http [--seconds 1] [--rounds 15] [--only local|s3] [--log-level warning] [--json FILE]

- local store, warm: beside (a) a bare Starlette route on the same worker and (b) nginx with the same files, where it is installed;
- S3 (SeaweedFS on this machine), warm: beside FastAPI, uvicorn and boto3 in threads, (c) doing the same one range-GET, (d) reading
  footer, index and payload each time.

wrk asks for 32 files in turn, 32 at once. Cost is CPU of the server's processes alone. The servers take turns within each round; a
ratio is the median of the rounds' ratios, which differ by a fifth. No server writes an access log, as the bare one has none;
`--log-level info` gives the service its own. Latency is reported and has no budget: wrk, and SeaweedFS, share the processors with
the server.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import psutil

from benchmarks.http_servers import DAY, SIZES, content_of, uids
from benchmarks.tables import Row, print_table
from des import open_store
from tests.servers.processes import free_ports
from tests.servers.s3_servers import run_seaweedfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from des.settings import Settings
    from tests.servers.s3_servers import S3Server

CONNECTIONS = 32
WORKERS = (1, 2)
START_SECONDS = 30
OURS, BARE, NGINX, WARM, COLD = (
    "des serve",
    "bare Starlette",
    "nginx",
    "FastAPI + boto3, payload only",
    "FastAPI + boto3, three reads",
)
BUDGETS = {BARE: 0.8, NGINX: None, WARM: 3.0, COLD: 8.0}
NGINX_CONF = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes {workers}; user root;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; default_type application/octet-stream;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  open_file_cache max=1000;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""
WRK_SCRIPT = """
local paths, turn = {%s}, 0
request = function() turn = turn %% #paths + 1; return wrk.format("GET", paths[turn]) end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %%d, "us": %%d, "failed": %%d, "p50": %%d, "p99": %%d}\\n', summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; `prefix` comes before `/files`."""

    name: str
    process: psutil.Process
    port: int
    prefix: str = ""

    def path(self, uid: str) -> str:
        return f"{self.prefix}/files/{uid}?created_at={DAY}"

    @property
    def cpu_seconds(self) -> float:
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)


@dataclass(slots=True)
class Measured:
    """Figures of one server in one case, one a round."""

    cpu_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Case:
    """Servers that hand out the same files; the service comes first."""

    name: str
    size: int
    servers: Sequence[Server]


@contextmanager
def running(
    name: str, command: Sequence[str], port: int, environment: dict[str, str] | None = None, log: Path | None = None
) -> Iterator[Server]:
    """Run a server until the context ends; it serves once it has given the right bytes."""
    with ExitStack() as stack:
        said = stack.enter_context((log or Path(os.devnull)).open("wb"))
        given = {**os.environ, **(environment or {})}
        process = subprocess.Popen(command, env=given, stdout=said, stderr=said)
        try:
            server = Server(name, psutil.Process(process.pid), port)
            wait_until_it_serves(server, process, log)
            yield server
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers, of which not every server takes care itself."""
    workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for worker in psutil.wait_procs(workers, timeout=1)[1]:
        worker.kill()


def wait_until_it_serves(server: Server, process: subprocess.Popen[bytes], log: Path | None) -> None:
    deadline = time.monotonic() + START_SECONDS
    uid = uids(SIZES[0])[0]
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{server.path(uid)}", timeout=5) as reply:
                if reply.read() != content_of(uid):
                    sys.exit(f"{server.name} gives other bytes")
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{server.name} does not serve: {error}; {log.read_text() if log else ''}")
            time.sleep(0.1)


def pack(folder: Path, store: str, environment: dict[str, str]) -> None:
    """Pack the files; nginx serves them from where they lie."""
    rows = []
    for size in SIZES:
        for uid in uids(size):
            path = folder / "files" / uid
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content_of(uid))
            rows.append({"uid": uid, "created_at": DAY, "source_path": str(path)})
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(rows))
    command = (sys.executable, "-m", "des.pack", "--input-json", str(manifest), "--output", store, "--quiet")
    subprocess.run(command, check=True, env={**os.environ, **environment})


async def places_of(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return where the payload and the head of each file lie."""
    async with open_store(settings) as store:
        found = [await store.stat(uid, DAY) for size in SIZES for uid in uids(size)]
    return {
        info.uid: {
            "segment": f"{settings.s3_prefix}/{info.segment}",
            "head": f"{settings.s3_prefix}/{info.shard}",
            "start": info.offset,
            "end": info.offset + info.stored_size,
        }
        for info in found
    }


def start_ours(stack: ExitStack, folder: Path, workers: int, environment: dict[str, str], log_level: str) -> Server:
    port = free_ports(1)[0]
    command = (sys.executable, "-m", "des", "serve", "--port", str(port), "--workers", str(workers))
    given = {**environment, "DES_LOG_LEVEL": log_level, "DES_LOG_FORMAT": "json"}
    return stack.enter_context(running(OURS, command, port, given, folder / f"des-{port}.log"))


def local_cases(stack: ExitStack, folder: Path, log_level: str) -> list[Case]:
    store = folder / "store"
    pack(folder, str(store), {})
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        print("(b) is left out: there is no nginx here (Debian: nginx-light).")
    cases = []
    for workers in WORKERS:
        servers = [start_ours(stack, folder, workers, {"DES_BASE_DIR": str(store)}, log_level)]
        port = free_ports(1)[0]
        command = (sys.executable, "-m", "benchmarks.http_servers", "bare", str(port), str(workers))
        servers.append(stack.enter_context(running(BARE, command, port, log=folder / "bare.log")))
        if nginx:
            port = free_ports(1)[0]
            conf = folder / f"nginx-{workers}.conf"
            conf.write_text(NGINX_CONF.format(folder=folder, workers=workers, port=port, root=folder))
            servers.append(stack.enter_context(running(NGINX, (nginx, "-c", str(conf)), port)))
        cases += [Case(case_name("local", size, workers), size, servers) for size in SIZES]
    return cases


def s3_cases(stack: ExitStack, folder: Path, log_level: str) -> list[Case]:
    s3: S3Server = stack.enter_context(run_seaweedfs(folder))
    settings = s3.settings(s3.make_bucket(), s3_prefix="store")
    os.environ.update(s3.environment)
    environment = {
        "DES_BACKEND": "s3",
        "DES_S3_BUCKET": str(settings.s3_bucket),
        "DES_S3_PREFIX": settings.s3_prefix,
        "DES_S3_ENDPOINT_URL": s3.endpoint,
        "DES_S3_REGION": str(settings.s3_region),
    }
    pack(folder, f"s3://{settings.s3_bucket}/{settings.s3_prefix}", environment)
    place = {"bucket": settings.s3_bucket, "endpoint": s3.endpoint, "region": settings.s3_region}
    places = folder / "places.json"
    places.write_text(json.dumps({**place, "files": anyio.run(places_of, settings)}))
    missing = [name for name in ("boto3", "fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        print(f"(c) and (d) are left out: {', '.join(missing)} not installed (pip install '.[bench]').")
    cases = []
    for workers in WORKERS:
        servers = [start_ours(stack, folder, workers, environment, log_level)]
        if not missing:
            port = free_ports(1)[0]
            command = (sys.executable, "-m", "benchmarks.http_servers", "boto3", str(port), str(workers), str(places))
            warm = stack.enter_context(running(WARM, command, port, log=folder / "boto3.log"))
            servers += [warm, Server(COLD, warm.process, port, "/cold")]
        cases += [Case(case_name("S3", size, workers), size, servers) for size in SIZES]
    return cases


def case_name(store: str, size: int, workers: int) -> str:
    return f"{store}, {size >> 10} KiB, {workers} worker{'s' if workers > 1 else ''}"


def measure(server: Server, size: int, seconds: int, folder: Path, into: Measured) -> float:
    """Ask for some seconds; return the CPU seconds that the server took."""
    script = folder / "wrk.lua"
    script.write_text(WRK_SCRIPT % ", ".join(f'"{server.path(uid)}"' for uid in uids(size)))
    url = f"http://127.0.0.1:{server.port}"
    command = ("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url)
    before = server.cpu_seconds
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = server.cpu_seconds - before
    figures = json.loads(report.strip().splitlines()[-1])
    if figures["failed"] or not figures["requests"]:
        sys.exit(f"{server.name}: {report}")
    into.cpu_us.append(used / figures["requests"] * 1e6)
    into.rate.append(figures["requests"] / figures["us"] * 1e6)
    into.p50_ms.append(figures["p50"] / 1000)
    into.p99_ms.append(figures["p99"] / 1000)
    return used


def ratios(case: Case, results: dict[tuple[str, str], Measured]) -> list[Row]:
    ours = results[case.name, OURS].cpu_us
    rows = []
    for server in case.servers[1:]:
        theirs = results[case.name, server.name].cpu_us
        ratio = statistics.median(there / here for here, there in zip(ours, theirs, strict=True))
        rows.append(Row(f"{case.name}: beside {server.name}", ratio, "", BUDGETS[server.name], at_least=True))
    return rows


def figures(cases: list[Case], results: dict[tuple[str, str], Measured], name: str, unit: str) -> list[Row]:
    return [
        Row(f"{case.name}: {server.name}", statistics.median(getattr(results[case.name, server.name], name)), unit)
        for case in cases
        for server in case.servers
    ]


def run(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Measure, and return the tables' rows."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="des-http-")))
        cases: list[Case] = []
        if options.only != "s3":
            cases += local_cases(stack, folder, options.log_level)
        if options.only != "local":
            cases += s3_cases(stack, folder, options.log_level)
        turns = [(case, server) for case in cases for server in case.servers]
        results = {(case.name, server.name): Measured() for case, server in turns}
        for case, server in turns:
            measure(server, case.size, 1, folder, Measured())
        machine, began, used = psutil.cpu_times(), time.perf_counter(), 0.0
        for _ in range(options.rounds):
            for case, server in turns:
                used += measure(server, case.size, options.seconds, folder, results[case.name, server.name])
        idle = psutil.cpu_times().idle - machine.idle
        wall = (time.perf_counter() - began) * (psutil.cpu_count() or 1)
    print(f"The servers used {used / wall:.0%} of the machine, wrk, storage and others {1 - (used + idle) / wall:.0%}.")
    return {
        "requests per server CPU second, as a ratio": [row for case in cases for row in ratios(case, results)],
        "server CPU per request": figures(cases, results, "cpu_us", "µs"),
        "requests a second": figures(cases, results, "rate", "1/s"),
        "latency, median": figures(cases, results, "p50_ms", "ms"),
        "latency, 99th percentile": figures(cases, results, "p99_ms", "ms"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1, help="per measurement")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=("local", "s3"))
    parser.add_argument("--log-level", default="warning", help="of the service; info: with its access log")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("there is no wrk here; install it (Debian: apt-get install wrk).")
    tables = run(options)
    for title, rows in tables.items():
        print_table(title, rows)
    if options.json:
        options.json.write_text(
            json.dumps({title: [row.to_dict() for row in rows] for title, rows in tables.items()}, indent=1)
        )


if __name__ == "__main__":
    main()
