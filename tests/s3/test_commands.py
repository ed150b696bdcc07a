"""What the commands say, in one sentence and by their exit status, where a place on S3 cannot be used."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.pack.packing import Sources
from tests.servers.fault_proxy import IgnoreConditions
from tests.servers.processes import free_ports
from tests.servers.s3_servers import NO_LIST_ACCESS_KEY, NO_LIST_SECRET_KEY
from tests.test_cli import Outcome, fails, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers.fault_proxy import FaultProxy
    from tests.servers.s3_servers import S3Server

__all__ = ["run"]

pytest_plugins = ["tests.servers.fixtures"]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    sources = Sources(tmp_path / "sources")
    return sources.manifest(sources.rows({"file": b"content"}))


TROUBLE: dict[str, tuple[dict[str, str], str]] = {
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refused the credentials: the secret key is wrong"),
    "no list": (
        {"AWS_ACCESS_KEY_ID": NO_LIST_ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": NO_LIST_SECRET_KEY},
        r"denied listing bucket .*allow s3:ListBucket\.",
    ),
    "no credentials": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no S3 credentials were found"),
    "unreachable": (
        {"DES_S3_ENDPOINT_URL": "http://127.0.0.1:{port}"},
        "cannot be reached: the connection was refused",
    ),
    "no bucket": ({"BUCKET": "des-no-such-bucket"}, "there is no bucket 'des-no-such-bucket'"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_is_one_sentence_and_status_3(
    run: Callable[..., Outcome],
    seaweedfs_bucket: str,
    s3_addresses: None,
    manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    changes, sentence = TROUBLE[trouble]
    bucket = changes.get("BUCKET", seaweedfs_bucket)
    for name, value in changes.items():
        monkeypatch.setenv(name, value.format(port=free_ports(1)[0]))
    store = f"s3://{bucket}/commands"
    fails(run("--store", store, "get", "file", "--created-at", "2024-01-31"), 3, sentence)
    packed = run("pack", "--quiet", "--input-json", manifest, "--output", store)
    fails(replace(packed, err=packed.err.splitlines(keepends=True)[-1]), 3, sentence)


async def test_a_store_that_ignores_conditions_is_refused_for_sharing(
    fault_proxy: FaultProxy,
    seaweedfs: S3Server,
    seaweedfs_bucket: str,
    prefix: str,
    s3_addresses: None,
    manifest: Path,
) -> None:
    command = [sys.executable, "-m", "des", "pack", "--quiet", "--input-json", str(manifest)]
    command += ["--output", f"s3://{seaweedfs_bucket}/{prefix}"]
    environment = {**os.environ, "DES_S3_ENDPOINT_URL": fault_proxy.endpoint}
    with fault_proxy.fault(IgnoreConditions(), method="PUT", times=None) as fault:
        ended = await anyio.run_process(command, env=environment, check=False)
        assert fault.fired
        fails(
            Outcome(ended.returncode, ended.stdout, ended.stderr.decode()), 2, "let pass a PUT .*DES_SINGLE_WRITER=true"
        )
        listed = seaweedfs.client.list_objects_v2(Bucket=seaweedfs_bucket, Prefix=prefix)["Contents"]
        assert [item["Key"] for item in listed] == [f"{prefix}/des.json"], "no head, and no segment"
