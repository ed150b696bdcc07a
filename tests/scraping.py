"""Counting in tests, and what a scrape shows of it."""

from __future__ import annotations

import pytest

from des import metrics


@pytest.fixture(scope="session", autouse=True)
def counting() -> None:
    """Import what counts before there is an event loop to block."""
    metrics.activate()


def samples() -> dict[str, float]:
    lines = [line for line in metrics.exposition().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


class Growth:
    """What a scrape shows more than one before."""

    def __init__(self) -> None:
        self._before = samples()

    def __getitem__(self, name: str) -> float:
        return samples().get(name, 0) - self._before.get(name, 0)


@pytest.fixture
def grown() -> Growth:
    return Growth()
