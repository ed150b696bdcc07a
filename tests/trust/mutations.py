"""Rules of the store that are broken on purpose, each by one patch, and the tests that must notice.

A mutation that no test notices is a rule that nothing holds. Each is applied alone to a copy of the tree; every test named beside it has to fail then,
and to pass without it (which the runs of the other tests of `make trust` show).

    python -m tests.trust.mutations [NAME …]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[2]
_COPIED = ("des", "tests", "pyproject.toml", "README.md")
# A rule that is broken may make a test wait for what never comes: that is a failure as well.
_TEST_SECONDS = 60
_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule that is broken.

    Attributes:
        rule: what does not hold any more.
        path: of the module.
        old: what stands there, exactly once.
        new: what takes its place.
        tests: node ids, each of which fails then in at least one of its cases.
    """

    rule: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Return the module with the rule broken.

        Raises:
            ValueError: what is to be replaced does not stand there exactly once.
        """
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.rule!r}: {self.path} has {self.old!r} {found} times, not once.")
        return text.replace(self.old, self.new)


MUTATIONS = (
    # Reading
    Mutation(
        "payload check off",
        "des/store/payloads.py",
        "(not found.is_large and checksum32(stored) != entry.checksum)",
        "False",
        (
            "tests/store/test_store_damage.py::TestDamage::test_every_byte_of_a_payload",
            "tests/http/test_damage.py::test_every_damage_of_a_small_shard",
        ),
    ),
    Mutation(
        "check of a large file's chunks off",
        "des/shard/chunking.py",
        "len(stored) != length or checksum32(stored) != checksum",
        "len(stored) != length",
        ("tests/store/test_store_damage.py::TestDamage::test_a_damaged_chunk_stops_a_stream_before_it",),
    ),
    Mutation(
        "page check off",
        "des/shard/reading.py",
        "len(data) != self.length or checksum64(data) != self.checksum",
        "len(data) != self.length",
        (
            "tests/store/test_heads.py::TestDamage::test_a_damaged_page_that_is_read",
            "tests/http/test_damage.py::test_every_damage_of_a_small_shard",
        ),
    ),
    Mutation(
        "tail check off",
        "des/shard/reading.py",
        "if checksum64(tail[:-CHECKSUM_AT_END]) != checksum:",
        "if False:",
        ("tests/shard/test_damage.py::test_every_flip_of_a_head",),
    ),
    Mutation(
        "another shard's object is taken for this one's",
        "des/shard/reading.py",
        "if tail.identity != expected:",
        "if False:",
        ("tests/store/test_heads.py::TestDamage::test_another_shards_head_is_refused_by_name",),
    ),
    Mutation(
        "length check off",
        "des/storage/s3_ranges.py",
        "if length and length != str(last - first):",
        "if False:",
        ("tests/storage/test_s3_ranges.py::test_anything_else_is_a_failed_attempt",),
    ),
    Mutation(
        "resume without If-Match",
        "des/storage/s3_ranges.py",
        'return Conditions(f"bytes={self.offset}-{self.end - 1}", self.version or None, None)',
        'return Conditions(f"bytes={self.offset}-{self.end - 1}", None, None)',
        ("tests/storage/test_s3_faults.py::test_a_broken_body_resumes_where_it_broke_at_the_same_version",),
    ),
    Mutation(
        "resume without ETag",
        "des/storage/s3_ranges.py",
        "if self.version and version != self.version:",
        "if False:",
        ("tests/storage/test_s3_faults.py::test_another_etag_in_the_reply_is_never_data",),
    ),
    Mutation(
        "retries without a budget",
        "des/storage/s3_retry.py",
        "if cost > self.tokens:",
        "if False:",
        (
            "tests/storage/test_s3_faults.py::test_a_storm_of_503_costs_no_more_than_the_budget_and_passes",
            "tests/s3/test_storm.py::test_a_storm_of_503",
        ),
    ),
    Mutation(
        "single flight removed",
        "des/store/cache.py",
        "        while True:\n            flight = self._flights.get(key)",
        "        while True:\n            return await call()\n            flight = self._flights.get(key)",
        ("tests/store/test_costs.py::TestManyAtOnce::test_a_thousand_cold_gets_in_one_shard",),
    ),
    Mutation(
        "a cancelled leader takes its waiters along",
        "des/store/cache.py",
        "        except Exception as error:\n            flight.error = error\n            raise\n",
        "        except BaseException as error:\n            flight.error = error\n            raise\n",
        ("tests/store/test_costs.py::TestManyAtOnce::test_cancelling_the_leader_loses_nobody",),
    ),
    Mutation(
        "negative cache for ever",
        "des/store/index.py",
        "proof = as_of - self._settings.negative_ttl",
        'proof = float("-inf")',
        ("tests/store/test_index.py::TestNotFound::test_a_stale_head_is_asked_again_before_it_denies",),
    ),
    Mutation(
        "trouble is not found",
        "des/store/index.py",
        "        except ObjectNotFoundError:\n            looked = Looked(None, asked_at)",
        "        except Exception:\n            looked = Looked(None, asked_at)",
        ("tests/http/test_damage.py::test_every_damage_of_a_small_shard",),
    ),
    # Writing
    Mutation(
        "page check off on merge only",
        "des/store/heads.py",
        "            ref.check(page)\n            if page[:16]",
        "            if page[:16]",
        ("tests/pack/test_commit.py::TestBase::test_any_flipped_byte",),
    ),
    Mutation(
        "conditional put made plain",
        "des/storage/local.py",
        "            _check(path, mode)\n",
        "",
        ("tests/storage/test_local.py::TestLocalStorage::test_one_of_many_writers_wins",),
    ),
    Mutation(
        "swapped at whatever version is there",
        "des/pack/commit.py",
        "IfVersion(head.version)\n            )",
        "IfVersion((await storage.head(base.identity.head_key)).version)\n            )",
        ("tests/pack/test_interleavings.py::test_two_packers",),
    ),
    Mutation(
        "If-Match dropped",
        "des/storage/s3.py",
        'condition["IfMatch"] = mode.version',
        "pass",
        ("tests/storage/test_s3.py::TestOnSeaweedFS::test_put_in_place_of_a_version",),
    ),
    Mutation(
        "lock of a key not taken",
        "des/storage/local.py",
        "        with self._locks.hold(key):\n            _check(path, mode)",
        "        if key:\n            _check(path, mode)",
        ("tests/storage/test_local_durability.py::TestDurability::test_lock_compare_write_unlock",),
    ),
    Mutation(
        "commit log ignored",
        "des/pack/commit.py",
        "if tried.intersection(head.tables.commit_log):",
        "if False:",
        ("tests/pack/test_commit.py::TestSwap::test_any_failure_means_unknown",),
    ),
    Mutation(
        "fsync skipped",
        "des/storage/publishing.py",
        "        os.fsync(self._open_number())\n",
        "",
        ("tests/storage/test_local_durability.py::TestDurability::test_write_sync_rename_sync",),
    ),
    Mutation(
        "fsync of the directory skipped",
        "des/storage/publishing.py",
        "            os.fsync(number)\n",
        "            pass\n",
        ("tests/storage/test_local_durability.py::TestDurability::test_write_sync_rename_sync",),
    ),
    Mutation(
        "rename before fsync",
        "des/storage/publishing.py",
        "        os.fsync(self._open_number())\n        self._close()\n        self._temporary.replace(self._target)\n",
        "        self._temporary.replace(self._target)\n        os.fsync(self._open_number())\n        self._close()\n",
        ("tests/storage/test_local_durability.py::TestDurability::test_write_sync_rename_sync",),
    ),
    Mutation(
        "head-first skipped",
        "des/pack/commit.py",
        "if (await storage.list_level(identity.segment_prefix)).objects:",
        "if False:",
        ("tests/pack/test_commit.py::TestOpening::test_a_lost_head_is_named_and_nothing_written",),
    ),
    Mutation(
        "condemned list ignored",
        "des/pack/commit.py",
        "if name in condemned:",
        "if False:",
        ("tests/pack/test_packer.py::TestOtherWriters::test_my_segment_is_condemned",),
    ),
    Mutation(
        "places of the quorum not counted",
        "des/storage/zone_settling.py",
        "if held >= zone.quorum:",
        "if True:",
        ("tests/storage/test_zone_copying.py::test_the_quorum_counts_the_places_that_hold_the_commit",),
    ),
    Mutation(
        "quorum ignored",
        "des/pack/commit.py",
        "    await settle(storage, base.identity)\n    return swapped",
        "    return swapped",
        (
            "tests/pack/test_several_places.py::TestSwap::test_too_few_places",
            "tests/pack/test_several_places.py::test_a_copy_is_down_and_comes_back",
        ),
    ),
    Mutation(
        "a deleted file comes back with the next pack",
        "des/pack/decisions.py",
        "    if entry is None:\n",
        "    if entry is None or entry.deleted:\n",
        ("tests/pack/test_packer.py::TestConflicts::test_a_deleted_file",),
    ),
    # A file's later life
    Mutation(
        "compaction merging without looking",
        "des/lifecycle/compacting.py",
        "        if head.version != base.version:\n            if not {*names}",
        "        if False:\n            if not {*names}",
        ("tests/lifecycle/test_interleavings.py::test_two_at_a_time",),
    ),
    Mutation(
        "compaction that carries damage along",
        "des/lifecycle/rewriting.py",
        "if len(stored) != entry.stored_size or checksum32(stored) != entry.checksum:",
        "if False:",
        ("tests/lifecycle/test_compacting.py::test_damage_is_not_carried_along",),
    ),
    Mutation(
        "gc that takes the only copy",
        "des/lifecycle/collecting.py",
        "            if entry is None or not (entry.deleted or",
        "            if False and not (entry.deleted or",
        ("tests/lifecycle/test_collecting.py::test_the_only_copy_of_a_file_is_listed",),
    ),
    Mutation(
        "gc before it condemned",
        "des/lifecycle/collecting.py",
        "doomed = await condemn(storage, identity, orphans, to_microseconds(await storage.now())) if orphans else []",
        "doomed = [await storage.delete(identity.segment_key(name)) or name for name in orphans]",
        ("tests/lifecycle/test_collecting.py::test_what_is_deleted_was_condemned_before",),
    ),
    Mutation(
        "repair ignoring generations",
        "des/lifecycle/repairing.py",
        "rows.append(_ROW.pack(row.entry.file_id, row.generation, number,",
        "rows.append(_ROW.pack(row.entry.file_id, 0, number,",
        ("tests/lifecycle/test_repairing.py::test_every_file_comes_back",),
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the tests of a mutation said.

    Attributes:
        mutation: see there.
        failed: cases that failed, node ids.
        missing: named tests of which no case failed.
        error: why nothing can be said; "" where something can.
    """

    mutation: Mutation
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    error: str = ""

    @property
    def is_caught(self) -> bool:
        """Whether every test that was named noticed."""
        return not (self.missing or self.error)


