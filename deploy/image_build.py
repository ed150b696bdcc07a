"""Builds the image without an engine: buildah with chroot isolation, on a base that debootstrap makes where none is named.

It needs root and Debian's `buildah` and `debootstrap`. What it makes stays in its working directory, so that a second build is quick.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[1]
SUITE = "bookworm"  # Debian 12, which has Python 3.11
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BUILD_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Image:
    """A built image.

    Attributes:
        name: its name in buildah's storage.
        config: what the image says of itself, with Docker's field names (`User`, `Env`, `Cmd`, …).
        root: its file system, mounted.
    """

    name: str
    config: Mapping[str, Any]
    root: Path


@dataclass(frozen=True, slots=True)
class Builder:
    """Buildah with a storage of its own below a working directory.

    Attributes:
        work: the working directory.
    """

    work: Path

    def buildah(self, *arguments: str | Path) -> str:
        """Run one command of buildah; its standard output is returned, what it says is seen."""
        places = ("--root", self.work / "storage", "--runroot", self.work / "run", "--storage-driver", "vfs")
        command = ["buildah", *map(str, places), *map(str, arguments)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS)
        return done.stdout.strip()

    def base(self) -> str:
        """Return the name of a base image with Debian's Python, made if it is not there yet."""
        name = f"localhost/des-base:{SUITE}"
        if name in self.buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
            return name
        tree = self.work / "base"
        shutil.rmtree(tree, ignore_errors=True)
        packages = "--include=python3,python3-venv,ca-certificates"
        command = ["debootstrap", "--variant=minbase", packages, SUITE, str(tree), *_debian_mirror()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=BUILD_SECONDS)
        for leftovers in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(tree / leftovers)
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, tree, "/")
        self.buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self.buildah("commit", "--quiet", "--rm", container, name)
        shutil.rmtree(tree)
        return name

    def build(self, base: str, name: str = "localhost/des:latest") -> None:
        """Build the Containerfile.

        Args:
            base: the name of the base image.
            name: the name to give it.
        """
        arguments = {"BASE": base, "REVISION": _revision()}
        arguments |= {key: os.environ.get(key, "") for key in ("EXTRAS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")}
        options = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        if CERTIFICATES.exists():  # whom this machine trusts is trusted while building, and not by the image
            options.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
        # HEALTHCHECK is a field of Docker's image format alone.
        self.buildah("build", "--quiet", "--isolation=chroot", "--format=docker", *options, "--tag", name, ROOT)

    @contextmanager
    def mounted(self, name: str = "localhost/des:latest") -> Iterator[Image]:
        """Mount a built image for as long as the block lasts."""
        config = json.loads(self.buildah("inspect", "--type=image", name))["Docker"]["config"]
        container = self.buildah("from", name)
        try:
            yield Image(name, config, Path(self.buildah("mount", container)))
        finally:
            self.buildah("rm", container)


def need(**packages: str) -> None:
    """End the program with one sentence where it is not root, or a command is missing.

    Args:
        packages: Debian's package by the command's name.
    """
    missing = {name: package for name, package in packages.items() if shutil.which(name) is None}
    if missing:
        sys.exit(
            f"{', '.join(missing)} not found: apt-get install --no-install-recommends {' '.join(missing.values())}"
        )
    if os.geteuid() != 0:
        sys.exit("it takes root: mounts and foreign owners cannot be had otherwise.")


def _debian_mirror() -> list[str]:
    """Return the mirror that apt of this machine uses for the suite; nothing where it has none, which means Debian's own."""
    if shutil.which("apt-get") is None:
        return []
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {SUITE}"]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return found[:1]


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
