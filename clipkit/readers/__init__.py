"""Sources of images and captions read into `Record`s: a module a format, picked by looking at the source."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from clipkit.errors import DataError
from clipkit.readers import coco, flickr, hf, imagefolder, lance, table, webdataset
from clipkit.readers.source import Item, Reader, ReadOptions, Rejected
from clipkit.readers.splits import split_rule
from clipkit.types import Record

log = logging.getLogger(__name__)

__all__ = ["FORMATS", "Item", "ReadOptions", "Reader", "Rejected", "detect", "read"]

COLUMNS = frozenset(("image_column", "caption_columns", "id_column", "keep"))
# In the order in which they are tried: what has a mark of its own before what is known by its looks.
FORMATS: dict[str, Reader] = {
    "lance": Reader(lance.detect, lance.read, COLUMNS | {"image_dir"}),
    "hf": Reader(hf.detect, hf.read, COLUMNS | {"image_dir"}),
    "webdataset": Reader(webdataset.detect, webdataset.read, COLUMNS - {"image_column"}),
    "coco": Reader(coco.detect, coco.read, frozenset(("image_dir", "keep"))),
    "flickr": Reader(flickr.detect, flickr.read, frozenset(("image_dir",))),
    "imagefolder": Reader(imagefolder.detect, imagefolder.read, COLUMNS | {"class_template"}),
    "table": Reader(table.detect, table.read, COLUMNS | {"image_dir"}),
}


def detect(source: str) -> str:
    """The name of the format that a source looks like; raises DataError where it looks like none."""
    for name, reader in FORMATS.items():
        if reader.detect(source):
            return name
    raise DataError(
        f"`{source}` looks like no corpus of images and captions that clipkit knows",
        "put a `captions.csv` of lines `image,caption` beside the images, or name the format with --format: "
        + ", ".join(FORMATS),
    )


def read(source: str, options: ReadOptions, *, skip: int = 0) -> Iterator[Item]:
    """The source's records and rejected rows, from the `skip`th on; the same in the same order every time.

    Skipping costs no reading of images, so that an interrupted ingest goes on where it was.
    """
    name = options.format or detect(source)
    if name not in FORMATS:
        raise DataError(f"there is no format `{name}`", f"the formats are {', '.join(FORMATS)}")
    for option in FORMATS[name].ignored(options):
        flag = option.removesuffix("s").replace("_", "-")
        log.warning("--%s has no effect on `%s`, which is read as %s", flag, source, name)
    split_of = split_rule(options)
    for item in FORMATS[name].read(source, options, skip):
        if split_of is not None and isinstance(item, Record):
            yield replace(item, split=split_of(item.image_id))
        else:
            yield item
