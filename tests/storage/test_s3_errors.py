"""One clear sentence for everything that goes wrong, and a class of ours for every class of theirs."""

from __future__ import annotations

import asyncio
import builtins
import importlib
import pkgutil
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import aiobotocore
import aiohttp.client_exceptions
import aiohttp.http_exceptions
import anyio
import botocore.exceptions
import botocore.parsers
import pytest
import uvloop

from des.errors import (
    DESError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.storage import s3_wire
from des.storage.protocol import IfAbsent, IfVersion, Overwrite
from des.storage.s3 import S3Storage, open_s3
from des.storage.s3_config import S3Config
from des.storage.s3_errors import Failure, Subject, failure_of, failure_of_reply
from des.storage.s3_kinds import FOREIGN, KINDS, kind_of
from tests.servers.fault_proxy import Answer, FaultProxy
from tests.servers.processes import free_ports
from tests.servers.s3_servers import NO_LIST_ACCESS_KEY, NO_LIST_SECRET_KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.servers.certificates import Authority
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

KEY = "20240131/0A.des"
READ = Subject("http://endpoint", "bucket", "p/20240131/0A.des", "read")


# The seam


def exception_classes() -> set[type[Exception]]:
    inside = pkgutil.walk_packages(aiobotocore.__path__, "aiobotocore.")
    modules = [importlib.import_module(info.name) for info in inside]
    modules += [botocore.exceptions, botocore.parsers, aiohttp.client_exceptions, aiohttp.http_exceptions, s3_wire]
    return {
        member
        for module in modules
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, Exception)
        and not issubclass(member, Warning)
        and member.__module__ == module.__name__
    }


def test_every_class_that_a_library_may_raise_has_its_kind() -> None:
    classes = exception_classes()
    assert len(classes) > 120
    websockets = {aiohttp.client_exceptions.WSMessageTypeError}
    private = {s3_wire._IdleClosedError}
    missing = sorted(cls.__name__ for cls in classes - KINDS.keys() - websockets - private)
    assert missing == [], "a release brought exception classes that s3_kinds does not know"


def test_every_class_that_has_a_kind_is_caught_by_the_seam() -> None:
    assert [cls for cls in KINDS if not issubclass(cls, FOREIGN)] == []
    assert {cls for cls in FOREIGN if cls not in KINDS} == set()


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_every_class_becomes_an_error_of_the_tree(cls: type[Exception]) -> None:
    if issubclass(cls, botocore.exceptions.ClientError):
        error: Exception = cls({"Error": {"Code": "Teapot"}}, "GetObject")
    else:  # without its own way of being made, which differs from class to class
        stand_in = {"__str__": lambda _: "some words", "os_error": OSError(), "verify_message": "some words"}
        bare: type[Exception] = type(cls.__name__, (cls,), stand_in)
        error = bare.__new__(bare)
    failure = failure_of(error, READ)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, StorageUnavailableError | StorageTimeoutError | StorageDeniedError)
    assert str(failure.error).endswith(".")
    assert failure.transient == (KINDS[cls] in {"timeout", "broken", "unreachable"})


def test_a_class_nobody_knows_takes_the_kind_of_its_base() -> None:
    class NewError(botocore.exceptions.ReadTimeoutError):
        pass

    assert kind_of(NewError) == "timeout"
    assert kind_of(ConnectionResetError) == "broken"
    assert kind_of(ConnectionRefusedError) == "unreachable"
    assert kind_of(socket.gaierror) == "unreachable"
    assert kind_of(builtins.TimeoutError) == "timeout"


WRITE = Subject("http://endpoint", "bucket", "k", "write", conditional=True)
PLAIN_WRITE = Subject("http://endpoint", "bucket", "k", "write")
HEAD = Subject("http://endpoint", "bucket", "k", "head")
LIST = Subject("http://endpoint", "bucket", "p/", "list")


