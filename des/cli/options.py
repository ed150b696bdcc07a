"""What several verbs share: the store they work on, the file they are about, and the form of their answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from des.logs import configure_logging
from des.settings import Settings
from des.storage.opening import resolve_target

if TYPE_CHECKING:
    from collections.abc import Callable

_Function = TypeVar("_Function", bound="Callable[..., object]")


# Under this name click keeps the zones file that was given after the verb.
_ZONES = "des.zones"


def zones_option(function: _Function) -> _Function:
    """Add `--zones` to a command that calls `settings_for`."""
    return click.option(
        "--zones",
        metavar="FILE",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_keep_zones,
        help="The store is what this zones file says.",
    )(function)


def store_option(function: _Function) -> _Function:
    """Add `--store` and `--zones`; the ones before the verb hold where there are none after it."""
    store = click.option(
        "--store", metavar="DIR|s3://…", callback=_or_before_the_verb, help="The store. Default: what DES_* says."
    )
    return store(zones_option(function))


def _or_before_the_verb(context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    before: str | None = context.find_root().params.get("store") if value is None else value
    return before


def _keep_zones(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.meta[_ZONES] = value


def zones_given() -> Path | None:
    """Return the zones file that `--zones` names; the one before the verb holds where there is none after it."""
    context = click.get_current_context()
    zones: Path | None = context.meta.get(_ZONES) or context.find_root().params.get("zones")
    return zones


def file_arguments(function: _Function) -> _Function:
    """Add UID and `--created-at`."""
    created_at = click.option(
        "--created-at",
        required=True,
        metavar="T",
        help="RFC 3339 time with zone, or a date; its UTC day is part of the file's name.",
    )
    return click.argument("uid")(created_at(function))


def json_option(function: _Function) -> _Function:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(function)


def settings_for(store: str | None, **overrides: object) -> Settings:
    """Read the settings, let the log follow them, and point them at a store.

    Args:
        store: a directory or `s3://` address; None for the zones file of `--zones`, else what the settings say.
        overrides: settings that options gave; None where one was not given.

    Raises:
        SettingsError: a setting, the address or the zones file is wrong.
    """
    settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    configure_logging(settings)
    resolved = resolve_target(store, settings, zones=zones_given())
    if resolved.backend == "multi_s3":
        from des.storage.zones_config import with_its_n_bits  # noqa: PLC0415 - most stores lie in one place

        return with_its_n_bits(resolved)  # here, so that a bad file is one sentence before anything starts
    return resolved
