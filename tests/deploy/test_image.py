"""The Containerfile says the same as the code, and its health check tells well from unwell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from des.settings import Settings, variable_names

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(stage: int) -> list[tuple[str, str]]:
    """Return the instructions of a stage, 0 being what stands before the first, each with the rest of its line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    stages = re.split(r"^(?=FROM )", text, flags=re.MULTILINE)
    lines = [line.split(maxsplit=1) for line in stages[stage].splitlines() if line.strip()]
    return [(name, rest) for name, rest in lines]


def of_the_image(name: str) -> str:
    [found] = [rest for found, rest in instructions(2) if found == name]
    return found


def test_the_image_is_told_settings_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    told = dict(word.split("=", 1) for word in shlex.split(of_the_image("ENV")))
    names = {name for name in told if name.startswith("DES_")}
    assert names <= set(variable_names())
    for name in names:
        monkeypatch.setenv(name, told[name])
    settings = Settings()
    assert settings.http_port == int(of_the_image("EXPOSE"))
    assert settings.http_host == "0.0.0.0"
    [folders] = [rest for name, rest in instructions(2) if name == "RUN"]
    assert f"-o {of_the_image('USER').replace(':', ' -g ')} {settings.base_dir}" in folders


def test_the_user_is_a_number_and_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", of_the_image("USER"))


def test_the_base_has_a_python_that_is_supported_and_the_label_the_version() -> None:
    [base] = [rest for name, rest in instructions(0) if name == "ARG"]
    named = re.fullmatch(r"BASE=python:(3)\.(\d+)-slim-\w+", base)
    assert named
    assert (3, 11) <= (int(named[1]), int(named[2])) < (3, 14)
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert ("ARG", f"VERSION={PROJECT['version']}") in instructions(2)


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    sources = [word for name, rest in instructions(1) if name == "COPY" for word in rest.split()[:-1]]
    assert "deploy/constraints.txt" in sources
    passed = (ROOT / ".containerignore").read_text().splitlines()
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in passed
    assert (ROOT / ".dockerignore").read_bytes() == (ROOT / ".containerignore").read_bytes()


def test_what_builds_the_project_is_locked_too() -> None:
    locked = {line.partition("==")[0].lower() for line in (ROOT / "deploy/constraints.txt").read_text().splitlines()}
    needed = {re.split(r"\W", name.replace("-", "_"))[0] for name in [*PROJECT["dependencies"], "hatchling"]}
    assert needed <= {name.replace("-", "_") for name in locked}


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Answer every GET of /health with a status; the port is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def health(**settings: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {f"DES_HTTP_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-I", str(ROOT / "deploy/healthcheck.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_the_health_check_says_what_the_service_says(status: int, expected: int) -> None:
    with answering(status) as port:
        told = health(host="0.0.0.0", port=port)
    assert (told.returncode, str(status) in told.stderr) == (expected, status != 200)


def test_the_health_check_asks_the_port_of_the_probes_where_they_have_one() -> None:
    with answering(503) as main, answering(200) as admin:
        assert health(port=main, admin_port=admin).returncode == 0


def test_the_health_check_fails_where_nothing_listens() -> None:
    with answering(200) as port:
        pass
    told = health(port=port)
    assert told.returncode == 1
    assert "does not answer" in told.stderr
