"""`make image-test`: builds the image without an engine, runs the services of compose.yaml from it, and proves what is promised of it.

It needs root on Debian, with `buildah`, `debootstrap` (unless `--base` names an image), `runc` and `haproxy`. Everything is run in a
network of its own, where nothing but loopback is. A run ends at the first proof that fails, with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.check import profiles, render
from deploy.image_build import ROOT, Builder, Image, need
from deploy.image_run import Container, Host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAMES = {"seaweedfs": "127.0.0.1", "des-http-a": "127.0.0.11", "des-http-b": "127.0.0.12"}
NEEDED = {"buildah": "buildah", "runc": "runc", "haproxy": "haproxy", "unshare": "util-linux", "ip": "iproute2"}
PACK_SECONDS = 60
ASK_SECONDS = 20
READ_ONLY = ["/probe", "/etc/probe", "/opt/des/probe", "/data/probe", "/data/output/probe"]
LOSES_NONE = 400  # requests that must all be answered while one of two retrievers stops


def main() -> None:
    """Build, then run in a network of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--base", default=os.environ.get("BASE"), help="a base image with Python; default: made with debootstrap"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "image", help="where base and image are kept")
    parser.add_argument("--built", action="store_true", help="run what was built, in this network")
    options = parser.parse_args()
    need(**(NEEDED if options.base else NEEDED | {"debootstrap": "debootstrap"}))
    builder = Builder(options.work.resolve())
    if not options.built:
        builder.work.mkdir(parents=True, exist_ok=True)
        builder.build(options.base or builder.base())
        say("built", "the Containerfile, with buildah and chroot isolation")
        again = [sys.executable, "-m", "deploy.image_test", "--built", "--work", str(builder.work)]
        inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *again]
        sys.exit(subprocess.run(inside, cwd=ROOT, check=False).returncode)
    with builder.mounted() as image, tempfile.TemporaryDirectory(prefix="des-image-") as work:
        Path(work).chmod(0o755)
        host = Host(Path(work), ROOT, NAMES)
        services = rendered_services()
        describe(image)
        sample(host, image, services)
        several_workers(host, image, services)
        behind_the_proxy(host, image, services)
        on_s3(host, image, services)
    print("all of it holds")


def say(what: str, detail: str) -> None:
    """Print a line about something that was proven."""
    print(f"ok  {what}: {detail}", flush=True)


def prove(holds: object, sentence: str) -> None:
    """End the run where something does not hold."""
    if not holds:
        sys.exit(f"FAILED  {sentence}")


def rendered_services() -> Mapping[str, Mapping[str, Any]]:
    """Return the services of all profiles of compose.yaml, rendered."""
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load(render(ROOT, *sorted(profiles(ROOT))))["services"]
    return found


def describe(image: Image) -> None:
    """The image's own words: a numbered user, the exec form, labels, its size."""
    config = image.config
    prove(re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"]), f"the image's user is {config['User']!r}")
    prove(config["Cmd"] == ["des", "serve"], f"the image's command is {config['Cmd']!r}")
    labels = {name: value for name, value in config["Labels"].items() if name.startswith("org.opencontainers.image.")}
    prove(len(labels) >= len(("title", "description", "version", "revision")), f"the image's labels are {labels}")
    own, all_of_it = (disk_space(image.root / place) for place in ("opt/des", ""))
    say(
        "image",
        f"user {config['User']}, command {config['Cmd']}, {own} MB and {all_of_it - own} MB of its base, uncompressed",
    )
    say("labels", ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in labels.items()))


def disk_space(folder: Path) -> int:
    """Return what a directory takes on disk, in MB."""
    sizes = (path.lstat() for path in folder.rglob("*"))
    return sum(512 * found.st_blocks for found in sizes) // 1_000_000


def sample(host: Host, image: Image, services: Mapping[str, Mapping[str, Any]]) -> None:
    """The packer packs the sample, twice; the retriever serves it, is healthy, cannot write, and stops."""
    for expected in ("6 packed", "6 skipped"):
        pack(host, image, "des-packer", services, expected)
    with started(Container(host, image, "des-http", services["des-http"])) as retriever:
        prove(retriever.healthy(), f"des-http never got healthy: {retriever.log.read_text()}")
        say("health check", " ".join(image.config["Healthcheck"]["Test"][1:]) + " is satisfied")
        unprivileged(retriever)
        compare("http://127.0.0.1:8000")
        stopped(retriever)
        print(indented(retriever.log.read_text()))


