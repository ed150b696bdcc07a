"""What an S3 place is: bucket, prefix, and how to speak to its endpoint. Values only; nothing here touches the network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from des.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from des.settings import Settings

# A transfer may take this much longer than `request_timeout` for each of its bytes: large bodies are no failure.
MIB = 1024 * 1024
MIN_BYTES_PER_SECOND = MIB
# Of a packer's memory, this part may be on its way; what its writers gather comes on top (see `s3_multipart`).
UPLOAD_SHARE = 8
# To the last @, because a password may have one in it, or a slash.
_BEFORE_HOST = re.compile(r"//.*@", re.DOTALL)


def is_endpoint_url(text: str) -> bool:
    """Tell whether a text can be the address of an S3 API; one that has credentials in it cannot, since it is shown to people."""
    try:
        url = urlsplit(text)
        _ = url.port  # checked when asked for
    except ValueError:
        return False
    is_plain = not (url.query or url.fragment or "@" in text)
    return url.scheme in {"http", "https"} and bool(url.hostname) and is_plain


def discreet(text: str) -> str:
    """Return an address for people, without what may be a name and a password before its host."""
    return _BEFORE_HOST.sub("//…@", text)


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """All that decides whether two places share one client.

    Attributes:
        url: the endpoint; None means AWS.
        region: None means what the AWS configuration says.
        profile: of the AWS configuration; None means the default chain of credentials.
        addressing: how the bucket stands in the URL; None means path style on a custom endpoint, virtual hosts on AWS.
        ca_bundle: PEM file of the authorities to trust; None means what the AWS configuration says.
        max_connections: requests at once.
        upload_memory: bytes of parts that may be on their way at once.
    """

    url: str | None
    region: str | None
    profile: str | None
    addressing: Literal["auto", "path", "virtual"] | None
    ca_bundle: Path | None
    max_connections: int
    upload_memory: int

    @property
    def name(self) -> str:
        """The endpoint, for people."""
        return self.url or "AWS S3"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    """One place on S3.

    Attributes:
        bucket: name of the bucket.
        prefix: where in the bucket, without slashes at its ends; "" means its root.
        region: see `EndpointOptions`, likewise `endpoint_url`, `profile`, `addressing`, `ca_bundle`, `max_connections` and
            `upload_memory`.
        sse: server-side encryption asked for at every write; None means the bucket's default.
        sse_kms_key_id: the key for `aws:kms`.
        storage_class: for every object written; None means the bucket's default.
        request_payer: `requester` where the bucket asks for it.
        presigned: `auto` reads by presigned URLs where the endpoint takes them, `off` never does.
        single_writer: nobody else ever writes here: conditions are checked before a write instead of by the storage.
        request_timeout: seconds that one verb may take, retries included, plus a second for each MiB it moves.
    """

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None
    addressing: Literal["auto", "path", "virtual"] | None = None
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    sse_kms_key_id: str | None = None
    storage_class: str | None = None
    request_payer: Literal["requester"] | None = None
    ca_bundle: Path | None = None
    presigned: Literal["auto", "off"] = "auto"
    single_writer: bool = False
    max_connections: int = 128
    upload_memory: int = 24 * MIB
    request_timeout: float = 30.0

    def __post_init__(self) -> None:
        """Check what can be checked without the network.

        Raises:
            SettingsError: a value is missing or impossible.
        """
        if not self.bucket or "/" in self.bucket or "@" in self.bucket:
            raise SettingsError(
                f"{self.bucket.rpartition('@')[2]!r} is no bucket; give s3://bucket/prefix, or set DES_S3_BUCKET."
            )
        object.__setattr__(self, "prefix", self.prefix.strip("/"))
        if self.endpoint_url and not is_endpoint_url(self.endpoint_url):
            raise SettingsError(
                f"DES_S3_ENDPOINT_URL is {discreet(self.endpoint_url)!r}; write it as https://host:port, without credentials, query and fragment."
            )
        if self.sse_kms_key_id and not (self.sse or "").startswith("aws:kms"):
            raise SettingsError("DES_S3_SSE_KMS_KEY_ID is set, so DES_S3_SSE must be aws:kms or aws:kms:dsse.")

    @classmethod
    def from_settings(cls, settings: Settings) -> S3Config:
        """Return the place that settings name.

        Raises:
            SettingsError: the bucket is missing, or a value is impossible.
        """
        return cls(
            bucket=settings.s3_bucket or "",
            prefix=settings.s3_prefix,
            region=settings.s3_region,
            endpoint_url=settings.s3_endpoint_url,
            profile=settings.s3_profile,
            addressing=settings.s3_addressing,
            sse=settings.s3_sse,
            sse_kms_key_id=settings.s3_sse_kms_key_id,
            storage_class=settings.s3_storage_class,
            request_payer=settings.s3_request_payer,
            ca_bundle=settings.s3_ca_bundle,
            presigned=settings.s3_presigned,
            single_writer=settings.single_writer,
            max_connections=settings.max_connections,
            upload_memory=settings.pack_memory // UPLOAD_SHARE,
            request_timeout=settings.request_timeout,
        )

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    @property
    def endpoint(self) -> EndpointOptions:
        """What decides which client this place uses."""
        return EndpointOptions(
            url=self.endpoint_url,
            region=self.region,
            profile=self.profile,
            addressing=self.addressing,
            ca_bundle=self.ca_bundle,
            max_connections=self.max_connections,
            upload_memory=self.upload_memory,
        )

    @property
    def root(self) -> str:
        """What every key in the bucket begins with: the prefix and its slash, or nothing."""
        return f"{self.prefix}/" if self.prefix else ""

    @property
    def stall_timeout(self) -> float:
        """Seconds without progress after which one attempt is given up, so that the deadline has room for more of them."""
        return self.request_timeout / 3

    def allowance(self, size: int) -> float:
        """Return how many seconds a verb that moves `size` bytes may take."""
        return self.request_timeout + size / MIN_BYTES_PER_SECOND
