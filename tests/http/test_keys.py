from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from des.errors import SettingsError
from des.http.keys import Keyring, KeysFile, digest_of, new_api_key, new_signing_key

if TYPE_CHECKING:
    from pathlib import Path

HASH = "0" * 64
GOOD = {"id": "a", "sha256": HASH, "actions": ["read"]}


def line(**changes: object) -> str:
    return json.dumps({**GOOD, **changes})


def test_keys_as_they_are_made_and_read() -> None:
    limits = {"actions": ["read", "list"], "prefixes": ["ü/"], "expires": "2027-01-01", "rate": 0.5}
    token, api = new_api_key("k-1", limits)
    signing = new_signing_key("s_1", {"prefixes": ["b/"]})
    ring = Keyring.parse(f"# ours\n\n{api}\n  # more\n{signing}\n")
    key = ring.api_keys["k-1"]
    assert key.digest == digest_of(token)
    assert token.partition(".")[2] not in api
    assert (key.actions, key.prefixes, key.rate) == (frozenset({"read", "list"}), ("ü/",), 0.5)
    assert not key.is_unlimited
    assert key.is_expired(1798761600.0)
    assert not key.is_expired(1798761599.0)
    signer = ring.signing_keys["s_1"]
    assert (len(signer.signing_secret), signer.actions, signer.prefixes) == (32, frozenset({"read"}), ("b/",))
    assert new_api_key("k-1", limits)[0] != token


def test_the_newest_signing_key_is_the_last_good_one() -> None:
    lines = [new_signing_key(name, {"expires": end}) for name, end in [("a", None), ("b", None), ("c", "2020-01-01")]]
    newest = Keyring.parse("\n".join(lines)).newest_signing_key(1.7e9)
    assert newest is not None
    assert newest.key_id == "b"
    assert Keyring.parse(lines[2]).newest_signing_key(1.7e9) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "[" * 100_000,
        line(id=""),
        line(id="a b"),
        line(id="a" * 65),
        line(id=7),
        line(sha256="0" * 63),
        line(sha256="A" * 64),
        line(sha256=0),
        line(actions=[]),
        line(actions="read"),
        line(actions=["write"]),
        line(actions=None),
        line(prefixes="mail/"),
        line(prefixes=[""]),
        line(prefixes=None),
        line(expires="tomorrow"),
        line(expires="2027-01-01T00:00:00"),
        line(expires=1767225600),
        line(rate=0),
        line(rate=-1),
        line(rate="fast"),
        line(rate=True),
        line(rate=float("nan")),
        line(prefix=["mail/"]),
        line(signing_secret="A" * 43),
        json.dumps({"id": "a", "actions": ["read"]}),
        json.dumps({"id": "a", "signing_secret": "A" * 42}),
        json.dumps({"id": "a", "signing_secret": "A" * 43, "actions": ["read"]}),
        line() + "\n" + line(sha256="1" * 64),
    ],
)
def test_a_line_that_is_not_understood_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^line [12] of the keys file .*\.$") as caught:
        Keyring.parse(text)
    assert HASH not in str(caught.value)


def test_a_key_that_could_not_be_read_back_is_not_made() -> None:
    for limits in ({"actions": ["write"]}, {"actions": ["read"], "expires": "soon"}):
        with pytest.raises(SettingsError, match="no such key"):
            new_api_key("a", limits)
    with pytest.raises(SettingsError, match="id"):
        new_signing_key("a.b", {})


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text(line())
    keys = KeysFile(path)
    assert keys.keyring.api_keys == {}
    keys.load()
    keys.reload()
    assert set(keys.keyring.api_keys) == {"a"}
    assert caplog.records == []
    path.write_text(line() + "\n" + line(id="b"))
    keys.reload()
    assert set(keys.keyring.api_keys) == {"a", "b"}
    for break_it in (lambda: path.write_text("broken"), path.unlink, lambda: path.write_bytes(b"\xff\xfe\xfd")):
        caplog.clear()
        break_it()
        keys.reload()
        keys.reload()
        assert set(keys.keyring.api_keys) == {"a", "b"}
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert "stay as they were" in record.getMessage()
    path.write_text(line(id="c"))
    keys.reload()
    assert set(keys.keyring.api_keys) == {"c"}


def test_secrets_that_everybody_may_read_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    for text, mode, warned in [
        (line(), 0o644, 0),
        (new_signing_key("s", {}), 0o640, 0),
        (new_signing_key("s", {}), 0o644, 1),
    ]:
        path.write_text(text)
        path.chmod(mode)
        caplog.clear()
        KeysFile(path).load()
        assert [record.getMessage().partition(" has secrets")[1] != "" for record in caplog.records] == [True] * warned


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        KeysFile(tmp_path / "none").load()
