"""The report of a run: what became of each file, counted, and the failures by row."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from des.errors import Status
    from des.pack.manifest import BadRow
    from des.pack.plan import PlannedRow


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that was not packed, and why, in one sentence."""

    row: int
    uid: str | None
    source_path: str | None
    status: Status
    error: str

    @classmethod
    def of_row(cls, row: PlannedRow, status: Status, error: str) -> Failure:
        """Return the failure of a planned row."""
        return cls(row.number, row.uid, row.source_path, status, error)

    @classmethod
    def of_bad_row(cls, row: BadRow) -> Failure:
        """Return the failure of a row that did not make it into the plan."""
        return cls(row.number, row.uid, row.source_path, "invalid", row.error)

    def to_json(self) -> str:
        """Return the failure as one line of JSON."""
        value = {
            "row": self.row,
            "uid": self.uid,
            "source_path": self.source_path,
            "status": self.status,
            "error": self.error,
        }
        # A lone surrogate (part of a path that is no UTF-8) has no UTF-8; the escape that takes its place is JSON's own.
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


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
    """What a run did. `bytes_in` and `bytes_stored` are of the packed files."""

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
    errors: TextIO | None = None
    shown: TextIO | None = None

    def take(self, tally: Tally) -> None:
        """Take over what became certain, and report its failures at once."""
        self.packed += tally.packed
        self.skipped += tally.skipped
        self.bytes_in += tally.bytes_in
        self.bytes_stored += tally.bytes_stored
        for failure in tally.failures:
            self.fail(failure)

    def fail(self, failure: Failure) -> None:
        """Count a failure and write it where failures go."""
        self.failed += 1
        line = failure.to_json()
        for stream in (self.shown, self.errors):
            if stream is not None:
                stream.write(line + "\n")

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
        return json.dumps({name: getattr(self, name) for name in names})
