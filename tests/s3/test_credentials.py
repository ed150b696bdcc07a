"""Credentials that end while a service runs, and a clock that is off: one renewal, nothing lost, and a clear word where the storage refuses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from des.storage.s3 import open_s3
from tests.http.live import listening, running
from tests.making import make_store
from tests.servers.fault_proxy import Answer, FaultProxy
from tests.storage.test_s3_presigned import write_provider

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.fault_proxy import Request
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

FILES = {f"file-{number}": b"content %d" % number for number in range(60)}


def token_of(request: Request) -> str | None:
    return request.query.get("X-Amz-Security-Token") or request.headers.get("x-amz-security-token")


async def test_credentials_that_end_are_renewed_once(
    moto: S3Server, clean_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first ones are about to end, so everybody who comes wants others: one of them asks, for all."""
    provider = tmp_path / "provider"
    write_provider(provider, 30, 12 * 3600)
    (tmp_path / "config").write_text(f"[profile short]\ncredential_process = {provider}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    async with FaultProxy.before(moto) as proxy:
        storage = await open_s3(proxy.config(moto.make_bucket(), profile="short"))
        assert provider.with_suffix(".calls").read_text() == "x"
        async with running(storage) as server:
            ended = proxy.fault(
                Answer(400, "ExpiredToken"), when=lambda request: token_of(request) == "token-1", times=None
            )
            with ended:
                await make_store(storage, FILES)
                replies = await asyncio.gather(*(server.ask(f"/files/{uid}?created_at=2024-01-31") for uid in FILES))
        await storage.aclose()
        assert [(reply.status, reply.body) for reply in replies] == [(200, content) for content in FILES.values()]
        assert provider.with_suffix(".calls").read_text() == "xx", "one renewal"
        assert {token_of(request) for request in proxy.requests} == {"token-2"}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (Answer(403, "RequestTimeTooSkewed"), "this machine's clock is too far from the server's; set it by NTP"),
        (Answer(400, "ExpiredToken"), "the session token has expired"),
    ],
    ids=["skew", "expired"],
)
async def test_what_the_storage_refuses_is_told_and_passes(
    fault_proxy: FaultProxy, bucket: str, answer: Answer, sentence: str
) -> None:
    storage = await open_s3(fault_proxy.config(bucket))
    await make_store(storage, FILES)
    async with running(storage, index_ttl=0, negative_ttl=0) as server:
        with listening() as heard, fault_proxy.fault(answer, times=None) as fault:
            reply = await server.ask("/files/file-1?created_at=2024-01-31")
            missing = await server.ask("/files/missing?created_at=2024-01-31")
            said = "\n".join(record.getMessage() for record in heard.records)
        assert fault.fired
        assert (reply.status, missing.status) == (502, 502), "a refusal is never 404"
        assert sentence in said
        assert (await server.ask("/files/file-1?created_at=2024-01-31")).body == FILES["file-1"]
        assert (await server.ask("/files/missing?created_at=2024-01-31")).status == 404
    await storage.aclose()
