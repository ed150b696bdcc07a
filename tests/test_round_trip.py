"""Ten thousand real files in by the packer's own command, and out by library, HTTP and command line, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import pytest

from des import metrics
from des.storage.local import LocalStorage
from des.store import open_store
from tests.http.live import running

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = 10_000
DAY = "2024-01-31"
ODD_UIDS = (
    "a//b",
    "//a",
    "/leading",
    "trailing/",
    "../up",
    "a/../b/./c",
    "with spaces in it",
    "100%",
    "%2F",
    "%zz",
    "a+b",
    "what?",
    "a#b",
    "a&b=c;d",
    "ünïcödé/文書",
    "😀/🗂️",
    "0123456789",
    "-x",
    "--json",
    "'\"`$(x)\\",
)
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DES_"))}


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, check=False, env=ENVIRONMENT, timeout=100
    )


def pack(manifest: Path, store: Path) -> dict[str, object]:
    ended = run("des.pack", "--input-json", str(manifest), "--output-dir", str(store), "--n-bits", "4", "--json")
    assert ended.returncode == 0, ended.stderr
    report: dict[str, object] = json.loads(ended.stdout)
    return report


def real_files() -> Iterator[Path]:
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 22:
                yield path


def write_manifest(path: Path, sources: dict[str, Path]) -> Path:
    rows = [{"uid": uid, "created_at": f"{DAY}T08:00:00Z", "source_path": str(at)} for uid, at in sources.items()]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


class Packed:
    """A store of real files, and where each came from."""

    def __init__(self, folder: Path) -> None:
        metrics.activate()  # imports what would otherwise be imported in the loop of the HTTP test
        self.store = folder / "store"
        files = [path for path, _ in zip(real_files(), range(FILES), strict=False)]
        self.sources = {str(path): path for path in files} | dict(zip(ODD_UIDS, files, strict=False))
        self.manifest = write_manifest(folder / "manifest.json", self.sources)
        self.report = pack(self.manifest, self.store)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return Packed(tmp_path_factory.mktemp("packed"))


def every_object(store: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(store)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in store.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


@pytest.mark.xdist_group("round_trip")
class TestTenThousandRealFiles:
    async def test_come_back_by_get(self, packed: Packed) -> None:
        assert packed.report["packed"] == len(packed.sources) >= FILES
        async with open_store(packed.store) as store:
            for uid, path in packed.sources.items():
                assert await store.get(uid, DAY) == path.read_bytes(), uid

    async def test_come_back_by_http(self, packed: Packed) -> None:
        storage = LocalStorage(packed.store)
        sample = [*ODD_UIDS, *list(packed.sources)[:: FILES // 50]]
        async with running(storage) as server:
            for uid in sample:
                for target in (
                    f"/files/{quote(uid, safe='')}?created_at={DAY}",
                    f"/files/{quote(uid)}?created_at={DAY}",
                    "/files?" + urlencode({"uid": uid, "created_at": f"{DAY}T23:00:00+00:00"}),
                ):
                    reply = await server.ask(target)
                    assert (reply.status, reply.body) == (200, packed.sources[uid].read_bytes()), target
        await storage.aclose()

    @pytest.mark.parametrize("uid", ["../up", "-x", "--json", "😀/🗂️"])
    def test_come_back_by_the_command_line(self, packed: Packed, uid: str) -> None:
        ended = run("des", "--store", str(packed.store), "get", "--created-at", DAY, "--", uid)
        assert (ended.returncode, ended.stdout) == (0, packed.sources[uid].read_bytes()), ended.stderr

    def test_the_same_manifest_again_leaves_every_object_as_it_was(self, packed: Packed) -> None:
        before = every_object(packed.store)
        report = pack(packed.manifest, packed.store)
        assert (report["packed"], report["skipped"]) == (0, len(packed.sources))
        assert (report["segments"], report["objects_written"]) == (0, 0)
        assert every_object(packed.store) == before


async def test_a_second_manifest_on_the_same_shards_loses_nothing(tmp_path: Path) -> None:
    files = [path for path, _ in zip(real_files(), range(400), strict=False)]
    halves = [{f"{half}/{n}": path for n, path in enumerate(files[half::2])} for half in (0, 1)]
    for half, sources in enumerate(halves):
        pack(write_manifest(tmp_path / f"{half}.json", sources), tmp_path / "store")
    async with open_store(tmp_path / "store") as store:
        for uid, path in (halves[0] | halves[1]).items():
            assert await store.get(uid, DAY) == path.read_bytes()


def pack_at_once(manifests: list[Path], store: Path) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "des.pack", "--output-dir", str(store), "--n-bits", "2", "--json", "--input-json"]
    packers = [
        subprocess.Popen([*command, str(manifest)], stdout=subprocess.PIPE, env=ENVIRONMENT) for manifest in manifests
    ]
    outputs = [packer.communicate(timeout=100)[0] for packer in packers]
    assert [packer.returncode for packer in packers] == [0] * len(packers)
    return [json.loads(output) for output in outputs]


async def test_three_packers_at_once_leave_the_union(tmp_path: Path) -> None:
    files = [path for path, _ in zip(real_files(), range(600), strict=False)]
    shares = [{f"{share}/{n}": path for n, path in enumerate(files[share::3])} for share in range(3)]
    manifests = [write_manifest(tmp_path / f"{share}.json", sources) for share, sources in enumerate(shares)]
    reports = pack_at_once(manifests, tmp_path / "store")
    assert [report["packed"] for report in reports] == [200, 200, 200]
    async with open_store(tmp_path / "store") as store:
        for sources in shares:
            for uid, path in sources.items():
                assert await store.get(uid, DAY) == path.read_bytes()
