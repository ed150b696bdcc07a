from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.storage.s3 import open_s3
from tests.storage.contract import StorageContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from des.storage.protocol import Storage
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]


class TestOnSeaweedFS(StorageContract):
    @pytest.fixture(params=["auto", "off"])
    async def storage(self, request: pytest.FixtureRequest, seaweedfs: S3Server, bucket: str) -> AsyncIterator[Storage]:
        storage = await open_s3(seaweedfs.config(bucket, prefix="/a/store/", presigned=request.param))
        yield storage
        await storage.aclose()
