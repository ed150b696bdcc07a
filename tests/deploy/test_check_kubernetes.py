from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, cast

import click
import pytest
import yaml

from deploy import check_kubernetes
from deploy.checking import CheckError
from deploy.prometheus_rule import OBJECT, RULES
from des.cli import des
from des.settings import Settings

ROOT = Path(__file__).parents[2]
BASE = Path("deploy/kubernetes/base")


@pytest.fixture(scope="module")
def targets() -> dict[str, list[check_kubernetes.Manifest]]:
    return check_kubernetes.rendered(ROOT)


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def settings(objects: list[dict[str, Any]]) -> dict[str, str]:
    (found,) = [each["data"] for each in objects if each["metadata"]["name"].startswith("des-settings-")]
    return dict(found)


def from_file(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / BASE / name).read_text()))


def test_everything_renders_and_keeps_its_promises(targets: dict[str, list[dict[str, Any]]]) -> None:
    assert {"base", "overlays/local", "overlays/s3", "overlays/s3 + zones"} <= targets.keys()
    for target, objects in targets.items():
        assert list(check_kubernetes.broken(objects)) == [], target


@pytest.mark.parametrize(
    "target", [pytest.param("overlays/s3", marks=pytest.mark.soak), "overlays/s3 + monitoring, zones, job-metrics"]
)
def test_every_object_is_strictly_valid(targets: dict[str, list[dict[str, Any]]], target: str) -> None:
    for each in targets[target]:
        assert check_kubernetes.flaws(ROOT, each) == [], each["metadata"]["name"]


def test_the_files_are_named_as_promised() -> None:
    names = {path.name for path in (ROOT / BASE).iterdir()}
    assert {
        "des-http-deployment.yaml", "des-http-service.yaml", "des-packer-job.yaml", "des-packer-cronjob.yaml",
    } <= names  # fmt: skip


def test_overlays_and_components_say_where_the_store_is(targets: dict[str, list[dict[str, Any]]]) -> None:
    assert settings(targets["overlays/local"])["DES_BACKEND"] == "local"
    assert settings(targets["overlays/s3"])["DES_BACKEND"] == "s3"
    assert settings(targets["overlays/s3 + zones"])["DES_BACKEND"] == "multi_s3"
    deployment = one(targets["overlays/local"], "Deployment", "des-http")
    store = [volume for volume in deployment["spec"]["template"]["spec"]["volumes"] if volume["name"] == "store"]
    assert store == [{"name": "store", "persistentVolumeClaim": {"claimName": "des-store", "readOnly": True}}]


