"""The access log: a line for each answer, without parameters of the target that could be secrets."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import Scope

access_log: Final = logging.getLogger("des.http.access")

_LOGGED_PARAMETERS = frozenset({b"uid", b"created_at", b"date", b"after", b"limit"})


def log_access(scope: Scope, request_id: str, status: int, sent_bytes: int, milliseconds: float, trouble: str) -> None:
    """Write the line of an answer; the caller has asked whether anybody wants it.

    Args:
        scope: the request's.
        request_id: 32 hex digits.
        status: of the answer; 0 where none went out.
        sent_bytes: of its content.
        milliseconds: it took.
        trouble: why it did not end well; empty where it did.
    """
    client = scope.get("client")
    entry = {
        "request_id": request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "target": _logged_target(scope),
        "status": status,
        "bytes": sent_bytes,
        "ms": round(milliseconds, 2),
    }
    if trouble:
        entry["trouble"] = trouble
    # What `info` does, less the search for the line of code that called it.
    record = access_log.makeRecord(
        access_log.name, logging.INFO, "", 0, "%s", (_AccessLine(entry),), None, extra={"fields": entry}
    )
    access_log.handle(record)


class _AccessLine:
    """Writes the entry as text only if somebody asks for text."""

    __slots__ = ("_entry",)

    def __init__(self, entry: dict[str, object]) -> None:
        self._entry = entry

    def __str__(self) -> str:
        entry = self._entry
        trouble = f" ({entry['trouble']})" if "trouble" in entry else ""
        target = json.dumps(f"{entry['method']} {entry['target']}")
        return f"{entry['client']} {target} {entry['status']} {entry['bytes']} B {entry['ms']} ms {entry['request_id']}{trouble}"


def _logged_target(scope: Scope) -> str:
    """Write the target without parameters that could be secrets."""
    raw: bytes | None = scope.get("raw_path")
    path = scope["path"] if raw is None else raw.decode("latin-1")
    query: bytes = scope["query_string"]
    shown = b"&".join(field for field in query.split(b"&") if field.partition(b"=")[0] in _LOGGED_PARAMETERS)
    return f"{path}?{shown.decode('latin-1')}" if shown else path
