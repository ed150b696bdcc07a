"""Make the PrometheusRule of Kubernetes from the rules file, its only source: `python deploy/prometheus_rule.py`.

`make deploy-check` fails where the two differ.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

RULES = Path("deploy/observability/rules/des.rules.yml")
OBJECT = Path("deploy/kubernetes/components/monitoring/prometheus-rule.yaml")

_HEADER = """\
# Made from {rules} by deploy/prometheus_rule.py: change that file, not this one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: des
  namespace: des
spec:
"""


def prometheus_rule(rules: str) -> str:
    """Return the object that says what a rules file says.

    Args:
        rules: the file's text.
    """
    groups = rules[rules.index("groups:") :]
    return _HEADER.format(rules=RULES) + indent(groups, "  ")


def main() -> None:
    """Write the object."""
    root = Path(__file__).resolve().parents[1]
    (root / OBJECT).write_text(prometheus_rule((root / RULES).read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
