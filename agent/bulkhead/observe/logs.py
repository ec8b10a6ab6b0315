"""Logs that journald can read and nobody can forge: one line an event, `key=value`, every value escaped.

A process chooses its own name, and a repository its file names: a line break or an escape sequence in one of them must
never look like a line, or a field, of ours.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

VALUE_MAX: Final = 2000
"""Characters of the longest value that is written."""

_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG_PRIORITY: Final = 7
_BARE: Final = re.compile(r"[^\s\"\\=]+")
_KEY: Final = re.compile(r"[^A-Za-z0-9_]")
_FIELDS: Final = "bulkhead_fields"
_ROOT: Final = "bulkhead"


class Log:
    """Writes events with fields: `log.warning("policy refused", commit=..., error=...)`."""

    def __init__(self, name: str = _ROOT) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: object) -> None:
        """Of use to those who work on Bulkhead."""
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: object) -> None:
        """Something happened as it should."""
        self._write(logging.INFO, message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """Somebody should look at it."""
        self._write(logging.WARNING, message, fields)

    def error(self, message: str, error: BaseException | None = None, **fields: object) -> None:
        """Something failed; with `error`, how, down to the line."""
        self._write(logging.ERROR, message, fields, error)

    def _write(
        self, level: int, message: str, fields: Mapping[str, object], error: BaseException | None = None
    ) -> None:
        self._logger.log(level, "%s", message, extra={_FIELDS: dict(fields)}, exc_info=error)


class LineFormatter(logging.Formatter):
    """One line an event. With `priorities`, each begins with syslog's `<N>`, which journald takes off again."""

    def __init__(self, priorities: bool) -> None:
        super().__init__()
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = dict(getattr(record, _FIELDS, {}))
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = self.formatException(record.exc_info)
        text = line(record.getMessage(), fields)
        return f"<{_priority(record.levelno)}>{text}" if self._priorities else f"{record.levelname.lower()} {text}"


def _priority(level: int) -> int:
    return next((priority for threshold, priority in _PRIORITIES if level >= threshold), _DEBUG_PRIORITY)


def line(message: str, fields: Mapping[str, Any]) -> str:
    """A message and its fields as one line. Fields that are None are left out."""
    parts = [escaped(message)]
    parts += [f"{_KEY.sub('_', key)}={_value(value)}" for key, value in fields.items() if value is not None]
    return " ".join(parts)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = escaped(str(value))
    return text if _BARE.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'


def escaped(text: str) -> str:
    r"""A text without a character that a terminal or a log reader would obey: those become `\u{1b}`."""
    shortened = text if len(text) <= VALUE_MAX else text[: VALUE_MAX - 1] + "…"
    return "".join(_stand_in(character) for character in shortened)


def _stand_in(character: str) -> str:
    if character == "\\":
        return "\\\\"
    return character if character.isprintable() else f"\\u{{{ord(character):x}}}"


def under_journal(stream: TextIO) -> bool:
    """Whether journald reads the stream: systemd says which one it gave."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def set_up(verbose: bool = False, stream: TextIO | None = None, priorities: bool | None = None) -> logging.Handler:
    """Sends all logs of the process to `stream` (standard error) in this form; returns the handler.

    `priorities`: None asks whether journald reads the stream.
    """
    target = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(target)
    handler.setFormatter(LineFormatter(under_journal(target) if priorities is None else priorities))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    return handler
