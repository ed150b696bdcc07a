"""A store in one zone with a primary and two copies, each a bucket on SeaweedFS; and the same places as they were before its last commits."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from des.settings import Settings
from des.storage.opening import open_storage
from des.store.whole_objects import WholeObjects
from tests.making import make_store
from tests.servers.fault_proxy import FaultProxy
from tests.servers.s3_servers import REGION
from tests.store.contents import noise, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from tests.servers.s3_servers import S3Server

N_BITS = 2
PLACES = ("primary", "copy 1", "copy 2")
PREFIX = "a/zone"


def contents(count: int) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the files of the first commit, and of those that come after it: half of them new, the others in place of older ones."""
    older = {f"file-{number}": text(200 + 37 * (number % 100), number) for number in range(count * 6 // 10)}
    newer = {f"file-{number}": noise(300 + 41 * (number % 100), number) for number in range(count * 4 // 10, count)}
    newer["file-0"] = noise(1_300_000, 1)
    return older, newer


@dataclass(frozen=True, slots=True)
class Sample:
    """What was made.

    Attributes:
        buckets: of the places, the primary's first.
        earlier: buckets with the places as they were after the first commit.
        files: what the store holds.
    """

    buckets: tuple[str, ...]
    earlier: tuple[str, ...]
    files: Mapping[str, bytes]


def zones_file(path: Path, buckets: Sequence[str], endpoints: Sequence[str], **fields: object) -> Path:
    """Write a zones file of one zone; further fields stand at its top."""
    places: list[dict[str, Any]] = [
        {"bucket": bucket, "region_name": REGION, "endpoint_url": endpoint, "prefix": PREFIX}
        for bucket, endpoint in zip(buckets, endpoints, strict=True)
    ]
    zone = {"name": "only", "range": {"start": 0, "end": (1 << N_BITS) - 1}, "s3": places[0], "copies": places[1:]}
    path.write_text(json.dumps({"n_bits": N_BITS, **fields, "zones": [zone]}), encoding="utf-8")
    return path


def zone_settings(path: Path, **fields: Any) -> Settings:  # noqa: ANN401 - any of its fields
    """Return settings that name a store in zones."""
    return Settings(**{"backend": "multi_s3", "zones_config": path, **fields})


def make_sample(server: S3Server, directory: Path, count: int) -> Sample:
    """Make the store, of about so many files. The server's credentials must be in the environment."""
    buckets = tuple(server.make_bucket() for _ in PLACES)
    earlier = tuple(server.make_bucket() for _ in PLACES)
    older, newer = contents(count)
    path = zones_file(directory / "zones.json", buckets, [server.endpoint] * len(PLACES))

    async def make() -> None:
        storage = await open_storage(zone_settings(path), WholeObjects())
        try:
            maker = await make_store(storage, older, n_bits=N_BITS)
            for source, target in zip(buckets, earlier, strict=True):
                _copy_all(server, source, target)
            await maker.add(newer)
        finally:
            await storage.aclose()

    anyio.run(make)
    return Sample(buckets, earlier, {**older, **newer})


async def fill_zone(path: Path, files: Mapping[str, bytes]) -> None:
    """Add files to the store that a zones file names."""
    storage = await open_storage(zone_settings(path), WholeObjects())
    try:
        await (await make_store(storage, n_bits=N_BITS)).add(files)
    finally:
        await storage.aclose()


def _copy_all(server: S3Server, source: str, target: str) -> None:
    for key in objects(server, source):
        server.client.copy_object(Bucket=target, Key=key, CopySource={"Bucket": source, "Key": key})


def objects(server: S3Server, bucket: str) -> dict[str, bytes]:
    """Return all objects of a bucket."""
    pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return {key: server.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


@asynccontextmanager
async def proxies(server: S3Server) -> AsyncIterator[tuple[FaultProxy, ...]]:
    """Run a proxy for each place."""
    async with AsyncExitStack() as stack:
        yield tuple([await stack.enter_async_context(FaultProxy.before(server)) for _ in PLACES])
