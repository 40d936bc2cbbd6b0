"""What a person sees: results on stdout, talk on stderr. Nothing heavy is imported here."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One JSON object on stdout, on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_result(text: str) -> None:
    print(text, flush=True)


def say(text: str = "") -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_error(message: str, hint: str = "") -> None:
    """`error: …`, a blank line, `hint: …`, on stderr."""
    say(f"error: {message}")
    if hint:
        say(f"\nhint: {hint}")


def format_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A plain table: the first column to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([row[0].ljust(widths[0]), *numbers]).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, cells)])


def format_bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


class StderrHandler(logging.Handler):
    """Log lines on stderr that do not tear a progress bar: `warning: …`, and info as it is."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None:
            tqdm.tqdm.write(text, file=sys.stderr)
        else:
            say(text)


def start_logging() -> None:
    logger = logging.getLogger("clipkit")
    logger.handlers = [StderrHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
