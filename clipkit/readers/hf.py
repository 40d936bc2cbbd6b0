"""What the library `datasets` saves with `save_to_disk`: folders of Arrow files, read without that library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipkit.errors import DataError
from clipkit.readers.arrow import BATCH_ROWS, batch_rows
from clipkit.readers.paths import Root
from clipkit.readers.rows import TableRow, num_records, records
from clipkit.readers.source import Item, ReadOptions, SourceReport, split_name

STATE_FILE = "state.json"
SPLITS_FILE = "dataset_dict.json"


def detect(source: str) -> bool:
    path = Path(source)
    return (path / STATE_FILE).is_file() or (path / SPLITS_FILE).is_file()


def read(source: str, options: ReadOptions, skip: int, report: SourceReport) -> Iterator[Item]:
    """Records of a saved dataset, or of each split of a saved dictionary of them in its order."""
    path = Path(source)
    if (path / SPLITS_FILE).is_file():
        splits = _load_json(path / SPLITS_FILE).get("splits", [])
        parts = [(path / str(name), split_name(str(name))) for name in splits]
    else:
        parts = [(path, None)]
    for folder, split in parts:
        table = ArrowTable(folder)
        prefix = f"{folder.name}/" if len(parts) > 1 else ""
        root = Root(options.image_dir or folder, allow_outside=options.allow_outside)
        yield from records(table, options, root, skip=max(0, skip), prefix=prefix, split=split)
        if skip > 0:
            skip -= num_records(table, options)


class ArrowTable:
    """The Arrow stream files that a saved dataset's `state.json` lists."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        try:
            files = _load_json(folder / STATE_FILE)["_data_files"]
            self._files = [folder / str(file["filename"]) for file in files]
            with pa.memory_map(str(self._files[0])) as stream, pa.ipc.open_stream(stream) as reader:
                self.schema = reader.schema
        except (KeyError, TypeError, IndexError, OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"`{folder}` is not a dataset saved by `datasets`: {error}", "check that all files are there"
            ) from error

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[TableRow]:
        has_images = any(pa.types.is_nested(self.schema.field(c).type) for c in columns if c in self.schema.names)
        number = 0
        for file in self._files:
            for num_rows, batch in _batches(file, start - number, is_read=has_images):
                if batch is not None:
                    for offset in range(max(0, start - number), num_rows, BATCH_ROWS):
                        piece = batch.slice(offset, BATCH_ROWS)
                        yield from batch_rows(piece, columns, number + offset, f"{file.parent.name}/{file.name}")
                number += num_rows


def _batches(file: Path, skip: int, *, is_read: bool) -> Iterator[tuple[int, pa.RecordBatch | None]]:
    """Each batch's rows and the batch itself, None where it ends before the `skip`th row.

    The file is mapped, so that skipped rows and other columns are not read. What is read in full is read as a stream:
    mapped pages would count as this process's memory.
    """
    try:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as reader:
            place = mapped.tell()
            for batch in reader:
                is_skipped = batch.num_rows <= skip
                if is_read and not is_skipped:
                    break
                yield batch.num_rows, None if is_skipped else batch
                skip -= batch.num_rows
                place = mapped.tell()
            else:
                return
            schema = reader.schema
        with pa.OSFile(str(file)) as stream:
            stream.seek(place)
            while (message := _next_message(stream)) is not None:
                batch = pa.ipc.read_record_batch(message, schema)
                yield batch.num_rows, batch
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"`{file}` cannot be read any further: {error}", "check that the file is complete") from error


def _next_message(stream: pa.NativeFile) -> pa.ipc.Message | None:
    try:
        return pa.ipc.read_message(stream)
    except EOFError:
        return None


def _load_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"`{file}` cannot be read: {error}", "check that the saved dataset is complete") from error
    return value if isinstance(value, dict) else {}
