"""Who may do what, over a real server: what is refused is refused before anything is read."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from des.http.keys import Keyring, new_api_key, new_signing_key
from des.http.signing import file_target, sign
from tests.http.live import listening, request, running
from tests.making import DAY, make_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from des.storage.testing import RecordingStorage
    from tests.http.live import Reply, Server

AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
FILES = {"mail/a": b"a mail", "mail": b"no mail", "secret": b"a secret", "mail/ü": b"umlaut"}
ALL: dict[str, object] = {"actions": ["read", "list", "batch"]}


@dataclass(frozen=True, slots=True)
class Guarded:
    """A server that wants keys, and the tokens that it knows, by what they are good for."""

    server: Server
    storage: RecordingStorage
    path: Path
    tokens: dict[str, str]

    async def ask(self, target: str, token: str | None = None, method: str = "GET") -> Reply:
        """Ask, and make sure that what is refused for want of a right costs no storage request."""
        self.storage.calls.clear()
        fields = [] if token is None else [f"Authorization: Bearer {self.tokens.get(token, token)}"]
        reply = await self.server.ask(target, *fields, method=method)
        if reply.status in {400, 401, 403, 429}:
            assert self.storage.calls == []
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.headers["cache-control"] == "no-store"
        return reply

    def signed(self, uid: str, key: str = "web", expires: float = 60, download: str | None = None) -> str:
        """Return a signed target; `expires` is in seconds from now."""
        secret = Keyring.parse(self.path.read_text()).signing_keys[key].signing_secret
        path, query = file_target(uid, AT.partition("=")[2], download)
        return (path + b"?" + sign(secret, key, path, query, int(time.time() + expires))).decode()


@asynccontextmanager
async def guarding(
    storage: RecordingStorage, folder: Path, further: Mapping[str, dict[str, object]] | None = None
) -> AsyncIterator[Guarded]:
    await make_store(storage, FILES)
    tokens, lines = {}, []
    grants: dict[str, dict[str, object]] = {
        "all": ALL,
        "reader": {"actions": ["read"]},
        "lister": {"actions": ["list"]},
        "mail": {**ALL, "prefixes": ["mail/"]},
        "old": {**ALL, "expires": "2020-01-01"},
        "slow": {**ALL, "rate": 0.001},
        **(further or {}),
    }
    for name, limits in grants.items():
        tokens[name], line = new_api_key(name, limits)
        lines.append(line)
    lines += [new_signing_key("web", {}), new_signing_key("mails", {"prefixes": ["mail/"]})]
    lines.append(new_signing_key("past", {"expires": "2020-01-01"}))
    path = folder / "keys.jsonl"
    path.touch(0o600)
    path.write_text("\n".join(lines))
    async with running(storage, http_api_keys_file=path) as server:
        yield Guarded(server, storage, path, tokens)


async def test_without_a_good_key_everything_is_401(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path) as guarded:
        targets = [
            f"/files/secret?{AT}",
            f"/files?uid=secret&{AT}",
            "/files?date=20240131",
            "/nowhere",
            "/openapi.json",
            "/",
        ]
        targets += ["/files/%FF", "/files/..%2Fsecret", "/health/", "/health%0A", "/shards/20240131", "//health"]
        for target in targets:
            reply = await guarded.ask(target)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Bearer realm="des"'), target
        assert (await guarded.ask("/batch", method="POST")).status == 401
        good = guarded.tokens["all"]
        wrong = [
            "",
            "x",
            good[:-1],
            good + "A",
            good[:-1] + ("A" if good[-1] != "A" else "B"),
            good.replace("all.", "reader."),
            good.replace("all.", "nobody."),
            f"{good}, Bearer {good}",
            guarded.tokens["old"],
        ]
        for token in wrong:
            reply = await guarded.ask(f"/files/secret?{AT}", token)
            assert reply.status == 401, token
            assert 'error="invalid_token"' in reply.headers["www-authenticate"]
        reply = await guarded.server.ask(f"/files/secret?{AT}", f"Authorization: Basic {good}")
        assert reply.status == 401


async def test_a_good_key_reads_and_the_probes_are_open(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path) as guarded:
        assert (await guarded.ask(f"/files/secret?{AT}", "reader")).body == b"a secret"
        assert (await guarded.ask(f"/files?uid=secret&{AT}", "reader")).body == b"a secret"
        assert (await guarded.ask(f"http://test/files/secret?{AT}", "reader")).body == b"a secret"
        head = await guarded.ask(f"/files/secret?{AT}", "reader", method="HEAD")
        assert (head.status, head.headers["content-length"]) == (200, "8")
        assert (await guarded.ask(f"/files/absent?{AT}", "reader")).status == 404
        assert (await guarded.ask("/nowhere", "all")).status == 404
        assert (await guarded.ask(f"/files/a?{AT}", "all", method="PUT")).status == 405
        for target in ("/health", "/ready", "/metrics"):
            assert (await guarded.ask(target)).status == 200


@pytest.mark.parametrize(
    ("token", "method", "target"),
    [
        ("lister", "GET", f"/files/secret?{AT}"),
        ("lister", "GET", f"/files?uid=secret&{AT}"),
        ("lister", "GET", f"/files?uid=secret&date=20240131&{AT}"),
        ("reader", "GET", f"/files?%64ate=20240131&uid=secret&{AT}"),
        ("reader", "GET", "/files?date=20240131"),
        ("reader", "GET", "/files/?date=20240131"),
        ("reader", "GET", "/shards/20240131"),
        ("reader", "GET", "/%73hards/20240131"),
        ("reader", "POST", "/batch"),
        ("reader", "POST", "/batch%0A"),
        ("reader", "PUT", f"/files/secret?{AT}"),
        ("reader", "GET", "/nowhere"),
        ("mail", "GET", "/files?date=20240131"),
        ("mail", "POST", "/batch"),
        ("mail", "GET", "/shards/20240131"),
    ],
)
async def test_what_a_key_does_not_allow_is_403(
    storage: RecordingStorage, tmp_path: Path, token: str, method: str, target: str
) -> None:
    async with guarding(storage, tmp_path) as guarded:
        assert (await guarded.ask(target, token, method)).status == 403


async def test_a_prefix_holds_for_the_uid_however_it_is_spelled(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path) as guarded:
        for spelling in ("mail/a", "mail%2Fa", "m%61il%2fa"):
            assert (await guarded.ask(f"/files/{spelling}?{AT}", "mail")).body == b"a mail"
            assert (await guarded.ask(f"/files?uid={spelling}&{AT}", "mail")).body == b"a mail"
        assert (await guarded.ask(f"/files/mail/%C3%BC?{AT}", "mail")).body == b"umlaut"
        for uid in (
            "secret",
            "mail",
            "/mail/a",
            "Mail/a",
            "mail%252Fa",
            "mail/../secret",
            "mail%2F..%2Fsecret",
            "mail/%2e%2e/secret",
            "mail/.",
        ):
            assert (await guarded.ask(f"/files/{uid}?{AT}", "mail")).status == 403, uid
            assert (await guarded.ask(f"/files?uid={uid}&{AT}", "mail")).status == 403, uid
        for target in (
            f"/files/mail/%FF?{AT}",
            f"/files/mail/%C0%AE?{AT}",
            f"/files/mail/a?uid=secret&{AT}",
            f"/files/mail%2?{AT}",
        ):
            assert (await guarded.ask(target, "mail")).status == 400, target


async def test_a_signed_url_gives_one_file(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path) as guarded:
        target = guarded.signed("secret")
        assert (await guarded.ask(target)).body == b"a secret"
        assert (await guarded.ask(target, method="HEAD")).status == 200
        assert (await guarded.ask(guarded.signed("mail/a", "mails", download="x"))).body == b"a mail"
        assert (await guarded.ask(guarded.signed("mail/../x"))).status == 404
        assert (await guarded.ask(target, "reader")).status == 200, "a key goes before a signature"
        assert (await guarded.ask(target, "nobody")).status == 401


async def test_a_signed_url_that_was_altered_or_is_over_is_403(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path) as guarded:
        target = guarded.signed("mail/a", download="x")
        expires = target.partition("expires=")[2].partition("&")[0]
        altered = [
            target.replace("mail/a", "secret"),
            target.replace("mail/a", "mail%2Fa"),
            target.replace("mail/a", "mail/../secret"),
            target.replace("mail/a", "mail/%FF"),
            target.replace("/files/mail/a?", "/files?uid=mail/a&"),
            target.replace("2024-01-31", "2024-01-30"),
            target.replace("download=x", "download=y"),
            target.replace("&download=x", ""),
            target.replace("?", "?download=z&"),
            target.replace(expires, str(int(expires) + 3600)),
            target.replace("key=web", "key=mails"),
            target.replace("key=web", "key=nobody"),
            target.replace("&signature=", "&Signature=&signature="),
            target + "&uid=secret",
            target[:-1],
            target[:-1] + ("A" if target[-1] != "A" else "Q"),
            target.partition("&signature=")[0] + "&signature=",
        ]
        for one in altered:
            assert one != target
            assert (await guarded.ask(one)).status == 403, one
        for method in ("POST", "PUT", "DELETE"):
            assert (await guarded.ask(target, method=method)).status == 403
        assert (await guarded.ask(guarded.signed("mail/a", expires=-1))).status == 403
        assert (await guarded.ask(guarded.signed("mail/a", "past"))).status == 403
        assert (await guarded.ask(guarded.signed("secret", "mails"))).status == 403
        assert (await guarded.ask(target)).status == 200


async def test_a_batch_is_for_keys_that_allow_it(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path) as guarded:
        body = json.dumps([{"uid": "secret", "created_at": "2024-01-31"}]).encode()
        for token, status in (("all", 200), ("mail", 403), ("reader", 403), ("old", 401)):
            guarded.storage.calls.clear()
            fields = (f"Content-Length: {len(body)}", f"Authorization: Bearer {guarded.tokens[token]}")
            raw = await guarded.server.send(request("/batch", *fields, method="POST") + body)
            assert raw.startswith(f"HTTP/1.1 {status} ".encode()), token
            assert (b"a secret" in raw) == (status == 200)
            assert (guarded.storage.calls == []) == (status != 200)


async def test_a_key_past_its_rate_is_429(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path) as guarded:
        assert (await guarded.ask(f"/files/secret?{AT}", "slow")).status == 200
        reply = await guarded.ask(f"/files/secret?{AT}", "slow")
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        assert (await guarded.ask(f"/files/secret?{AT}", "reader")).status == 200


async def test_the_keys_that_hold_are_those_of_the_file(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path) as guarded:
        text = guarded.path.read_text()
        signed = guarded.signed("secret")
        assert (await guarded.ask(signed)).status == 200
        with listening("des.http.keys") as heard:
            await asyncio.to_thread(guarded.path.write_text, text + "\nbroken")
            assert "stay as they were" in await heard.next()
            assert (await guarded.ask(f"/files/secret?{AT}", "reader")).status == 200
            without = "\n".join(line for line in text.splitlines() if '"reader"' not in line and '"web"' not in line)
            await asyncio.to_thread(guarded.path.write_text, without)
            assert "changed" in await heard.next()
        assert (await guarded.ask(f"/files/secret?{AT}", "reader")).status == 401
        assert (await guarded.ask(signed)).status == 403
        assert (await guarded.ask(f"/files/secret?{AT}", "all")).status == 200


async def test_each_decision_is_a_line_without_secrets(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path) as guarded:
        signed = guarded.signed("secret")
        with listening("des.http") as heard:
            await guarded.ask(f"/files/mail/a?{AT}", "mail")
            await guarded.ask(f"/files/secret?{AT}", "mail")
            await guarded.ask(f"/files/secret?{AT}", guarded.tokens["reader"][:-1])
            await guarded.ask(signed)
            await guarded.ask("/health")
        lines = [record.__dict__["fields"] for record in heard.records if record.name == "des.http.audit"]
        shown = [(line["key"], line["action"], line["uid"], line["decision"], line.get("status")) for line in lines]
        assert shown == [
            ("mail", "read", "mail/a", "allowed", None),
            ("mail", "read", "secret", "refused", 403),
            (None, None, None, "refused", 401),
            ("web", "read", "secret", "allowed", None),
        ]
        text = json.dumps([record.__dict__["fields"] for record in heard.records]) + heard.records[0].getMessage()
        assert not any(token.partition(".")[2][:20] in text for token in guarded.tokens.values())
        assert signed.rpartition("=")[2] not in text
        assert all(len(line["request_id"]) == 32 for line in lines)
