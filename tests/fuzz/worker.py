"""One batch of fuzzing: one target, one process, within bounds of memory and time. Started by `python -m tests.fuzz`.

An error that is no allowed one is written to the directory of findings, once for each place in the code it comes from, and fuzzing goes on. What ends the
process, an input that takes too long included, libFuzzer writes there itself.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import traceback
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import atheris

with atheris.instrument_imports(include=["des"]):
    from tests.fuzz.limits import INPUT_SECONDS, limit
    from tests.fuzz.mutating import Mutator
    from tests.fuzz.targets import CORPUS, TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.targets import Target

# Instrumenting and the first look at all inputs come on top.
_SPARE_CPU_SECONDS = 120


def _place_of(error: Exception) -> str:
    """Return what tells one finding from another: the kind of error, and where it was raised in our code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/des/" in frame.filename] or list(
        traceback.extract_tb(error.__traceback__)
    )[-1:]
    said = str(error) if type(error).__module__.startswith("tests.") else ""
    return f"{type(error).__name__} {said} {frames[-1].filename}:{frames[-1].lineno}"


def reading(target: Target, found: Path) -> Callable[[bytes], None]:
    """Return what libFuzzer calls with each input."""

    def read(data: bytes) -> None:
        try:
            target.read(data)
        except Exception as error:  # noqa: BLE001 - whatever comes out is a finding
            path = found / f"found-{hashlib.sha256(_place_of(error).encode()).hexdigest()[:12]}"
            if not path.exists():
                path.write_bytes(data)
                path.with_suffix(".txt").write_text(traceback.format_exc(), encoding="utf-8")

    return read


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True, help="the corpus that grows")
    parser.add_argument("--found", type=Path, required=True, help="where findings go")
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    options = [
        f"-timeout={INPUT_SECONDS}",
        "-rss_limit_mb=0",  # the limit of the address space is the stricter one
        f"-max_len={target.most_bytes}",
        f"-artifact_prefix={arguments.found}/",
        "-print_final_stats=1",
        f"-max_total_time={arguments.seconds}",
        "-report_slow_units=5",
    ]
    mutated = target.mutated

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if mutated is None:
            return bytes(atheris.Mutate(data, max_size))
        return mutated(data, max_size, Mutator(Random(seed), atheris.Mutate))

    custom = {} if mutated is None else {"custom_mutator": mutate}
    atheris.Setup(
        [sys.argv[0], *options, str(arguments.work), str(CORPUS / target.name)],
        reading(target, arguments.found),
        **custom,
    )
    limit(arguments.seconds + _SPARE_CPU_SECONDS)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
