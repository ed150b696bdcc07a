"""`des sign`: a URL with which anybody may get one file for a while."""

from __future__ import annotations

import re
import time
from pathlib import Path

import click

from des.cli.options import file_arguments
from des.console import write_line
from des.errors import SettingsError
from des.routing import normalize_uid, parse_created_at
from des.settings import Settings

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE = re.compile(r"([1-9][0-9]{0,8})([smhd])")


class _Age(click.ParamType[int]):
    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _AGE.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no time span; write it as 90s, 15m, 1h or 7d.", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


@click.command("sign", short_help="Make a URL for one file.")
@file_arguments
@click.option("--expires", type=_Age(), default="1h", show_default=True, metavar="AGE", help="As 90s, 15m, 1h or 7d.")
@click.option("--download", metavar="NAME", help="The name under which browsers save it.")
@click.option("--base", default="", metavar="URL", help="Of the service, such as https://files.example.com.")
@click.option("--key-file", type=click.Path(path_type=Path), help="Default: DES_HTTP_API_KEYS_FILE.")
@click.option("--key-id", help="Default: the last signing key of the file that is good.")
def sign(
    uid: str,
    created_at: str,
    expires: int,
    download: str | None,
    base: str,
    key_file: Path | None,
    key_id: str | None,
) -> None:
    """Write a URL with which anybody may get the file UID until it expires. Touches no store."""
    from des.http.keys import KeysFile  # noqa: PLC0415 - the web framework, for this verb alone
    from des.http.signing import file_target, sign  # noqa: PLC0415

    parse_created_at(created_at)
    path, query = file_target(normalize_uid(uid), created_at, download)
    key_file = key_file or Settings().http_api_keys_file
    if key_file is None:
        raise SettingsError("there is no keys file; give --key-file, or set DES_HTTP_API_KEYS_FILE.")
    keys = KeysFile(key_file)
    keys.load()
    now = time.time()
    signing_keys = keys.keyring.signing_keys
    key = signing_keys.get(key_id) if key_id else keys.keyring.newest_signing_key(now)
    if key is None or key.is_expired(now):
        wanted = f"good signing key {key_id!r}" if key_id else "good signing key"
        raise SettingsError(f"{key_file} has no {wanted}; make one with `des keys new --signing`.")
    signed = sign(key.signing_secret, key.key_id, path, query, int(now) + expires)
    write_line(f"{base.rstrip('/')}{path.decode()}?{signed.decode()}")
