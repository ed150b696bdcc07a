"""Real files, packed to SeaweedFS by the command, come back byte-identical by every way out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.pack.packing import CREATED_AT, Sources, objects_under
from tests.test_end_to_end import SPELLINGS, get_all, get_by_command, get_by_http, pack, real_files

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]


@pytest.mark.parametrize("count", [40, pytest.param(10_000, marks=pytest.mark.soak)])
def test_real_files(
    tmp_path: Path, seaweedfs: S3Server, seaweedfs_bucket: str, prefix: str, s3_addresses: None, count: int
) -> None:
    address = f"s3://{seaweedfs_bucket}/{prefix}"
    paths = {f"lib/{path.relative_to(path.anchor)}": path for path in real_files(count)}
    rows = [{"uid": uid, "created_at": CREATED_AT, "source_path": str(path)} for uid, path in paths.items()]
    manifest = Sources(tmp_path / "sources").manifest(rows)
    packing = partial(pack, "--input-json", manifest, "--output", address, "--n-bits", 3)
    report = packing()
    assert (report["files"], report["packed"], report["failed"]) == (count, count, 0)
    assert report["shards"] == report["segments"] == 8
    anyio.run(get_all, address, paths)
    sample = list(paths)[:: count // 10]
    assert get_by_command(address, sample[0]) == paths[sample[0]].read_bytes()
    for uid, contents in get_by_http(address, sample).items():
        assert contents == [paths[uid].read_bytes()] * SPELLINGS

    # The same again writes nothing, the descriptor included: S3 refuses what proves that conditions hold.
    place = seaweedfs.settings(seaweedfs_bucket, s3_prefix=prefix)
    before = objects_under(place)
    again = packing()
    assert (again["packed"], again["skipped"], again["objects_written"]) == (0, count, 0)
    assert objects_under(place) == before
