"""README names every setting, route, verb, flag, exit status, metric and make verb there is, and none that there is not."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from pydantic import ByteSize

from des.cli import des
from des.console import EXIT_STATUSES
from des.http import batch_items, create_app, disposition, exchange, files, keys, listings, worker
from des.metrics import INSTRUMENTS
from des.pack import archive, manifest, manifest_streams, spool
from des.routing import MAX_UID_BYTES
from des.settings import Settings, variable_names
from des.shard import layout
from des.storage import marked_document, s3_retry
from des.storage.zones_config import load_zones
from des.storage.zones_schema import FilePart, PlacePart, ZonePart
from des.store import heads

if TYPE_CHECKING:
    from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Endings under which a histogram's series show up.
SERIES = ("", "_bucket", "_count", "_sum")


def code(text: str) -> set[str]:
    """Return what stands between backticks in a text, without fenced blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


@cache
def section(heading: str) -> str:
    """Return the text under a heading of the second level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"README has no section {heading!r}"
    return found[1]


def verbs() -> dict[str, click.Command]:
    assert isinstance(des, click.Group)
    context = click.Context(des)
    found = {name: des.get_command(context, name) for name in des.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def flags(command: click.Command) -> list[set[str]]:
    """Return the flags of a command that are its own, each in all its spellings."""
    commands = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    parameters = [parameter for one in commands for parameter in one.params]
    options = [parameter for parameter in parameters if isinstance(parameter, click.Option)]
    spellings = [{*option.opts, *option.secondary_opts} for option in options]
    general = {"--help", "--version", "--store"}
    if any("--store" in one for one in spellings):
        general.add("--zones")
    return [one for one in spellings if one.isdisjoint(general)]


def described(verb: str) -> str:
    """Return what README says of a verb: its row of the table, and of `pack` the section of its own."""
    rows = [line for line in section("Command line").splitlines() if re.match(rf"\| `des {verb}\b", line)]
    assert len(rows) == 1, f"the table of commands has no row, or several, for `des {verb}`"
    return rows[0] + (section("Packing") if verb == "pack" else "")


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", "\n".join(code(text))))


@pytest.mark.parametrize("name", variable_names())
def test_every_setting_is_named(name: str) -> None:
    assert name in code(section("Settings"))


def test_no_other_setting_is_named() -> None:
    assert set(re.findall(r"\bDES_[A-Z0-9_]+\b", README)) <= set(variable_names())


def routes() -> list[tuple[str, str]]:
    app = create_app(Settings())
    found = []
    for route in app.routes:
        path = re.sub(r":\w+}", "}", getattr(route, "path", ""))
        found += [(method, path) for method in sorted(getattr(route, "methods", None) or ())]
    return found


def test_there_are_routes() -> None:
    assert ("GET", "/files/{uid}") in routes()


@pytest.mark.parametrize(("method", "path"), routes())
def test_every_route_is_named(method: str, path: str) -> None:
    rows = [line.split("|")[1] for line in section("HTTP").splitlines() if line.startswith("| `")]
    named = {
        (verb, found.partition("?")[0])
        for row in rows
        for found in re.findall(r"(/[^` ]*)`", row)
        for verb in re.findall(r"\b[A-Z]+\b", row)
    }
    # Starlette answers HEAD wherever it answers GET; only where that matters is it named.
    assert (method, path) in named or (method == "HEAD" and ("GET", path) in named)


def test_both_spellings_of_a_file_are_named() -> None:
    rows = section("HTTP")
    assert "/files/{uid}?created_at=" in rows
    assert "/files?uid=" in rows


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_and_its_flags_are_named_and_no_others(verb: str) -> None:
    named, known = flags_in(described(verb)), flags(verbs()[verb])
    assert [spellings for spellings in known if spellings.isdisjoint(named)] == [], "README lacks flags"
    assert {flag for flag in named if flag.startswith("--")} <= set().union(*known), "README has flags of its own"


@pytest.mark.parametrize("flag", ["--store", "--zones"])
def test_what_names_the_store_is_named(flag: str) -> None:
    assert flag in flags_in(section("Command line"))


@pytest.mark.parametrize("part", [FilePart, ZonePart, PlacePart])
def test_every_key_of_a_zones_file_is_named(part: type[BaseModel]) -> None:
    assert set(part.model_fields) <= code(section("Zones")), "README lacks keys"


@pytest.mark.parametrize("status", EXIT_STATUSES)
def test_every_exit_status_is_named(status: int) -> None:
    assert f"**{status}**" in section("Command line")


@pytest.mark.parametrize("name", [instrument.name for instrument in INSTRUMENTS])
def test_every_metric_is_named(name: str) -> None:
    assert name in {found.partition("{")[0] for found in code(README)}


def test_no_other_metric_is_named() -> None:
    named = {found.partition("{")[0] for found in code(README) if re.fullmatch(r"des_[a-z0-9_]+(\{.*)?", found)}
    assert named <= {instrument.name + ending for instrument in INSTRUMENTS for ending in SERIES}


def test_the_zones_file_is_a_good_one(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", section("Zones"), re.DOTALL)
    assert example
    path = tmp_path / "zones.yaml"
    path.write_text(example[1], encoding="utf-8")
    assert [len(zone.places) for zone in load_zones(path).zones] == [2, 1]


def make_verbs() -> list[str]:
    return re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("verb", make_verbs())
def test_every_make_verb_is_named(verb: str) -> None:
    assert re.search(rf"\bmake {verb}\b", README)


def bytes_of(count: int) -> str:
    """Return bytes as the table of limits has them."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:g} {name}"
    return f"{count} bytes"


