"""Reads every input that is kept, within the bounds, and names those that fail.

python -m tests.fuzz.replaying [TARGET…]
"""

from __future__ import annotations

import signal
import sys
import traceback

from tests.fuzz.limits import INPUT_SECONDS, limit
from tests.fuzz.targets import TARGETS, inputs_of

_CPU_SECONDS = 60


def main(names: list[str]) -> int:
    """Read them; return 1 where one failed. One that takes too long ends the process."""
    limit(_CPU_SECONDS)
    failed = count = 0
    for name in names or TARGETS:
        for path in inputs_of(TARGETS[name]):
            count += 1
            signal.alarm(INPUT_SECONDS)
            try:
                TARGETS[name].read(path.read_bytes())
            except Exception:  # noqa: BLE001 - whatever comes out is a finding, and all of them are to be named
                failed += 1
                print(f"{name}/{path.name}:\n{traceback.format_exc()}", flush=True)  # noqa: T201 - its result
            signal.alarm(0)
    print(f"{count} inputs, {failed} failed")  # noqa: T201 - as above
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
