from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import des
from des import errors

ROOT = Path(__file__).parents[1]

# What CONTRACTS name besides the errors.
NAMED = {"open_store", "locate_shard", "ShardLocation", "Settings", "Store", "FileInfo", "GetResult", "__version__"}

# What only those pay for who use it.
HEAVY = ("starlette", "hypercorn", "botocore", "aiobotocore", "aiohttp", "click", "rich", "prometheus_client", "orjson")


def error_names() -> set[str]:
    return {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.DESError)
    }


def test_everything_public_is_exported_and_nothing_else() -> None:
    public = {
        name for name, value in vars(des).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    } | {"__version__"}
    assert set(des.__all__) == public
    assert public == NAMED | error_names()
    assert len(des.__all__) == len(set(des.__all__))


def test_every_error_is_a_des_error_with_a_status_and_codes() -> None:
    for name in error_names():
        error = getattr(des, name)
        assert issubclass(error, des.DESError)
        assert error.exit_status in (1, 2, 3)
        assert 400 <= error.http_status < 600
        assert str(error("a sentence.")) == "a sentence."


def test_the_version_is_the_distribution_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert des.__version__ == project["version"]


def imported_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_import_des_loads_nothing_that_only_some_need() -> None:
    loaded = imported_by("import des")
    assert "des" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_reading_and_packing_load_no_web_framework() -> None:
    loaded = imported_by("import des.cli, des.cli.get, des.cli.verify, des.pack.__main__")
    assert {"des", "click"} <= loaded
    assert loaded.isdisjoint({"starlette", "hypercorn", "botocore", "aiobotocore", "aiohttp"})


def test_locating_loads_neither_the_web_nor_the_terminal() -> None:
    assert imported_by("import des.cli.locate").isdisjoint({"starlette", "hypercorn", "botocore", "rich"})
