"""A configuration file in YAML or JSON as a plain value, with the line in which each part of it stands.

What YAML has beyond values is refused, since it hides from the reader what a program sees: anchors and aliases (a few lines can mean gigabytes), tags
(other types than those that are written), a key that is there twice (the later one would win silently), several documents.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from des.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 20
_MAX_DEPTH = 20
_MAX_SHOWN = 60
_BEFORE_HOST = re.compile(r"(?<=['\"/])[^'\"]*@")
_TAG = "tag:yaml.org,2002:"
_TYPES = frozenset(_TAG + name for name in ("bool", "float", "int", "map", "null", "seq", "str", "timestamp"))

# Keys and positions from the top of a file down to a part of it.
PartPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file.

    Attributes:
        where: the part of the file, such as `zones[1].range`; "" for the file as a whole.
        line: where that stands, from 1; None where it is not known.
        sentence: what is wrong and how to mend it.
    """

    where: str
    line: int | None
    sentence: str

    def __str__(self) -> str:
        """Return all of it, for people."""
        where = " ".join([*([self.where] if self.where else []), *([f"(line {self.line})"] if self.line else [])])
        return f"{where}: {self.sentence}" if where else self.sentence


class ProblemsError(SettingsError):
    """A file cannot be used as it is.

    Attributes:
        problems: all that was found, in the order of the file.
    """

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        """Make one sentence of them."""
        self.problems = tuple(sorted(problems, key=lambda one: one.line or 0))
        count = f" has {len(problems)} problems" if len(problems) > 1 else ""
        super().__init__(f"{path}{count}: {' '.join(str(one) for one in self.problems)}")


@dataclass(frozen=True, slots=True)
class Document:
    """What a file holds.

    Attributes:
        value: made of dict, list, str, int, float, bool, None, and what YAML takes for a time.
        lines: from the path of a part (keys and positions) to its line; empty for JSON that is not YAML.
        problems: what is wrong already, though the rest can be looked at.
    """

    value: Any
    lines: dict[PartPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def note(self, path: PartPath, sentence: str) -> None:
        """Note a problem of a part, or of the nearest thing around it that is there."""
        line = next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), None)
        self.problems.append(Problem(spelled(path), line, sentence))


def spelled(path: PartPath) -> str:
    """Return a path for people: `zones[1].s3.bucket`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def shown(value: object) -> str:
    """Return a value for people, cut where it is long, and without what may be a name and a password before a host or bucket."""
    text = "nothing" if value is None else _BEFORE_HOST.sub("…@", repr(value))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def read_document(path: Path) -> Document:
    """Read a file. Blocks.

    Raises:
        ProblemsError: it cannot be read, is too large, or is neither YAML nor JSON.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProblemsError(path, [Problem("", None, f"it cannot be read: {error.strerror}.")]) from error
    if len(data) > MAX_BYTES:
        raise ProblemsError(path, [Problem("", None, f"it is larger than {MAX_BYTES} bytes; is it the right file?")])
    try:
        text = data.decode("utf-8-sig")
        document = _parse(text, is_json=path.suffix == ".json")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ProblemsError(path, [_syntax_problem(error)]) from error
    if document.value is None and not document.problems:
        raise ProblemsError(path, [Problem("", None, "it is empty.")])
    return document


def _parse(text: str, *, is_json: bool) -> Document:
    if is_json:
        return _parse_json(text)
    try:
        return _parse_yaml(text)
    except yaml.YAMLError:
        # Nearly all JSON is YAML, but not where it is indented by tabs.
        if text.lstrip().startswith("{"):
            try:
                return _parse_json(text)
            except ValueError:
                pass  # then YAML's complaint is the better one: it knows comments and unquoted words
        raise


def _parse_json(text: str) -> Document:
    document = Document(None)

    def of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(name for name, _ in pairs)
        for name in sorted(name for name, count in counts.items() if count > 1):
            document.note((name,), "it is there twice; remove one.")
        return dict(pairs)

    return Document(json.loads(text, object_pairs_hook=of_pairs), problems=document.problems)


def _parse_yaml(text: str) -> Document:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            problem = "anchors and aliases are not taken; write the value out."
        if depth > _MAX_DEPTH:  # each level makes PyYAML slower
            problem = "it is nested too deeply."
        if problem:
            line = event.start_mark.line + 1 if event.start_mark else None
            raise _RefusedError(Problem("", line, problem))
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        document = Document(None)
        value = None if node is None else _Reader(loader, document).read(node, ())
    finally:
        loader.dispose()
    return Document(value, document.lines, document.problems)


class _Reader:
    """Makes values of YAML's nodes, which know their lines."""

    def __init__(self, loader: yaml.SafeLoader, document: Document) -> None:
        self._loader = loader
        self._document = document

    def read(self, node: yaml.Node, path: PartPath) -> object:
        self._document.lines[path] = node.start_mark.line + 1
        if node.tag not in _TYPES:
            self._document.note(path, f"the tag {node.tag!r} is not taken; write a plain value.")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, position)) for position, item in enumerate(node.value)]
        value: object = self._loader.construct_object(node)
        return value

    def _read_mapping(self, node: yaml.MappingNode, path: PartPath) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            if name in found:
                self._document.lines[*path, name] = key.start_mark.line + 1
                self._document.note((*path, name), "it is there twice; remove one.")
            else:
                found[name] = self.read(value, (*path, name))
                self._document.lines[*path, name] = key.start_mark.line + 1
        return found


class _RefusedError(yaml.YAMLError):
    """It is YAML, but not of the kind that is taken."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _syntax_problem(error: Exception) -> Problem:
    if isinstance(error, _RefusedError):
        return error.problem
    if isinstance(error, yaml.MarkedYAMLError):
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        return Problem("", line, f"it is not YAML as it should be: {error.problem or error.context}.")
    if isinstance(error, json.JSONDecodeError):
        return Problem("", error.lineno, f"it is not JSON: {error.msg}.")
    if isinstance(error, RecursionError):
        return Problem("", None, "it is nested too deeply.")
    if isinstance(error, UnicodeDecodeError):
        return Problem("", None, "it is not UTF-8.")
    return Problem("", None, f"it cannot be understood: {error}.")
