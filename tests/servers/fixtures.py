"""The fixtures of S3 tests.

A test module asks for them with `pytest_plugins = ["tests.servers.fixtures"]`, or the top conftest does so for all.

    async def test_something(seaweedfs: S3Server, bucket: str) -> None:
        storage = await open_s3(seaweedfs.config(bucket, prefix="a/b"))

    async def test_trouble(fault_proxy: FaultProxy, bucket: str) -> None:
        storage = await open_s3(fault_proxy.config(bucket))
        with fault_proxy.fault(Cut(after=1000), method="GET", key="x.des") as fault: ...
        assert fault.fired
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from des.storage.s3 import open_s3
from tests.servers.certificates import Authority
from tests.servers.fault_proxy import FaultProxy
from tests.servers.s3_servers import ACCESS_KEY, REGION, SECRET_KEY, S3Server, run_moto, run_seaweedfs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from blockbuster import BlockBuster

    from des.storage.s3 import S3Storage


@pytest.fixture(scope="session", autouse=True)
def chain_may_read_files(no_blocking_in_the_loop: BlockBuster) -> None:
    """Let the AWS chain read its files: it is walked in a loop that a worker thread runs for nothing else.

    Renewals run in the main loop; how they read their files is botocore's.
    """
    for function in no_blocking_in_the_loop.functions.values():
        function.can_block_in("des/storage/s3_endpoint.py", ["_load_credentials"])
        function.can_block_in("aiobotocore/credentials.py", ["_protected_refresh"])


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS, one for the session (and for each of xdist's workers)."""
    with run_seaweedfs(tmp_path_factory.getbasetemp()) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """moto's server, one for the session (and for each of xdist's workers)."""
    with run_moto() as server:
        yield server


@pytest.fixture
def s3_credentials(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the credentials of the servers in the environment, where the AWS chain finds them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture
def bucket(seaweedfs: S3Server, s3_credentials: None) -> Iterator[str]:
    """A new bucket on SeaweedFS, with the credentials for it."""
    name = seaweedfs.make_bucket()
    yield name
    seaweedfs.drop_bucket(name)


@pytest.fixture(scope="session")
def seaweedfs_bucket(seaweedfs: S3Server) -> str:
    """A bucket on SeaweedFS that all tests share: a bucket of its own costs a test more than a prefix of its own."""
    return seaweedfs.make_bucket()


@pytest.fixture(scope="session")
def moto_bucket(moto: S3Server) -> str:
    """A bucket on moto that all tests share."""
    return moto.make_bucket()


@pytest.fixture
def prefix(s3_credentials: None) -> str:
    """A prefix in a shared bucket that no other test has, with the credentials for it."""
    return f"a/store {secrets.token_hex(8)}"


@pytest.fixture
async def on_seaweedfs(seaweedfs: S3Server, seaweedfs_bucket: str, prefix: str) -> AsyncIterator[S3Storage]:
    """An empty place on SeaweedFS."""
    storage = await open_s3(seaweedfs.config(seaweedfs_bucket, prefix=prefix))
    yield storage
    await storage.aclose()


@pytest.fixture
async def on_moto(moto: S3Server, moto_bucket: str, prefix: str) -> AsyncIterator[S3Storage]:
    """An empty place on moto."""
    storage = await open_s3(moto.config(moto_bucket, prefix=prefix))
    yield storage
    await storage.aclose()


@pytest.fixture
def s3_addresses(seaweedfs: S3Server, s3_credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let s3:// addresses mean SeaweedFS, here and in subprocesses."""
    monkeypatch.setenv("DES_S3_ENDPOINT_URL", seaweedfs.endpoint)
    monkeypatch.setenv("DES_S3_REGION", REGION)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private certificate authority, for servers that speak TLS."""
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def tls_proxy(seaweedfs: S3Server, authority: Authority) -> AsyncIterator[FaultProxy]:
    """The same as `fault_proxy`, over https with a certificate of `authority`."""
    async with FaultProxy.before(seaweedfs, authority.server_context()) as proxy:
        yield proxy


@pytest.fixture
async def fault_proxy(seaweedfs: S3Server) -> AsyncIterator[FaultProxy]:
    """A proxy before SeaweedFS that counts requests and does harm where it is told to."""
    async with FaultProxy.before(seaweedfs) as proxy:
        yield proxy
