"""compose.yaml says the same as the code and the tree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from des.http.worker import LINGER, WATCHDOG_GRACE
from des.settings import Settings, variable_names

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy/example"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if name.startswith("des-")}


def sources(service: dict[str, Any]) -> list[Path]:
    """Return the files and directories of the tree that a service mounts, by their defaults."""
    texts = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", entry) for entry in service.get("volumes", ())]
    return [ROOT / text.split(":")[0] for text in texts if text.startswith("./")]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_names_settings_files_and_a_release_that_there_are(name: str) -> None:
    service = SERVICES[name]
    assert {key for key in service.get("environment", ()) if key.startswith("DES_")} <= set(variable_names())
    assert [path for path in sources(service) if not path.exists()] == []
    assert re.search(r":(?!latest)[\w.-]+\Z", service["image"]) or name in OURS


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_has_no_privileges(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", [name for name in OURS if "http" in name])
def test_a_retriever_has_time_to_drain(name: str) -> None:
    grace = float(OURS[name]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings().http_drain + LINGER + WATCHDOG_GRACE


@pytest.mark.parametrize("profile", ["s3", "observe", "proxy"])
def test_a_profile_starts_something(profile: str) -> None:
    assert [name for name, service in SERVICES.items() if profile in service.get("profiles", ())]


def test_the_proxy_knows_the_retrievers_behind_it() -> None:
    named = re.findall(r"^ +server \S+ ([\w-]+):(\d+)", (ROOT / "deploy/proxy/haproxy.cfg").read_text(), re.MULTILINE)
    assert named == [(name, str(Settings().http_port)) for name in SERVICES["proxy"]["depends_on"]]


def test_the_sample_is_what_its_manifest_says() -> None:
    rows = json.loads((EXAMPLE / "manifests/manifest.json").read_text())
    found = {"/data" / path.relative_to(EXAMPLE): path.stat().st_size for path in (EXAMPLE / "input").rglob("*.*")}
    assert {Path(row["source_path"]): row["size_bytes"] for row in rows} == found


def test_prometheus_asks_services_that_there_are_and_sees_what_the_packer_leaves() -> None:
    configuration = yaml.safe_load((ROOT / "deploy/observability/prometheus.yml").read_text())
    named = {name for job in configuration["scrape_configs"] for name in job["dns_sd_configs"][0]["names"]}
    assert named == {"des-http", "des-jobs"}
    assert named <= SERVICES.keys()
    packer, exporter = SERVICES["des-packer"], SERVICES["des-jobs"]
    directory, _, name = packer["command"][packer["command"].index("--metrics-file") + 1].rpartition("/")
    assert name == "des-pack.prom"
    assert f"jobs:{directory}" in packer["volumes"]
    assert exporter["volumes"] == [f"jobs:{directory}:ro"]
    assert f"--collector.textfile.directory={directory}" in exporter["command"]