@pytest.mark.parametrize(
    ("status", "code", "subject", "error", "transient", "sentence"),
    [
        (404, "NoSuchKey", READ, ObjectNotFoundError, False, "no object s3://bucket/p/20240131/0A.des"),
        (404, "", HEAD, ObjectNotFoundError, False, "no object s3://bucket/k"),
        (404, "", READ, StorageUnavailableError, False, "404 without an S3 error code"),
        (404, "NoSuchBucket", READ, StorageUnavailableError, False, "no bucket 'bucket'"),
        (404, "NoSuchUpload", PLAIN_WRITE, StorageUnavailableError, False, "404 NoSuchUpload"),
        (404, "NoSuchKey", WRITE, PreconditionFailedError, False, "does not exist"),
        (412, "PreconditionFailed", WRITE, PreconditionFailedError, False, "not at the version"),
        (412, "PreconditionFailed", READ, PreconditionFailedError, False, "not at the version"),
        (409, "ConditionalRequestConflict", WRITE, PreconditionFailedError, False, "not at the version"),
        (409, "OperationAborted", PLAIN_WRITE, StorageUnavailableError, True, "409 OperationAborted"),
        (403, "AccessDenied", READ, StorageDeniedError, False, "allow s3:GetObject, and s3:ListBucket"),
        (403, "", HEAD, StorageDeniedError, False, "allow s3:GetObject, and s3:ListBucket"),
        (403, "AccessDenied", LIST, StorageDeniedError, False, "denied listing bucket 'bucket'.*allow s3:ListBucket"),
        (403, "AccessDenied", WRITE, StorageDeniedError, False, "allow s3:PutObject"),
        (403, "SignatureDoesNotMatch", READ, StorageDeniedError, False, "the secret key is wrong"),
        (403, "InvalidAccessKeyId", READ, StorageDeniedError, False, "the access key does not exist"),
        (403, "RequestTimeTooSkewed", READ, StorageDeniedError, False, "clock is too far"),
        (400, "ExpiredToken", READ, StorageDeniedError, False, "session token has expired"),
        (403, "InvalidObjectState", READ, StorageUnavailableError, False, "archived"),
        (400, "AuthorizationHeaderMalformed", READ, StorageUnavailableError, False, "set DES_S3_REGION"),
        (301, "PermanentRedirect", READ, StorageUnavailableError, False, "set DES_S3_REGION"),
        (503, "SlowDown", READ, StorageUnavailableError, True, "503 SlowDown"),
        (500, "InternalError", READ, StorageUnavailableError, True, "500 InternalError"),
        (429, "", READ, StorageUnavailableError, True, "429"),
        (400, "RequestTimeout", PLAIN_WRITE, StorageUnavailableError, True, "RequestTimeout"),
        (501, "NotImplemented", WRITE, StorageUnavailableError, False, "501 NotImplemented"),
        (400, "InvalidArgument", PLAIN_WRITE, StorageUnavailableError, False, "400 InvalidArgument"),
    ],
)
def test_replies(
    status: int, code: str, subject: Subject, error: type[DESError], transient: bool, sentence: str
) -> None:
    failure = failure_of_reply(status, code, "", subject)
    assert type(failure.error) is error
    assert (failure.transient, failure.status) == (transient, status)
    with pytest.raises(error, match=sentence):
        raise failure.error


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("", 0.0), ("soon", 0.0), ("-1", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
)
def test_retry_after(value: str, seconds: float) -> None:
    assert failure_of_reply(503, "", "", READ, {"retry-after": value}).retry_after == seconds


def test_retry_after_as_a_date() -> None:
    assert failure_of_reply(503, "", "", READ, {"retry-after": "Fri, 31 Dec 2999 23:59:59 GMT"}).retry_after > 1e9


# The sentences, from the outside


HEAD_VERB = 3


async def every_verb(storage: S3Storage) -> list[DESError]:
    async def stream() -> None:
        async with storage.stream_range(KEY, 0, 10) as pieces:
            async for _ in pieces:
                pass

    async def write() -> None:
        async with storage.open_writer(KEY) as writer:
            await writer.write(b"1")

    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: storage.read_suffix(KEY, 10),
        lambda: storage.read_range(KEY, 0, 10),
        stream,
        lambda: storage.head(KEY),
        lambda: storage.put(KEY, b"1", Overwrite()),
        lambda: storage.put(KEY, b"1", IfAbsent()),
        lambda: storage.put(KEY, b"1", IfVersion("0")),
        write,
        lambda: storage.list_level(""),
        lambda: anext(storage.list("")),
        lambda: storage.delete(KEY),
        storage.check_access,
    ]

    async def error_of(verb: Callable[[], Awaitable[object]]) -> DESError:
        with pytest.raises(DESError) as caught:
            await verb()
        return caught.value

    errors = await asyncio.gather(*map(error_of, verbs))
    await storage.aclose()
    return errors


