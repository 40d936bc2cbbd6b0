"""`rejected.jsonl` beside a dataset: every row that was rejected, where it is and why.

The datasets of a folder share the file; each line names its dataset.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.files import write_whole
from clipkit.store.locks import folder_lock, is_remote

FILE_NAME = "rejected.jsonl"
AS_WRITTEN = f"an ingest writes `{FILE_NAME}` here: restore the file, or remove it if it is something else"
Line = Mapping[str, Any]


def rejections_path(uri: str) -> Path:
    """Beside a local dataset; in the working folder for one in an object store."""
    return Path(FILE_NAME) if is_remote(uri) else Path(uri).absolute().parent / FILE_NAME


def record_rejections(uri: str, rejected: Iterable[Line], *, settled: Container[str] | None) -> Path | None:
    """Write what this ingest rejected; returns the file, or None where no line is left for this dataset.

    The dataset's earlier lines are dropped when it was replaced (`settled` is None), else those whose id is settled.
    """
    path = rejections_path(uri)
    name = dataset_name(uri)
    rejected = list(rejected)
    again = {line["id"] for line in rejected}
    with folder_lock(path.parent):
        before = list(read_rejections(path))
        kept = [
            line
            for line in before
            if line.get("dataset") != name
            or (settled is not None and line.get("id") not in settled and line.get("id") not in again)
        ]
        lines = [*kept, *({**line, "dataset": name} for line in rejected)]
        if not lines:
            path.unlink(missing_ok=True)
        elif lines != before:
            write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path if any(line.get("dataset") == name for line in lines) else None


def read_rejections(path: Path) -> Iterator[dict[str, Any]]:
    """The file's lines; none where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"`{path}` cannot be read: {error}", AS_WRITTEN) from error
    for number, line in enumerate(text.split("\n"), 1):  # `splitlines` splits at more, which ids may contain
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"`{path}`, line {number}, is not JSON: {error}", AS_WRITTEN) from error
        if not isinstance(value, dict) or not isinstance(value.get("id"), str):
            raise DataError(f"`{path}`, line {number}, has no `id`", AS_WRITTEN)
        yield value


def dataset_name(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
