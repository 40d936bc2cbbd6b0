"""`metrics.jsonl`: a line a step and an evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

METRICS = "metrics.jsonl"
BLOCK_BYTES = 1 << 16


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, up to the first that is torn."""
    path = Path(folder) / METRICS
    if not path.exists():
        return []
    lines = []
    for raw in path.read_bytes().splitlines(keepends=True):
        line = _parse_line(raw)
        if line is None:
            break
        lines.append(line)
    return lines


def cut_metrics(folder: str | Path, step: int) -> list[dict[str, Any]]:
    """Cut `metrics.jsonl` back to the lines up to `step`, and give those cut off; a torn last line goes too.

    The file is read from its end: what lies before the step is not read, however long it is.
    """
    path = Path(folder) / METRICS
    if not path.exists():
        return []
    cut = []
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        for start, raw in _lines_from_the_end(file):
            line = _parse_line(raw)
            if line is not None and 0 < line.get("step", 0) <= step:
                break
            end = start
            if line is not None:
                cut.append(line)
        file.truncate(end)
        os.fsync(file.fileno())
    return cut[::-1]


def numbers_by_path(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A line's numbers, or an evaluation's, by path: `text_to_image/recall@1`."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            numbers |= numbers_by_path(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + name] = float(value)
    return numbers


def _parse_line(raw: bytes) -> dict[str, Any] | None:
    """A whole line's object; None for one that is torn."""
    try:
        value = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _lines_from_the_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line of a file, the last first."""
    start, rest = file.seek(0, os.SEEK_END), b""
    while start:
        size = min(BLOCK_BYTES, start)
        start -= size
        file.seek(start)
        lines = (file.read(size) + rest).splitlines(keepends=True)
        rest = lines.pop(0)  # it may have begun in the block before
        offset = start + len(rest) + sum(map(len, lines))
        for line in reversed(lines):
            offset -= len(line)
            yield offset, line
    if rest:
        yield 0, rest
