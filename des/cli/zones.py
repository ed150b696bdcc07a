"""`des zones`: stores that lie in several buckets."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from des.cli.maintenance import AgeType, conclude
from des.cli.measuring import measured
from des.cli.options import json_option
from des.cli.presenting import exact_size, write_table
from des.console import say, visible, write_line
from des.errors import EXIT_DONE, EXIT_STORAGE, EXIT_WRONG_CALL
from des.lifecycle.probing import Probed, probe_zones
from des.lifecycle.syncing import Progress, sync_zones
from des.logs import configure_logging
from des.settings import Settings
from des.storage.marked_document import ProblemsError
from des.storage.opening import opened_storage, resolve_target
from des.storage.zones import ZonedStorage
from des.storage.zones_config import load_zones, with_its_n_bits
from des.store.whole_objects import WholeObjects

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from rich.progress import Progress as Bar

    from des.lifecycle.syncing import SyncReport
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
    settings = Settings()
    configure_logging(settings)
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


@zones.command("sync", short_help="Bring copies up to their primaries.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--older-than",
    default="24h",
    show_default=True,
    type=AgeType(),
    help="Remove what no head knows from a copy when it is older, by the copy's clock.",
)
@json_option
@measured("sync")
def sync(file: Path | None, older_than: timedelta, as_json: bool) -> int:
    """Bring the copies of a store in zones up to their primaries: what they missed, and places that are new.

    FILE is the zones file; default: DES_ZONES_CONFIG. Running it again is safe, and finds nothing to do. Exit status 1 where shards cannot be brought up
    because something is damaged or lost, 3 where a place cannot be reached.
    """
    settings = Settings()
    configure_logging(settings)
    if file is None and settings.zones_config is None:
        raise click.UsageError("give the zones FILE, or set DES_ZONES_CONFIG.")
    settings = with_its_n_bits(resolve_target(None, settings, zones=file or settings.zones_config))
    report = anyio.run(partial(_sync, settings, older_than))
    if not as_json:
        _tell(report)
    for one in report.unreached:
        say(f"zone {one.zone}, {one.place}: {one.error}")
    summary = asdict(report)
    del summary["failed"]
    status = conclude(summary, report.failed, as_json=as_json)
    return EXIT_STORAGE if report.unreached else status


async def _sync(settings: Settings, older_than: timedelta) -> SyncReport:
    async with opened_storage(settings, WholeObjects()) as storage:
        if not isinstance(storage, ZonedStorage):
            raise TypeError(f"{storage.address} is no store in zones")
        with _shown_days() as progress:
            return await sync_zones(storage, older_than, progress)


@contextmanager
def _shown_days() -> Iterator[Progress]:
    """Show a bar of days on stderr where that is a terminal; yields what is to be told of them."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console  # noqa: PLC0415 - only people pay for its import
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns = (TextColumn("syncing"), BarColumn(), MofNCompleteColumn(), TextColumn("days"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _DaysBar(bar)


class _DaysBar(Progress):
    """Moves a bar, of which more is found as the work goes on."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._total = bar, 0
        self._task = bar.add_task("", total=0)

    def days_found(self, count: int) -> None:
        self._total += count
        self._bar.update(self._task, total=self._total)

    def day_done(self) -> None:
        self._bar.advance(self._task)


def _tell(report: SyncReport) -> None:
    for key in report.deleted:
        write_line(f"deleted  {visible(key)}")
    for key in report.kept:
        write_line(f"kept     {visible(key)}")
    say(
        f"{report.copies:,} copies compared, {report.shards:,} shards: {report.brought_up:,} heads and {report.segments:,} segments"
        f" ({exact_size(report.segment_bytes)}) brought up, {len(report.deleted):,} objects removed."
    )


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
