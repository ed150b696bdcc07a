"""The log of a process: one line a record on stderr, as text for people or as JSON for machines.

What a client, a store or a server says stands in it as it is, less what would act on a terminal or begin another line: that is escaped.
A record that carries `fields` (an access log's do) becomes these fields in JSON, and its own message as text.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from des.console import visible, visible_json

if TYPE_CHECKING:
    from types import TracebackType

    from des.settings import Settings

    ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

# Libraries whose notes are for whoever debugs them.
_TALKATIVE = ("asyncio",)
# Libraries whose notes have signatures and session tokens in them, and so are for nobody.
_INDISCREET = ("aiobotocore", "botocore")


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, and the record's fields or its message."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        entry.update(fields if isinstance(fields, dict) else {"message": record.getMessage()})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return visible_json(_ENCODER.encode(entry))


class TextFormatter(logging.Formatter):
    """A line a record; only a traceback has more."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's own name
        """Write a record's line."""
        return visible(super().formatMessage(record))

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 - as above
        """Write a traceback."""
        return "\n".join(map(visible, super().formatException(ei).split("\n")))


def configure_logging(settings: Settings) -> None:
    """Send this process's log to stderr, in the format and from the level on that the settings say.

    Args:
        settings: `log_level`; `log_format`, where None means text on a terminal and JSON elsewhere.
    """
    as_text = settings.log_format == "text" or (settings.log_format is None and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(
        TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s") if as_text else JsonFormatter()
    )
    # What no line of ours shows, and every record would pay for (Logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for library in (*_INDISCREET, *(_TALKATIVE if settings.log_level != "debug" else ())):
        logging.getLogger(library).setLevel(logging.WARNING)
