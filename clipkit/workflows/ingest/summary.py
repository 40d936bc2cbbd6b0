"""What an ingest reports, while it runs and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from clipkit.store.staging import Counts


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
            "reasons": dict(self.reasons),
            "rejected_file": None if self.rejected_file is None else str(self.rejected_file),
            "image_storage": self.image_storage,
            "already_finished": self.already_finished,
            "seconds": round(self.seconds, 3),
            "first_row_s": None if self.first_row_s is None else round(self.first_row_s, 3),
        }
