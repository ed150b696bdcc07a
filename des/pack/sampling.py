"""What `--dictionary auto` looks at: a sample of a run's small compressible files, and the dictionaries its shards have already.

Rules:

1. The sample follows from the rows alone: they are drawn by their numbers, so that all shards are met alike, and kept in the order they were drawn in. The
   same rows over the same store give the same dictionary.
2. A source that cannot be read, or is no small compressible file, is passed over: packing it will say what is wrong with it.
3. The sample takes no more than `SAMPLE_BYTES` and one batch; sources on S3 are fetched within the run's own budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.to_thread

from des.errors import CorruptShardError, ObjectNotFoundError
from des.pack.dictionaries import MAX_SAMPLED_BYTES, SAMPLE_BYTES, SAMPLE_FILES, Choice, Run, choose_dictionary
from des.pack.encoding import is_worth_trying, read_source
from des.pack.sources import SourceError
from des.store.catalogs import read_dictionary
from des.store.heads import load_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.pack.plan import Plan, PlannedRow, PlannedShard
    from des.pack.remote import Fetch, RemoteSources
    from des.shard.codecs import Compression
    from des.shard.layout import Identity
    from des.storage.protocol import Storage

_BATCH_ROWS = 128
# Of rows that may turn out to be unfit, no more are drawn than this many times the files that are wanted.
_DRAWN = 4
_SHARDS_ASKED = 8
_KNOWN = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """Contents of small compressible files, and how many rows were looked at to get them."""

    contents: Sequence[bytes]
    looked_at: int


async def find_dictionary(
    storage: Storage,
    plan: Plan,
    shards: Sequence[tuple[PlannedShard, Identity]],
    remote: RemoteSources,
    compression: Compression,
    max_segment_bytes: int,
) -> Choice:
    """Find the dictionary that pays for a run, or none.

    Args:
        storage: the store's place.
        plan: the rows; nobody else asks it meanwhile.
        shards: of the plan.
        remote: the sources on S3.
        compression: of the run, without dictionary.
        max_segment_bytes: as for a run.

    Raises:
        StorageError: the storage is unwell.
    """
    sample = await _sample(plan, remote)
    known = await known_dictionaries(storage, [identity for _, identity in shards])
    rows = sum(shard.rows for shard, _ in shards)
    files = rows * len(sample.contents) // max(1, sample.looked_at)
    segments = sum(1 + shard.size // max_segment_bytes for shard, _ in shards)
    return await anyio.to_thread.run_sync(
        choose_dictionary, sample.contents, known, compression, Run(files=files, segments=segments)
    )


async def _sample(plan: Plan, remote: RemoteSources) -> Sample:
    drawn = await anyio.to_thread.run_sync(plan.drawn, _DRAWN * SAMPLE_FILES)
    contents: list[bytes] = []
    looked_at = 0
    for start in range(0, len(drawn), _BATCH_ROWS):
        rows: Sequence[PlannedRow] = drawn[start : start + _BATCH_ROWS]
        looked_at += len(rows)
        rows = [row for row in rows if (row.size_bytes or 0) <= MAX_SAMPLED_BYTES and is_worth_trying(row)]
        while rows:
            async with remote.fetched(rows) as fetch:
                contents += await anyio.to_thread.run_sync(_contents, fetch)
                rows = fetch.rest
        if len(contents) >= SAMPLE_FILES or sum(map(len, contents)) >= SAMPLE_BYTES:
            break
    return Sample(contents, looked_at)


def _contents(fetch: Fetch) -> list[bytes]:
    """Read what can be sampled, in a worker thread."""
    found = []
    for row in fetch.rows:
        try:
            content = read_source(row, fetch.content)
        except SourceError:
            continue
        if isinstance(content, bytes) and 0 < len(content) <= MAX_SAMPLED_BYTES:
            found.append(content)
    return found


async def known_dictionaries(storage: Storage, shards: Sequence[Identity]) -> list[bytes]:
    """Return dictionaries that a few of these shards have already, the latest of each. What is damaged is passed over.

    Raises:
        StorageError: the storage is unwell.
    """
    found: dict[bytes, bytes] = {}
    step = max(1, len(shards) // _SHARDS_ASKED)
    for identity in shards[::step]:
        try:
            tables = (await load_head(storage, identity)).head.tables
            ref = next((ref for ref in reversed(tables.segments) if ref.dictionary is not None), None)
            if ref is not None and ref.dictionary is not None and ref.dictionary.content_hash not in found:
                key = identity.segment_key(ref.name)
                found[ref.dictionary.content_hash] = await read_dictionary(storage, key, ref.dictionary)
        except (ObjectNotFoundError, CorruptShardError):
            continue
        if len(found) == _KNOWN:
            break
    return list(found.values())
