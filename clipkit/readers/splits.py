"""Which split a record belongs to: lists of ids, one name for all, or a hash of the id."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from clipkit.errors import DataError
from clipkit.readers.source import ReadOptions, split_name

LIST_NAME = re.compile(
    r"(?:^|[._\-\s])(train|dev|val|valid|validation|test)[._\-]?(?:images?|imgs?|ids?|list|split|set)?\.txt$",
    re.IGNORECASE,
)
SplitOf = Callable[[str], str | None]


def split_lists_in(folder: Path) -> dict[str, Path]:
    """The official lists beside a captions file (`Flickr_8k.trainImages.txt`, `val.txt`), by split."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.txt")):
        if match := LIST_NAME.search(path.name):
            name = split_name(match[1].lower()) or ""
            found.setdefault(name, path)
    return found


def read_split_lists(files: Mapping[str, Path]) -> SplitOf:
    """A look-up of an image id, with or without its folder and its extension, in lists of one name a line."""
    splits: dict[str, str] = {}
    for split, path in files.items():
        try:
            with open(path, encoding="utf-8-sig") as lines:
                names = [line.strip() for line in lines]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the split list `{path}` cannot be read: {error}", "it is a text file of one image a line"
            ) from error
        for name in filter(None, names):
            other = splits.setdefault(name, split)
            if other != split:
                raise DataError(f"`{name}` stands in the lists of two splits, {other} and {split}", f"mend `{path}`")

    def split_of(image_id: str) -> str | None:
        base = os.path.basename(image_id)
        return splits.get(image_id) or splits.get(base) or splits.get(os.path.splitext(base)[0])

    return split_of


def split_rule(options: ReadOptions) -> SplitOf | None:
    """What the options say about splits: an id's split, or None where they leave it to the corpus."""
    if options.split is not None:
        name = options.split
        return lambda image_id: name
    if options.split_files:
        return read_split_lists(options.split_files)
    if options.val_fraction or options.test_fraction:
        return lambda image_id: split_by_hash(image_id, options.val_fraction, options.test_fraction)
    return None


def split_by_hash(image_id: str, val_fraction: float, test_fraction: float) -> str:
    """train, dev or test by the id alone, so that it stays what it is when the corpus grows."""
    digest = hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < test_fraction:
        return "test"
    return "dev" if place < test_fraction + val_fraction else "train"
