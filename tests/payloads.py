"""Payloads as a packer stores them, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from des.shard.chunking import CHUNK_BYTES, LargeEncoder, is_large
from des.shard.layout import checksum32
from des.shard.writing import Payload, content_hash

if TYPE_CHECKING:
    from des.shard.codecs import Encoder


def encode_payload(encoder: Encoder, raw: bytes) -> tuple[bytes, Payload]:
    """Return a content's stored bytes, and what its entry says of them."""
    if not is_large(len(raw)):
        codec, stored = encoder.encode(raw)
        return stored, Payload(content_hash(raw), checksum32(stored), codec, len(stored), len(raw))
    large = LargeEncoder(encoder)
    chunks = [large.add(raw[at : at + CHUNK_BYTES]) for at in range(0, len(raw), CHUNK_BYTES)]
    table, payload = large.finish()
    return b"".join([*chunks, table]), payload
