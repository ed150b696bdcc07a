"""`DELETE /files` on a real server: only with access control, only with a key that may, and for good."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from des.http.openapi import document
from tests.http.live import running
from tests.http.test_access import AT, FILES, guarding
from tests.making import make_store

if TYPE_CHECKING:
    from pathlib import Path

    from des.storage.testing import RecordingStorage

DELETERS: dict[str, dict[str, object]] = {
    "deleter": {"actions": ["delete"]},
    "mailer": {"actions": ["read", "delete"], "prefixes": ["mail/"]},
}


async def test_a_file_is_deleted_once(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path, DELETERS) as guarded:
        reply = await guarded.ask(f"/files/secret?{AT}", "deleter", method="DELETE")
        assert (reply.status, reply.body) == (204, b"")
        assert (await guarded.ask(f"/files?uid=secret&{AT}", "deleter", method="DELETE")).status == 410
        assert (await guarded.ask(f"/files/missing?{AT}", "deleter", method="DELETE")).status == 404
        assert (await guarded.ask("/files/secret", "deleter", method="DELETE")).status == 400
    async with running(storage) as server:
        assert (await server.ask(f"/files/secret?{AT}")).status == 410
        for uid in FILES.keys() - {"secret", "mail/ü"}:
            assert (await server.ask(f"/files/{uid}?{AT}")).body == FILES[uid]


@pytest.mark.parametrize(
    ("target", "token", "status"),
    [
        (f"/files/mail/a?{AT}", None, 401),
        (f"/files/mail/a?{AT}", "reader", 403),
        (f"/files/mail/a?{AT}", "all", 403),
        (f"/files/secret?{AT}", "mailer", 403),
        (f"/files/mail/..%2Fsecret?{AT}", "mailer", 403),
        (f"/files?uid=secret&{AT}", "mailer", 403),
        (f"/files/mail/a?{AT}", "mailer", 204),
        ("/files?date=20240131", "deleter", 400),
    ],
)
async def test_only_keys_that_may(
    storage: RecordingStorage, tmp_path: Path, target: str, token: str | None, status: int
) -> None:
    async with guarding(storage, tmp_path, DELETERS) as guarded:
        assert (await guarded.ask(target, token, method="DELETE")).status == status


async def test_a_signed_url_deletes_nothing(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path, DELETERS) as guarded:
        assert (await guarded.ask(guarded.signed("secret"), method="DELETE")).status == 403


async def test_without_access_control_there_is_no_such_method(storage: RecordingStorage) -> None:
    await make_store(storage, FILES)
    async with running(storage) as server:
        reply = await server.ask(f"/files/secret?{AT}", method="DELETE")
        assert reply.status == 405
        assert "DELETE" not in reply.headers["allow"]


async def test_the_description_says_so(storage: RecordingStorage, tmp_path: Path) -> None:
    async with guarding(storage, tmp_path, DELETERS) as guarded:
        reply = await guarded.ask("/openapi.json", "reader")
        assert json.loads(reply.body) == document(deleting=True)
    assert "delete" in document(deleting=True)["paths"]["/files/{uid}"]
    assert "delete" not in document()["paths"]["/files/{uid}"]
