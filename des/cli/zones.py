"""`des zones`: stores that lie in several buckets."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from des.cli.options import json_option, settings_for
from des.cli.presenting import write_table
from des.console import say, write_line
from des.errors import EXIT_DONE, EXIT_STORAGE, EXIT_WRONG_CALL
from des.lifecycle.probing import Probed, probe_zones
from des.storage.marked_document import ProblemsError
from des.storage.zones_config import load_zones

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.settings import Settings
    from des.storage.zones_config import ZonesConfig

_PLACES = ("zone", "indices", "quorum", "role", "place", "endpoint")
_ANSWERS = ("state", "round trip", "conditions", "store id")


@click.group("zones", short_help="Stores in several buckets.")
def zones() -> None:
    """Stores that lie in several buckets, as a zones file says."""


@zones.command("check", short_help="Check a zones file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--probe", is_flag=True, help="Also ask each place. Nothing is changed.")
@json_option
def check(file: Path, probe: bool, as_json: bool) -> int:
    """Check the zones file FILE as a whole, and show its zones.

    With --probe, each place is asked whether it can be reached, whether its descriptor fits the file, whether it does conditional writes, and how
    long a small read takes. Exit status 2 where the file is wrong or does not fit a place, 3 where a place is in trouble.
    """
    settings = settings_for(None)
    try:
        config = load_zones(file)
    except ProblemsError as error:
        if as_json:
            write_line(json.dumps({"problems": [asdict(one) for one in error.problems]}, ensure_ascii=False))
        for problem in error.problems:
            say(f"{file}: {problem}")
        return EXIT_WRONG_CALL
    config.check_apart(settings)
    probed = anyio.run(partial(probe_zones, config, settings)) if probe else None
    if as_json:
        write_line(json.dumps(_json(config, settings, probed), ensure_ascii=False))
    else:
        _show(config, settings, probed)
    for one in probed or ():
        if one.error is not None:
            say(f"zone {one.zone}, {one.place}: {one.error}")
    return _status(probed or ())


def _status(probed: Sequence[Probed]) -> int:
    kinds = {one.status for one in probed} - {"ok"}
    if not kinds:
        return EXIT_DONE
    return EXIT_WRONG_CALL if kinds & {"invalid", "corrupt"} else EXIT_STORAGE


def _json(config: ZonesConfig, settings: Settings, probed: Sequence[Probed] | None) -> dict[str, Any]:
    """Return the file with all defaults filled in, and what each place said."""
    answers = None if probed is None else iter(probed)
    found: list[dict[str, Any]] = []
    for zone in config.zones:
        places = []
        for place in zone.places:
            s3 = place.s3_config(settings)
            value: dict[str, Any] = {
                "place": s3.address,
                "endpoint_url": s3.endpoint_url,
                "region_name": s3.region,
                "profile": s3.profile,
                "is_primary": place is zone.primary,
            }
            if answers is not None:
                known = asdict(next(answers))
                value["probe"] = {
                    name: known[name] for name in ("status", "round_trip", "store_id", "conditional_writes", "error")
                }
            places.append(value)
        found.append(
            {
                "name": zone.name,
                "start": zone.start,
                "end": zone.end,
                "write_quorum": zone.write_quorum,
                "places": places,
            }
        )
    names = ("n_bits", "allow_gaps", "read_repair", "hedge", "place_timeout")
    return {"file": str(config.path), **{name: getattr(config, name) for name in names}, "zones": found, "problems": []}


def _show(config: ZonesConfig, settings: Settings, probed: Sequence[Probed] | None) -> None:
    answers = None if probed is None else iter(probed)
    rows = []
    for zone in config.zones:
        for place in zone.places:
            s3 = place.s3_config(settings)
            role = "primary" if place is zone.primary else "copy"
            row = [zone.name, f"{zone.start}-{zone.end}", str(zone.write_quorum), role, s3.address, s3.endpoint.name]
            rows.append(row if answers is None else row + _cells(next(answers)))
    write_table(
        _PLACES if probed is None else _PLACES + _ANSWERS,
        rows,
        numbers=("indices", "round trip"),
        folded=("place", "endpoint", "store id"),
    )


def _cells(one: Probed) -> list[str]:
    conditions = {None: "?", True: "yes", False: "no"}[one.conditional_writes]
    round_trip = "" if one.round_trip is None else f"{1000 * one.round_trip:.1f} ms"
    state = "empty" if one.status == "ok" and one.store_id is None else one.status
    return [state, round_trip, conditions, one.store_id or ""]
