"""The report of a run: what became of each file, counted, and the failures by row."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TextIO

from des.console import visible_json
from des.shard.layout import from_microseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from des.errors import Status
    from des.pack.manifest import BadRow
    from des.pack.plan import PlannedRow


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that was not packed, and why, in one sentence; `fields` and `metadata`, which is JSON, are what else it takes to pack it again."""

    row: int
    uid: str | None
    source_path: str | None
    status: Status
    error: str
    fields: dict[str, object] = field(default_factory=dict)
    manifest: str | None = None
    metadata: bytes = b""

    @classmethod
    def of_row(cls, row: PlannedRow, status: Status, error: str) -> Failure:
        """Return the failure of a planned row."""
        fields: dict[str, object] = {"created_at": from_microseconds(row.created_at).isoformat()}
        if row.size_bytes is not None:
            fields["size_bytes"] = row.size_bytes
        if row.content_type is not None:
            fields["content_type"] = row.content_type
        return cls(row.number, row.uid, row.source_path, status, error, fields, metadata=row.metadata)

    @classmethod
    def of_bad_row(cls, row: BadRow) -> Failure:
        """Return the failure of a row that did not make it into the plan."""
        return cls(row.number, row.uid, row.source_path, "invalid", row.error, row.fields)

    def to_json(self) -> str:
        """Return the failure as one line of JSON, which is a row of a manifest as well."""
        value = {
            "row": self.row,
            "uid": self.uid,
            "source_path": self.source_path,
            "status": self.status,
            "error": self.error,
            **({} if self.manifest is None else {"manifest": self.manifest}),
            **self.fields,
            **({"metadata": json.loads(self.metadata)} if self.metadata else {}),
        }
        # A lone surrogate (part of a path that is no UTF-8) has no UTF-8, and what is bad of a row may act on a terminal.
        return visible_json(json.dumps(value, ensure_ascii=False))


Origin = Literal["none", "given", "trained", "reused"]


@dataclass(frozen=True, slots=True)
class DictionaryUse:
    """What came of `--dictionary`.

    Attributes:
        origin: where the dictionary is from: `none`, `given`, `trained` or `reused` from the store.
        size: bytes of it.
        saved_bytes: what it saves over the run, its own size in each segment counted, as the sample tells; 0 for one that was given.
    """

    origin: Origin = "none"
    size: int = 0
    saved_bytes: int = 0

    def __str__(self) -> str:
        """Return it for people."""
        if self.origin == "none":
            return "none: none would save more than it takes"
        if self.origin == "given":
            return f"given, {self.size:,} bytes"
        return f"{self.origin}, {self.size:,} bytes; saves about {self.saved_bytes:,}"


@dataclass(slots=True)
class Tally:
    """Counts of files and bytes; adds up."""

    packed: int = 0
    skipped: int = 0
    bytes_in: int = 0
    bytes_stored: int = 0
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add another tally."""
        self.packed += other.packed
        self.skipped += other.skipped
        self.bytes_in += other.bytes_in
        self.bytes_stored += other.bytes_stored
        self.failures += other.failures


@dataclass(slots=True)
class Report:
    """What a run did. `bytes_in` and `bytes_stored` are of the packed files.

    Attributes:
        statuses: how many files failed with which status.
        manifests: what was read: number of the first row, and name.
        is_complete: the run came to its end.
        is_temporary: tells whether a source lies where nobody will find it again.
    """

    store: str
    files: int = 0
    packed: int = 0
    skipped: int = 0
    failed: int = 0
    bytes_in: int = 0
    bytes_stored: int = 0
    shards: int = 0
    segments: int = 0
    objects_written: int = 0
    seconds: float = 0.0
    dictionary: DictionaryUse | None = None
    shards_done_before: int = 0
    errors: TextIO | None = None
    shown: TextIO | None = None
    statuses: Counter[Status] = field(default_factory=Counter)
    manifests: list[tuple[int, str]] = field(default_factory=list)
    is_complete: bool = False
    is_temporary: Callable[[str], bool] = field(default=lambda _: False)

    def take(self, tally: Tally) -> None:
        """Take over what became certain, and report its failures at once."""
        self.packed += tally.packed
        self.skipped += tally.skipped
        self.bytes_in += tally.bytes_in
        self.bytes_stored += tally.bytes_stored
        for failure in tally.failures:
            self.fail(failure)

    def take_back(self, tally: Tally, statuses: Counter[Status]) -> None:
        """Count out what was taken over: of files that are dealt with anew."""
        self.packed -= tally.packed
        self.skipped -= tally.skipped
        self.bytes_in -= tally.bytes_in
        self.bytes_stored -= tally.bytes_stored
        self.failed -= statuses.total()
        self.statuses -= statuses

    def fail(self, failure: Failure) -> None:
        """Count a failure and write it where failures go."""
        self.failed += 1
        self.statuses[failure.status] += 1
        line = self._located(failure).to_json()
        for stream in (self.shown, self.errors):
            if stream is not None:
                stream.write(line + "\n")

    def _located(self, failure: Failure) -> Failure:
        """Return a failure that names its manifest where there are several, and only sources that last."""
        if failure.source_path is not None and self.is_temporary(failure.source_path):
            failure = replace(failure, source_path=None)
        if len(self.manifests) > 1:
            at = bisect_right(self.manifests, failure.row, key=lambda one: one[0]) - 1
            failure = replace(failure, manifest=self.manifests[at][1])
        return failure

    def to_json(self) -> str:
        """Return the summary as one JSON object."""
        names = [
            "files",
            "packed",
            "skipped",
            "failed",
            "bytes_in",
            "bytes_stored",
            "shards",
            "segments",
            "objects_written",
            "seconds",
            "store",
        ]
        used = self.dictionary or DictionaryUse()
        return json.dumps(
            {name: getattr(self, name) for name in names}
            | {"dictionary": used.origin, "dictionary_saves": used.saved_bytes}
        )
