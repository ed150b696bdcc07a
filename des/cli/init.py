"""`des init`: make a store."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio
import click

from des.cli.options import settings_for
from des.console import write_line
from des.routing import MAX_N_BITS, MIN_N_BITS
from des.storage.descriptor import DEFAULT_N_BITS, ensure_descriptor, read_descriptor
from des.storage.opening import open_storage

if TYPE_CHECKING:
    from des.settings import Settings


@click.command("init", short_help="Make a store.")
@click.argument("store")
@click.option(
    "--n-bits",
    type=click.IntRange(MIN_N_BITS, MAX_N_BITS),
    help=f"How many bits of a file's id select its shard: 2^n shards a day. Default: {DEFAULT_N_BITS}.",
)
def init(store: str, n_bits: int | None) -> None:
    """Make a store in the directory or s3:// address STORE, unless it is one already."""
    settings = settings_for(store)
    write_line(anyio.run(partial(_make, settings, settings.n_bits if n_bits is None else n_bits)))


async def _make(settings: Settings, n_bits: int | None) -> str:
    storage = await open_storage(settings)
    try:
        was_there = await read_descriptor(storage) is not None
        descriptor = await ensure_descriptor(storage, n_bits)
    finally:
        with anyio.CancelScope(shield=True):
            await storage.aclose()
    says = f"n_bits {descriptor.epochs[-1].n_bits}, store id {descriptor.store_id.hex()}"
    if was_there:
        return f"{storage.address} is a store already: {says}."
    return f"Made a store at {storage.address}: {says}."
