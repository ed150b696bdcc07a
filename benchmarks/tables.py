"""How benchmarks show their figures: one table of figure, budget and verdict, and the same as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, and the budget it has to keep if it has one; `at_least` turns the budget from a ceiling into a floor."""

    name: str
    figure: float
    unit: str
    budget: float | None = None
    at_least: bool = False

    @property
    def kept(self) -> bool | None:
        if self.budget is None:
            return None
        return self.figure >= self.budget if self.at_least else self.figure <= self.budget

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "kept": self.kept}


def print_table(title: str, rows: list[Row]) -> None:
    """Print figures with their budgets; a missed budget says so."""
    table = Table(title=title)
    table.add_column("figure")
    for heading in ("measured", "budget", "measured / budget", "verdict"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.budget is None:
            table.add_row(row.name, f"{row.figure:,.4g} {row.unit}", "", "", "")
            continue
        sign = "≥" if row.at_least else "≤"
        verdict = "kept" if row.kept else "MISSED"
        ratio = f"{row.figure / row.budget:.2f}"
        table.add_row(row.name, f"{row.figure:,.4g} {row.unit}", f"{sign} {row.budget:,.4g}", ratio, verdict)
    Console(width=120).print(table)
