"""What an ingest reports, while it runs and at its end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from clipkit.readers import SourceReport
from clipkit.readers.paths import images_in
from clipkit.store.staging import Counts

MAX_NAMES = 20  # of folders and files that the dataset records


class Progress(Protocol):
    def update(self, *, rows: int, rejected: int, num_bytes: int) -> None:
        """Rows stored, rows rejected and bytes stored since the last call."""
        ...


@dataclass(frozen=True, slots=True)
class Summary:
    """What an ingest did. `counts` is about the rows that it wrote, `total_rows` about the whole dataset."""

    out: str
    version: int
    total_rows: int
    counts: Counts
    rejected: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    rejected_file: Path | None = None
    image_storage: str = "binary"
    seconds: float = 0.0
    first_row_s: float | None = None
    already_finished: bool = False
    sources: Sequence[Mapping[str, Any]] = ()  # what `describe_source` says of those that were read
    without_caption: int = 0

    def as_json(self) -> dict[str, Any]:
        counts = self.counts
        return {
            "rows": counts.rows,
            "captions": counts.captions,
            "rejected": self.rejected,
            "bytes": counts.bytes,
            "splits": dict(counts.splits),
            "version": self.version,
            "total_rows": self.total_rows,
            "existing": counts.existing,
            "duplicates": counts.duplicates,
            "repeats": counts.repeats,
            "without_caption": self.without_caption,
            "sources": list(self.sources),
            "reasons": dict(self.reasons),
            "rejected_file": None if self.rejected_file is None else str(self.rejected_file),
            "image_storage": self.image_storage,
            "already_finished": self.already_finished,
            "seconds": round(self.seconds, 3),
            "first_row_s": None if self.first_row_s is None else round(self.first_row_s, 3),
        }


def describe_source(source: str, report: SourceReport) -> dict[str, Any]:
    """How a source was read, as JSON values: the reader, and the names of files and folders as seen from the source."""
    base = os.path.realpath(source if os.path.isdir(source) else os.path.dirname(source))

    def name(path: str) -> str:
        relative = os.path.relpath(path, base)
        return path if relative.startswith("..") else relative

    return {
        "source": source,
        "reader": report.reader,
        "files": report.files[:MAX_NAMES],
        "image_folders": [name(folder) for folder in list(report.image_folders)[:MAX_NAMES]],
        "passed_over": report.passed_over[:MAX_NAMES],
        "notes": list(report.notes),
    }


def count_without_caption(report: SourceReport) -> int:
    """How many images lie in the folders that a source's images came from, and are not its images."""
    folders = ((folder, number) for folder, number in report.image_folders.items() if os.path.isdir(folder))
    return sum(max(0, len(images_in(Path(folder))) - number) for folder, number in folders)
