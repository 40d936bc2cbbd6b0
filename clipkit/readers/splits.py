"""Which split a record belongs to: lists of ids, one name for all, or a hash of the id."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from clipkit.errors import DataError
from clipkit.readers.delimited import NAMED_LINE, SPACED_LINE
from clipkit.readers.paths import files_in, image_name, join_listed, without_suffix
from clipkit.readers.source import Item, ReadOptions, SourceReport, split_name
from clipkit.types import Record

LIST_NAME = re.compile(
    r"(?:^|[._\-\s])(train|dev|val|valid|validation|test)[._\-]?(?:images?|imgs?|ids?|list|split|set)?\.txt$",
    re.IGNORECASE,
)
LABELLED = re.compile(r"(\S+)[ \t]\d+")
LIST_SHARE = 0.9  # of the names in split lists that match, below which a note says so


def split_lists_in(folder: Path) -> dict[str, Path]:
    """The official lists beside a captions file (`Flickr_8k.trainImages.txt`, `val.txt`), by split."""
    found: dict[str, Path] = {}
    for path in files_in(folder):
        if (match := LIST_NAME.search(path.name)) and not _has_captions(path):
            name = split_name(match[1].lower()) or ""
            found.setdefault(name, path)
    return found


def _has_captions(path: Path) -> bool:
    """Whether the first line of a list has more than an image's name on it."""
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
        first = next((line.strip() for line in lines if line.strip()), "")
    return (NAMED_LINE.match(first) or SPACED_LINE.match(first)) is not None and not first.split()[-1].isdigit()


class SplitLists:
    """Lists of one image a line, by split; finds an image with or without its folders and its extension."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._splits: dict[str, str] = {}  # by a name as it is listed, without its extension
        self._of_stem: dict[str, str | None] = {}  # by a name without its folders; None where two splits have it
        self.num_names = 0
        for split, path in files.items():
            for name in self._names(path):
                self.num_names += 1
                stem = without_suffix(name)
                other = self._splits.setdefault(stem, split)
                if other != split:
                    raise DataError(
                        f"`{name}` is in the lists of two splits, {other} and {split}", f"remove it from `{path}`"
                    )
                base = os.path.basename(stem)
                self._of_stem[base] = split if self._of_stem.get(base, split) == split else None

    def __call__(self, image_id: str) -> str | None:
        stem = without_suffix(image_id)
        rest = stem
        while rest:
            if rest in self._splits:
                return self._splits[rest]
            rest = rest.partition("/")[2]
        return self._of_stem.get(os.path.basename(stem))

    def example(self) -> str:
        path = next(iter(self._files.values()))
        return next(iter(self._names(path)), "")

    def _names(self, path: Path) -> list[str]:
        try:
            with open(path, encoding="utf-8-sig") as lines:
                names = [image_name(line) for line in lines]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the split list `{path}` cannot be read: {error}", "it is a text file of one image a line"
            ) from error
        # ImageNet and others write a class's number behind the name.
        return [LABELLED.sub(r"\1", name) if name[-1:].isdigit() else name for name in names if name]


def with_split_lists(
    items: Iterator[Item], files: Mapping[str, Path], report: SourceReport, *, is_whole: bool, is_only: bool = False
) -> Iterator[Item]:
    """The items with the splits of these lists, and a note at the end where names of the lists match nothing.

    `is_whole` says that the items are all of the source's; `is_only` that no other split counts.
    """
    if not files:
        yield from items
        return
    lists = SplitLists(files)
    num_matched, unmatched = 0, ""
    for item in items:
        split = lists(item.image_id)
        num_matched += split is not None
        unmatched = unmatched or ("" if split else item.image_id)
        if isinstance(item, Record) and (split or is_only) and split != item.split:
            item = replace(item, split=split)
        yield item
    if is_whole and num_matched < lists.num_names * LIST_SHARE:
        report.note(
            f"the split lists {join_listed(path.name for path in files.values())} have {lists.num_names} names, of "
            f"which {num_matched} match an image: a name there is `{lists.example()}`, an image here `{unmatched}`"
        )


def apply_splits(
    items: Iterator[Item], options: ReadOptions, report: SourceReport, *, is_whole: bool
) -> Iterator[Item]:
    """The items with the splits that the options say, where they leave it not to the corpus."""
    if options.split_files and options.split is None:
        yield from with_split_lists(items, options.split_files, report, is_whole=is_whole, is_only=True)
    elif options.split is not None:
        yield from (replace(item, split=options.split) if isinstance(item, Record) else item for item in items)
    elif options.val_fraction or options.test_fraction:
        shares = options.val_fraction, options.test_fraction
        for item in items:
            yield replace(item, split=split_by_hash(item.image_id, *shares)) if isinstance(item, Record) else item
    else:
        yield from items


def split_by_hash(image_id: str, val_fraction: float, test_fraction: float) -> str:
    """train, dev or test by the id alone, so that it stays what it is when the corpus grows."""
    digest = hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < test_fraction:
        return "test"
    return "dev" if place < test_fraction + val_fraction else "train"
