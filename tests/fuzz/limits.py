"""Bounds on a process that reads hostile bytes."""

from __future__ import annotations

import resource
from pathlib import Path

# An input is 16 KiB at most, and a large payload may hold ten thousand times what it takes as zeros.
HEADROOM = 512 << 20
INPUT_SECONDS = 20


def limit(cpu_seconds: int) -> None:
    """Let this process have no more memory than it has, and a little, and no more than so many seconds of processor time."""
    in_use = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + HEADROOM, in_use + HEADROOM))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
