"""`/openapi.json` against the routes, the types it describes, and the running service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from des.http import create_app
from des.http.listings import MAX_LIMIT
from des.http.openapi import document
from des.store import FileInfo
from des.store.shard_listing import ShardInfo
from tests.http.live import running
from tests.http.test_serving import base, serving

if TYPE_CHECKING:
    from pathlib import Path

    from des.storage.testing import RecordingStorage

__all__ = ["base"]  # the fixture

# What no pattern says: whether a day is in the calendar, and that a file is asked for by uid and created_at or a day by date.
CONFIG = """
[checks]
negative_data_rejection.expected-statuses = ["400", "404", "405", "413", "416"]

[[operations]]
include-path-regex = "^/(files|shards)"
checks.positive_data_acceptance.expected-statuses = ["2xx", "304", "400", "404", "410", "412", "416"]
"""


async def test_it_is_served_and_valid(storage: RecordingStorage) -> None:
    async with running(storage) as server:
        reply = await server.ask("/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert json.loads(reply.body) == document()
    OpenAPIV31SpecValidator(document()).validate()


def test_it_names_the_routes_and_no_others(tmp_path: Path) -> None:
    routes = {
        (getattr(route, "path", ""), method.lower())
        for route in create_app(tmp_path).routes
        for method in getattr(route, "methods", ())
    }
    assert routes == {(path, method) for path, methods in document()["paths"].items() for method in methods}


def test_it_names_the_fields_of_what_is_listed() -> None:
    schemas = document()["components"]["schemas"]
    for kind in (FileInfo, ShardInfo):
        names = [field.name for field in fields(kind)]
        assert list(schemas[kind.__name__]["properties"]) == names
        assert schemas[kind.__name__]["required"] == names
    [limit] = [one for one in document()["paths"]["/shards/{date}"]["get"]["parameters"] if one["name"] == "limit"]
    assert limit["schema"]["maximum"] == MAX_LIMIT


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--max-examples", "2", "--exclude-method", "HEAD", "--seed", "1"], id="few"),
        pytest.param(["--max-examples", "200"], id="many", marks=pytest.mark.soak),
    ],
)
def test_the_service_keeps_to_it(base: Path, tmp_path: Path, options: list[str]) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with serving(base, log_level="warning") as service:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", "--no-color"]
        target = f"http://127.0.0.1:{service.port}/openapi.json"
        ran = subprocess.run(
            [*command, target, "--checks", "all", *options], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
        assert re.search(r"Test cases:\n  [1-9]\d+ generated, [1-9]\d+ passed", ran.stdout), ran.stdout
        assert service.process.poll() is None
        assert not any("ERROR" in line or '"error"' in line for line in service.lines), service.lines
