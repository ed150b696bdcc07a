"""Verifying whole objects by themselves: what a store in zones asks before a copy of one counts (`des.storage.zone_copying.Verifier`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from des.errors import CorruptShardError
from des.shard.layout import HEADER, Kind, decode_header
from des.store.checking import Sampling, check_head
from des.store.heads import named, whole_head
from des.store.segment_check import READS_AT_ONCE, SegmentCheck, Tools
from des.store.shards import segment_name

if TYPE_CHECKING:
    from des.shard.layout import Identity
    from des.storage.protocol import Storage


class WholeObjects:
    """Verifies heads and segments as `des verify` does, each without the other: whose they are, their own header says."""

    def check_head(self, key: str, data: bytes) -> None:
        """See `Verifier.check_head`."""
        identity = _owner(key, data, Kind.HEAD)
        if identity.head_key != key:
            raise CorruptShardError(f"{key} is the head of shard {identity.shard_name}.")
        flaws = check_head(whole_head(identity, data, "", for_writing=False))
        if flaws:
            raise CorruptShardError(f"{key}: {flaws[0].sentence}")

    async def check_segment(self, storage: Storage, key: str) -> None:
        """See `Verifier.check_segment`."""
        header = await storage.read_range(key, 0, HEADER.size, purpose="index")
        identity = _owner(key, header, Kind.SEGMENT)
        name = segment_name(identity, key)
        if name is None:
            raise CorruptShardError(f"{key} is a segment of shard {identity.shard_name}.")
        tools = Tools(storage, anyio.Semaphore(READS_AT_ONCE), Sampling())
        checked = await SegmentCheck(tools, identity, name, None).run()
        if checked.flaws:
            raise CorruptShardError(f"{key}: {checked.flaws[0].sentence}")


def _owner(key: str, data: bytes, kind: Kind) -> Identity:
    try:
        identity, found = decode_header(data[: HEADER.size])
    except CorruptShardError as error:
        raise named(error, key) from error
    if found is not kind:
        raise CorruptShardError(f"{key} is a {found.name.lower()}, not a {kind.name.lower()}.")
    return identity
