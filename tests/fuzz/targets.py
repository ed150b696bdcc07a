"""What is fuzzed: each target takes any bytes, and raises nothing. What it does raise is a finding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz import containers, parts, shards
from tests.fuzz.mutating import Mutator, mutated_container

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests/fuzz/corpus"


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads bytes it cannot trust.

    Attributes:
        name: as on the command line, and of its directory of inputs.
        read: takes an input.
        share: of the time, relative to the others.
        most_bytes: of an input.
        mutated: changes an input in a way of its own, to at most so many bytes; None: as bytes.
    """

    name: str
    read: Callable[[bytes], None]
    share: int = 1
    most_bytes: int = 4096
    mutated: Callable[[bytes, int, Mutator], bytes] | None = None


TARGETS = {
    target.name: target
    for target in (
        Target("head", containers.read_head, 3, 8192, mutated_container),
        Target("segment", containers.read_segment, 3, 8192, mutated_container),
        Target("shard", shards.read_shard, 6, 16384, shards.mutated_shard),
        Target("tables", parts.read_tables, 1),
        Target("rows", parts.read_rows, 2),
        Target("seek_table", parts.read_seek_table, 1),
        Target("frame", parts.read_frame, 1),
        Target("descriptor", parts.read_descriptor, 1),
        Target("zones", parts.read_zones, 2),
        Target("json", partial(parts.read_manifest, "json"), 1),
        Target("jsonl", partial(parts.read_manifest, "jsonl"), 1),
        Target("csv", partial(parts.read_manifest, "csv"), 1),
    )
}


def inputs_of(target: Target) -> list[Path]:
    """Return the inputs that are kept of a target."""
    return sorted((CORPUS / target.name).iterdir())
