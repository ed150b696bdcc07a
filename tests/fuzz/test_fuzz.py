"""Inputs that are kept are read as they should be; the mutations get past the checksums; and minutes of fuzzing find nothing."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib.util import find_spec

import pytest

from des.errors import CorruptShardError
from des.store.heads import whole_head
from tests.fuzz import seeds
from tests.fuzz.__main__ import plan
from tests.fuzz.mutating import Mutator
from tests.fuzz.shards import SHARD, base, bundled, mutated_shard, unbundled
from tests.fuzz.targets import CORPUS, ROOT, TARGETS, inputs_of
from tests.shard.samples import read_tail

MOST_CORPUS_BYTES = 400 << 10


def run(module: str, *arguments: str, seconds: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"tests.fuzz{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)


def test_inputs_that_are_kept() -> None:
    count = sum(len(inputs_of(target)) for target in TARGETS.values())
    replayed = run(".replaying", seconds=100)
    assert replayed.stderr == ""
    assert replayed.stdout == f"{count} inputs, 0 failed\n"


def test_the_kept_inputs_are_few_and_begin_with_those_of_the_writers() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_CORPUS_BYTES
    for name, made in seeds.seeds().items():
        kept = {path.name for path in inputs_of(TARGETS[name]) if path.name.startswith("seed-")}
        assert kept == {f"seed-{number}" for number in range(len(made))}


def scrambled(rng: random.Random) -> Mutator:
    def mutate(data: bytes, most: int) -> bytes:
        changed = bytearray(data)
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed[:most])

    return Mutator(rng, mutate)


def test_mutations_get_past_the_checksums() -> None:
    rng = random.Random(9)
    mutator = scrambled(rng)
    whole = bundled(base())
    opened = refused = 0
    for _ in range(300):
        objects = unbundled(mutated_shard(whole, 16384, mutator))
        for good, data in list(zip(base(), objects, strict=True))[1:]:
            if data == good:
                continue
            try:
                read_tail(data)
            except CorruptShardError:
                refused += 1
            else:
                opened += 1
    assert opened > 3 * refused > 0


def test_some_mutated_heads_are_good_all_through() -> None:
    rng = random.Random(9)
    mutator = scrambled(rng)
    lies = set()
    for _ in range(200):
        data = unbundled(mutated_shard(bundled(base()), 16384, mutator))[1]
        try:
            whole_head(SHARD, data, "", for_writing=False)
        except CorruptShardError:
            continue
        lies.add(data)
    assert len(lies) > 20


def test_each_target_has_its_share() -> None:
    batches = plan(list(TARGETS.values()), 3600)
    assert sum(batch.seconds for batch in batches) == pytest.approx(3600)
    assert {batch.target.name for batch in batches} == set(TARGETS)
    assert max(batch.seconds for batch in batches) <= 150


@pytest.mark.skipif(find_spec("atheris") is None, reason="needs the extra fuzz")
@pytest.mark.parametrize("minutes", [pytest.param(3, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_minutes_of_fuzzing_find_nothing(minutes: int) -> None:
    done = run("", "--minutes", str(minutes), "--jobs", "2", seconds=800)
    assert done.returncode == 0, done.stdout + done.stderr
