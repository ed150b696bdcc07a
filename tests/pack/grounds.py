"""Where a test packs: stores by name, on files or on S3, which subprocesses open by their address too."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from des.storage.opening import open_storage, resolve_target

if TYPE_CHECKING:
    from pathlib import Path

    from des.storage.protocol import Storage
    from tests.servers.s3_servers import S3Server


class Ground(Protocol):
    def address(self, name: str) -> str:
        """Return the address of a store."""

    def copy(self, source: str, target: str) -> None:
        """Copy all objects of a store into another."""


@dataclass(frozen=True, slots=True)
class LocalGround:
    """Stores are directories in a directory."""

    directory: Path

    def address(self, name: str) -> str:
        return str(self.directory / name)

    def copy(self, source: str, target: str) -> None:
        shutil.copytree(self.directory / source, self.directory / target)


@dataclass(frozen=True, slots=True)
class S3Ground:
    """Stores are prefixes in a bucket; endpoint and credentials stand in the environment."""

    server: S3Server
    bucket: str
    prefix: str

    def address(self, name: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}/{name}"

    def copy(self, source: str, target: str) -> None:
        root = f"{self.prefix}/{source}/"
        listed = self.server.client.list_objects_v2(Bucket=self.bucket, Prefix=root)
        for info in listed["Contents"]:
            self.server.client.copy_object(
                Bucket=self.bucket,
                Key=f"{self.prefix}/{target}/{info['Key'].removeprefix(root)}",
                CopySource={"Bucket": self.bucket, "Key": info["Key"]},
            )


async def open_at(address: str) -> Storage:
    """Open the storage of a store; whoever does so closes it."""
    return await open_storage(resolve_target(address))
