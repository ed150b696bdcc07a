from __future__ import annotations

import json
import logging
import socket
import stat
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import anyio
import botocore.auth
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from des.errors import ObjectNotFoundError, StorageDeniedError
from des.storage.protocol import Overwrite
from des.storage.s3 import S3Storage, open_s3
from des.storage.s3_presigned import LIVES, MARGIN_SECONDS, MAX_TARGETS, PresignedSource, Signer, Template
from des.storage.s3_wire import Origin
from tests.servers.fault_proxy import Answer, FaultProxy
from tests.servers.s3_servers import ACCESS_KEY, SECRET_KEY, VIRTUAL_DOMAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

KEY = "20240131/0A/0123.des"
DATA = bytes(range(256)) * 100
MOMENT = datetime(2024, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
async def storage(fault_proxy: FaultProxy, bucket: str) -> AsyncIterator[S3Storage]:
    storage = await open_s3(fault_proxy.config(bucket))
    await storage.put(KEY, DATA, Overwrite())
    fault_proxy.clear()
    yield storage
    await storage.aclose()


# The signature


@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    token=st.none() | st.text("abc+/= %&", min_size=1),
    payer=st.sampled_from([None, "requester"]),
    path=st.sampled_from(["/", "/bucket/", "/some/base/bucket/"]),
)
def test_it_is_what_botocore_signs(key: str, token: str | None, payer: str | None, path: str) -> None:
    template = Template(Origin("https", "host", 443), "host.example:8443", path, "eu-central-1", "s3")
    credentials = ReadOnlyCredentials("AKID", "secret/key", token, None)
    ours = Signer(template, credentials, MOMENT, 100, payer=payer).target(key)
    url = f"https://host.example:8443{ours.partition('?')[0]}" + (f"?x-amz-request-payer={payer}" if payer else "")
    request = AWSRequest(method="GET", url=url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: MOMENT.replace(tzinfo=None))
        S3SigV4QueryAuth(credentials, "s3", "eu-central-1", expires=100 + MARGIN_SECONDS).add_auth(request)
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(str(request.url)).query)


def test_urls_are_made_once_and_bounded_in_number() -> None:
    template = Template(Origin("https", "host", 443), "host", "/bucket/", "r", "s3")
    signer = Signer(template, ReadOnlyCredentials("a", "b", None, None), MOMENT, 100, payer=None)
    first = signer.target("0")
    assert signer.target("0") is first
    for number in range(1, MAX_TARGETS + 1):
        signer.target(str(number))
    assert len(signer._targets) == MAX_TARGETS
    assert signer.target("0") is not first


SCOPE = "20240131%2Feu-west-1%2Fs3%2Faws4_request"
SIGV4 = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-SignedHeaders=host"
VIRTUAL = "bucket.s3.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("url", "template"),
    [
        (
            f"https://{VIRTUAL}/KEY?{SIGV4}&X-Amz-Credential=AK%2F{SCOPE}&X-Amz-Date=x&X-Amz-Expires=1&X-Amz-Signature=0",
            Template(Origin("https", VIRTUAL, 443), VIRTUAL, "/", "eu-west-1", "s3"),
        ),
        (
            f"http://[::1]:9000/bucket/KEY?{SIGV4}&X-Amz-Credential=A%2FK%2F{SCOPE}&X-Amz-Security-Token=t",
            Template(Origin("http", "::1", 9000), "[::1]:9000", "/bucket/", "eu-west-1", "s3"),
        ),
        (f"https://h/KEY?{SIGV4.replace('HMAC', 'ECDSA')}&X-Amz-Credential=AK%2F{SCOPE}", None),
        ("https://h/KEY?AWSAccessKeyId=a&Signature=b&Expires=1", None),
        (f"https://h/KEY?{SIGV4}&X-Amz-Credential=AK%2F{SCOPE}&X-Amz-S3session-Token=t", None),
        (f"https://h/KEY?{SIGV4}%3Bx-amz-request-payer&X-Amz-Credential=AK%2F{SCOPE}", None),
    ],
    ids=["virtual", "path", "sigv4a", "sigv2", "express", "signed_header"],
)
def test_template_of_a_url(url: str, template: Template | None) -> None:
    assert Template.of_url(url, "KEY") == template


# Reading


