"""The log of a process: one line a record on stderr, as text for people or as JSON for machines.

A record that carries `fields` (an access log's do) becomes these fields in JSON, and its own message as text.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from des.settings import Settings


# Libraries whose notes are for whoever debugs them.
_TALKATIVE = ("aiobotocore", "botocore", "asyncio")


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
        return _ENCODER.encode(entry)


def configure_logging(settings: Settings) -> None:
    """Send this process's log to stderr, in the format and from the level on that the settings say.

    Args:
        settings: `log_level`; `log_format`, where None means text on a terminal and JSON elsewhere.
    """
    as_text = settings.log_format == "text" or (settings.log_format is None and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s") if as_text else JsonFormatter()
    )
    # What no line of ours shows, and every record would pay for (Logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    if settings.log_level != "debug":
        for library in _TALKATIVE:
            logging.getLogger(library).setLevel(logging.WARNING)