@pytest.mark.parametrize("target", ["overlays/local", "overlays/s3", "overlays/s3 + zones"])
def test_the_settings_are_settings(
    targets: dict[str, list[dict[str, Any]]],
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in settings(targets[target]).items():
        monkeypatch.setenv(name, value)
    chosen = Settings()
    assert (chosen.http_host, chosen.http_port, chosen.http_admin_port) == ("0.0.0.0", 8000, 8001)
    assert caplog.messages == [], "a variable that names no setting is warned about"


def test_the_commands_are_commands(targets: dict[str, list[dict[str, Any]]]) -> None:
    values = {"$(MANIFESTS)": "/data/manifests", "$(JOB_COMPLETION_INDEX)": "0"}
    lines = set()
    for each in targets["overlays/s3 + monitoring, zones, job-metrics"]:
        pod = check_kubernetes.pod_spec(each)
        for container in pod["containers"] if pod and each["metadata"]["name"] != "des-jobs" else ():
            words = [*container["command"], *container.get("args", ())]
            for name, value in values.items():
                words = [word.replace(name, value) for word in words]
            lines.add(" ".join(words))
    assert lines == {
        "des serve",
        "des-pack --input /data/manifests --json",
        "des-pack --input /data/manifests --json --metrics-file=/metrics/des-pack.prom",
        "des-pack --input /data/manifests --json --partition 0/4",
        "des verify --sample 0.01 --json --metrics-file=/metrics/des-verify.prom",
        "des compact --json --metrics-file=/metrics/des-compact.prom",
        "des gc --apply --json --metrics-file=/metrics/des-gc.prom",
        "des zones sync --json --metrics-file=/metrics/des-sync.prom",
    }
    group = cast("click.Group", des)
    parent = click.Context(
        group, **group.context_settings
    )  # a command keeps the help options that its first parent gave it
    for line in lines:
        verb, *arguments = line.replace("des-pack", "des pack").split()[1:]
        command = group.get_command(click.Context(group), verb)
        if isinstance(command, click.Group):
            verb, *arguments = arguments
            command = command.get_command(click.Context(command), verb)
        assert command is not None
        command.make_context(verb, arguments, parent=parent)


def test_the_job_that_syncs_zones_has_what_the_other_jobs_have(targets: dict[str, list[dict[str, Any]]]) -> None:
    objects = targets["overlays/s3 + monitoring, zones, job-metrics"]
    sync, gc = (check_kubernetes.pod_spec(one(objects, "CronJob", name)) or {} for name in ("des-zones-sync", "des-gc"))
    assert sync["volumes"] == gc["volumes"]
    for field in ("image", "envFrom", "volumeMounts", "securityContext"):
        assert sync["containers"][0][field] == gc["containers"][0][field], field
    assert {"secretRef": {"name": "des-s3-writer", "optional": True}} in sync["containers"][0]["envFrom"]


@pytest.mark.parametrize(
    ("name", "right", "misspelt", "sentence"),
    [
        ("des-http-deployment.yaml", "readinessProbe:", "readynessProbe:", "readynessProbe"),
        ("des-packer-job.yaml", "backoffLimit:", "backOffLimit:", "backOffLimit"),
        ("network-policies.yaml", "podSelector:", "podSelectors:", "podSelectors"),
    ],
)
def test_a_misspelt_field_in_a_copy_fails_the_check(
    tmp_path: Path, name: str, right: str, misspelt: str, sentence: str
) -> None:
    text = (ROOT / BASE / name).read_text()
    assert right in text
    (tmp_path / "copy.yaml").write_text(text.replace(right, misspelt))
    wrong = [
        flaw
        for each in yaml.safe_load_all((tmp_path / "copy.yaml").read_text())
        for flaw in check_kubernetes.flaws(ROOT, each)
    ]
    assert any(re.search(rf"\b{sentence}\b", flaw) for flaw in wrong), wrong


def test_a_misspelt_field_in_a_copy_of_the_tree_fails_the_whole_check(tmp_path: Path) -> None:
    for part in (check_kubernetes.DIRECTORY, check_kubernetes.OBSERVABILITY):
        shutil.copytree(ROOT / part, tmp_path / part)
    monitor = tmp_path / check_kubernetes.DIRECTORY / "components/monitoring/service-monitor.yaml"
    monitor.write_text(monitor.read_text().replace("scrapeTimeout:", "scrapeTimeOut:"))
    with pytest.raises(CheckError, match=r"ServiceMonitor des-http: spec\.endpoints\.0: .*scrapeTimeOut"):
        check_kubernetes.kubernetes(tmp_path)


def test_a_kind_without_a_schema_is_refused() -> None:
    assert check_kubernetes.flaws(ROOT, {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor"}) != []
    assert check_kubernetes.flaws(ROOT, {"apiVersion": "apps/v1", "kind": "Deploymint"}) != []


def test_a_promise_that_is_broken_is_named() -> None:
    deployment = from_file("des-http-deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = 25
    pod["enableServiceLinks"] = True
    del pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    indexed = from_file("des-packer-indexed-job.yaml")
    indexed["spec"]["completions"] = 5
    configuration = {"kind": "ConfigMap", "metadata": {"name": "des-settings-x"}, "data": {"DES_HTTP_DRAIN": "20"}}
    sentences = " ".join(check_kubernetes.broken([deployment, indexed, configuration]))
    for words in ("do not fit into 25 s", "service links", "is not restricted", "with 5 completions"):
        assert words in sentences


def test_the_rules_of_kubernetes_are_those_of_prometheus(tmp_path: Path) -> None:
    check_kubernetes.rules(ROOT)
    for path in (RULES, OBJECT):
        (tmp_path / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, tmp_path / path)
    rules = tmp_path / RULES
    rules.write_text(rules.read_text().replace("14.4", "14.5", 1))
    with pytest.raises(CheckError, match=r"deploy\.prometheus_rule"):
        check_kubernetes.rules(tmp_path)
