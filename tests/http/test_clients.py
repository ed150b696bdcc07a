"""curl and Chromium get what was stored, whether they take zstd or not; real programs, skipped where they are not installed."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import anyio
import pytest

from des.shard.codecs import Compression
from tests.http.live import listening, running
from tests.making import DAY, make_store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from des.storage.testing import RecordingStorage
    from tests.http.live import Heard

AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
TEXT = b"the quick brown fox jumps over the lazy dog\n" * 500
LARGE = random.Random(9).randbytes(3000) * 500  # over 1 MiB
FILES = {"zstd": TEXT, "large": LARGE, "dictionary": TEXT[::-1]}
CURL = shutil.which("curl")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--disable-web-security",  # so that a page from disk may read what it asks for
    "--disable-features=HttpsUpgrades,LocalNetworkAccessChecks",
    "--host-resolver-rules=MAP plain.test 127.0.0.1",
)
# Asks for each address, and leaves what came in the page.
PAGE = """<!doctype html><body><script>
for (const address of ADDRESSES) {
  const asking = new XMLHttpRequest();
  asking.open("GET", address, false);
  asking.overrideMimeType("text/plain; charset=x-user-defined");
  asking.send();
  const bytes = Array.from(asking.responseText, (one) => String.fromCharCode(one.charCodeAt(0) & 255)).join("");
  const shown = document.createElement("pre");
  shown.textContent = btoa(bytes);
  document.body.append(shown);
}
</script></body>"""


@cache
def curl_takes_zstd() -> bool:
    if not CURL:
        return False
    shown = subprocess.run([CURL, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    return "zstd" in shown.partition("Features:")[2]


async def make(storage: RecordingStorage) -> None:
    maker = await make_store(storage, {"zstd": FILES["zstd"], "large": FILES["large"]})
    await maker.add({"dictionary": FILES["dictionary"]}, compression=Compression(dictionary=FILES["dictionary"][:500]))


def sent_bytes(heard: Heard) -> Mapping[str, list[int]]:
    """Return how many bytes each file was answered with, in order."""
    sent: dict[str, list[int]] = {}
    for record in heard.records:
        fields = record.__dict__["fields"]
        assert fields["status"] == 200
        sent.setdefault(fields["target"].partition("?")[0].removeprefix("/files/"), []).append(fields["bytes"])
    return sent


def check_sent(heard: Heard) -> None:
    """Of the two answers for each file the first was for one who takes zstd: only the plain single frame goes out as such."""
    sent = sent_bytes(heard)
    assert sent["zstd"][0] < len(TEXT) // 4
    assert sent["zstd"][1] == len(TEXT)
    assert sent["large"] == [len(LARGE)] * 2
    assert sent["dictionary"] == [len(TEXT)] * 2


@pytest.mark.skipif(not curl_takes_zstd(), reason="there is no curl here that decodes zstd")
async def test_curl_gets_what_was_stored(storage: RecordingStorage) -> None:
    await make(storage)
    assert CURL
    async with running(storage) as server:
        with listening("des.http.access") as heard:
            for uid, content in FILES.items():
                for options in (["--compressed"], []):
                    target = f"http://127.0.0.1:{server.port}/files/{uid}?{AT}"
                    ran = await anyio.run_process([CURL, "--silent", "--fail", "--noproxy", "*", *options, target])
                    assert ran.stdout == content, (uid, options)
        check_sent(heard)


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")
async def test_chromium_gets_what_was_stored(storage: RecordingStorage, tmp_path: Path) -> None:
    """Chromium takes zstd from its own machine, and from elsewhere only over TLS: the same server under two names."""
    await make(storage)
    assert CHROMIUM
    async with running(storage) as server:
        addresses = [
            f"http://{host}:{server.port}/files/{uid}?{AT}" for uid in FILES for host in ("127.0.0.1", "plain.test")
        ]
        page = tmp_path / "page.html"
        page.write_text(PAGE.replace("ADDRESSES", json.dumps(addresses)))
        with listening("des.http.access") as heard:
            command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
            with anyio.fail_after(90):
                ran = await anyio.run_process(command)
        shown = ran.stdout.decode().split("<pre>")[1:]
        got = [base64.b64decode(one.partition("</pre>")[0]) for one in shown]
        assert [len(one) for one in got] == [len(content) for content in FILES.values() for _ in range(2)]
        assert got == [content for content in FILES.values() for _ in range(2)]
        check_sent(heard)
