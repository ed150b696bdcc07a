"""`make scrape-check`: a real Prometheus scrapes two workers of the real service, and is asked everything that the dashboard asks.

A sample store is packed, verified, compacted and synced with `--metrics-file`, whose files are served as a node exporter would; the service runs with
two workers, and gets some traffic. The store lies in one zone of two places on SeaweedFS, and now and then the primary is away, late, or lies. Prometheus runs with deploy/observability/prometheus.yml and its rules, but for the addresses, and all intervals
cut down to a second. It fails if a query that should return data does not do so within a minute, or if a rule cannot be evaluated.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from anyio.from_thread import start_blocking_portal

from deploy.check_observability import DASHBOARD, DIRECTORY, RULES
from deploy.checking import tool
from tests.servers.fault_proxy import Delay, Down, FaultProxy, Flip
from tests.servers.s3_servers import run_seaweedfs
from tests.zones.sample import zones_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tests.servers.fault_proxy import Request

ROOT = Path(__file__).resolve().parents[1]
DAY = "2024-01-31"
FILES = 400
LARGE_BYTES = 32 << 20
REQUESTS_A_ROUND = 200
DEADLINE_SECONDS = 60
WORKERS = 2
MAX_REQUESTS = 4
LATE_SHARE, LATE_SECONDS = 0.03, 0.3
FLIPPED_SHARE = 0.01
AWAY_SECONDS, AWAY_EVERY_SECONDS = 0.5, 5


def fail(sentence: str) -> NoReturn:
    """End with a sentence."""
    sys.exit(f"scrape-check: {sentence}")


def make_places(scratch: Path, stack: ExitStack) -> tuple[FaultProxy, Mapping[str, str]]:
    """Run SeaweedFS with a bucket for a primary, behind a proxy, and one for its copy; return the proxy, and the environment that names them."""
    server = stack.enter_context(run_seaweedfs(scratch))
    portal = stack.enter_context(start_blocking_portal())
    primary = stack.enter_context(portal.wrap_async_context_manager(FaultProxy.before(server)))
    buckets = (server.make_bucket(), server.make_bucket())
    path = zones_file(scratch / "zones.json", buckets, (primary.endpoint, server.endpoint), read_repair=True)
    return primary, server.environment | {"DES_BACKEND": "multi_s3", "DES_ZONES_CONFIG": str(path)}


def make_trouble(primary: FaultProxy, stack: ExitStack) -> None:
    """Let a place be away for a while again and again, a share of its reads be late, and another be damaged."""
    generator = random.Random(1)  # noqa: S311 - chooses requests, keeps no secret

    def sometimes(share: float) -> Callable[[Request], bool]:
        return lambda request: request.method == "GET" and generator.random() < share

    def is_away(_: Request) -> bool:
        return time.monotonic() % AWAY_EVERY_SECONDS < AWAY_SECONDS

    stack.enter_context(primary.fault(Down(), when=is_away, times=None))
    stack.enter_context(primary.fault(Delay(LATE_SECONDS), when=sometimes(LATE_SHARE), times=None))
    stack.enter_context(primary.fault(Flip(None), when=sometimes(FLIPPED_SHARE), times=None))


def make_store(scratch: Path, environment: dict[str, str]) -> list[str]:
    """Pack, verify, compact and sync a sample; return the uids of its small files."""
    source = scratch / "input"
    source.mkdir()
    uids = [f"mail/{number:04}.eml" for number in range(FILES)]
    rows = []
    for number, uid in enumerate([*uids, "large.bin"]):
        path = source / str(number)
        path.write_bytes(os.urandom(LARGE_BYTES) if uid == "large.bin" else f"{uid} is here.\n".encode() * 200)
        rows.append({"uid": uid, "created_at": f"{DAY}T12:00:00Z", "source_path": str(path)})
    manifest = scratch / "manifest.json"
    manifest.write_text(json.dumps(rows), encoding="utf-8")
    jobs = scratch / "jobs"
    jobs.mkdir()
    for command in (
        ["pack", "--quiet", "--input", str(manifest), "--metrics-file", str(jobs / "des-pack.prom")],
        ["verify", "--metrics-file", str(jobs / "des-verify.prom")],
        ["compact", "--metrics-file", str(jobs / "des-compact.prom")],
        ["zones", "sync", "--metrics-file", str(jobs / "des-sync.prom")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "des", *command], env=environment, check=False, capture_output=True
        )
        if done.returncode:
            fail(f"des {command[0]} ended with status {done.returncode}: {done.stderr.decode()}")
    return uids


@contextmanager
def job_metrics(directory: Path) -> Iterator[int]:
    """Serve the files of a directory on a free port, as a node exporter's textfile collector does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"".join(path.read_bytes() for path in sorted(directory.glob("*.prom")))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextmanager
def running(command: Sequence[str], expression: str, **arguments: Any) -> Iterator[re.Match[str]]:  # noqa: ANN401 - Popen's
    """Run a server until the context ends, which begins when a line of its log matches; its log is read on, so that it never waits for us."""
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **arguments)
    if server.stderr is None:
        fail("no pipe.")
    lines: list[str] = []
    reader = threading.Thread(target=lines.extend, args=(server.stderr,))
    try:
        found = first_match(expression, server.stderr, lines)
        if found is None:
            fail(f"{command[0]} did not start:\n{''.join(lines)}")
        reader.start()
        yield found
    finally:
        server.terminate()
        server.wait(timeout=60)
        if reader.ident is not None:
            reader.join()
        server.stderr.close()


def first_match(expression: str, log: Iterable[str], lines: list[str]) -> re.Match[str] | None:
    """Return the match of the first line of a log that matches, None where it ends without; the lines that were read are kept."""
    for line in log:
        lines.append(line)
        found = re.search(expression, line)
        if found:
            return found
    return None