def pack(host: Host, image: Image, name: str, services: Mapping[str, Mapping[str, Any]], expected: str) -> None:
    """Run a packer until it ends, and look at its last words."""
    with started(Container(host, image, name, services[name])) as packer:
        status = packer.wait(PACK_SECONDS)
        words = packer.log.read_text()
    prove(status == 0, f"{name} ended with {status}: {words}")
    counts = dict(re.findall(r"^│ (\w+)[^│]*│ +(\d+) ", words, re.MULTILINE))
    number, what = expected.split()
    prove(counts.get(what) == number, f"{name} was to say {expected!r}, and said: {words}")
    say(name, f"{expected}, {' '.join(packer.service['command'])}")


def unprivileged(container: Container) -> None:
    """What the kernel says of the running process, and what happens to those who write."""
    status = Path(f"/proc/{container.pid()}/status").read_text(encoding="ascii")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    prove(set(facts["Uid"].split()) == {"10001"}, f"its user is {facts['Uid']}")
    prove(int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0, f"it has capabilities: {facts['CapEff']}")
    prove(facts["NoNewPrivs"] == "1", "it may gain privileges")
    script = "import errno, sys\nfor path in sys.argv[1:]:\n try: open(path, 'x')\n except OSError as e: print(errno.errorcode[e.errno])"
    said = container.run("python3", "-c", script, *READ_ONLY).stdout.split()
    prove(said == ["EROFS"] * len(READ_ONLY), f"writing to {READ_ONLY} gave {said}")
    [root] = re.findall(
        r"^\S+ / \S+ (\S+)", Path(f"/proc/{container.pid()}/mounts").read_text(encoding="ascii"), re.MULTILINE
    )
    prove("ro" in root.split(","), f"its root is mounted {root}")
    say("unprivileged", f"Uid {facts['Uid'].split()[0]}, CapEff {facts['CapEff']}, NoNewPrivs 1")
    say("read-only", f"/ is mounted {root.split(',')[0]}; creating {', '.join(READ_ONLY)}: EROFS")


def several_workers(host: Host, image: Image, services: Mapping[str, Mapping[str, Any]]) -> None:
    """Two worker processes need shared memory and a directory for metrics: both are there."""
    environment = {"DES_HTTP_WORKERS": "2", "DES_HTTP_ADMIN_PORT": "9100"}
    with started(Container(host, image, "des-http", services["des-http"], environment)) as retriever:
        prove(retriever.healthy(), f"with {environment} it never got healthy: {retriever.log.read_text()}")
        compare("http://127.0.0.1:8000")
        prove(b"des_retrievals_total" in ask("http://127.0.0.1:9100/metrics"), "/metrics counts no retrievals")
        say("two workers", "healthy by the admin port, and both count into /metrics there")
        stopped(retriever)


def behind_the_proxy(host: Host, image: Image, services: Mapping[str, Mapping[str, Any]]) -> None:
    """Of two retrievers behind the proxy one stops while clients ask: no answer is lost."""
    with (
        started(
            Container(host, image, "des-http-a", services["des-http-a"], {"DES_HTTP_HOST": NAMES["des-http-a"]})
        ) as first,
        started(
            Container(host, image, "des-http-b", services["des-http-b"], {"DES_HTTP_HOST": NAMES["des-http-b"]})
        ) as second,
    ):
        prove(first.healthy() and second.healthy(), "the retrievers behind the proxy never got healthy")
        with proxy(host):
            compare("http://127.0.0.1:8080")
            outcome: list[Exception] = []
            under_way = threading.Event()
            clients = threading.Thread(target=lambda: outcome.extend(ask_often(under_way)))
            clients.start()
            prove(under_way.wait(ASK_SECONDS), "no client got an answer through the proxy")
            stopped(first)
            clients.join()
            prove(
                not outcome,
                f"{len(outcome)} of {LOSES_NONE} requests were lost while one of two stopped: {outcome[:1]}",
            )
            say("proxy", f"{LOSES_NONE} requests answered while one of two retrievers stopped")
        stopped(second)


