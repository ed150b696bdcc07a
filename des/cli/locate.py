"""`des locate`: where a file lies, computed and not looked up."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from des.cli.options import file_arguments, json_option
from des.cli.presenting import write_fields
from des.console import write_line
from des.routing import MAX_N_BITS, MIN_N_BITS, file_id, locate_shard, rfc3339
from des.settings import Settings
from des.storage.descriptor import DEFAULT_N_BITS


@click.command("locate", short_help="Compute a file's shard.")
@file_arguments
@click.option(
    "--n-bits",
    type=click.IntRange(MIN_N_BITS, MAX_N_BITS),
    help=f"Of the store. Default: DES_N_BITS, else {DEFAULT_N_BITS}.",
)
@json_option
def locate(uid: str, created_at: str, n_bits: int | None, as_json: bool) -> None:
    """Compute the shard of a file. Touches no store."""
    n_bits = n_bits or Settings().n_bits or DEFAULT_N_BITS
    location = locate_shard(uid, created_at, n_bits)
    identifier = file_id(location.uid).hex()
    if as_json:
        instant = rfc3339(location.created_at)
        value = asdict(location) | {"created_at": instant, "file_id": identifier, "n_bits": n_bits}
        write_line(json.dumps(value, ensure_ascii=False))
        return
    write_fields(
        [
            ("file_id", identifier),
            ("date_dir", location.date_dir),
            ("shard_index", str(location.shard_index)),
            ("shard_hex", location.shard_hex),
            ("object_key", location.object_key),
        ]
    )
