# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object per line, fields by name, never what people wrote.

Prompts, completions, documents and secrets have no field here. A logged exception keeps its type and the
places it passed through but not its message, since messages of libraries quote values (a database driver
quotes the row it could not write).
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from model_core.errors import ProductError

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
_MAX_BYTES = 8 * 2**20
_KEPT_FILES = 3


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object with the fields given in ``extra``."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line of JSON."""
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "part": self._part,
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = describe(record.exc_info[1])
        return json.dumps(line, default=str, ensure_ascii=False)


def describe(error: BaseException) -> dict[str, Any]:
    """An error for the logs: its type, our own code and sentence if it is ours, and where it passed."""
    shown: dict[str, Any] = {"type": f"{type(error).__module__}.{type(error).__qualname__}"}
    if isinstance(error, ProductError):
        shown |= {"code": error.code, "sentence": error.sentence}
    frames = traceback.extract_tb(error.__traceback__)
    shown["trace"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-12:]]
    return shown


def log_to(folder: Path, part: str, level: str) -> None:
    """Sends this process's logs to ``<folder>/<part>.log``, or to standard error if that cannot be written.

    Calling it again replaces what it set up before.
    """
    handler: logging.Handler
    try:
        handler = RotatingFileHandler(folder / f"{part}.log", maxBytes=_MAX_BYTES, backupCount=_KEPT_FILES)
    except OSError:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(part))
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, JsonLines):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    root.setLevel(level)
    for chatty in ("botocore", "boto3", "urllib3", "httpx", "httpcore", "asyncio", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
