"""What an ingest is asked to do, and what the dataset records about it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from clipkit import __version__
from clipkit.images.prepare import ImageOptions
from clipkit.readers import ReadOptions
from clipkit.readers.fetch import FetchOptions
from clipkit.store.staging import Kind
from clipkit.store.writer import Storage

Mode = Literal["create", "overwrite", "append", "upsert"]
OnDuplicate = Literal["error", "first", "merge-captions"]
MIN_SEEN = 1000  # a share of fewer items is checked only at the end


@dataclass(frozen=True, slots=True)
class MaxRejected:
    """How many rows may be rejected: a number, or a share of all."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> MaxRejected:
        """`50` or `1%`; raises ValueError."""
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip()):
            return cls(share=float(match[1]) / 100)
        return cls(count=int(text))

    def is_exceeded(self, rejected: int, seen: int, *, at_end: bool) -> bool:
        if self.count is not None:
            return rejected > self.count
        return self.share is not None and rejected > self.share * (seen if at_end else max(seen, MIN_SEEN))

    def __str__(self) -> str:
        return f"{100 * self.share:g}%" if self.share is not None else str(self.count)


@dataclass(frozen=True, slots=True)
class IngestOptions:
    read: ReadOptions = field(default_factory=ReadOptions)
    image: ImageOptions = field(default_factory=ImageOptions)
    fetch: FetchOptions = field(default_factory=FetchOptions)
    mode: Mode = "create"
    resume: bool = False
    storage: Storage = "auto"
    drop_repeats: bool = False  # store an image's bytes once
    on_duplicate: OnDuplicate = "error"
    max_rejected: MaxRejected | None = None
    retry: Path | None = None  # a `rejected.jsonl`: only its rows


READ_OPTIONS = TypeAdapter(ReadOptions)
IMAGE_OPTIONS = TypeAdapter(ImageOptions)


def absolute_source(source: str) -> str:
    """A source by a name that is valid in any folder."""
    return source if "://" in source else os.path.abspath(source)


def describe(sources: Sequence[str], options: IngestOptions, *, formats: Sequence[str]) -> dict[str, Any]:
    """What the dataset records about where it came from, as JSON values; `pipeline` adds counts.

    How URLs are fetched is left out: an ingest may be resumed with other limits.
    """
    return {
        "clipkit": __version__,
        "sources": list(sources),
        "formats": list(formats),
        "read": READ_OPTIONS.dump_python(options.read, mode="json"),
        "image": IMAGE_OPTIONS.dump_python(options.image, mode="json"),
        "dedupe": "exact" if options.drop_repeats else None,
        "on_duplicate": options.on_duplicate,
        "image_storage": options.storage,
        "retry": None if options.retry is None else hashlib.sha256(options.retry.read_bytes()).hexdigest(),
    }


def fingerprint(kind: Kind, description: Mapping[str, Any]) -> str:
    """Equal for two ingests that would write the same rows from the same sources."""
    text = json.dumps({**description, "kind": kind, "clipkit": None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
