"""What the library `datasets` saves with `save_to_disk`: folders of Arrow files, read without that library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipkit.errors import DataError
from clipkit.ingest.arrow import BATCH_ROWS, batch_rows
from clipkit.ingest.paths import Root
from clipkit.ingest.rows import Row, num_records, records
from clipkit.ingest.source import Item, ReadOptions, split_name

STATE_FILE = "state.json"
SPLITS_FILE = "dataset_dict.json"


def detect(source: str) -> bool:
    path = Path(source)
    return (path / STATE_FILE).is_file() or (path / SPLITS_FILE).is_file()


def read(source: str, options: ReadOptions, skip: int = 0) -> Iterator[Item]:
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
            with _open(self._files[0]) as stream, pa.ipc.open_stream(stream) as reader:
                self.schema = reader.schema
        except (KeyError, TypeError, IndexError, OSError, pa.ArrowInvalid) as error:
            raise DataError(f"`{folder}` is no dataset saved by `datasets`: {error}", "is it complete?") from error

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[Row]:
        number = 0
        for file in self._files:
            with _open(file) as stream, pa.ipc.open_stream(stream) as reader:
                for batch in reader:
                    for offset in range(max(0, start - number), batch.num_rows, BATCH_ROWS):
                        piece = batch.slice(offset, BATCH_ROWS)
                        yield from batch_rows(piece, columns, number + offset, file.name)
                    number += batch.num_rows


def _open(file: Path) -> pa.MemoryMappedFile:
    # Mapped, so that columns that are not asked for and batches that are passed over are never read.
    return pa.memory_map(str(file))


def _load_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"`{file}` cannot be read: {error}", "is the saved dataset complete?") from error
    return value if isinstance(value, dict) else {}
