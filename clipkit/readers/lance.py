"""Another Lance dataset, whose columns are guessed or named by options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import lance as pylance
import pyarrow as pa

from clipkit.errors import DataError, first_line
from clipkit.readers.arrow import BATCH_ROWS, batch_rows
from clipkit.readers.paths import Root
from clipkit.readers.rows import TableRow, records
from clipkit.readers.source import Item, ReadOptions, SourceReport
from clipkit.store.schema import is_blob

IO_BUFFER_BYTES = 64 << 20


def detect(source: str) -> bool:
    return source.rstrip("/").endswith(".lance") or (Path(source) / "_versions").is_dir()


def read(source: str, options: ReadOptions, skip: int, report: SourceReport) -> Iterator[Item]:
    """Records in the order of the dataset's newest version."""
    root = Root(options.image_dir or Path(source).parent, allow_outside=options.allow_outside)
    return records(LanceTable(source), options, root, skip=skip)


class LanceTable:
    def __init__(self, uri: str) -> None:
        self.name = uri
        try:
            self._dataset = pylance.dataset(uri)
        except (ValueError, OSError) as error:
            raise DataError(
                f"`{uri}` cannot be opened as a Lance dataset: {first_line(error)}", "check the folder"
            ) from error
        self.schema = self._dataset.schema
        self._blobs = {field.name for field in self.schema if is_blob(field)}

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[TableRow]:
        name = self.name.rstrip("/").rpartition("/")[2]
        blobs = [column for column in columns if column in self._blobs]
        scanner = self._dataset.scanner(
            columns=[column for column in columns if column not in self._blobs],
            offset=start,
            batch_size=BATCH_ROWS,
            batch_readahead=2,
            fragment_readahead=1,
            io_buffer_size=IO_BUFFER_BYTES,
            scan_in_order=True,
        )
        for batch in scanner.to_batches():
            for blob in blobs:  # a scan returns descriptors of these
                indices = list(range(start, start + batch.num_rows))
                images = [data for _, data in self._dataset.read_blobs(blob, indices=indices)]
                batch = batch.append_column(blob, pa.array(images, pa.large_binary()))
            yield from batch_rows(batch, columns, start, name)
            start += batch.num_rows
