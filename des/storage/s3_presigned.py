"""The hot path: range-GETs by presigned URLs, reused, over the small wire client.

A `Range` or `If-Match` header is not part of a presigned signature, so one URL serves all range-GETs of its object.
Rules:

- Host, path and credential scope are learnt from a URL that botocore presigns, so that addressing and region are
  botocore's decision; where it signs in a way that this module does not know (S3 Express, multi-region access points),
  or a proxy is configured, reads go through the client. What is signed here is SigV4's query form ("Authenticating
  Requests: Using Query Parameters", Amazon S3 API Reference).
- The session token and the requester-pays flag are signed query parameters. Server-side encryption by S3 or KMS needs
  nothing on GET.
- All URLs of one generation end together: after 45 minutes, or with the credentials' life. They are valid 15 minutes
  longer than they are used, as much as S3 tolerates a clock to be off.
- A refusal (403, or what else S3 answers to a wrong signature, region or token) makes a new generation once; the second
  one sends the read through the client. If the client succeeds there, presigned URLs do not work here: from then on the
  client reads, for good.
- A presigned URL is a key to its object: it appears in no log, no exception and no record.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

import anyio
from botocore.credentials import RefreshableCredentials
from botocore.utils import get_environ_proxies

from des.storage.s3_errors import RefusedError, failure_of_body
from des.storage.s3_reading import BELIEVABLE, Reply
from des.storage.s3_wire import MAX_HEAD_BYTES, Origin, Pool

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials

    from des.storage.s3_ranges import RangeRead
    from des.storage.s3_reading import Source
    from des.storage.s3_requests import Requests

# Seconds that URLs are used; the first that the credentials outlive is taken.
LIVES = (2700, 900, 300, 60)
MARGIN_SECONDS = 900
MAX_TARGETS = 4096

_ALGORITHM = "AWS4-HMAC-SHA256"
_PORTS = {"http": 80, "https": 443}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Template:
    """What the URLs of one bucket have in common.

    Attributes:
        origin: where to connect.
        host: value of the Host header.
        path: what stands before a key, encoded.
        region: of the credential scope.
        service: of the credential scope.
    """

    origin: Origin
    host: str
    path: str
    region: str
    service: str

    @classmethod
    def of_url(cls, url: str, key: str) -> Template | None:
        """Read a URL that botocore presigned for `key`; None where its kind is not known here."""
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        scope = query.get("X-Amz-Credential", "").split("/")
        known = {"Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature", "Security-Token"}
        usable = (
            query.keys() <= {f"X-Amz-{name}" for name in known}
            and query.get("X-Amz-Algorithm") == _ALGORITHM
            and query.get("X-Amz-SignedHeaders") == "host"
            and parts.path.endswith(f"/{key}")
            and len(scope) >= 5  # noqa: PLR2004 - key/date/region/service/aws4_request
        )
        if not usable or parts.scheme not in _PORTS or parts.hostname is None:
            return None
        origin = Origin(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])
        return cls(origin, parts.netloc, parts.path.removesuffix(key), scope[-3], scope[-2])


class Signer:
    """One generation of presigned URLs."""

    def __init__(
        self, template: Template, credentials: ReadOnlyCredentials, moment: datetime, life: int, *, payer: str | None
    ) -> None:
        """Prepare to sign.

        Args:
            template: of the bucket.
            credentials: access key, secret key and session token.
            moment: from when on the URLs are valid, in UTC.
            life: seconds that they are used.
            payer: value of `x-amz-request-payer`, None for none.
        """
        self.template = template
        self.expires = time.monotonic() + life
        self._moment = moment.strftime("%Y%m%dT%H%M%SZ")
        day = self._moment[:8]
        self._scope = f"{day}/{template.region}/{template.service}/aws4_request"
        secret = f"AWS4{credentials.secret_key}".encode()
        for part in (day, template.region, template.service, "aws4_request"):
            secret = _hmac(secret, part)
        self._key = secret
        fields = {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{credentials.access_key}/{self._scope}",
            "X-Amz-Date": self._moment,
            "X-Amz-Expires": str(life + MARGIN_SECONDS),
            "X-Amz-SignedHeaders": "host",
        }
        if credentials.token:
            fields["X-Amz-Security-Token"] = credentials.token
        if payer:
            fields["x-amz-request-payer"] = payer
        self._query = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(fields.items()))
        self._targets: OrderedDict[str, str] = OrderedDict()

    def target(self, key: str) -> str:
        """Return path and query of the presigned URL of a key."""
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = self._sign(self.template.path + quote(key, safe="/-_.~"))
            if len(self._targets) > MAX_TARGETS:
                self._targets.popitem(last=False)
        else:
            self._targets.move_to_end(key)
        return target

    def _sign(self, path: str) -> str:
        canonical = f"GET\n{path}\n{self._query}\nhost:{self.template.host}\n\nhost\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        signature = _hmac(self._key, f"{_ALGORITHM}\n{self._moment}\n{self._scope}\n{digest}").hex()
        return f"{path}?{self._query}&X-Amz-Signature={signature}"


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


class PresignedSource:
    """Asks by presigned URLs as long as that works, else through another source."""

    def __init__(self, requests: Requests, client: Source) -> None:
        """Hold what requests need; nothing is signed yet.

        Args:
            requests: of the place.
            client: the source that always works.
        """
        self._requests = requests
        self._client = client
        self._signer: Signer | None = None
        self._lock = anyio.Lock()
        self._off = False

    async def get(self, read: RangeRead, *, want: int, within: float, refusals: int) -> Reply:
        """See `Source`."""
        signer = None if self._off or refusals > 1 else await self._current(within)
        if signer is None:
            reply = await self._client.get(read, want=want, within=within, refusals=refusals)
            if refusals > 1:
                self._give_up()
            return reply
        conditions = read.conditions
        target, host = signer.target(read.subject.key), signer.template.host
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nRange: {conditions.range}\r\n"
        if conditions.if_match is not None:
            head += f'If-Match: "{conditions.if_match}"\r\n'
        if conditions.if_none_match is not None:
            head += f'If-None-Match: "{conditions.if_none_match}"\r\n'
        reply = await self._pool(signer).get((head + "\r\n").encode("latin-1"), want=want, within=within)
        if reply.status in BELIEVABLE:
            return reply
        try:
            body = b""
            while len(body) < MAX_HEAD_BYTES and (piece := await reply.read(MAX_HEAD_BYTES, within)):
                body += piece
        finally:
            reply.close()
        failure = failure_of_body(reply.status, body, read.subject, reply.headers)
        if not failure.refused:
            raise failure
        if self._signer is signer:
            self._signer = None
        raise RefusedError

    def _pool(self, signer: Signer) -> Pool:
        return self._requests.endpoint.pool(signer.template.origin)

    async def _current(self, within: float) -> Signer | None:
        signer = self._signer
        if signer is None or time.monotonic() >= signer.expires:
            with anyio.fail_after(within):
                async with self._lock:
                    if self._signer is signer:
                        self._signer = await self._renew()
                    signer = self._signer
        return signer

    async def _renew(self) -> Signer | None:
        """Make a new generation; None where the client is to read instead."""
        endpoint = self._requests.endpoint
        config = self._requests.config
        credentials = await endpoint.credentials.get_frozen_credentials()
        life = LIVES[0]
        chain: object = endpoint.credentials
        if isinstance(chain, RefreshableCredentials):
            life = next((each for each in LIVES if not chain.refresh_needed(refresh_in=each)), 0)
        if not life:
            return None
        key = "template"
        url = await endpoint.client.generate_presigned_url(
            "get_object", Params={"Bucket": config.bucket, "Key": key}, ExpiresIn=1
        )
        template = Template.of_url(url, key)
        if template is None or get_environ_proxies(f"{template.origin.scheme}://{template.host}/"):
            self._off = True
            return None
        return Signer(template, credentials, datetime.now(UTC), life, payer=config.request_payer)

    def _give_up(self) -> None:
        if not self._off:
            self._off = True
            _log.warning(
                "%s refuses presigned URLs: reads of %s go through the client from now on, at several times the CPU;"
                " DES_S3_PRESIGNED=off says so from the start.",
                self._requests.endpoint.options.name,
                self._requests.config.address,
            )
