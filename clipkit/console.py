"""Output for people: results on stdout, everything else on stderr. Imports nothing heavy."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY_S = 10.0


def print_json(value: Any) -> None:
    """One JSON object on stdout, on one line."""
    import json

    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_result(text: str) -> None:
    print(text, flush=True)


def say(text: str = "") -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_error(message: str, hint: str = "") -> None:
    """`error: …`, a blank line, `hint: …`, on stderr."""
    say(f"error: {message}")
    if hint:
        say(f"\nhint: {hint}")


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, or a line every ten seconds if stderr is not a terminal.

    It is called with (done, total), drawn at the first call and removed when all is done.
    """
    bar: tqdm[Any] | None = None
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal bar, last
        if sys.stderr.isatty():
            if bar is None:
                from tqdm import tqdm

                bar = tqdm(desc=description, total=total, unit=f" {unit}", leave=False, dynamic_ncols=True)
            bar.update(done - bar.n)
            if done >= total:
                bar.close()
                bar = None
        elif time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            say(f"{description}: {done:,} of {total:,} {unit}")

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def format_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A plain-text table: the first column is aligned left, the others right."""
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
    """Writes log lines above a progress bar, as `warning: …`; info lines have no prefix."""

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
