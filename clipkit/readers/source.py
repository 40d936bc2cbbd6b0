"""What every reader takes and gives: `ReadOptions` in, `Record`s and `Rejected` rows out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clipkit.types import Record

# A corpus says val, valid or validation; the dataset has one word for them.
SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev"}
SPLIT_IN_NAME = re.compile(r"(?:^|[^a-z])(train|dev|val|valid|validation|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read a source. What a format does not need it passes over."""

    format: str | None = None  # a name in FORMATS; found by looking at the source when None
    image_dir: Path | None = None  # where the images are, if not beside or below the source
    allow_outside: bool = False  # let paths of the corpus lead out of its folder
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    id_column: str | None = None
    keep: tuple[str, ...] = ()  # further columns to carry along; `*` for all
    class_template: str = "a photo of a {}"  # the caption of an image that has only a class
    split: str | None = None  # the split of every record
    split_files: Mapping[str, Path] = field(default_factory=dict)  # split name to a list of image ids
    val_fraction: float = 0.0  # shares of the records that a hash of their id puts into dev and test
    test_fraction: float = 0.0


FORMAT_OPTIONS = ("image_dir", "image_column", "caption_columns", "id_column", "keep", "class_template")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot become a record, and why."""

    image_id: str
    source: str
    reason: str


Item = Record | Rejected


@dataclass(frozen=True, slots=True)
class Reader:
    """One format: does it look like this, and its items from the `skip`th on, always in the same order.

    `options` are those of `FORMAT_OPTIONS` that mean something to it.
    """

    detect: Callable[[str], bool]
    read: Callable[[str, ReadOptions, int], Iterator[Item]]
    options: frozenset[str] = frozenset()

    def ignored(self, options: ReadOptions) -> list[str]:
        """Options that are given and that this format has no use for."""
        given = [name for name in FORMAT_OPTIONS if getattr(options, name) != getattr(ReadOptions(), name)]
        return [name for name in given if name not in self.options]


def split_name(name: str | None) -> str | None:
    """A corpus's word for a split as the dataset's: train, dev, test, or its own."""
    if not name:
        return None
    return SPLIT_NAMES.get(name.lower(), name)


def split_in_name(name: str) -> str | None:
    """The split that a file or folder is named after: `captions_val2014.json` is dev."""
    match = SPLIT_IN_NAME.search(name)
    return split_name(match[1].lower()) if match else None
