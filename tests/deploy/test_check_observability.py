from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from deploy import check_observability
from deploy.checking import CheckError

ROOT = Path(__file__).parents[2]

needs_promtool = pytest.mark.skipif(
    not (shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.executable).parent))),
    reason="there is no promtool: `make deploy-check` gets it where there is Debian's apt",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / check_observability.DIRECTORY, tmp_path / check_observability.DIRECTORY)
    shutil.copy(ROOT / check_observability.README, tmp_path)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@needs_promtool
def test_promtool_is_content() -> None:
    check_observability.promtool(ROOT)


@needs_promtool
@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        pytest.param("ratio_rate5m > 0.05", "ratio_rate5m > 0.5", "DesErrorRatioHigh", marks=pytest.mark.soak),
        ("for: 5m", "four: 5m", "four"),
    ],
)
def test_promtool_finds_what_is_wrong(copy: Path, old: str, new: str, sentence: str) -> None:
    change(copy / check_observability.RULES, old, new)
    with pytest.raises(CheckError, match=sentence):
        check_observability.promtool(copy)


def test_every_metric_of_rules_and_dashboard_is_exposed() -> None:
    check_observability.metrics(ROOT)


def test_a_metric_that_nobody_exposes_is_named(copy: Path) -> None:
    change(copy / check_observability.RULES, "des_cache_evictions_total", "des_cache_eviction_total")
    board = copy / check_observability.DASHBOARD
    change(board, "des_http_bytes_out_total", "des_http_bytes_total")
    with pytest.raises(CheckError) as caught:
        check_observability.metrics(copy)
    assert "DesCacheThrash asks for des_cache_eviction_total" in str(caught.value)
    assert "'Bytes out' asks for des_http_bytes_total" in str(caught.value)


def test_a_record_that_nobody_asks_for_is_named(copy: Path) -> None:
    change(copy / check_observability.DASHBOARD, "instance:des_garbage:ratio", "des_cache_bytes")
    change(copy / check_observability.RULES, "expr: instance:des_garbage:ratio", "expr: des_cache_bytes")
    with pytest.raises(CheckError, match="nobody asks for what is recorded as instance:des_garbage:ratio"):
        check_observability.metrics(copy)


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        (
            'sum by (job) (rate(des_a_total{status=~"des_x|b"}[5m])) / on (job) group_left () des_b',
            {"des_a_total", "des_b"},
        ),
        ("job:des_bad:ratio_rate5m > 0.05 and up == 0", {"job:des_bad:ratio_rate5m", "up"}),
        ("time() - max by (des_label) (des_c offset 15m)", {"des_c"}),
        ("1 + vector(2)", set()),
    ],
)
def test_the_metrics_of_an_expression(expression: str, names: set[str]) -> None:
    assert check_observability.names_in(expression) == names


def test_every_alert_is_in_readme() -> None:
    check_observability.alerts(ROOT)


def test_an_alert_that_readme_does_not_name_fails(copy: Path) -> None:
    change(copy / check_observability.RULES, "alert: DesSlow", "alert: DesVerySlow")
    with pytest.raises(CheckError, match="differ: DesSlow, DesVerySlow"):
        check_observability.alerts(copy)


def test_an_alert_without_a_runbook_fails(copy: Path) -> None:
    change(copy / check_observability.RULES, "          runbook:", "          story:")
    with pytest.raises(CheckError, match="lacks a severity, a summary or a runbook"):
        check_observability.alerts(copy)


def test_the_dashboard_is_whole() -> None:
    board = json.loads((ROOT / check_observability.DASHBOARD).read_text())
    panels = check_observability.panels(ROOT)
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)
    for panel in panels:
        assert panel["targets"], panel["title"]
        assert panel["description"], panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
