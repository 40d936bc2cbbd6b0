"""What an ingest has finished but not committed: its plan, and a receipt for each shard.

A receipt is renamed into place after the shard's files are on disk, so a shard with a receipt is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipkit.files import write_whole

Kind = Literal["replace", "append", "upsert"]


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """What an ingest does."""

    id: str
    kind: Kind
    fingerprint: str  # of sources and options: a resume must have the same
    provenance: Mapping[str, Any]
    base_version: int | None = None  # the version that it adds to or replaces
    created: str = ""


@dataclass(frozen=True, slots=True)
class Position:
    """How far the sources have been read: how many items of which one, and the last one's id."""

    source: int = 0
    num_items: int = 0
    last_id: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    rows: int = 0
    captions: int = 0
    bytes: int = 0
    existing: int = 0  # records skipped because the dataset has them
    duplicates: int = 0  # records skipped because the sources have them twice
    repeats: int = 0  # records skipped because their image is stored under another id
    splits: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        splits = dict(self.splits)
        for name, rows in other.splits.items():
            splits[name] = splits.get(name, 0) + rows
        return Counts(
            rows=self.rows + other.rows,
            captions=self.captions + other.captions,
            bytes=self.bytes + other.bytes,
            existing=self.existing + other.existing,
            duplicates=self.duplicates + other.duplicates,
            repeats=self.repeats + other.repeats,
            splits=splits,
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard: its fragments (several where columns were added), and what they hold."""

    fragments: tuple[Mapping[str, Any], ...]
    columns: Mapping[str, str]  # the columns beside the usual ones, with their types
    image_is_blob: bool
    position: Position
    counts: Counts
    rejected: tuple[Mapping[str, str], ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)  # of images, each with its id, where repeats are dropped

    @property
    def paths(self) -> list[str]:
        return [file["path"] for fragment in self.fragments for file in fragment["files"]]


class Staging:
    """The plan and the receipts in a folder that only the holder of the dataset's lock touches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = self._read_plan()
        self.receipts = [self._read_receipt(path) for path in sorted(folder.glob("shard-*.json"))]

    def begin(self, plan: IngestPlan) -> None:
        write_whole(self.folder / "plan.json", json.dumps(asdict(plan)))
        self.plan = plan

    def add(self, receipt: Receipt) -> None:
        path = self.folder / f"shard-{len(self.receipts):06d}.json"
        write_whole(path, json.dumps(asdict(receipt)))
        self.receipts.append(receipt)

    def clear(self) -> None:
        """Delete everything, the plan last: what a crash leaves is still recognised."""
        for path in [*self.folder.glob("shard-*"), *self.folder.glob(".*.json.*")]:  # the latter of a killed writer
            path.unlink()
        (self.folder / "plan.json").unlink(missing_ok=True)
        self.plan, self.receipts = None, []

    def _read_plan(self) -> IngestPlan | None:
        try:
            return IngestPlan(**json.loads((self.folder / "plan.json").read_text()))
        except FileNotFoundError:
            return None

    def _read_receipt(self, path: Path) -> Receipt:
        values = json.loads(path.read_text())
        values["position"] = Position(**values["position"])
        values["counts"] = Counts(**values["counts"])
        for name in ("fragments", "rejected"):
            values[name] = tuple(values[name])
        return Receipt(**values)
