"""Runs services of compose.yaml from a mounted image with runc, as an engine would that has no network of its own.

What the compose file says of a service is what is run: command, environment, user, read-only root, privileges, volumes and grace
time. Only the network differs: all containers share this process' network, so each is given an address of its own and the names of
the others stand in /etc/hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploy.image_build import Image

EXEC_SECONDS = 30
TRIES = 60


@dataclass(frozen=True, slots=True)
class Host:
    """Where containers run.

    Attributes:
        work: a directory for their volumes, logs and state.
        tree: the directory of the compose file.
        names: the addresses of all containers by name.
    """

    work: Path
    tree: Path
    names: Mapping[str, str]


@dataclass
class Container:
    """One container of a compose service.

    Attributes:
        host: where it runs.
        image: what it runs.
        name: the service's.
        service: its description, rendered.
        environment: what it is told beyond that.
    """

    host: Host
    image: Image
    name: str
    service: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and return at once."""
        bundle = self.host.work / "bundles" / self.name
        bundle.mkdir(parents=True, exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(self._config(), indent=1))
        with self.log.open("w") as log:
            command = self._runc("run", "--bundle", bundle, self.name)
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, text=True)

    @property
    def log(self) -> Path:
        """What it wrote."""
        return self.host.work / f"{self.name}.log"

    @property
    def grace(self) -> float:
        """How long it may take to stop, in seconds."""
        return float(str(self.service["stop_grace_period"]).removesuffix("s"))

    def wait(self, seconds: float) -> int:
        """Wait until it ends by itself.

        Returns:
            Its exit status.

        Raises:
            subprocess.TimeoutExpired: it did not.
        """
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started.")
        return self._process.wait(timeout=seconds)

    def stop(self) -> tuple[int, float]:
        """Stop it as an engine does: the image's signal, then patience for the grace time.

        Returns:
            Its exit status, and how long it took in seconds.
        """
        begun = time.monotonic()
        subprocess.run(self._runc("kill", self.name, self.image.config["StopSignal"]), check=True)
        status = self.wait(self.grace)
        return status, time.monotonic() - begun

    def kill(self) -> None:
        """End it, if it still runs, and forget it."""
        subprocess.run(self._runc("delete", "--force", self.name), check=False, stderr=subprocess.DEVNULL)
        if self._process:
            self._process.wait(timeout=EXEC_SECONDS)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one more command in it, with its user, environment and root."""
        return subprocess.run(
            self._runc("exec", self.name, *command), capture_output=True, text=True, check=False, timeout=EXEC_SECONDS
        )

    def pid(self) -> int:
        """Return the number of its first process, as this side sees it."""
        state = subprocess.run(self._runc("state", self.name), check=True, capture_output=True, text=True)
        return int(json.loads(state.stdout)["pid"])

    def healthy(self) -> bool:
        """Ask the image's health check until it is satisfied, at most so often that an engine would have given up."""
        check = self.image.config["Healthcheck"]
        return any(self.run(*check["Test"][1:]).returncode == 0 for _ in range(TRIES))

    def _runc(self, *arguments: str | Path) -> list[str]:
        return ["runc", "--root", str(self.host.work / "runc"), *map(str, arguments)]

    def _config(self) -> dict[str, Any]:
        """Return the configuration of the runtime (OCI runtime specification 1.0)."""
        user, group = map(int, str(self.service.get("user", self.image.config["User"])).split(":"))
        dropped = self.service.get("cap_drop") == ["ALL"]
        environment = self._environment()
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": user, "gid": group},
                "args": self.service.get("command") or self.image.config["Cmd"],
                "env": [f"{name}={value}" for name, value in environment.items()],
                "cwd": self.image.config["WorkingDir"],
                "capabilities": {} if dropped else None,
                "noNewPrivileges": "no-new-privileges:true" in self.service.get("security_opt", ()),
            },
            "root": {"path": str(self.image.root), "readonly": self.service.get("read_only", False)},
            "hostname": self.name,
            "mounts": [*_system_mounts(), *self._mounts()],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
                "maskedPaths": ["/proc/kcore", "/proc/keys"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
            },
        }

    def _environment(self) -> dict[str, str]:
        found = dict(entry.split("=", 1) for entry in self.image.config["Env"])
        return found | dict(self.service.get("environment", {})) | dict(self.environment)

    def _mounts(self) -> list[dict[str, Any]]:
        hosts = self.host.work / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.host.names.items())]
        hosts.write_text("\n".join(lines) + "\n")
        mounts = [_bind(hosts, "/etc/hosts", read_only=True)]
        for entry in self.service.get("tmpfs", ()):
            target, _, options = entry.partition(":")
            mounts.append(_mount(target, "tmpfs", "nosuid", "nodev", *options.split(",")))
        for entry in self.service.get("volumes", ()):
            source, target, *mode = entry.split(":") if ":" in entry else (f"{self.name}-anonymous", entry)
            path = self.host.tree / source if source.startswith((".", "/")) else self._volume(source, target)
            mounts.append(_bind(path, target, read_only=mode == ["ro"]))
        return mounts

    def _volume(self, name: str, target: str) -> Path:
        """Return the directory of a named volume; a new one takes over owner and mode of what it is mounted on, as with Docker."""
        volume = self.host.work / "volumes" / name
        if not volume.exists():
            volume.mkdir(parents=True)
            model = self.image.root / target.lstrip("/")
            shutil.copystat(model, volume)
            os.chown(volume, model.stat().st_uid, model.stat().st_gid)
        return volume


def _mount(target: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": kind, "options": list(options)}


def _bind(source: Path, target: str, *, read_only: bool) -> dict[str, Any]:
    options = ["rbind", "nosuid", "nodev", "ro" if read_only else "rw"]
    return {"destination": target, "type": "bind", "source": str(source.resolve()), "options": options}


def _system_mounts() -> Sequence[dict[str, Any]]:
    return (
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "mode=755", "size=65536k"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),  # noqa: S108 - the container's
    )