def write_configuration(scratch: Path, service_port: int, jobs_port: int) -> Path:
    """Write Prometheus' configuration with the addresses of this run, and intervals of a second."""
    configuration = yaml.safe_load((ROOT / DIRECTORY / "prometheus.yml").read_text(encoding="utf-8"))
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    ports = {"des-http": service_port, "des-jobs": jobs_port}
    for job in configuration["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
    rules = yaml.safe_load((ROOT / RULES).read_text(encoding="utf-8"))
    for group in rules["groups"]:
        group["interval"] = "1s"
    (scratch / "rules").mkdir()
    (scratch / "rules" / RULES.name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    path = scratch / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    return path


def get(port: int, path: str) -> tuple[int, bytes]:
    """Ask 127.0.0.1 once."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def api(port: int, path: str, **parameters: str) -> Any:  # noqa: ANN401 - JSON
    """Ask Prometheus' API."""
    status, body = get(port, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
    answer = json.loads(body)
    if status != http.client.OK:
        fail(f"Prometheus refused {parameters}: {answer.get('error')}")
    return answer["data"]


def overload(port: int) -> list[socket.socket]:
    """Ask for the large file on more connections than may be in flight, and take nothing; the last ones are refused."""
    clients = []
    for _ in range(4 * WORKERS * MAX_REQUESTS):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        client.sendall(f"GET /files/large.bin?created_at={DAY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        clients.append(client)
    return clients


def queries() -> list[tuple[str, str]]:
    """Return the panels' titles and queries, with Grafana's variables replaced."""
    board = json.loads((ROOT / DASHBOARD).read_text(encoding="utf-8"))
    return [
        (panel["title"], target["expr"].replace("$job", ".*").replace("$__rate_interval", "10s"))
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]


def values(result: Sequence[dict[str, Any]]) -> list[float]:
    """Return the numbers of an instant query's result; none stands for a division of nothing by nothing."""
    found = [float(series["value"][1]) for series in result]
    return [value for value in found if not math.isnan(value)]


def ask_all(service: int, prometheus: int, uids: Sequence[str]) -> dict[tuple[str, str], list[float]]:
    """Make traffic until every query has returned data at least once, or the time is over; return what each last returned."""
    wanted = cycle([*uids, "missing"])
    began = time.monotonic()
    found: dict[tuple[str, str], list[float]] = {}
    while True:
        for uid in islice(wanted, REQUESTS_A_ROUND):
            status, _ = get(service, f"/files/{uid}?created_at={DAY}")
            if status not in {http.client.OK, http.client.NOT_FOUND, http.client.SERVICE_UNAVAILABLE}:
                fail(f"the service answered {status} for {uid}.")
        clients = overload(service)
        for query in queries():
            found[query] = values(api(prometheus, "query", query=query[1])["result"]) or found.get(query, [])
        for client in clients:
            client.close()
        missing = [title for (title, _), numbers in found.items() if not numbers]
        if not missing or time.monotonic() - began > DEADLINE_SECONDS:
            return found


def main() -> None:
    """Run the check."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="des-scrape-")))
        primary, places = make_places(scratch, stack)
        environment = os.environ | {
            **places,
            "DES_HTTP_MAX_REQUESTS": str(MAX_REQUESTS),
            "DES_CACHE_BYTES": "8 KiB",  # small, so that something is pushed out
            "DES_LOG_LEVEL": "warning",
        }
        uids = make_store(scratch, environment)
        jobs = stack.enter_context(job_metrics(scratch / "jobs"))
        command = [sys.executable, "-m", "des", "serve", "--port", "0", "--workers", str(WORKERS)]
        service = int(stack.enter_context(running(command, r"http://127.0.0.1:(\d+)", env=environment))[1])
        configuration = write_configuration(scratch, service, jobs)
        with socket.create_server(("127.0.0.1", 0)) as free:
            prometheus = free.getsockname()[1]
        arguments = [
            tool("prometheus", "`make scrape-check` takes it from Debian's package prometheus"),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={scratch / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{prometheus}",
        ]
        stack.enter_context(running(arguments, "Server is ready"))
        make_trouble(primary, stack)
        found = ask_all(service, prometheus, uids)
        up = {one["metric"]["job"]: one["value"][1] for one in api(prometheus, "query", query="up")["result"]}
        workers = values(api(prometheus, "query", query="sum(des_build_info)")["result"])
        rules = [rule for group in api(prometheus, "rules")["groups"] for rule in group["rules"]]
        version = api(prometheus, "status/buildinfo")["version"]
    print(f"Prometheus {version}: targets up {up}, workers {workers}, rules {len(rules)}\n")
    print(f"{'panel':<32} {'series':>6} {'least':>12} {'most':>12}  query")
    for (title, query), numbers in found.items():
        shown = f"{min(numbers):12.5g} {max(numbers):12.5g}" if numbers else f"{'NO DATA':>25}"
        print(f"{title:<32} {len(numbers):>6} {shown}  {' '.join(query.split())[:90]}")
    wrong = [f"{title!r} has no data" for (title, _), numbers in found.items() if not numbers]
    wrong += [
        f"rule {rule['name']} is {rule['health']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"
    ]
    wrong += [f"{job} is not up" for job in ("des-http", "des-jobs") if up.get(job) != "1"]
    wrong += [f"there are {workers} workers"] if workers != [float(WORKERS)] else []
    if wrong:
        fail("; ".join(wrong))
    print(f"\nall {len(found)} queries answered as they should.")


if __name__ == "__main__":
    main()
