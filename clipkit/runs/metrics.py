"""`metrics.jsonl`: a line for each step and each evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

METRICS = "metrics.jsonl"
BLOCK_BYTES = 1 << 16


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, up to the first incomplete one."""
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
    """Remove the lines of `metrics.jsonl` after `step`, and return them; an incomplete last line is removed too.

    The file is read from its end, so the time does not depend on its length.
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
    """The numbers of a line or an evaluation, by path: `text_to_image/recall@1`."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            numbers |= numbers_by_path(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + name] = float(value)
    return numbers


def _parse_line(raw: bytes) -> dict[str, Any] | None:
    """The object of a line; None if the line is incomplete."""
    try:
        value = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _lines_from_the_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line of a file, from the last to the first."""
    start, rest = file.seek(0, os.SEEK_END), b""
    while start:
        size = min(BLOCK_BYTES, start)
        start -= size
        file.seek(start)
        lines = (file.read(size) + rest).splitlines(keepends=True)
        rest = lines.pop(0)  # it may start in the block before
        offset = start + len(rest) + sum(map(len, lines))
        for line in reversed(lines):
            offset -= len(line)
            yield offset, line
    if rest:
        yield 0, rest
