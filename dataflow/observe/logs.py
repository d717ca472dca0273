"""Logs: warnings and worse on standard error, as text or as one JSON object a line. Normal work logs nothing."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

from dataflow.core.errors import DataflowError, nearest

FORMS = ("text", "json")


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "thread", "message", "error"?}``; the thread names pipeline and stage."""

    def format(self, record: logging.LogRecord) -> str:
        made = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            made["error"] = self.formatException(record.exc_info)
        return orjson.dumps(made).decode()


def configure(form: str, level: int = logging.WARNING) -> None:
    """Send logs of this process to standard error. Raises DataflowError for an unknown form."""
    if form not in FORMS:
        raise DataflowError(f"no log form '{form}'", hint=nearest(form, FORMS))
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(threadName)s] %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
