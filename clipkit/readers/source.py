"""What every reader takes and gives: `ReadOptions` in, `Record`s and `Rejected` rows out, and a `SourceReport`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clipkit.types import Record

log = logging.getLogger(__name__)

# A corpus says val, valid or validation; the dataset has one word for them.
SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev"}
SPLIT_IN_NAME = re.compile(r"(?:^|[^a-z])(train|dev|val|valid|validation|test)(?![a-z])", re.IGNORECASE)
SPLIT_FOLDER = re.compile(r"(train|dev|val|valid|validation|test)[-_]?(?:\d{4}|images|imgs|set)?", re.IGNORECASE)
MAX_FOLDERS = 1000  # that a report counts


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read a source. A format ignores the options that it has no use for."""

    format: str | None = None  # a name in FORMATS; found by looking at the source when None
    image_dir: Path | None = None  # where the images are, if not beside or below the source
    allow_outside: bool = False  # let the paths of a corpus lead out of its folder
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    id_column: str | None = None
    keep: tuple[str, ...] = ()  # further columns to carry along; `*` for all
    columns: tuple[str, ...] = ()  # names of the columns of a text table without a header line
    encoding: str | None = None  # of text files; UTF-8 or UTF-16 by their first bytes when None
    class_template: str = "a photo of a {}"  # the caption of an image that has only a class
    split: str | None = None  # the split of every record
    split_files: Mapping[str, Path] = field(default_factory=dict)  # split name to a list of image ids
    val_fraction: float = 0.0  # shares of the records that a hash of their id puts into dev and test
    test_fraction: float = 0.0


FORMAT_OPTIONS = (
    *("image_dir", "image_column", "caption_columns", "id_column", "keep", "columns", "encoding", "class_template"),
)


@dataclass(slots=True)
class SourceReport:
    """How a source was read, for the summary: complete once its last item has been read."""

    reader: str = ""  # a name in FORMATS
    files: list[str] = field(default_factory=list)  # those that the captions came from
    passed_over: list[str] = field(default_factory=list)  # tables and texts beside them that were not read
    image_folders: dict[str, int] = field(default_factory=dict)  # the number of images found in each
    notes: list[str] = field(default_factory=list)  # what the user should know, each once

    def note(self, text: str) -> None:
        """Remember a remark for the summary, and log it as a warning the first time."""
        if text not in self.notes:
            self.notes.append(text)
            log.warning("%s", text)

    def count_image(self, folder: str) -> None:
        if folder in self.image_folders or len(self.image_folders) < MAX_FOLDERS:
            self.image_folders[folder] = self.image_folders.get(folder, 0) + 1


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot become a record, and why."""

    image_id: str
    source: str
    reason: str


Item = Record | Rejected


@dataclass(frozen=True, slots=True)
class Reader:
    """One format: whether a source looks like it, and its items from the `skip`th on, always in the same order.

    `options` are those of `FORMAT_OPTIONS` that it uses.
    """

    detect: Callable[[str], bool]
    read: Callable[[str, ReadOptions, int, SourceReport], Iterator[Item]]
    options: frozenset[str] = frozenset()

    def ignored(self, options: ReadOptions) -> list[str]:
        """Options that are given and that this format does not use."""
        given = [name for name in FORMAT_OPTIONS if getattr(options, name) != getattr(ReadOptions(), name)]
        return [name for name in given if name not in self.options]


def split_name(name: str | None) -> str | None:
    """A corpus's word for a split as the dataset's: train, dev, test, or its own."""
    if not name:
        return None
    return SPLIT_NAMES.get(name.lower(), name)


def split_in_name(name: str) -> str | None:
    """The split that a file is named after: `captions_val2014.json` is dev."""
    match = SPLIT_IN_NAME.search(name)
    return split_name(match[1].lower()) if match else None


def split_of_folder(path: str) -> str | None:
    """The split that a folder of this path is named after: `images/val2014` is dev."""
    for part in reversed(path.split("/")):
        if match := SPLIT_FOLDER.fullmatch(part):
            return split_name(match[1].lower())
    return None
