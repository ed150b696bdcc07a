"""A store in zones from the command line, on SeaweedFS: made, packed, read, told apart, brought up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.pack.packing import Sources
from tests.storage.zones_files import written
from tests.test_cli import Outcome, fails, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers.s3_servers import S3Server

__all__ = ["run"]

pytest_plugins = ["tests.servers.fixtures"]

FILES = {f"file-{number}": f"content {number}" for number in range(6)}


class Ground:
    """Places on one bucket, and zones files that name them."""

    def __init__(self, server: S3Server, bucket: str, prefix: str, directory: Path) -> None:
        self._server, self._bucket, self._prefix, self._directory = server, bucket, prefix, directory

    def file(self, *zones: tuple[int, int, str], **more: object) -> Path:
        """Write a file with zones from an index to one, at places whose names are the letters."""
        written_zones = []
        for start, end, letters in zones:
            first, *copies = ({"bucket": self._bucket, "prefix": f"{self._prefix}/{letter}"} for letter in letters)
            name = f"zone-{start}"
            written_zones.append({"name": name, "range": {"start": start, "end": end}, "s3": first, "copies": copies})
        return written(self._directory, {"n_bits": 2, "zones": written_zones} | more)

    def objects(self, letter: str) -> dict[str, str]:
        """Return the keys of a place, with what tells their contents apart."""
        prefix = f"{self._prefix}/{letter}/"
        listed = self._server.client.list_objects_v2(Bucket=self._bucket, Prefix=prefix).get("Contents", [])
        found = {one["Key"].removeprefix(prefix): one["ETag"] for one in listed}
        found.pop("des.json", None)
        return found

    def lose_descriptor(self, letter: str) -> None:
        self._server.client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{letter}/des.json")


@pytest.fixture
def ground(seaweedfs: S3Server, seaweedfs_bucket: str, prefix: str, s3_addresses: None, tmp_path: Path) -> Ground:
    return Ground(seaweedfs, seaweedfs_bucket, prefix, tmp_path)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    sources = Sources(tmp_path / "sources")
    return sources.manifest(sources.rows({uid: text.encode() for uid, text in FILES.items()}))


@pytest.mark.soak
def test_a_store_in_zones_from_its_making_to_a_new_copy(
    run: Callable[..., Outcome], ground: Ground, manifest: Path
) -> None:
    zones = ground.file((0, 1, "ab"), (2, 3, "c"))
    fails(run("pack", "--zones", zones, "--n-bits", "3", "--input", manifest), 2, r"configured as 3, but .* says 2;")
    fails(run("init", "--zones", zones, "--n-bits", "8"), 2, r"configured as 8, but .* says 2;")
    assert "n_bits 2" in run("init", "--zones", zones).text
    packed = run("pack", "--zones", zones, "--input", manifest, "--json")
    assert (packed.status, packed.json["packed"], packed.json["store"]) == (0, len(FILES), str(zones))
    for uid, text in list(FILES.items())[:2]:
        assert run("--zones", zones, "get", uid, "--created-at", "2024-01-31").text == text
    assert ground.objects("a")
    assert ground.objects("c")
    assert run("zones", "sync", zones, "--json").status == 0
    assert ground.objects("b") == ground.objects("a")

    wider = ground.file((0, 1, "bad"), (2, 3, "c"))  # the copy takes the primary's part, and there is a new one
    synced = run("zones", "sync", wider, "--json")
    assert (synced.status, synced.json["failed"], synced.json["unreached"]) == (0, [], [])
    assert synced.json["segment_bytes"] > 0
    assert ground.objects("d") == ground.objects("a") == ground.objects("b")
    assert run("zones", "sync", wider, "--json").json | {"shards": 0, "copies": 0} == {
        "copies": 0, "shards": 0, "brought_up": 0, "segments": 0, "segment_bytes": 0,
        "deleted": [], "kept": [], "unreached": [], "failed": [],
    }  # fmt: skip
    assert run("zones", "check", wider, "--probe").status == 0
    assert run("verify", "--zones", wider).status == 0

    uid = next(iter(FILES))
    assert run("delete", uid, "--created-at", "2024-01-31", "--zones", wider).status == 0
    assert run("get", uid, "--created-at", "2024-01-31", "--zones", wider).status == 1


def test_descriptors_that_were_lost_are_restored_with_their_ranges(
    run: Callable[..., Outcome], ground: Ground, manifest: Path
) -> None:
    zones = ground.file((0, 1, "a"), (2, 3, "b"))
    assert run("pack", "--quiet", "--zones", zones, "--input", manifest).status == 0
    ground.lose_descriptor("b")
    fails(
        run("pack", "--quiet", "--zones", zones, "--input", manifest),
        2,
        r"restore it with `des init --zones .* --adopt`",
    )
    probed = run("zones", "check", zones, "--probe")
    assert probed.status == 2
    assert "restore it with `des init --zones FILE --adopt`" in probed.err
    adopted = run("init", "--zones", zones, "--adopt")
    assert adopted.status == 0
    assert adopted.text.startswith("Restored the descriptors of s3://")
    assert run("zones", "check", zones, "--probe").status == 0


def test_a_place_that_does_not_fit_is_named_with_its_cure(
    run: Callable[..., Outcome], ground: Ground, manifest: Path
) -> None:
    assert run("init", "--zones", ground.file((0, 1, "a"), (2, 3, "b"))).status == 0
    shifted = ground.file((0, 2, "a"), (3, 3, "b"))
    fails(run("pack", "--quiet", "--zones", shifted, "--input", manifest), 2, "holds the indices 0 to 1")
    probed = run("zones", "check", shifted, "--probe", "--json")
    assert probed.status == 2
    assert [place["probe"]["status"] for zone in json.loads(probed.out)["zones"] for place in zone["places"]] == [
        "invalid",
        "invalid",
    ]
    assert "it holds 0 to 1 (des.json), the file says 0 to 2" in probed.err