def ask_often(under_way: threading.Event) -> list[Exception]:
    """Ask for a file again and again, and return what went wrong."""
    failures: list[Exception] = []
    for _ in range(LOSES_NONE):
        try:
            ask("http://127.0.0.1:8080/files/tables/pages.csv?created_at=2024-01-31")
        except OSError as error:
            failures.append(error)
        under_way.set()
    return failures


@contextmanager
def proxy(host: Host) -> Iterator[None]:
    """Run HAProxy with the configuration of deploy/proxy, names replaced by addresses."""
    text = (ROOT / "deploy/proxy/haproxy.cfg").read_text(encoding="utf-8")
    for name, address in NAMES.items():
        text = text.replace(f"{name}:", f"{address}:")
    configuration = host.work / "haproxy.cfg"
    configuration.write_text(text)
    process = subprocess.Popen(
        ["haproxy", "-db", "-f", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until_answered("http://127.0.0.1:8080/health")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=ASK_SECONDS)


def on_s3(host: Host, image: Image, services: Mapping[str, Mapping[str, Any]]) -> None:
    """The services of profile s3, with SeaweedFS from its wheel in place of its image."""
    server = services["seaweedfs"]
    data = host.work / "objects"
    data.mkdir()
    weed = str(Path(sys.executable).with_name("weed"))
    command = [weed, *(word.replace("/data", str(data)) for word in server["command"]), f"-ip={NAMES['seaweedfs']}"]
    environment = os.environ | dict(server["environment"])
    process = subprocess.Popen(command, cwd=data, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_answered(server["healthcheck"]["test"][-1])
        say("seaweedfs", "its health check sees the bucket")
        pack(host, image, "des-packer-s3", services, "6 packed")
        with started(Container(host, image, "des-http-s3", services["des-http-s3"])) as retriever:
            prove(retriever.healthy(), f"des-http-s3 never got healthy: {retriever.log.read_text()}")
            compare("http://127.0.0.1:8000")
            stopped(retriever)
    finally:
        process.kill()
        process.wait(timeout=ASK_SECONDS)


@contextmanager
def started(container: Container) -> Iterator[Container]:
    """Run a container for as long as the block lasts."""
    container.start()
    try:
        yield container
    finally:
        container.kill()


def stopped(container: Container) -> None:
    """Stop a container, and hold it to its grace time."""
    try:
        status, seconds = container.stop()
    except subprocess.TimeoutExpired:
        sys.exit(f"FAILED  {container.name} still ran {container.grace} s after the signal to stop")
    prove(status in {0, 128 + signal.SIGTERM}, f"{container.name} ended with {status}: {container.log.read_text()}")
    say(
        "stop",
        f"{container.name} ended {seconds:.1f} s after SIGTERM with status {status}; it may take {container.grace:.0f} s",
    )


def compare(address: str) -> None:
    """Get every file of the sample, and compare it with its source."""
    rows = json.loads((ROOT / "deploy/example/manifests/manifest.json").read_text(encoding="utf-8"))
    for row in rows:
        source = ROOT / "deploy/example" / Path(row["source_path"]).relative_to("/data")
        query = urllib.parse.urlencode({"created_at": row["created_at"]})
        content = ask(f"{address}/files/{urllib.parse.quote(row['uid'])}?{query}")
        prove(content == source.read_bytes(), f"{row['uid']} came back different")
    say("served", f"{len(rows)} files by {address}, the same as their sources")


def ask(url: str) -> bytes:
    """Return what is answered with 200."""
    with urllib.request.urlopen(url, timeout=ASK_SECONDS) as answer:
        return bytes(answer.read())


def until_answered(url: str) -> None:
    """Ask until 200 is answered, as health checks do."""
    waiting = threading.Event()
    for _ in range(ASK_SECONDS * 10):
        try:
            ask(url)
        except OSError:
            waiting.wait(0.1)
        else:
            return
    sys.exit(f"FAILED  {url} was never answered with 200")


def indented(text: str) -> str:
    """Return the lines of a log as they are shown below what they belong to."""
    return "\n".join(f"      {line}" for line in text.splitlines())


if __name__ == "__main__":
    main()
