"""A pytest plugin for `make trust`: how many cases of each test run, and a line of JSON about each one that did.

Of the n cases of a test that share runs which `TRUST_SCALE` says, chosen by `TRUST_SEED`: short forms first, and one at least where there is a short form. At 1 all do.
Those that may take longest begin first, so that none of them is still at it when all others are done.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

SCALE = "TRUST_SCALE"
SEED = "TRUST_SEED"
REPORT = "TRUST_REPORT"


def scale() -> float:
    """Return how much of the long forms is asked for."""
    return float(os.environ.get(SCALE, "1"))


def chosen(cases: Sequence[tuple[str, bool]], share: float, seed: str) -> set[str]:
    """Return which cases of one test run.

    Args:
        cases: node ids, and whether each is a long form.
        share: of the cases, 0 to 1.
        seed: decides.
    """
    order = sorted(cases)
    Random(f"{seed} {order[0][0]}").shuffle(order)
    order.sort(key=lambda case: case[1])
    has_short_form = not order[0][1]
    count = max(int(has_short_form), math.floor(share * len(order) + 1e-9))
    return {node_id for node_id, _ in order[:count]}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    by_test: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for item in items:
        by_test[item.nodeid.partition("[")[0]].append((item.nodeid, item.get_closest_marker("soak") is not None))
    seed = os.environ.get(SEED, "0")
    kept = {node_id for cases in by_test.values() for node_id in chosen(cases, min(1.0, scale()), seed)}
    left_out = [item for item in items if item.nodeid not in kept]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid in kept]
    items.sort(key=_time_limit, reverse=True)


def _time_limit(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return mark.args[0] if mark else 0.0


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down what became of a case; xdist tells the controller, which alone has this variable set for a file."""
    path = os.environ.get(REPORT)
    if path and "PYTEST_XDIST_WORKER" not in os.environ and (report.when == "call" or not report.passed):
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
