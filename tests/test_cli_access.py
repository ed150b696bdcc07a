"""`des keys` and `des sign`: what they write is what the service takes."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest

from des.cli import des
from des.console import status_of
from des.http.keys import Keyring, digest_of
from des.http.signing import parse_signed_query, verify

if TYPE_CHECKING:
    from pathlib import Path

    from pytest import CaptureFixture  # noqa: PT013 - a name for annotations


def run(capfd: CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = status_of(des, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return status, out, err


def test_a_new_key_is_shown_once_and_its_line_is_for_the_file(capfd: CaptureFixture[str]) -> None:
    limits = ("--action", "read", "--prefix", "mail/", "--expires", "2027-01-01", "--rate", "5")
    status, out, err = run(capfd, "keys", "new", "--id", "mailer", *limits)
    assert status == 0
    assert json.loads(out).keys() == {"id", "sha256", "actions", "prefixes", "expires", "rate"}
    token = re.search(r"mailer\.[\w-]{43}", err)
    assert token
    key = Keyring.parse(out).api_keys["mailer"]
    assert (key.digest, key.prefixes, key.rate) == (digest_of(token[0]), ("mail/",), 5.0)
    assert token[0].partition(".")[2] not in out
    status, out, _ = run(capfd, "keys", "new")
    assert status == 0
    assert next(iter(Keyring.parse(out).api_keys.values())).is_unlimited
    status, out, err = run(capfd, "keys", "new", "--id", "a b")
    assert (status, out) == (2, "")
    assert "its id must be" in err


def test_a_signed_url_is_one_that_the_file_verifies(
    capfd: CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    lines = [run(capfd, "keys", "new", "--signing", "--id", name)[1] for name in ("first", "second")]
    path.write_text("".join(lines))
    asked = ("sign", "a b/c", "--created-at", "2024-01-31")
    began = int(time.time())
    status, out, err = run(
        capfd, *asked, "--key-file", path, "--expires", "15m", "--base", "https://x.test/", "--download", "é"
    )
    assert (status, err) == (0, "")
    target, _, query = out.strip().partition("?")
    assert target == "https://x.test/files/a%20b/c"
    signed = parse_signed_query(query.encode())
    assert signed is not None
    assert signed.signed.startswith(b"created_at=2024-01-31&download=%C3%A9&")
    assert signed.key_id == "second"
    assert began + 900 <= signed.expires <= time.time() + 900
    assert verify(Keyring.parse(path.read_text()).signing_keys["second"].signing_secret, b"/files/a%20b/c", signed)
    monkeypatch.setenv("DES_HTTP_API_KEYS_FILE", str(path))
    assert "key=first" in run(capfd, *asked, "--key-id", "first")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--expires", "soon"), "no time span"),
        (("--expires", "0s"), "no time span"),
        (("--key-id", "none"), "no good signing key 'none'"),
        ((), "no good signing key"),
        (("--key-file", "nowhere"), "cannot be read"),
        (("--created-at", "2024-02-31"), "not a possible date"),
    ],
)
def test_what_cannot_be_signed_is_one_sentence(
    capfd: CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    path = tmp_path / "keys"
    path.write_text(run(capfd, "keys", "new")[1])
    monkeypatch.setenv("DES_HTTP_API_KEYS_FILE", str(path))
    status, out, err = run(capfd, "sign", "a", "--created-at", "2024-01-31", *arguments)
    assert (status, out) == (2, "")
    assert sentence in err


def test_signing_without_a_keys_file_says_what_to_set(capfd: CaptureFixture[str]) -> None:
    status, _, err = run(capfd, "sign", "a", "--created-at", "2024-01-31")
    assert status == 2
    assert "DES_HTTP_API_KEYS_FILE" in err
