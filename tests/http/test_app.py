from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from des.errors import SettingsError
from des.http import create_app
from des.http.app import build_app
from des.settings import Settings
from tests.http.live import running
from tests.making import DAY, make_store, reading

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.applications import Starlette

    from des.storage.testing import RecordingStorage

AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"


async def test_without_a_store_the_service_starts_and_says_what_is_missing(
    storage: RecordingStorage, tmp_path: Path
) -> None:
    async with running(storage) as server:
        health = await server.ask("/health")
        assert (health.status, json.loads(health.body)) == (200, {"status": "ok"})
        for target in ("/ready", f"/files/a?{AT}", f"/files?uid=a&{AT}"):
            reply = await server.ask(target)
            assert reply.status == 503
            assert reply.headers["content-type"] == "application/problem+json"
            assert int(reply.headers["retry-after"]) > 0
            detail = json.loads(reply.body)["detail"]
            assert "des.json" in detail
            assert str(tmp_path) not in detail


async def test_a_store_that_is_made_later_is_served_without_a_restart(storage: RecordingStorage) -> None:
    async with running(storage, negative_ttl=0, index_ttl=0) as server:
        assert (await server.ask(f"/files/a?{AT}")).status == 503
        await make_store(storage, {"a": b"content"})
        assert (await server.ask(f"/files/a?{AT}")).body == b"content"
        ready = await server.ask("/ready")
        assert (ready.status, json.loads(ready.body)) == (200, {"status": "ok", "zones": {}})
        assert ready.headers["cache-control"] == "no-store"


async def test_a_draining_service_is_not_ready_and_closes_its_connections(storage: RecordingStorage) -> None:
    await make_store(storage, {"a": b"content"})
    async with running(storage) as server:
        server.service.draining = True
        assert (await server.ask("/ready")).status == 503
        assert (await server.ask("/health")).status == 200
        raw = await server.send(f"GET /files/a?{AT} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert b"\r\nconnection: close\r\n" in raw
        assert raw.endswith(b"content")


@pytest.mark.parametrize(
    "target", ["/", "/nowhere", "/filesx", "/health/", "/FILES/a", "//files/a", "/files%2Fa", "/%00"]
)
async def test_other_paths_are_404(storage: RecordingStorage, target: str) -> None:
    async with running(storage) as server:
        reply = await server.ask(target)
        assert reply.status == 404
        assert json.loads(reply.body)["title"] == "Not Found"


@pytest.mark.parametrize("target", ["/files", "/files/a", "/health", "/ready", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW", "QUERY"])
async def test_other_methods_are_405(storage: RecordingStorage, target: str, method: str) -> None:
    async with running(storage) as server:
        reply = await server.ask(target, method=method)
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
        assert reply.headers["content-type"] == "application/problem+json"


async def test_head_is_answered_where_get_is(storage: RecordingStorage) -> None:
    async with running(storage) as server:
        for target in ("/health", "/metrics", "/ready", "/nowhere"):
            got, head = await server.ask(target), await server.ask(target, method="HEAD")
            assert head.status == got.status
            assert head.body == b""
            assert "content-length" in head.headers


async def test_a_scrape_shows_what_happened(storage: RecordingStorage) -> None:
    await make_store(storage, {"a": b"content"})
    async with running(storage) as server:
        before = await samples(server.ask("/metrics"))
        for target in (f"/files/a?{AT}", f"/files/a?{AT}", f"/files/b?{AT}", "/files/c"):
            await server.ask(target)
        after = await samples(server.ask("/metrics"))
        grown = {name: value - before.get(name, 0) for name, value in after.items()}
        assert grown['des_retrievals_total{backend="local",status="ok"}'] == 2
        assert grown['des_retrievals_total{backend="local",status="not_found"}'] == 1
        assert grown['des_retrievals_total{backend="local",status="invalid"}'] == 1
        assert grown['des_retrieval_seconds_count{backend="local"}'] == 4
        assert grown["des_cache_hits_total"] > 0
        assert grown["des_cache_misses_total"] > 0
        assert grown["des_http_bytes_out_total"] > 14
        assert after["des_http_requests_in_flight"] == 0
        assert after["des_cache_bytes"] > 0


async def samples(asking: Any) -> dict[str, float]:  # noqa: ANN401 - the coroutine of `ask`
    reply = await asking
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain")
    lines = [line for line in reply.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def call(app: Starlette, **scope: object) -> tuple[int, bytes]:
    """Call an application as some other server might."""
    answer: list[Any] = []

    async def receive() -> dict[str, object]:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's messages
        answer.append(message)

    base = {"type": "http", "http_version": "1.1", "method": "GET", "query_string": AT.encode(), "headers": []}
    await app({**base, **scope}, receive, send)
    return answer[0]["status"], b"".join(message["body"] for message in answer[1:])


async def test_a_server_that_gives_no_raw_path_and_no_lifespan(storage: RecordingStorage) -> None:
    await make_store(storage, {"a b/ü": b"content"})
    settings = Settings()
    app = build_app(settings, lambda: reading(storage))
    status, body = await call(app, path="/files/a b/ü")
    assert status == 503
    assert "starting" in json.loads(body)["detail"]
    async with app.router.lifespan_context(app):
        assert await call(app, path="/files/a b/ü") == (200, b"content")
        assert await call(app, path="/api/files/a b/ü", root_path="/api") == (200, b"content")
        assert await call(app, path="/files/a%20b/%C3%BC", raw_path=b"/files/a%20b/%C3%BC") == (200, b"content")


def test_a_setting_that_is_no_field_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="DES_HTTP_CACHE_CONTROL"):
        create_app(tmp_path, settings=Settings(http_cache_control="no-cache\r\nX: y"))


async def test_the_factory_reads_the_environment_when_called(
    storage: RecordingStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_store(storage, {"a": b"content"})
    monkeypatch.setenv("DES_BASE_DIR", str(tmp_path / "store"))
    app = create_app()
    async with app.router.lifespan_context(app):
        assert await call(app, path="/files/a") == (200, b"content")
