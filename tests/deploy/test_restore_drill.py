"""The drill of README: copies that were made while a packer ran are repaired, and lack nothing that was acknowledged before."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.soak
def test_the_restore_drill_succeeds() -> None:
    command = [sys.executable, "-m", "deploy.restore_drill", "--files", "40", "--n-bits", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^ok  ([a-z ]+): \d+ shards torn", done.stdout, re.MULTILINE) == ["heads first", "as listed"]
