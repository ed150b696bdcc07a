"""A store on SeaweedFS that tests of reading share, and what its requests are, as a server sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from des.routing import file_id
from des.shard.codecs import Compression
from des.storage.descriptor import DESCRIPTOR_KEY
from des.storage.s3 import open_s3
from tests.making import DAY, make_store
from tests.pack.packing import names_of_one_shard
from tests.store.contents import DICTIONARY, noise, text

if TYPE_CHECKING:
    from tests.servers.fault_proxy import Request
    from tests.servers.s3_servers import S3Server

PREFIX = "a sample"
# In one shard of `DAY`: enough for several pages, only the last of which comes with the tail.
NAMES = sorted(names_of_one_shard(3000), key=file_id)
FILES = {uid: uid.encode() * 20 for uid in NAMES}
# In the other shard of `DAY`.
LARGE, WITH_DICTIONARY = names_of_one_shard(2, stem="other", index=1)
OTHERS = {LARGE: noise(1_500_000), WITH_DICTIONARY: text(500)}
# Days for faults, each with one shard of many pages: a large file and small ones on its first page.
FAULTY_DAYS = ("20240301", "20240302", "20240303")
FAULTY_FILES = {**FILES, NAMES[0]: noise(1_200_000, 1)}


def make_sample(server: S3Server) -> str:
    """Make the store; return its bucket."""
    bucket = server.make_bucket()

    async def make() -> None:
        storage = await open_s3(server.config(bucket, prefix=PREFIX))
        maker = await make_store(storage, FILES, day=DAY)
        await maker.add({LARGE: OTHERS[LARGE]})
        await maker.add({WITH_DICTIONARY: OTHERS[WITH_DICTIONARY]}, compression=Compression(dictionary=DICTIONARY))
        for day in FAULTY_DAYS:
            await maker.add(FAULTY_FILES, day)
        await storage.aclose()

    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        anyio.run(make)
    return bucket


def missing() -> str:
    """Return a name that would lie on the first page of `NAMES`, between two files that are there."""
    low, high = file_id(NAMES[0]), file_id(NAMES[400])
    return next(uid for number in range(10**6) if low < file_id(uid := f"missing-{number}") < high)


def kind(request: Request) -> str:
    """Say what a request is for."""
    key = request.key.removeprefix(f"{PREFIX}/")
    if request.method != "GET" or not request.range:
        return f"{request.method} {key}"
    if key == DESCRIPTOR_KEY:
        return "descriptor"
    if key.count("/") == 2:
        return "segment"
    if request.range.startswith("bytes=-"):
        return "tail"
    assert "if-match" in request.headers, "a page is read at its head's version only"
    return "page"
