"""Taking in what is to be packed: inputs → rows, checked and routed → the plan. Runs in a worker thread.

Nothing of the inputs is held: all rows go into the plan, and the bad ones are reported once all inputs were read to their ends. An input that cannot
be is the end of the run, before anything was written.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio.from_thread

from des.errors import InvalidRequestError, SettingsError
from des.pack.inputs import Manifests
from des.pack.manifest import RowChecker
from des.pack.report import Failure
from des.pack.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from des.pack.inputs import Input
    from des.pack.manifest import CheckedRows
    from des.pack.partition import Partition
    from des.pack.plan import Plan, PlannedShard
    from des.pack.report import Report
    from des.pack.spool import Spool
    from des.storage.descriptor import Descriptor

_TAKEN = "taken in"


class SourceRoot:
    """A directory that the sources of manifests must lie in; relative paths start there."""

    def __init__(self, directory: Path) -> None:
        """Set up.

        Raises:
            SettingsError: it is no directory.
        """
        try:
            real = os.path.realpath(directory, strict=True)
            is_directory = stat.S_ISDIR(os.stat(real).st_mode)  # noqa: PTH116 - text as below
        except OSError as error:
            raise SettingsError(f"--source-root {directory} cannot be used: {error.strerror}.") from error
        if not is_directory:
            raise SettingsError(f"--source-root {directory} is not a directory.")
        self._real = real
        self._inside = os.path.join(real, "")  # noqa: PTH118 - with a slash at its end

    def located(self, source: str) -> str:
        """Return where a source really is, without any symbolic link.

        Raises:
            InvalidRequestError: outside.
        """
        if "://" in source:
            raise InvalidRequestError("source_path is an address, but --source-root allows only files below it.")
        real = os.path.realpath(os.path.join(self._real, source))  # noqa: PTH118 - takes an absolute path as it is
        if not real.startswith(self._inside):
            raise InvalidRequestError("source_path leads out of --source-root.")
        return real


def roots_of(inputs: Sequence[Input], source_root: Path | None) -> list[str]:
    """Return the directories that sources must not lead out of, each with a slash at its end: `source_root`, and those that are packed as a whole.

    None of the latter where manifests may name sources anywhere, theirs included.
    """
    if source_root is None and any(isinstance(one, Manifests) for one in inputs):
        return []
    directories = [one.directory for one in inputs if isinstance(one, Tree)]
    if source_root is not None:
        directories.append(source_root)
    return [os.path.join(name, "") for one in directories for name in (os.path.realpath(one), str(one))]  # noqa: PTH118 - as above


@dataclass(frozen=True, slots=True)
class Intake:
    """Reads inputs into a plan.

    Attributes:
        descriptor: of the store.
        partition: the share of the shards to keep; None keeps all.
        source_root: where sources must lie; None: anywhere.
        look_at: sees rows before they reach the plan, and may find some of them bad.
    """

    descriptor: Descriptor
    partition: Partition | None = None
    source_root: Path | None = None
    look_at: Callable[[CheckedRows], CheckedRows] = field(default=lambda rows: rows)

    def fill(
        self, plan: Plan, inputs: Sequence[Input], spool: Spool, report: Report, planned: Callable[[int], None]
    ) -> list[PlannedShard]:
        """Read all inputs into the plan; return its shards.

        Args:
            plan: an empty one.
            inputs: what to read.
            spool: for what must lie on disk until it is packed.
            report: learns how many files there are, and which are bad.
            planned: told how many rows were read so far.

        Raises:
            ManifestError: an input cannot be read to its end; nothing was reported.
            SettingsError: `source_root` is no directory, or a row belongs to another zone than the store holds.
        """
        located = None if self.source_root is None else SourceRoot(self.source_root).located
        checker = RowChecker(self.descriptor, self.partition, located)
        first, files = 1, 0
        names = []
        report.is_temporary = spool.holds
        for part in (part for one in inputs for part in one.parts()):
            names.append((first, part.name))
            for values in part.rows(spool):
                anyio.from_thread.check_cancelled()
                rows = self.look_at(checker.check_all(first, values))
                plan.add(rows.good)
                plan.add_bad(rows.bad)
                first += len(values)
                files += len(rows.good) + len(rows.bad)
                planned(first - 1)
        plan.note(_TAKEN, json.dumps({"files": files, "names": names}))
        shards = plan.finish()
        report_intake(plan, report)
        return shards


def report_intake(plan: Plan, report: Report) -> None:
    """Report what a plan knows of its inputs: how many files, and which rows are bad."""
    taken = json.loads(plan.noted(_TAKEN) or "{}")
    report.files = taken["files"]
    report.manifests = [(first, name) for first, name in taken["names"]]
    for row in plan.bad():
        report.fail(Failure.of_bad_row(row))
