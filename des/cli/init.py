"""`des init`: make a store, let it grow, restore its descriptor."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio
import click

from des.cli.options import settings_for, zones_given, zones_option
from des.console import write_line
from des.lifecycle.growing import adopt, adopt_zones, grow
from des.routing import MAX_N_BITS, MIN_N_BITS
from des.storage.descriptor import DEFAULT_N_BITS, ensure_descriptor, read_descriptor
from des.storage.opening import opened_storage
from des.storage.zones import ZonedStorage
from des.store.whole_objects import WholeObjects

if TYPE_CHECKING:
    from des.settings import Settings
    from des.storage.descriptor import Descriptor


@click.command("init", short_help="Make a store.")
@click.argument("store", required=False)
@zones_option
@click.option(
    "--n-bits",
    type=click.IntRange(MIN_N_BITS, MAX_N_BITS),
    help=f"How many bits of a file's id select its shard: 2^n shards a day. Default: {DEFAULT_N_BITS}.",
)
@click.option(
    "--from", "first_day", metavar="DATE", help="Let --n-bits hold from this day on; days with shards keep theirs."
)
@click.option("--adopt", "adopting", is_flag=True, help="Restore a lost des.json from the objects that are there.")
def init(store: str | None, n_bits: int | None, first_day: str | None, adopting: bool) -> None:
    """Make a store in the directory or s3:// address STORE, or in the places of a zones file, unless it is one already.

    With --from, change how many shards coming days have; with --adopt, restore a descriptor that was lost.
    """
    if adopting and (first_day is not None or n_bits is not None):
        raise click.UsageError("--adopt takes n_bits from the objects that are there.")
    if first_day is not None and n_bits is None:
        raise click.UsageError("--from goes with --n-bits.")
    zones = zones_given()
    if (store is None) is (zones is None):
        raise click.UsageError("give STORE, or --zones FILE.")
    if zones is not None and first_day is not None:
        raise click.UsageError("a store in zones has one n_bits for all days, that of its file; --from is not for it.")
    settings = settings_for(store, n_bits=n_bits)
    if adopting:
        write_line(anyio.run(partial(_adopt, settings)))
    elif first_day is not None and n_bits is not None:
        write_line(anyio.run(partial(_grow, settings, first_day, n_bits)))
    else:
        write_line(anyio.run(partial(_make, settings, settings.n_bits)))


async def _make(settings: Settings, n_bits: int | None) -> str:
    async with opened_storage(settings, WholeObjects()) as storage:
        was_there = await read_descriptor(storage) is not None
        descriptor = await ensure_descriptor(storage, n_bits)
        made = "{} is a store already: {}." if was_there else "Made a store at {}: {}."
        return made.format(storage.address, _says(descriptor))


async def _grow(settings: Settings, first_day: str, n_bits: int) -> str:
    async with opened_storage(settings, WholeObjects()) as storage:
        descriptor = await grow(storage, first_day, n_bits)
        return f"{storage.address}: {_says(descriptor)}."


async def _adopt(settings: Settings) -> str:
    async with opened_storage(settings, WholeObjects()) as storage:
        if isinstance(storage, ZonedStorage):
            descriptor, places = await adopt_zones(storage)
            restored = (
                f"Restored the descriptors of {', '.join(places)}"
                if places
                else f"{storage.address} has its descriptors"
            )
            return f"{restored}: {_says(descriptor)}."
        descriptor, is_new = await adopt(storage)
        adopted = "Restored the descriptor of {}: {}." if is_new else "{} has its descriptor: {}."
        return adopted.format(storage.address, _says(descriptor))


def _says(descriptor: Descriptor) -> str:
    epochs = [f"{epoch.n_bits} from {epoch.first_day} on" for epoch in descriptor.epochs[1:]]
    bits = ", ".join([str(descriptor.epochs[0].n_bits), *epochs])
    return f"n_bits {bits}, store id {descriptor.store_id.hex()}"
