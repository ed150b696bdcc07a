"""`des keys`: keys for the HTTP service."""

from __future__ import annotations

import secrets

import click

from des.console import say, write_line


@click.group("keys", short_help="Make keys for the HTTP service.")
def keys() -> None:
    """Make keys for the HTTP service."""


@keys.command("new", short_help="Make a key.")
@click.option("--id", "key_id", help="1 to 64 letters, digits, - or _. Default: random.")
@click.option(
    "--action", "actions", multiple=True, help="read, list, batch or delete; repeatable. Default: all but delete."
)
@click.option("--prefix", "prefixes", multiple=True, help="What uids must begin with; repeatable. Default: any uid.")
@click.option("--expires", metavar="T", help="RFC 3339 time or date. Default: never.")
@click.option("--rate", type=float, help="Requests a second, in each worker. Default: any.")
@click.option("--signing", is_flag=True, help="A key that signs URLs: `des sign`.")
def new(
    key_id: str | None,
    actions: tuple[str, ...],
    prefixes: tuple[str, ...],
    expires: str | None,
    rate: float | None,
    signing: bool,
) -> None:
    """Make a key: its line for the keys file on stdout, and on stderr, this once, the secret to give to its holder."""
    from des.http.keys import READING, new_api_key, new_signing_key  # noqa: PLC0415 - the web framework, for this verb alone

    key_id = key_id or secrets.token_hex(4)
    given = {"actions": list(actions), "prefixes": list(prefixes), "expires": expires, "rate": rate}
    limits = {name: value for name, value in given.items() if value}
    if signing:
        write_line(new_signing_key(key_id, limits))
        say("the line holds the secret itself: only the service and those who sign may read it.")
        return
    token, line = new_api_key(key_id, {"actions": list(READING), **limits})
    write_line(line)
    say(f"the key, shown this once: {token}")
