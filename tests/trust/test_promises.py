"""The list of faults names tests that there are, and the plugin that runs them chooses as it says."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.trust.mutations import MUTATIONS, ROOT, Mutation
from tests.trust.promises import ROWS
from tests.trust.sampling import chosen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def names_in(path: Path) -> Iterator[str]:
    """Yield the tests of a module and its classes, those included that a class takes from another module's."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield node.name
            for base in node.bases:
                if isinstance(base, ast.Name) and base.id == "StorageContract":
                    contract = ROOT / "tests/storage/contract.py"
                    yield from (f"{node.name}::{name.partition('::')[2]}" for name in names_in(contract))
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and member.name.startswith("test_"):
                    yield f"{node.name}::{member.name}"


def there_is(test: str) -> bool:
    module, _, name = test.partition("::")
    path = ROOT / module
    return path.is_file() and (not name or name in set(names_in(path)))


@pytest.mark.parametrize("named", [*ROWS, *MUTATIONS], ids=lambda one: getattr(one, "fault", getattr(one, "rule", "")))
def test_every_test_that_is_named_is_there(named: object) -> None:
    tests: tuple[str, ...] = named.tests  # type: ignore[attr-defined]  # both kinds have them
    assert tests
    assert [test for test in tests if not there_is(test)] == []
    assert len(set(tests)) == len(tests)


def test_what_is_named_and_not_there_is_noticed() -> None:
    assert there_is("tests/trust/test_promises.py::test_what_is_named_and_not_there_is_noticed")
    assert not there_is("tests/trust/test_promises.py::test_nothing")
    assert not there_is("tests/trust/test_nothing.py")


def test_names_of_faults_and_rules_are_different() -> None:
    for names in ([row.fault for row in ROWS], [mutation.rule for mutation in MUTATIONS]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.rule)
def test_every_mutation_still_applies(mutation: Mutation) -> None:
    text = (ROOT / mutation.path).read_text(encoding="utf-8")
    ast.parse(mutation.applied(text))
    with pytest.raises(ValueError, match="not once"):
        mutation.applied("")


def test_a_share_of_the_cases_runs_short_forms_first() -> None:
    cases = [(f"t[{number}]", number >= 4) for number in range(10)]
    assert chosen(cases, 1, "seed") == {node_id for node_id, _ in cases}
    few = chosen(cases, 0.3, "seed")
    assert len(few) == 3
    assert few <= {node_id for node_id, is_long in cases if not is_long}
    assert len({frozenset(chosen(cases, 0.3, f"{seed}")) for seed in range(20)}) > 1
    assert len(chosen(cases, 0, "seed")) == 1
    assert chosen([("t[0]", True)], 0.9, "seed") == set()