def try_out(mutation: Mutation, tree: Path) -> Outcome:
    """Break a rule in a copy of the tree, run its tests there, and mend it again."""
    module = tree / mutation.path
    whole = module.read_text(encoding="utf-8")
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    module.write_text(mutation.applied(whole), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "--timeout", str(_TEST_SECONDS), f"--junit-xml={report}"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *mutation.tests],
            cwd=tree,
            env=environment | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome(mutation, (), mutation.tests, f"its tests take more than {_SECONDS} s")
    finally:
        module.write_text(whole, encoding="utf-8")
    if not report.exists():
        return Outcome(mutation, (), mutation.tests, f"no report (exit status {done.returncode}): {done.stdout[-500:]}")
    failed = tuple(_failed(report))
    missing = tuple(test for test in mutation.tests if not any(one.startswith(test) for one in failed))
    return Outcome(mutation, failed, missing)


def _failed(report: Path) -> Iterator[str]:
    for case in ET.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            # a class name is the module's path with dots, then the class: tests.store.test_heads.TestDamage
            module, dot, owner = case.attrib["classname"].partition(".Test")
            owner = f"Test{owner}::" if dot else ""
            yield f"{module.replace('.', '/')}.py::{owner}{case.attrib['name']}"


def try_all(
    mutations: Sequence[Mutation], *, at_once: int, tell: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Try mutations, some at a time, each in a copy of the tree.

    Args:
        mutations: what to break.
        at_once: how many copies there are.
        tell: called with each outcome as it comes.
    """
    with tempfile.TemporaryDirectory(prefix="des-mutations-") as directory:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(at_once):
            trees.put(_copy(Path(directory, str(number))))

        def one(mutation: Mutation) -> Outcome:
            tree = trees.get()
            try:
                outcome = try_out(mutation, tree)
            finally:
                trees.put(tree)
            tell(outcome)
            return outcome

        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(one, mutations))


def _copy(target: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, target / name)
    return target


def sentence(outcome: Outcome) -> str:
    """Say what came of a mutation, on one line."""
    if outcome.error:
        return f"NOT TRIED  {outcome.mutation.rule}: {outcome.error}"
    if outcome.missing:
        return f"NOT CAUGHT {outcome.mutation.rule}: by {', '.join(outcome.missing)}"
    cases = len(outcome.failed)
    return f"caught     {outcome.mutation.rule}: {cases} case{'s' if cases > 1 else ''}, such as {outcome.failed[0]}"


def main(names: Sequence[str]) -> int:
    """Try the mutations of these names, or all; return 1 where one was not caught."""
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.rule in names]
    if not chosen:
        sys.exit(f"There is no such mutation; there are: {', '.join(mutation.rule for mutation in MUTATIONS)}.")
    outcomes = try_all(chosen, at_once=os.cpu_count() or 1, tell=lambda outcome: print(sentence(outcome), flush=True))  # noqa: T201
    return int(not all(outcome.is_caught for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
