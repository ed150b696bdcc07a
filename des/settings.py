"""The settings, and the only place that reads the environment.

Every variable is `DES_` plus the field's name in upper case. A bad value is a `SettingsError` of one sentence. A `DES_`
variable that names no setting is warned about with the nearest known name. Kubernetes injects variables such as
`DES_HTTP_PORT=tcp://10.0.0.1:8000` beside a Service called des-http: those are never taken for settings.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from des.errors import SettingsError

ENV_PREFIX = "DES_"
MIB = 1024 * 1024

_log = logging.getLogger(__name__)
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
_SERVICE_LINK_NAME = re.compile(
    r".*(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?)"
)

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(gt=0)]
PositiveBytes = Annotated[ByteSize, Field(gt=0)]


class Settings(BaseSettings):
    """All settings of DES, read from arguments first, then from the environment.

    Sizes are bytes and take units ("256 MiB"); times are seconds.

    Raises:
        SettingsError: a value is not acceptable; the sentence names the variable.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    backend: Literal["local", "s3", "multi_s3"] = "local"
    base_dir: Path = Path("./data/des")
    n_bits: Annotated[int, Field(ge=1, le=16)] | None = None

    s3_bucket: str | None = None
    s3_prefix: str = ""
    s3_region: str | None = None
    s3_endpoint_url: str | None = None
    s3_profile: str | None = None
    s3_addressing: Literal["auto", "path", "virtual"] | None = None
    s3_sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    s3_sse_kms_key_id: str | None = None
    s3_storage_class: str | None = None
    s3_request_payer: Literal["requester"] | None = None
    s3_ca_bundle: Path | None = None
    s3_presigned: Literal["auto", "off"] = "auto"

    single_writer: bool = False
    zones_config: Path | None = None

    index_ttl: Annotated[float, Field(ge=0)] = 60.0
    negative_ttl: Annotated[float, Field(ge=0)] = 1.0
    cache_bytes: Annotated[ByteSize, Field(ge=0)] = ByteSize(256 * MIB)
    max_connections: Count = 128
    request_timeout: Seconds = 30.0

    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    http_workers: Count = 1
    http_max_requests: Count = 1024
    http_max_bytes: PositiveBytes = ByteSize(256 * MIB)
    http_send_timeout: Seconds = 30.0
    http_drain: Seconds = 20.0
    http_cache_control: str = "no-cache"
    http_batch_items: Annotated[int, Field(gt=0, le=1000)] = 1000
    http_api_keys_file: Path | None = None
    http_admin_port: Annotated[int, Field(ge=0, le=65_535)] | None = None

    pack_memory: PositiveBytes = ByteSize(192 * MIB)
    pack_threads: Count = Field(default_factory=lambda: os.cpu_count() or 1)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] | None = None

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - pydantic's own signature
        """Read the settings; see the class."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from None
        _warn_of_unknown_variables()

    @model_validator(mode="before")
    @classmethod
    def _drop_service_links(cls, values: Any) -> Any:  # noqa: ANN401 - pydantic hands in what it read
        kept = dict(values)
        for name, value in values.items():
            if not isinstance(value, str):
                continue
            foreign = _SERVICE_LINK_VALUE.match(value) or (name == "http_port" and not value.strip().isdecimal())
            if foreign:
                _log.warning("%s=%s is no setting but a Kubernetes service link: ignored.", _variable(name), value)
                del kept[name]
        return kept


def variable_names() -> list[str]:
    """Return the names of all variables that are settings, in the order of their declaration."""
    return [_variable(name) for name in Settings.model_fields]


def _variable(field: str) -> str:
    return ENV_PREFIX + field.upper()


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, Settings.model_fields, n=1)
        return f"{field!r} is no setting{f'; did you mean {near[0]!r}?' if near else '.'}"
    reason = first["msg"][0].lower() + first["msg"][1:]
    return f"{_variable(field)} is {str(first['input'])[:80]!r}: {reason}."


def _warn_of_unknown_variables() -> None:
    known = variable_names()
    for name in os.environ:
        if not name.startswith(ENV_PREFIX) or name in known:
            continue
        if _SERVICE_LINK_NAME.fullmatch(name):
            _log.debug("%s is a Kubernetes service link: ignored.", name)
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        _log.warning("%s is no setting of DES; the nearest is %s.", name, near[0])
