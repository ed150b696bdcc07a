"""What the checks of `deploy/check.py` are made of: their error, and the tools that they run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


class CheckError(Exception):
    """Something in deploy/ is wrong; the sentence says what and where."""


def tool(name: str, how: str) -> str:
    """Return the path of a command, taken from beside the running interpreter or from PATH.

    Args:
        name: the command.
        how: how to get it, for the sentence where it is missing.

    Raises:
        CheckError: it is not there.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise CheckError(f"{name} is missing: {how}.")
    return found


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return its standard output.

    Raises:
        CheckError: it failed; the sentence is what it printed.
    """
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise CheckError((done.stdout + done.stderr).strip() or f"{command[0]} ended with status {done.returncode}.")
    return done.stdout
