from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
@pytest.mark.skipif(
    not (shutil.which("prometheus") or shutil.which("prometheus", path=str(Path(sys.executable).parent))),
    reason="there is no prometheus: `make deploy-check` gets it where there is Debian's apt",
)
def test_prometheus_answers_what_the_dashboard_asks() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.scrape_check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "workers [2.0]" in done.stdout