def default_of(variable: str) -> object:
    return Settings.model_fields[variable.removeprefix("DES_").lower()].default


PACK: dict[str | None, Any] = {option.name: option.default for option in verbs()["pack"].params}
LIMITS: dict[str, str] = {
    "a request's line and header": bytes_of(exchange.MAX_HEADER_BYTES),
    "what a stream holds of a large file": bytes_of(files.STREAM_BYTES),
    "seconds for a header to come, and of an idle connection": f"{worker.KEEP_ALIVE:g}",
    "bytes of a batch's request, an item it may have": bytes_of(batch_items.BYTES_AN_ITEM),
    "values in a batch's JSON, an item it may have": f"{batch_items.VALUES_AN_ITEM}",
    "entries of a page of a listing": f"{listings.MAX_LIMIT:,}",
    "bytes of a page of files": bytes_of(listings.PAGE_BYTES),
    "the name of `download`": bytes_of(disposition.MAX_NAME_BYTES),
    "the keys file": bytes_of(keys.MAX_KEYS_FILE_BYTES),
    "a row of a manifest (JSON, CSV)": bytes_of(manifest.MAX_ROW_BYTES),
    "window of a manifest or archive in zstd": bytes_of(manifest_streams.MAX_WINDOW_BYTES),
    "headers of a member of an archive": bytes_of(archive.MAX_HEADER_BYTES),
    "left free on the disk that archives are unpacked to": bytes_of(spool.RESERVED_BYTES),
    "a segment, unless one file is larger": bytes_of(PACK["max_shard_size"]),
    "a dictionary": bytes_of(layout.MAX_DICTIONARY_BYTES),
    "a uid": bytes_of(MAX_UID_BYTES),
    "metadata of a file": bytes_of(layout.MAX_METADATA_BYTES),
    "a content type": bytes_of(layout.MAX_CONTENT_TYPE_BYTES),
    "a file": bytes_of(layout.MAX_FILE_BYTES),
    "files of a shard": f"{layout.MAX_FILES:,}",
    "segments of a shard": f"{layout.MAX_SEGMENTS:,}",
    "content types of a shard": f"{layout.MAX_CONTENT_TYPES:,}",
    "a shard's head": bytes_of(heads.MAX_HEAD_BYTES),
    "attempts of a request to S3": f"{s3_retry.MAX_ATTEMPTS}",
    "the zones file": bytes_of(marked_document.MAX_BYTES),
}


def limits() -> list[list[str]]:
    """Return the rows of the table of limits: what, how much, set by what."""
    rows = [line.strip("| ").split(" | ") for line in section("Guarantees and limits").splitlines() if "|" in line]
    return [row for row in rows[2:] if not row[0].startswith("**")]


@pytest.mark.parametrize(("what", "limit", "setter"), limits())
def test_a_limit_is_what_the_code_says(what: str, limit: str, setter: str) -> None:
    variable = setter.strip("`")
    if variable.startswith("DES_"):
        default = default_of(variable)
        known = bytes_of(default) if isinstance(default, ByteSize) else f"{default:,g}"
    else:
        known = LIMITS[what.partition("; beyond")[0]]
    assert limit == known


def test_every_limit_is_named() -> None:
    assert len(limits()) == len(LIMITS) + sum(row[2].startswith("`DES_") for row in limits())
