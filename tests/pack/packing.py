"""Packing in tests: real sources, a manifest, a run; and reading back what it made."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from des.pack.inputs import Manifests
from des.pack.report import Report
from des.pack.run import PackJob, Progress, pack
from des.routing import file_id, shard_index
from des.settings import Settings
from des.shard.codecs import Compression
from des.shard.layout import Identity
from des.storage.descriptor import require_descriptor
from des.store import open_store
from des.store.heads import read_whole_head
from des.store.verifying import verify
from tests.servers.s3_servers import objects_on_s3

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from des.pack.decisions import OnConflict
    from des.pack.inputs import Input
    from des.pack.partition import Partition
    from des.storage.opening import SourceBuckets
    from des.storage.protocol import Storage
    from des.store.heads import WholeHead
    from des.store.verifying import VerifyReport

DAY = "20240131"
CREATED_AT = "2024-01-31T12:00:00Z"

Row = dict[str, Any]

# A directory, or settings that name a place on S3.
Place = Path | Settings


@dataclass(frozen=True, slots=True)
class Sources:
    """Files to pack, under a directory of their own."""

    directory: Path

    def row(self, uid: str | int, content: bytes, suffix: str = "", **fields: object) -> Row:
        """Write a source and return its row. Equal contents share a file."""
        path = self.directory / f"{file_id(content.hex()[:1024]).hex()}-{len(content)}{suffix}"
        if not path.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return {"uid": uid, "created_at": CREATED_AT, "source_path": str(path), **fields}

    def rows(self, files: Mapping[str, bytes]) -> list[Row]:
        """Write sources and return their rows."""
        return [self.row(uid, content) for uid, content in files.items()]

    def manifest(self, rows: Sequence[object], name: str = "manifest.json") -> Path:
        """Write a manifest."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / name
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path


def names_of_one_shard(count: int, n_bits: int = 1, stem: str = "file", index: int = 0) -> list[str]:
    """Return names that all lie in one shard."""
    names: list[str] = []
    number = 0
    while len(names) < count:
        name = f"{stem}-{number}"
        if shard_index(file_id(name), n_bits) == index:
            names.append(name)
        number += 1
    return names


class CountedProgress(Progress):
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.rows = 0
        self.files = 0

    def begin(self, rows: int) -> None:
        self.rows = rows

    def advance(self, files: int) -> None:
        self.files += files


@dataclass(slots=True)
class Run:
    """A run and what came of it; also where it raised."""

    report: Report = field(default_factory=lambda: Report(store=""))
    errors: io.StringIO = field(default_factory=io.StringIO)
    progress: CountedProgress = field(default_factory=CountedProgress)

    def __post_init__(self) -> None:
        self.report.errors = self.errors

    @property
    def failures(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.errors.getvalue().splitlines()]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Packed, skipped, failed."""
        return self.report.packed, self.report.skipped, self.report.failed

    async def pack(
        self,
        storage: Storage,
        *manifests: Path | Input,
        on_conflict: OnConflict = "error",
        compression: Compression | None = None,
        n_bits: int | None = 1,
        max_segment_bytes: int = 1 << 30,
        memory: int = 64 << 20,
        threads: int = 2,
        single_writer: bool = True,
        partition: Partition | None = None,
        source_root: Path | None = None,
        buckets: SourceBuckets | None = None,
        finds_dictionary: bool = False,
        state: Path | None = None,
    ) -> None:
        """Pack. Most tests need no proof that locks hold, which takes two processes."""
        job = PackJob(
            inputs=[Manifests(str(one)) if isinstance(one, Path) else one for one in manifests],
            compression=compression or Compression(),
            on_conflict=on_conflict,
            n_bits=n_bits,
            max_segment_bytes=max_segment_bytes,
            memory=memory,
            threads=threads,
            single_writer=single_writer,
            partition=partition,
            source_root=source_root,
            finds_dictionary=finds_dictionary,
            state=state,
        )
        await pack(storage, job, self.report, self.progress, buckets)


def date_of(day: str) -> date:
    """Return YYYYMMDD as a date."""
    return date(int(day[:4]), int(day[4:6]), int(day[6:]))


async def check_store(place: Place | str, files: Mapping[str, bytes], day: str = DAY) -> VerifyReport:
    """Check that a store is sound and holds exactly these files on a day."""
    async with open_store(place) as store:
        for uid, content in files.items():
            assert await store.get(uid, date_of(day)) == content, f"{uid} has other content"
        assert {info.uid async for info in store.list(day)} == set(files)
        report = await verify(store)
        assert report.damage == []
        return report


async def head_of(storage: Storage, uid: str, day: str = DAY) -> WholeHead:
    """Read the whole head of a file's shard, verified."""
    descriptor = await require_descriptor(storage)
    n_bits = descriptor.n_bits_on(day)
    return await read_whole_head(storage, Identity(descriptor.store_id, day, n_bits, shard_index(file_id(uid), n_bits)))


def objects_under(place: Place) -> dict[str, tuple[bytes, float]]:
    """Return the content and the time of every object of a store, by its key; read behind DES's back."""
    if isinstance(place, Settings):
        return {key: (data, when.timestamp()) for key, data, when in objects_on_s3(place)}
    return {
        str(path.relative_to(place)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(place.rglob("*"))
        if path.is_file() and ".locks" not in path.parts
    }
