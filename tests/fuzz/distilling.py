"""Takes over into the kept inputs the smallest of `.fuzz/corpus` that reach lines of `des` which the kept ones do not.

python -m tests.fuzz.distilling [TARGET…]
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from tests.fuzz.limits import limit
from tests.fuzz.targets import CORPUS, ROOT, TARGETS, Target, inputs_of

if TYPE_CHECKING:
    from types import FrameType

_MOST_BYTES = 24 << 10
_CPU_SECONDS = 1800
_OURS = str(ROOT / "des")


def lines_reached(target: Target, data: bytes) -> set[tuple[str, int, int]]:
    """Return the steps from line to line that reading an input takes."""
    steps: set[tuple[str, int, int]] = set()
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, argument: object) -> object:
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        steps.add((frame.f_code.co_filename, last.get(frame, 0), frame.f_lineno))
        last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]  # a trace function returns itself
    try:
        target.read(data)
    finally:
        sys.settrace(None)
    return steps


def distil(target: Target) -> int:
    """Take over what is missing of a target; return how many inputs that were."""
    reached: set[tuple[str, int, int]] = set()
    left = _MOST_BYTES
    for path in inputs_of(target):
        reached |= lines_reached(target, path.read_bytes())
        left -= 0 if path.name.startswith(("seed-", "found-")) else path.stat().st_size
    grown = ROOT / ".fuzz/corpus" / target.name
    taken = 0
    for path in sorted(grown.iterdir(), key=lambda path: path.stat().st_size) if grown.is_dir() else ():
        size = path.stat().st_size
        if size > left:
            break
        new = lines_reached(target, path.read_bytes()) - reached
        if new:
            reached |= new
            left -= size
            taken += 1
            shutil.copy(path, CORPUS / target.name)
    return taken


if __name__ == "__main__":
    limit(_CPU_SECONDS)
    for name in sys.argv[1:] or TARGETS:
        print(f"{name}: {distil(TARGETS[name])}", flush=True)  # noqa: T201 - this is a program, and its output its result
