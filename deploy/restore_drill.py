"""`make restore-drill`: copies a store's objects elsewhere while a packer runs, opens the copies, verifies, repairs what is torn, and compares.

A packer packs batch after batch, each into shards that are there and into shards that are new, for as long as the copying takes. Two copies are made:

- **heads first**: `des.json` and all heads, then all segments. What a head names is there before it, so what a copied head names is
  copied after it. Only shards that were begun in between are torn: their segments come without a head, and `des repair` makes it;
- **as listed**: in order of a listing made before, as plain copying tools do. Its heads may name segments that came after the listing. Such
  heads are removed from the copy, and `des repair` makes them anew from the segments that are there.

A whole batch is packed between listing and copying, so that both are torn every time. Proven is that in both copies, once repaired,
verification finds no damage, every file that was acknowledged before the copying began is the same, and every later one is the same or not found.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from des import NotFoundError, open_store
from des.storage.opening import open_storage, resolve_target
from des.storage.protocol import Overwrite
from des.store.verifying import verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from des.storage.protocol import ObjectInfo, Storage

DAY = "2024-01-31"
BATCH_SECONDS = 120
HEADS_FIRST, AS_LISTED = "heads first", "as listed"
WHOLE = 1 << 30  # bytes; more than any object of the drill has

TYPE_OF_KEY = {0: "descriptor", 1: "head", 2: "segment"}  # by the slashes in it

File = tuple[str, str]  # uid and created_at


@dataclass
class Packers:
    """Packs batch after batch in processes of their own.

    Attributes:
        store: where.
        work: a directory for sources and manifests.
        files: how many a batch has.
        n_bits: how many bits select the shard.
        acknowledged: content by uid and created_at, of the batches that are done.
    """

    store: str
    work: Path
    files: int
    n_bits: int
    acknowledged: dict[File, bytes] = field(default_factory=dict)
    _done: int = 0
    _failure: str = ""
    _ending: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def pack(self) -> None:
        """Pack one batch: half of it into a day that all batches share, half into a day of its own."""
        number = self._done
        sources = self.work / str(number)
        sources.mkdir()
        rows, contents = [], {}
        for index in range(self.files):
            created_at = DAY if index % 2 else f"2024-02-{number + 1:02d}"
            content = random.Random(f"{number}/{index}").randbytes(200) * (1 + index % 40)  # noqa: S311 - any bytes do
            source = sources / str(index)
            source.write_bytes(content)
            rows.append({"uid": f"{number}/{index}", "created_at": created_at, "source_path": str(source)})
            contents[f"{number}/{index}", created_at] = content
        manifest = self.work / f"{number}.json"
        manifest.write_text(json.dumps(rows))
        des("pack", "--quiet", "--n-bits", str(self.n_bits), "--input", str(manifest), "--output", self.store)
        with self._changed:
            self.acknowledged |= contents
            self._done += 1
            self._changed.notify_all()

    @contextmanager
    def packing(self) -> Iterator[None]:
        """Pack for as long as the block lasts."""
        thread = threading.Thread(target=self._pack_on)
        thread.start()
        try:
            yield
        finally:
            self._ending = True
            thread.join()

    def wait_for_a_batch(self) -> None:
        """Wait until a batch is done that was begun after this call."""
        with self._changed:
            wanted = self._done + 2
            if (
                not self._changed.wait_for(lambda: self._done >= wanted or self._failure, BATCH_SECONDS)
                or self._failure
            ):
                sys.exit(f"FAILED  packing: {self._failure or 'no batch was done in time'}")

    def _pack_on(self) -> None:
        while not self._ending and not self._failure:
            try:
                self.pack()
            except subprocess.CalledProcessError as error:
                with self._changed:
                    self._failure = f"{error}: {error.stderr}"
                    self._changed.notify_all()


def des(*arguments: str) -> None:
    """Run a verb of DES.

    Raises:
        subprocess.CalledProcessError: it did not end with status 0.
    """
    command = [sys.executable, "-m", "des", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=BATCH_SECONDS)


@asynccontextmanager
async def storages(*places: str) -> AsyncIterator[list[Storage]]:
    """Open places for as long as the block lasts."""
    opened = [await open_storage(resolve_target(place)) for place in places]
    try:
        yield opened
    finally:
        for storage in opened:
            await storage.aclose()


async def listed(storage: Storage, *kinds: str) -> list[ObjectInfo]:
    """List the objects that are of these kinds."""
    return [info async for info in storage.list("") if TYPE_OF_KEY.get(info.key.count("/")) in kinds]


async def copy(objects: list[ObjectInfo], source: Storage, target: Storage) -> None:
    """Copy objects as they are by now, in this order."""
    for info in objects:
        found = await source.read_suffix(info.key, WHOLE)
        if found is None:
            raise RuntimeError(f"{info.key}: an unconditional read gave nothing.")
        await target.put(info.key, found.data, Overwrite())


async def make_copies(packers: Packers, heads_first: str, as_listed: str) -> None:
    """Make both copies at the same time, with a batch between listing and copying."""
    async with storages(packers.store, heads_first, as_listed) as [source, careful, plain]:
        listing = await listed(source, *TYPE_OF_KEY.values())
        await copy(await listed(source, "descriptor", "head"), source, careful)
        await anyio.to_thread.run_sync(packers.wait_for_a_batch)
        await copy(listing, source, plain)
        await copy(await listed(source, "segment"), source, careful)


async def damaged_shards(place: str) -> list[str]:
    """Verify a copy, and return the names of the shards that are damaged."""
    async with open_store(place) as store:
        report = await verify(store)
    return sorted({"/".join(damage.key.split("/")[:2]).removesuffix(".des") for damage in report.damage})


async def remove_heads(place: str, shards: list[str]) -> int:
    """Remove the heads that are there of these shards; return how many."""
    async with storages(place) as [storage]:
        heads = [info.key for info in await listed(storage, "head") if info.key.removesuffix(".des") in shards]
        for key in heads:
            await storage.delete(key)
    return len(heads)


async def compare(place: str, before: Mapping[File, bytes], after: Mapping[File, bytes]) -> tuple[int, int]:
    """Read every file from a copy.

    Args:
        place: the copy.
        before: what was acknowledged before the copying began, and must be there.
        after: what was acknowledged later, and may be.

    Returns:
        How many of the later ones are there, and how many are not.
    """
    there = missing = 0
    async with open_store(place) as store:
        for (uid, created_at), content in {**before, **after}.items():
            try:
                found = await store.get(uid, created_at)
            except NotFoundError:
                if (uid, created_at) in before:
                    sys.exit(f"FAILED  {uid} was acknowledged before the copy was begun, and is not in it")
                missing += 1
                continue
            if found != content:
                sys.exit(f"FAILED  {uid} came back different")
            there += (uid, created_at) not in before
    return there, missing


async def restore(name: str, place: str, before: Mapping[File, bytes], after: Mapping[File, bytes]) -> None:
    """Repair a copy, and compare it."""
    torn = await damaged_shards(place)
    if not torn:
        sys.exit(f"FAILED  {name}: nothing is torn, so that nothing was tried")
    removed = await remove_heads(place, torn)
    if bool(removed) != (name == AS_LISTED):
        sys.exit(f"FAILED  {name}: {removed} of the copied heads are damaged, or name segments that are not there")
    await anyio.to_thread.run_sync(partial(des, "repair", *torn, "--store", place))
    if still := await damaged_shards(place):
        sys.exit(f"FAILED  {name}: {', '.join(still)} are damaged after the repair")
    there, missing = await compare(place, before, after)
    print(
        f"ok  {name}: {len(torn)} shards torn, {removed} of their heads removed, all repaired; {len(before)} files from before the same,"
        f" of {len(after)} from meanwhile {there} the same and {missing} not found",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the drill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--store", help="where the store is made, a directory or s3://bucket/prefix; default: a temporary directory"
    )
    parser.add_argument("--copies", help="below which place the copies are made; default: a temporary directory")
    parser.add_argument("--files", type=int, default=400, help="files a batch")
    parser.add_argument("--n-bits", type=int, default=5, help="how many bits select the shard")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="des-drill-") as work:
        packers = Packers(options.store or f"{work}/store", Path(work), options.files, options.n_bits)
        packers.pack()
        before = dict(packers.acknowledged)
        copies = {name: f"{options.copies or work}/{name.replace(' ', '-')}" for name in (HEADS_FIRST, AS_LISTED)}
        with packers.packing():
            anyio.run(make_copies, packers, copies[HEADS_FIRST], copies[AS_LISTED])
        after = {file: content for file, content in packers.acknowledged.items() if file not in before}
        for name, place in copies.items():
            anyio.run(restore, name, place, before, after)


if __name__ == "__main__":
    main()
