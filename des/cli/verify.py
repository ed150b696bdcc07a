"""`des verify`: read a store and find all damage."""

from __future__ import annotations

import json
import secrets
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import click

from des.cli.measuring import measured, tell_counts
from des.cli.options import json_option, settings_for, store_option
from des.cli.presenting import exact_size, human_size, write_fields
from des.console import say, visible, write_line
from des.errors import EXIT_BAD_ANSWER, EXIT_DONE
from des.routing import rfc3339
from des.shard.layout import from_microseconds
from des.store import open_store
from des.store.verifying import Progress, Sampling
from des.store.verifying import verify as verify_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.progress import Progress as Bar

    from des.settings import Settings
    from des.storage.protocol import ObjectInfo
    from des.store.verifying import Damage, VerifyReport


@dataclass(frozen=True, slots=True)
class _Task:
    """What to verify: these days, or those since one, or all; and which payloads."""

    days: Sequence[str] | None
    since: str | None
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class _Outcome:
    store: str
    report: VerifyReport
    sampling: Sampling
    seconds: float


@click.command("verify", short_help="Read everything and find all damage.")
@click.argument("dates", metavar="[DATE]...", nargs=-1)
@click.option(
    "--sample",
    default=1.0,
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Read only this share of the contents, 0 to 1; heads and catalogs are always read. Default: 1.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63), metavar="N", help="Which sample. Default: another one each time."
)
@click.option("--since", metavar="DATE", help="Only days from this one on.")
@json_option
@store_option
@measured("verify")
def verify(
    dates: tuple[str, ...], sample: float, seed: int | None, since: str | None, as_json: bool, store: str | None
) -> int:
    """Read the store, or the days DATE, and check every byte. Damage makes the exit status 1.

    Orphans, condemned segments and leftovers are listed; they are no damage.
    """
    if dates and since is not None:
        raise click.UsageError("give days or --since, not both.")
    settings = settings_for(store)
    sampling = Sampling(sample, secrets.randbits(32) if seed is None else seed) if sample < 1 else Sampling()
    task = _Task(dates or None, since, sampling)
    outcome = anyio.run(partial(_verify, settings, task))
    tell_counts(_json(outcome))
    if not outcome.report.shards:
        say("there are no shards to verify.")
    if as_json:
        write_line(json.dumps(_json(outcome), ensure_ascii=False))
    else:
        _write(outcome)
    return EXIT_BAD_ANSWER if outcome.report.damage else EXIT_DONE


async def _verify(settings: Settings, task: _Task) -> _Outcome:
    began = time.monotonic()
    async with open_store(settings) as opened:
        with _shown_progress() as progress:
            report = await verify_store(opened, task.days, since=task.since, sampling=task.sampling, progress=progress)
        return _Outcome(opened.storage.address, report, task.sampling, time.monotonic() - began)


def _json(outcome: _Outcome) -> dict[str, Any]:
    report = outcome.report
    return {
        "store": outcome.store,
        "days": report.days,
        "shards": report.shards,
        "segments": report.segments,
        "files": report.files,
        "payloads": report.payloads,
        "bytes_read": report.bytes_read,
        "sample": outcome.sampling.share,
        "seed": outcome.sampling.seed,
        "seconds": round(outcome.seconds, 3),
        "damage": [_damage(damage) for damage in report.damage],
        "garbage": [_damage(damage) for damage in report.garbage],
        "orphans": [_object(info) for info in report.orphans],
        "condemned": [{"key": one.key, "since": rfc3339(from_microseconds(one.since))} for one in report.condemned],
        "leftovers": [_object(info) for info in report.leftovers],
    }


def _damage(damage: Damage) -> dict[str, Any]:
    fields = asdict(damage)
    if damage.place is None:
        del fields["place"]
    return fields


def _object(info: ObjectInfo) -> dict[str, Any]:
    return {"key": info.key, "size": info.size, "modified": rfc3339(info.modified)}


def _write(outcome: _Outcome) -> None:
    report, sampling = outcome.report, outcome.sampling
    for damage in report.damage:
        write_line(f"damage     {_told(damage)}")
    for damage in report.garbage:
        write_line(f"garbage    {_told(damage)}")
    for info in report.orphans:
        write_line(f"orphan     {visible(info.key)}: {human_size(info.size)} that no head lists.")
    for one in report.condemned:
        write_line(f"condemned  {one.key}: since {rfc3339(from_microseconds(one.since))}.")
    for info in report.leftovers:
        write_line(f"leftover   {visible(info.key)}: {human_size(info.size)} that are no part of a shard.")
    chosen = "" if sampling.share == 1 else f" (sample {sampling.share:g}, seed {sampling.seed})"
    write_fields(
        [
            ("store", outcome.store),
            ("days", f"{report.days:,}"),
            ("shards", f"{report.shards:,}"),
            ("segments", f"{report.segments:,}"),
            ("files", f"{report.files:,}"),
            ("contents", f"{report.payloads:,} read{chosen}"),
            ("bytes read", exact_size(report.bytes_read)),
            ("seconds", f"{outcome.seconds:.1f}"),
            ("damage", f"{len(report.damage):,}" if report.damage else "none"),
        ]
    )


def _told(damage: Damage) -> str:
    uid = "" if damage.uid is None else f" uid {visible(damage.uid)!r}"
    place = "" if damage.place is None else f" at {visible(damage.place)}"
    return f"{visible(damage.key)}{place}{uid}: {damage.sentence}"


@contextmanager
def _shown_progress() -> Iterator[Progress]:
    """Show progress on stderr where that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console  # noqa: PLC0415 - only people pay for its import
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TextColumn("shards, {task.fields[read]}"))
    with Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        yield _BarProgress(bar)


class _BarProgress(Progress):
    """A bar of shards, and the bytes read so far."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, read=human_size(0))
        self._bytes = 0

    def found(self, shards: int) -> None:
        self._bar.update(self._task, total=shards)

    def read(self, count: int) -> None:
        self._bytes += count
        self._bar.update(self._task, read=human_size(self._bytes))

    def verified(self, report: VerifyReport) -> None:
        del report
        self._bar.advance(self._task)
