"""The checks of deploy/observability: promtool's own, and that what rules and dashboard ask for is there to be asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.checking import CheckError, run, tool
from des.metrics import INSTRUMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIRECTORY = Path("deploy/observability")
RULES = DIRECTORY / "rules/des.rules.yml"
DASHBOARD = DIRECTORY / "grafana/dashboards/des.json"
README = Path("README.md")

# What Prometheus itself and the node exporter's textfile collector expose, and rules may ask for.
FOREIGN = frozenset({"up", "node_textfile_mtime_seconds", "node_textfile_scrape_error"})

_HOW = "`make deploy-check` takes it from Debian's package prometheus; elsewhere install Prometheus and put promtool on PATH"
_SERIES = ("", "_bucket", "_count", "_sum")
_METRIC = re.compile(r"(?<![\w:.$\"])[a-zA-Z_][\w]*(?::[\w]+)*")
_LABELS = re.compile(r"\{[^}]*\}|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\"[^\"]*\"|\[[^]]*\]")


def promtool(root: Path) -> None:
    """Promtool finds the configuration, the rules and their annotations good, and their unit tests pass."""
    command = tool("promtool", _HOW)
    run(command, "check", "config", DIRECTORY / "prometheus.yml", cwd=root)
    run(command, "check", "rules", "--lint=all", "--lint-fatal", RULES, cwd=root)
    run(command, "test", "rules", *sorted((root / DIRECTORY / "rules").glob("*.test.yml")), cwd=root)


def rule_list(root: Path) -> list[dict[str, Any]]:
    """Return all rules of the rules file."""
    groups = yaml.safe_load((root / RULES).read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(root: Path) -> list[dict[str, Any]]:
    """Return the panels of the dashboard that show something."""
    found = json.loads((root / DASHBOARD).read_text(encoding="utf-8"))["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def names_in(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression names."""
    bare = _LABELS.sub(" ", expression)
    return {found for found in _METRIC.findall(bare) if found.startswith("des_") or ":" in found or found in FOREIGN}


def expressions(root: Path) -> Iterator[tuple[str, str]]:
    """Yield every expression of rules and dashboard, with where it stands."""
    for rule in rule_list(root):
        yield f"rule {rule.get('alert') or rule['record']}", str(rule["expr"])
    for panel in panels(root):
        for target in panel["targets"]:
            yield f"panel {panel['title']!r}", target["expr"]
    for variable in json.loads((root / DASHBOARD).read_text(encoding="utf-8"))["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["definition"].removeprefix("label_values(").partition(",")[0]


def metrics(root: Path) -> None:
    """Every metric that rules and dashboard name is exposed, or recorded by a rule; and every rule's record is in use."""
    known = {one.name + ending for one in INSTRUMENTS for ending in (_SERIES if one.kind == "histogram" else ("",))}
    records = {rule["record"] for rule in rule_list(root) if "record" in rule}
    unknown, used = [], set()
    for where, expression in expressions(root):
        names = names_in(expression)
        used |= names
        unknown += [
            f"{where} asks for {name}, which nobody exposes." for name in sorted(names - known - records - FOREIGN)
        ]
    unknown += [f"nobody asks for what is recorded as {name}." for name in sorted(records - used)]
    if unknown:
        raise CheckError("\n".join(unknown))


def alerts(root: Path) -> None:
    """Every alert has its texts, and its row in README's table; and the table has no other."""
    flat = [rule for rule in rule_list(root) if "alert" in rule]
    named = set(re.findall(r"^\| `(Des[A-Za-z]+)` \|", (root / README).read_text(encoding="utf-8"), re.MULTILINE))
    wrong = [
        f"{rule['alert']} lacks a severity, a summary or a runbook."
        for rule in flat
        if rule.get("labels", {}).get("severity") not in {"critical", "warning"}
        or not {"summary", "runbook"} <= rule.get("annotations", {}).keys()
    ]
    differing = {rule["alert"] for rule in flat} ^ named
    if differing:
        wrong.append(f"rules and README's table of alerts differ: {', '.join(sorted(differing))}.")
    if wrong:
        raise CheckError("\n".join(wrong))


CHECKS: dict[str, Callable[[Path], None]] = {
    "promtool": promtool,
    "metrics": metrics,
    "alerts": alerts,
}
