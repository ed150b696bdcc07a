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
    @pytest.fixture
    async def storage(self, seaweedfs: S3Server, bucket: str) -> AsyncIterator[Storage]:
        storage = await open_s3(seaweedfs.config(bucket, prefix="/a/store/"))
        yield storage
        await storage.aclose()

    async def test_a_prefix_goes_with_its_last_object(self, storage: Storage) -> None:
        pytest.skip("SeaweedFS goes on listing an emptied directory as a prefix for two minutes")


@pytest.mark.soak
class TestThroughTheClientAlone(TestOnSeaweedFS):
    LISTED = 10

    @pytest.fixture
    async def storage(self, seaweedfs: S3Server, bucket: str) -> AsyncIterator[Storage]:
        storage = await open_s3(seaweedfs.config(bucket, presigned="off"))
        yield storage
        await storage.aclose()


class TestOnMoto(StorageContract):
    LISTED = 10
    TELLS_WHEN_UPLOADS_BEGAN = False

    @pytest.fixture
    async def storage(self, moto: S3Server, s3_credentials: None) -> AsyncIterator[Storage]:
        storage = await open_s3(moto.config(moto.make_bucket(), prefix="a/store", presigned="off"))
        yield storage
        await storage.aclose()