@pytest.mark.parametrize("presigned", ["auto", "off"])
@pytest.mark.parametrize(
    ("access_key", "secret_key", "sentence"),
    [
        ("test", "wrong", "refused the credentials: the secret key is wrong (SignatureDoesNotMatch)"),
        ("stranger", "testsecret", "refused the credentials: the access key does not exist (InvalidAccessKeyId)"),
    ],
)
async def test_wrong_credentials(
    seaweedfs: S3Server,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    access_key: str,
    secret_key: str,
    sentence: str,
    presigned: str,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
    errors = await every_verb(await open_s3(seaweedfs.config(bucket, presigned=presigned)))
    assert {type(error) for error in errors} == {StorageDeniedError}
    head = errors.pop(HEAD_VERB)  # the one reply without a body that could say why
    assert "denied reading" in str(head)
    assert {str(error) for error in errors} == {f"{seaweedfs.endpoint} {sentence}."}


async def test_no_credentials(seaweedfs: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageDeniedError) as caught:
        await open_s3(seaweedfs.config(bucket))
    assert str(caught.value) == (
        "no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role."
    )


async def test_half_of_the_credentials(seaweedfs: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageDeniedError, match=r"could not be obtained: .*AWS_SECRET_ACCESS_KEY"):
        await open_s3(seaweedfs.config(bucket))


@pytest.mark.parametrize("presigned", ["auto", "off"])
async def test_no_such_bucket(moto: S3Server, s3_credentials: None, presigned: str) -> None:
    errors = await every_verb(await open_s3(moto.config("no-such-bucket", presigned=presigned)))
    assert {type(error) for error in errors} == {StorageUnavailableError}
    assert {str(error) for error in errors} == {f"there is no bucket 'no-such-bucket' at {moto.endpoint}."}


@pytest.mark.parametrize("presigned", ["auto", "off"])
async def test_endpoint_that_refuses_the_connection(s3_credentials: None, presigned: str) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    config = S3Config(bucket="bucket", endpoint_url=endpoint, presigned="auto" if presigned == "auto" else "off")
    errors = await every_verb(await open_s3(config))
    assert {type(error) for error in errors} == {StorageUnavailableError}
    assert {str(error) for error in errors} == {f"{endpoint} cannot be reached: the connection was refused."}


@pytest.mark.parametrize("presigned", ["auto", "off"])
async def test_endpoint_whose_name_does_not_resolve(
    s3_credentials: None, monkeypatch: pytest.MonkeyPatch, presigned: str
) -> None:
    def resolve(*_: object, **__: object) -> None:  # a resolver that would answer the same in its own time
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    endpoint = "http://no-such-host.invalid:9000"
    config = S3Config(bucket="bucket", endpoint_url=endpoint, presigned="auto" if presigned == "auto" else "off")
    errors = await every_verb(await open_s3(config))
    assert {type(error) for error in errors} == {StorageUnavailableError}
    assert {str(error) for error in errors} == {f"{endpoint} cannot be reached: its name does not resolve."}


@pytest.mark.parametrize("presigned", ["auto", "off"])
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (Answer(403, "RequestTimeTooSkewed"), "this machine's clock is too far from the server's; set it by NTP"),
        (Answer(400, "ExpiredToken"), "the session token has expired"),
        (Answer(403, "AccessDenied"), "denied"),
    ],
    ids=["skew", "token", "access"],
)
async def test_refusals(fault_proxy: FaultProxy, bucket: str, answer: Answer, sentence: str, presigned: str) -> None:
    with fault_proxy.fault(answer, times=None) as fault:
        errors = await every_verb(await open_s3(fault_proxy.config(bucket, presigned=presigned)))
    assert fault.fired >= len(errors)
    del errors[HEAD_VERB]  # the one reply without a body that could say why
    assert {type(error) for error in errors} == {StorageDeniedError}
    assert [str(error) for error in errors if sentence not in str(error)] == []


async def test_missing_permission_to_list_is_found_out_and_named(
    seaweedfs: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await open_s3(seaweedfs.config(bucket))
    await storage.check_access()
    await storage.aclose()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", NO_LIST_ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", NO_LIST_SECRET_KEY)
    storage = await open_s3(seaweedfs.config(bucket))
    with pytest.raises(StorageDeniedError, match=rf"denied listing bucket '{bucket}' .*allow s3:ListBucket\."):
        await storage.check_access()
    await storage.aclose()


