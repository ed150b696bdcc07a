from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ByteSize

from des.errors import SettingsError
from des.settings import Settings
from des.storage.s3_config import EndpointOptions, S3Config


def test_every_setting_arrives() -> None:
    settings = Settings(
        backend="s3",
        s3_bucket="bucket",
        s3_prefix="/a/b/",
        s3_region="eu-west-1",
        s3_endpoint_url="https://host:9000",
        s3_profile="profile",
        s3_addressing="virtual",
        s3_sse="aws:kms",
        s3_sse_kms_key_id="key",
        s3_storage_class="STANDARD_IA",
        s3_request_payer="requester",
        s3_ca_bundle=Path("bundle.pem"),
        s3_presigned="off",
        single_writer=True,
        max_connections=7,
        request_timeout=9.0,
        pack_memory=ByteSize(80 << 20),
    )
    config = S3Config.from_settings(settings)
    assert config == S3Config(
        bucket="bucket",
        prefix="a/b",
        region="eu-west-1",
        endpoint_url="https://host:9000",
        profile="profile",
        addressing="virtual",
        sse="aws:kms",
        sse_kms_key_id="key",
        storage_class="STANDARD_IA",
        request_payer="requester",
        ca_bundle=Path("bundle.pem"),
        presigned="off",
        single_writer=True,
        max_connections=7,
        upload_memory=10 << 20,
        request_timeout=9.0,
    )
    assert config.endpoint == EndpointOptions(
        url="https://host:9000",
        region="eu-west-1",
        profile="profile",
        addressing="virtual",
        ca_bundle=Path("bundle.pem"),
        max_connections=7,
        upload_memory=10 << 20,
    )


def test_the_bucket_is_not_optional() -> None:
    with pytest.raises(SettingsError, match="set DES_S3_BUCKET"):
        S3Config.from_settings(Settings(backend="s3"))


@pytest.mark.parametrize(
    "url",
    ["https://name:secret@host", "https://secret@host:9000", "https://na/secret@host", "ftp://na:me@secret@host"],
)
def test_an_endpoint_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="without credentials") as caught:
        S3Config(bucket="bucket", endpoint_url=url)
    assert "secret" not in str(caught.value)
    assert "host" in str(caught.value)
    with pytest.raises(SettingsError, match="is no bucket") as caught:
        S3Config(bucket="name:secret@bucket")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("prefix", "address", "root"),
    [
        ("", "s3://bucket", ""),
        ("/", "s3://bucket", ""),
        ("a", "s3://bucket/a", "a/"),
        ("//a/b//", "s3://bucket/a/b", "a/b/"),
    ],
)
def test_where_it_is(prefix: str, address: str, root: str) -> None:
    config = S3Config(bucket="bucket", prefix=prefix)
    assert (config.address, config.root) == (address, root)


def test_large_transfers_get_more_time() -> None:
    config = S3Config(bucket="bucket", request_timeout=30)
    assert config.allowance(0) == 30
    assert config.allowance(64 * 1024 * 1024) == 94
    assert config.stall_timeout == 10