async def test_reads_go_by_one_url_and_need_no_client(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    for start in range(0, 5000, 1000):
        assert await storage.read_range(KEY, start, start + 10) == DATA[start : start + 10]
    suffix = await storage.read_suffix(KEY, 10)
    assert suffix is not None
    assert await storage.read_suffix(KEY, 10, unless=suffix.version) is None
    assert await storage.read_range(KEY, 0, 10, version=suffix.version) == DATA[:10]
    assert all(request.presigned and "authorization" not in request.headers for request in fault_proxy.requests)
    assert len({request.query["X-Amz-Signature"] for request in fault_proxy.requests}) == 1
    assert fault_proxy.connections <= 2


@pytest.mark.parametrize(
    "key", ["a b+c", "ü/日本語", "x//y", "..", "a/../b", "%41", "?#&=", "'\"<>", "~-_.!*()", "a" * 200]
)
async def test_keys_of_every_kind(seaweedfs: S3Server, moto: S3Server, bucket: str, key: str) -> None:
    server = moto if ".." in key or "//" in key else seaweedfs  # SeaweedFS keeps objects as files in directories
    name = server.make_bucket() if server is moto else bucket
    storage = await open_s3(server.config(name, prefix="p"))
    await storage.put(key, b"content", Overwrite())
    assert await storage.read_range(key, 0, 100) == b"content"
    assert not source_of(storage)._off
    await storage.aclose()


async def test_virtual_addressing(seaweedfs: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: set[str] = set()
    resolve = socket.getaddrinfo

    def resolve_virtual_hosts(host: str, *rest: object, **named: object) -> object:
        hosts.add(host)
        return resolve("127.0.0.1" if host.endswith(VIRTUAL_DOMAIN) else host, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_virtual_hosts)
    port = urlsplit(seaweedfs.endpoint).port
    config = replace(seaweedfs.config(bucket), endpoint_url=f"http://{VIRTUAL_DOMAIN}:{port}", addressing="virtual")
    storage = await open_s3(config)
    await storage.put(KEY, DATA, Overwrite())
    assert await storage.read_range(KEY, 5, 50) == DATA[5:50]
    assert hosts == {f"{bucket}.{VIRTUAL_DOMAIN}"}
    assert not source_of(storage)._off
    await storage.aclose()


async def test_requester_pays_is_signed(fault_proxy: FaultProxy, bucket: str) -> None:
    storage = await open_s3(fault_proxy.config(bucket, request_payer="requester"))
    await storage.put(KEY, DATA, Overwrite())
    assert await storage.read_range(KEY, 0, 10) == DATA[:10]
    put, get = fault_proxy.requests
    assert put.headers["x-amz-request-payer"] == "requester"
    assert get.query["x-amz-request-payer"] == "requester"
    assert get.presigned
    await storage.aclose()


async def test_session_tokens_are_signed(moto: S3Server, s3_credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a+token/with=signs")
    async with FaultProxy.before(moto) as proxy:
        storage = await open_s3(proxy.config(moto.make_bucket()))
        await storage.put(KEY, DATA, Overwrite())
        assert await storage.read_range(KEY, 0, 10) == DATA[:10]
        assert proxy.requests[-1].query["X-Amz-Security-Token"] == "a+token/with=signs"
        await storage.aclose()


async def test_off_means_off(fault_proxy: FaultProxy, bucket: str) -> None:
    storage = await open_s3(fault_proxy.config(bucket, presigned="off"))
    await storage.put(KEY, DATA, Overwrite())
    assert await storage.read_range(KEY, 0, 10) == DATA[:10]
    assert not any(request.presigned for request in fault_proxy.requests)
    await storage.aclose()


async def test_a_proxy_of_the_environment_is_not_gone_around(
    fault_proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", fault_proxy.endpoint)
    storage = await open_s3(replace(fault_proxy.config(bucket), endpoint_url="http://elsewhere.invalid"))
    with fault_proxy.fault(Answer(404, "NoSuchKey"), times=None), pytest.raises(ObjectNotFoundError):
        await storage.read_range(KEY, 0, 10)
    assert [request.presigned for request in fault_proxy.requests] == [False]
    await storage.aclose()


# Refusals


def source_of(storage: S3Storage) -> PresignedSource:
    assert isinstance(storage._source, PresignedSource)
    return storage._source


REFUSED = Answer(403, "AccessDenied")


async def test_a_refusal_is_signed_anew_once(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    await storage.read_range(KEY, 0, 10)
    old = source_of(storage)._signer
    with fault_proxy.fault(REFUSED, method="GET") as fault:
        assert await storage.read_range(KEY, 0, 10) == DATA[:10]
    assert fault.fired == 1
    assert len(fault_proxy.requests) == 3
    assert all(request.presigned for request in fault_proxy.requests)
    assert source_of(storage)._signer is not old


@pytest.mark.parametrize(
    "answer", [REFUSED, Answer(400, "ExpiredToken"), Answer(301, "PermanentRedirect"), Answer(401, "Unauthorized")]
)
async def test_two_refusals_lead_to_the_client_for_good_and_are_told_once(
    storage: S3Storage, fault_proxy: FaultProxy, caplog: pytest.LogCaptureFixture, answer: Answer
) -> None:
    presigned = fault_proxy.fault(answer, when=lambda request: request.presigned, times=None)
    with presigned as fault:
        for _ in range(3):
            assert await storage.read_range(KEY, 0, 10) == DATA[:10]
    assert fault.fired == 2
    assert [request.presigned for request in fault_proxy.requests] == [True, True, False, False, False]
    (record,) = caplog.records
    assert "refuses presigned URLs" in record.getMessage()
    assert "DES_S3_PRESIGNED=off" in record.getMessage()
    assert await storage.read_range(KEY, 0, 10) == DATA[:10]
    assert not fault_proxy.requests[-1].presigned


async def test_what_the_client_is_refused_too_is_no_fault_of_the_urls(
    storage: S3Storage, fault_proxy: FaultProxy
) -> None:
    with fault_proxy.fault(REFUSED, method="GET", times=None), pytest.raises(StorageDeniedError):
        await storage.read_range(KEY, 0, 10)
    assert [request.presigned for request in fault_proxy.requests] == [True, True, False]
    assert await storage.read_range(KEY, 0, 10) == DATA[:10]
    assert fault_proxy.requests[-1].presigned


async def test_many_readers_refused_at_once_share_a_new_generation(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    await storage.read_range(KEY, 0, 10)
    old = fault_proxy.requests[0].query["X-Amz-Signature"]
    expired = fault_proxy.fault(
        Answer(403, "ExpiredToken"), when=lambda request: request.query.get("X-Amz-Signature") == old, times=None
    )
    # Another second, another signature: within the same one the new URL would be the old one.
    source_of(storage)._signer = None
    with expired, pytest.MonkeyPatch.context() as patch:
        patch.setattr("des.storage.s3_presigned.MARGIN_SECONDS", MARGIN_SECONDS - 1)
        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(storage.read_range, KEY, 0, 10)
    signatures = {request.query["X-Amz-Signature"] for request in fault_proxy.requests}
    assert len(signatures) == 2
    assert not source_of(storage)._off


async def test_urls_appear_nowhere(
    storage: S3Storage, fault_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    denied = fault_proxy.fault(Answer(403, "AccessDenied"), method="GET", times=None)
    with denied, pytest.raises(StorageDeniedError) as caught:
        await storage.read_range(KEY, 0, 10)
    with fault_proxy.fault(Answer(503), method="GET", times=1):
        await storage.read_range(KEY, 0, 10)
    signatures = {r.query["X-Amz-Signature"] for r in fault_proxy.requests if r.presigned}
    assert signatures
    error: BaseException | None = caught.value
    seen = caplog.text
    while error is not None:
        seen += repr(error) + str(error)
        error = error.__cause__ or error.__context__
    assert not [signature for signature in signatures if signature in seen]


# Credentials that end


def write_provider(path: Path, *lives: int) -> None:
    """Write a credential process that gives credentials of these lives in seconds, one a call, the last one for ever."""
    calls = path.with_suffix(".calls")
    calls.write_text("")
    path.write_text(
        f"#!{sys.executable}\n"
        "import datetime, json, pathlib\n"
        f"calls = pathlib.Path({str(calls)!r})\n"
        "calls.write_text(calls.read_text() + 'x')\n"
        f"life = {lives!r}[min(len(calls.read_text()), {len(lives)}) - 1]\n"
        "expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=life)\n"
        f"print(json.dumps({json.dumps({'Version': 1, 'AccessKeyId': ACCESS_KEY, 'SecretAccessKey': SECRET_KEY})!s}"
        " | {'SessionToken': f'token-{len(calls.read_text())}', 'Expiration': expires.isoformat()}))\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(("life", "used"), [(12 * 3600, LIVES[0]), (3000, 2700), (1200, 900), (1000, 900), (30, None)])
async def test_urls_end_before_the_credentials_do(
    moto: S3Server,
    clean_environment: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    life: int,
    used: int | None,
) -> None:
    write_provider(tmp_path / "provider", life)
    (tmp_path / "config").write_text(f"[profile short]\ncredential_process = {tmp_path / 'provider'}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    async with FaultProxy.before(moto) as proxy:
        storage = await open_s3(proxy.config(moto.make_bucket(), profile="short"))
        await storage.put(KEY, DATA, Overwrite())
        assert await storage.read_range(KEY, 0, 10) == DATA[:10]
        request = proxy.requests[-1]
        if used is None:
            assert not request.presigned, "credentials about to end sign nothing that is to be reused"
        else:
            assert int(request.query["X-Amz-Expires"]) == used + MARGIN_SECONDS
            assert request.query["X-Amz-Security-Token"].startswith("token-")
        await storage.aclose()


async def test_a_generation_that_has_ended_is_replaced(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    await storage.read_range(KEY, 0, 10)
    signer = source_of(storage)._signer
    assert signer is not None
    signer.expires -= LIVES[0]
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(storage.read_range, KEY, 0, 10)
    assert source_of(storage)._signer is not signer
    assert all(request.presigned for request in fault_proxy.requests)


async def test_a_clock_that_is_off_is_told(storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    class LateClock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(days=2)

    monkeypatch.setattr("des.storage.s3_presigned.datetime", LateClock)
    assert await storage.read_range(KEY, 0, 10) == DATA[:10]
    assert source_of(storage)._off, "the client's clock was right, so the client reads"