async def test_403_is_never_404(fault_proxy: FaultProxy, bucket: str) -> None:
    """What AWS answers for a missing object where s3:ListBucket is missing."""
    storage = await open_s3(fault_proxy.config(bucket))
    with fault_proxy.fault(Answer(403, "AccessDenied"), times=None):
        for read in (storage.head(KEY), storage.read_suffix(KEY, 1), storage.read_range(KEY, 0, 1)):
            with pytest.raises(StorageDeniedError, match=r"s3:ListBucket, without which a missing object"):
                await read
    await storage.aclose()


# Settings that cannot work


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"profile": "nobody"}, r"profile \(nobody\) could not be found; check DES_S3_PROFILE"),
        ({"endpoint_url": "http://bad host:9000"}, "do not work: Invalid endpoint"),
    ],
)
async def test_settings_that_the_client_refuses(
    seaweedfs: S3Server, s3_credentials: None, changes: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        await open_s3(seaweedfs.config("bucket", **changes))


@pytest.mark.parametrize("text", [None, "", "no certificate"])
async def test_ca_bundle_that_cannot_be_loaded(
    seaweedfs: S3Server, s3_credentials: None, tmp_path: Path, text: str | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    if text is not None:
        bundle.write_text(text)
    with pytest.raises(SettingsError, match=r"the CA bundle cannot be loaded .* check DES_S3_CA_BUNDLE"):
        await open_s3(seaweedfs.config("bucket", ca_bundle=bundle))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bucket": ""}, "set DES_S3_BUCKET"),
        ({"bucket": "a/b"}, "'a/b' is no bucket"),
        ({"endpoint_url": "minio:9000"}, "write it as https://host:port"),
        ({"endpoint_url": "http://minio:9000/?x=1"}, "query and fragment"),
        ({"sse_kms_key_id": "k"}, "DES_S3_SSE must be aws:kms"),
    ],
)
def test_settings_that_cannot_be_right(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        S3Config(**{"bucket": "bucket", **changes})  # type: ignore[arg-type]


# TLS


@pytest.mark.parametrize("presigned", ["auto", "off"])
async def test_certificate_that_is_not_trusted(tls_proxy: FaultProxy, bucket: str, presigned: str) -> None:
    errors = await every_verb(await open_s3(tls_proxy.config(bucket, presigned=presigned)))
    assert {type(error) for error in errors} == {StorageUnavailableError}
    for error in errors:
        assert f"the TLS certificate of {tls_proxy.endpoint} is not trusted" in str(error)
        assert "set DES_S3_CA_BUNDLE" in str(error)
    assert tls_proxy.requests == []


@pytest.mark.parametrize("presigned", ["auto", "off"])
async def test_certificate_of_a_private_authority(
    tls_proxy: FaultProxy, bucket: str, authority: Authority, presigned: str
) -> None:
    storage = await open_s3(tls_proxy.config(bucket, presigned=presigned, ca_bundle=authority.bundle))
    data = bytes(range(256)) * 10_000
    await storage.put(KEY, data, IfAbsent())
    assert await storage.read_range(KEY, 5, 2_000_000) == data[5:2_000_000]
    async with storage.stream_range(KEY, 0, len(data)) as pieces:
        assert b"".join([piece async for piece in pieces]) == data
    assert [request.presigned for request in tls_proxy.requests] == [False, *[presigned == "auto"] * 2]
    await storage.aclose()
    with anyio.fail_after(20):
        await tls_proxy.quiet()


def test_tls_on_uvloop(seaweedfs: S3Server, bucket: str, authority: Authority) -> None:
    async def write_and_read() -> None:
        async with FaultProxy.before(seaweedfs, authority.server_context()) as proxy:
            await test_certificate_of_a_private_authority(proxy, bucket, authority, "auto")

    uvloop.run(write_and_read())


@pytest.mark.parametrize("presigned", ["auto", "off"])
async def test_https_where_http_is_spoken(seaweedfs: S3Server, bucket: str, presigned: str) -> None:
    endpoint = seaweedfs.endpoint.replace("http:", "https:")
    config = replace(seaweedfs.config(bucket, presigned=presigned), endpoint_url=endpoint)
    errors = await every_verb(await open_s3(config))
    assert {str(error) for error in errors} == {
        f"TLS with {endpoint} failed; check that DES_S3_ENDPOINT_URL should begin with https."
    }
