"""Sources of images and captions read into `Record`s: a module a format, picked by looking at the source."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from clipkit.errors import DataError
from clipkit.readers import coco, flickr, hf, imagefolder, lance, sidecar, table, webdataset
from clipkit.readers.delimited import check_encoding
from clipkit.readers.source import Item, Reader, ReadOptions, Rejected, SourceReport
from clipkit.readers.splits import apply_splits

log = logging.getLogger(__name__)

__all__ = ["FORMATS", "Item", "ReadOptions", "Reader", "Rejected", "SourceReport", "detect", "read"]

COLUMNS = frozenset(("image_column", "caption_columns", "id_column", "keep"))
TEXT = frozenset(("columns", "encoding", "image_dir"))
# In the order in which they are tried: what has a mark of its own before what is known by its looks.
FORMATS: dict[str, Reader] = {
    "lance": Reader(lance.detect, lance.read, COLUMNS | {"image_dir"}),
    "hf": Reader(hf.detect, hf.read, COLUMNS | {"image_dir"}),
    "webdataset": Reader(webdataset.detect, webdataset.read, COLUMNS - {"image_column"}),
    "coco": Reader(coco.detect, coco.read, frozenset(("image_dir", "keep"))),
    "flickr": Reader(flickr.detect, flickr.read, COLUMNS | TEXT),
    "imagefolder": Reader(imagefolder.detect, imagefolder.read, COLUMNS | TEXT | {"class_template"}),
    "sidecar": Reader(sidecar.detect, sidecar.read, COLUMNS - {"image_column"} | {"encoding"}),
    "table": Reader(table.detect, table.read, COLUMNS | TEXT),
}


def detect(source: str) -> str:
    """The name of the format that a source looks like; raises DataError where it looks like none."""
    for name, reader in FORMATS.items():
        if reader.detect(source):
            return name
    path = Path(source)
    if path.is_dir() and (problem := table.not_understood(path)) is not None:
        raise problem
    raise DataError(
        f"`{source}` does not look like images with captions",
        "put a `captions.csv` of lines `image,caption` beside the images; with --format imagefolder the names of the "
        "folders become the captions (the other formats: " + ", ".join(FORMATS) + ")",
    )


def read(source: str, options: ReadOptions, *, skip: int = 0, report: SourceReport | None = None) -> Iterator[Item]:
    """The source's records and rejected rows, from the `skip`th on; the same in the same order every time.

    Skipping costs no reading of images, so that an interrupted ingest can be resumed. `report` is filled on the way.
    """
    name = options.format or detect(source)
    if name not in FORMATS:
        raise DataError(f"there is no format `{name}`", f"the formats are {', '.join(FORMATS)}")
    if options.encoding is not None:
        check_encoding(options.encoding)
    report = report or SourceReport()
    report.reader = name
    for option in FORMATS[name].ignored(options):
        flag = option if option == "columns" else option.removesuffix("s").replace("_", "-")
        log.warning("--%s has no effect on `%s`, which is read as %s", flag, source, name)
    items = FORMATS[name].read(source, options, skip, report)
    yield from apply_splits(items, options, report, is_whole=skip == 0)
