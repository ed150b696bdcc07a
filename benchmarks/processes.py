"""Processes under measurement: what they took, and the most memory they held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIB = 1 << 20

# A new process starts with its parent's peak: a small one between the benchmark, which may be large, and what is measured.
_MEASURING = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True)
seconds = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, done.stdout, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


@dataclass(frozen=True, slots=True)
class Used:
    """What a process took.

    Attributes:
        output: what it wrote to stdout.
        seconds: wall time.
        cpu_seconds: of user and system.
        peak_mib: the most memory that its largest process held.
    """

    output: str
    seconds: float
    cpu_seconds: float
    peak_mib: float


def run_measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Used:
    """Run a command to its end; a failure ends the benchmark."""
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURING, *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **(environment or {})},
    )
    status, output, seconds, cpu_seconds, peak_kib = json.loads(measured.stdout)
    if status:
        sys.exit(f"{' '.join(command)} failed with status {status}.")
    return Used(output, seconds, cpu_seconds, peak_kib / 1024)


def peak_mib_of_children(word: str) -> float:
    """Return the most memory that any of our running descendants held so far whose command line has a word."""
    peaks = [0]
    for child in psutil.Process().children(recursive=True):
        if word in child.cmdline():
            status = dict(line.split(":", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
            peaks.append(int(status["VmHWM"].split()[0]))
    return max(peaks) / 1024
