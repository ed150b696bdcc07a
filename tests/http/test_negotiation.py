"""`des.http.negotiation`: RFC 9110 section 12.5.3."""

from __future__ import annotations

import pytest

from des.http.negotiation import prefers_zstd


@pytest.mark.parametrize(
    "value",
    [
        "zstd",
        "ZSTD",
        "gzip, deflate, br, zstd",
        "zstd;q=1",
        "zstd;q=0.001",
        "zstd ; q=0.5",
        "zstd;Q=0.5",
        "gzip;q=1.0, zstd;q=0.1",
        "zstd;q=0.5, identity;q=0.5",
        "zstd;q=0.1, identity;q=0",
        "*",
        "*;q=0.1",
        "gzip, *;q=0.5",
        "identity;q=0, *",
        ", ,zstd,,",
        "zstd;q=1.000",
        "rubbish here, zstd",
    ],
)
def test_zstd_is_wanted(value: str) -> None:
    assert prefers_zstd(value.encode())


@pytest.mark.parametrize(
    "value",
    [
        "",
        "identity",
        "gzip, br",
        "zstd;q=0",
        "zstd;q=0.000",
        "*;q=0",
        "*, zstd;q=0",
        "identity;q=1, zstd;q=0.9",
        "identity, *;q=0.5",
        "zstd;q=0.5, *",
        "zstd;q=2",
        "zstd;q=-1",
        "zstd;q=0.1234",
        "zstd;q=",
        "zstd;q",
        "zstd;level=3",
        "zstd;q=nan",
        "xzstd",
        "zstd gzip",
        '"zstd"',
    ],
)
def test_zstd_is_not_wanted(value: str) -> None:
    assert not prefers_zstd(value.encode())


def test_without_the_field_identity_is_sent() -> None:
    assert not prefers_zstd(None)
