from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import (
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageUnavailableError,
)
from des.storage.protocol import IfAbsent, IfVersion
from des.storage.s3 import S3Storage, open_s3
from tests.servers.fault_proxy import Answer, FaultProxy, IgnoreConditions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers.fault_proxy import Effect

pytest_plugins = ["tests.servers.fixtures"]

KEY = "des.json"
DATA = b'{"format": "des"}\n'


@pytest.fixture
async def storage(fault_proxy: FaultProxy, bucket: str) -> AsyncIterator[S3Storage]:
    storage = await open_s3(fault_proxy.config(bucket, prefix="store"))
    await storage.put(KEY, DATA, IfAbsent())
    fault_proxy.clear()
    yield storage
    assert await storage.read_range(KEY, 0, 100) == DATA
    await storage.aclose()


async def test_a_store_that_keeps_conditions(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    before = await storage.head(KEY)
    fault_proxy.clear()
    await storage.check_conditional_writes(KEY)
    read, if_none_match, if_match = fault_proxy.requests
    assert read.method == "GET"
    assert (if_none_match.headers["if-none-match"], if_none_match.body) == ("*", DATA)
    assert (if_match.headers["if-match"], if_match.body) == ("0" * 32, DATA)
    assert await storage.head(KEY) == before


@pytest.mark.parametrize("condition", ["if-none-match", "if-match"])
@pytest.mark.parametrize(
    ("effect", "sentence"),
    [
        (IgnoreConditions(), "let pass a PUT"),
        (Answer(304, ""), "answered 304 to a PUT"),
        (Answer(409, "ConditionalRequestConflict"), "answered 409 to a PUT"),
        (Answer(501, "NotImplemented"), "answered 501 to a PUT"),
        (Answer(400, "InvalidArgument"), "answered 400 to a PUT"),
    ],
    ids=["ignored", "304", "409", "501", "400"],
)
async def test_a_store_that_does_not(
    storage: S3Storage, fault_proxy: FaultProxy, condition: str, effect: Effect, sentence: str
) -> None:
    bad = fault_proxy.fault(effect, when=lambda request: condition in request.headers)
    with bad as fault, pytest.raises(SettingsError) as caught:
        await storage.check_conditional_writes(KEY)
    assert fault.fired == 1
    said = str(caught.value)
    assert said.startswith(f"{storage.address} {sentence} with {condition.title()}")
    assert "where there is only ever one writer, set DES_SINGLE_WRITER=true." in said


@pytest.mark.parametrize(
    ("effect", "error"),
    [(Answer(403, "AccessDenied"), StorageDeniedError), (Answer(503), StorageUnavailableError)],
    ids=["403", "503"],
)
async def test_trouble_says_nothing_about_conditions(
    storage: S3Storage, fault_proxy: FaultProxy, effect: Effect, error: type[Exception]
) -> None:
    with fault_proxy.fault(effect, method="PUT", times=None), pytest.raises(error):
        await storage.check_conditional_writes(KEY)


async def test_trouble_that_passes_does_not_spoil_the_proof(storage: S3Storage, fault_proxy: FaultProxy) -> None:
    with fault_proxy.fault(Answer(503), method="PUT") as fault:
        await storage.check_conditional_writes(KEY)
    assert fault.fired == 1


async def test_there_is_nothing_to_prove_it_on(storage: S3Storage) -> None:
    with pytest.raises(ObjectNotFoundError):
        await storage.check_conditional_writes("absent.json")


async def test_a_single_writer_needs_no_conditions_of_the_store(fault_proxy: FaultProxy, bucket: str) -> None:
    storage = await open_s3(fault_proxy.config(bucket, single_writer=True))
    conditional = fault_proxy.fault(
        Answer(501, "NotImplemented"),
        method="PUT",
        when=lambda request: bool({"if-match", "if-none-match"} & request.headers.keys()),
        times=None,
    )
    with conditional as refusal:
        first = await storage.put(KEY, b"1", IfAbsent())
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"2", IfAbsent())
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"2", IfVersion("0" * 32))
        with pytest.raises(PreconditionFailedError):
            await storage.put("absent", b"2", IfVersion(first))
        await storage.put(KEY, b"2", IfVersion(first))
        assert await storage.read_range(KEY, 0, 10) == b"2"
        assert refusal.fired == 0
        with pytest.raises(SettingsError, match="answered 501"):
            await storage.check_conditional_writes(KEY)
    await storage.aclose()
