"""The import order of DESIGN, held against the real imports: `errors ← routing, shard, storage ← store ← pack, http ← cli`."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "des"

# What each part may import, besides itself. The parts that DESIGN does not order are put where they belong: `settings` and `tasks` stand on the
# errors alone; `storage` knows the format only so far as zones tell heads apart; `metering` wraps a storage; `storage.opening` is the composition root, which knows all backends and wrappers; `console` and `logs`
# make a process of a command.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "routing": {"errors"},
    "settings": {"errors"},
    "tasks": {"errors"},
    "shard": {"errors", "routing"},
    "storage": {"errors", "routing", "settings", "tasks", "shard"},
    "metrics": {"errors"},
    "metering": {"errors", "metrics", "storage"},
    "storage.opening": {"errors", "settings", "tasks", "storage", "metering"},
    "store": {"errors", "routing", "settings", "tasks", "shard", "storage", "storage.opening"},
    "console": {"errors", "settings"},
    "logs": {"errors", "settings", "console"},
    "pack": {"errors", "routing", "settings", "tasks", "metrics", "shard", "storage", "storage.opening", "store", "logs", "console"},
    "lifecycle": {"errors", "routing", "settings", "tasks", "shard", "storage", "storage.opening", "store", "pack"},
    "http": {"errors", "routing", "settings", "tasks", "metrics", "metering", "shard", "storage", "storage.opening", "store", "logs", "console", "lifecycle"},
    "cli": {
        "__init__", "errors", "routing", "settings", "tasks", "metrics", "shard", "storage", "storage.opening", "store", "logs", "console",
        "pack", "http", "lifecycle",
    },
    "__init__": {"errors", "routing", "settings", "store"},
    "__main__": {"console", "cli"},
}  # fmt: skip

# Libraries that belong to one place.
OWNED = {
    "aiobotocore": ("storage/s3",),
    "botocore": ("storage/s3",),
    "aiohttp": ("storage/s3",),
    "starlette": ("http/",),
    "hypercorn": ("http/",),
    "click": ("cli/", "console.py", "pack/__main__.py"),
    "rich": ("cli/", "pack/"),
    "prometheus_client": ("metrics/",),
    "pydantic_settings": ("settings.py",),
    "zstandard": ("shard/", "pack/manifest_streams.py"),
    "lz4": ("shard/",),
    "orjson": ("pack/",),
    "pyarrow": ("pack/",),
    "sqlite3": ("pack/",),
    "aiofiles": ("storage/", "pack/"),
    "yaml": ("storage/marked_document.py",),
}

# The format is bytes in, values out: no socket, path, clock, environment, thread or chance.
NOT_IN_THE_FORMAT = {
    "aiofiles", "anyio", "asyncio", "glob", "io", "logging", "os", "pathlib", "random", "secrets", "select", "selectors", "shutil", "signal",
    "socket", "subprocess", "tempfile", "time", "trio", "uuid",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Import:
    """An import as it stands in a file: `target` is the module's dotted name. Imports for annotations alone count like all others."""

    path: Path
    line: int
    target: str

    @property
    def part(self) -> str:
        """The part of the package the import stands in."""
        return part_of(".".join(("des", *self.path.relative_to(PACKAGE).with_suffix("").parts)))

    @property
    def imported_part(self) -> str | None:
        """The part of the package it imports; None: something else's."""
        return part_of(self.target) if self.target.partition(".")[0] == "des" else None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.target}"


def part_of(module: str) -> str:
    names = module.split(".")[1:]
    finer = ".".join(names[:2])
    return finer if finer in ALLOWED else names[0] if names else "__init__"


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "imports are absolute"
    module = node.module or ""
    if module.partition(".")[0] != "des":
        return [module]
    # `from des import metrics` imports a module; `from des import Store` imports from the package itself.
    inner = [f"{module}.{alias.name}" for alias in node.names]
    return [name if is_module(name) else module for name in inner]


def imports_of(path: Path) -> list[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [Import(path, node.lineno, target) for node in found for target in targets(node)]


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [one for path in FILES for one in imports_of(path)]


def test_the_package_is_seen_whole() -> None:
    assert {one.part for one in IMPORTS} <= set(ALLOWED)
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} <= set(ALLOWED), (
        "a new part of the package needs its place in the order"
    )
    assert len(IMPORTS) > 300


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_one_way(part: str) -> None:
    wrong = [
        str(one)
        for one in IMPORTS
        if one.part == part and one.imported_part not in {None, part} and one.imported_part not in ALLOWED[part]
    ]
    assert wrong == []


def test_the_order_itself_has_no_circle() -> None:
    order: list[str] = []
    left = {part: set(allowed) for part, allowed in ALLOWED.items()}
    while left:
        ready = [part for part, allowed in left.items() if allowed <= set(order)]
        assert ready, f"these import each other: {sorted(left)}"
        order += ready
        for part in ready:
            del left[part]


@pytest.mark.parametrize("library", sorted(OWNED))
def test_a_library_is_imported_where_it_belongs(library: str) -> None:
    wrong = [
        str(one)
        for one in IMPORTS
        if one.target.partition(".")[0] == library
        and not one.path.relative_to(PACKAGE).as_posix().startswith(OWNED[library])
    ]
    assert wrong == []


def test_the_format_does_no_io() -> None:
    wrong = [str(one) for one in IMPORTS if one.part == "shard" and one.target.partition(".")[0] in NOT_IN_THE_FORMAT]
    assert wrong == []
    for path in (PACKAGE / "shard").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        awaits = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
        clocks = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow", "today", "time_ns", "monotonic"}
        ]
        opens = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"open", "print", "input"}
        ]
        assert (awaits, clocks, opens) == ([], [], []), path


def test_only_the_settings_read_the_environment() -> None:
    """Writing to it is something else: a library that is told where to put its files that way."""
    names = {"environ", "environb", "getenv", "getenvb"}
    readers = set()
    for path in FILES:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        written = {
            node.value for node in nodes if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
        }
        reads = any(isinstance(node, ast.Attribute) and node.attr in names and node not in written for node in nodes)
        imports = any(
            isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names}
            for node in nodes
        )
        if reads or imports:
            readers.add(path.relative_to(PACKAGE).as_posix())
    assert readers == {"settings.py"}
