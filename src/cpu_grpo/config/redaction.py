"""Addresses without the passwords in them: all that is printed, recorded or shown of one."""

import logging
import re
from pathlib import Path
from typing import Any

from cpu_grpo.files import write_text

USER = re.compile(r"(?<=://)[^\s'\"/?#]*@")
# Databases take passwords with a slash in them as they are. A port and a path with an @ look alike, and go as well.
SLASHED = re.compile(r"(?<=://)[^\s'\"/:@]+:[^\s'\"@]*@")
SECRET = re.compile(
    r"([?&;][^\s'\"=&;]*(?:pass|pwd|token|secret|sig|key|credential|odbc)[^\s'\"=&;]*=)[^\s'\"&;]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A text, or an address, in which addresses have no user and password any more, and *** for secrets in queries."""
    return SECRET.sub(r"\1***", SLASHED.sub("", USER.sub("", text)))


def redacted_values(value: Any) -> Any:
    """The same of every text in a JSON-like value."""
    if isinstance(value, dict):
        return {key: redacted_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redacted_values(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def redact_file(path: Path) -> None:
    """The same of a file, if it is there."""
    if path.is_file() and (text := path.read_text(encoding="utf-8")) != (clean := redacted(text)):
        write_text(path, clean)


def redact_logs() -> None:
    """The same of what this process logs from now on, whichever library says it."""
    make = logging.getLogRecordFactory()

    def factory(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        if "://" in (text := record.getMessage()):
            record.msg, record.args = redacted(text), None
        return record

    logging.setLogRecordFactory(factory)
