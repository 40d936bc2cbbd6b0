"""Writing one shard: a thread writes batches into a fragment's files, which no version of a dataset shows yet."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments

from clipkit.errors import DataError, first_line
from clipkit.files import permission_hint, sync
from clipkit.store.locks import is_remote
from clipkit.store.staging import Staging

STORAGE_VERSION = "2.2"  # 2.0 is no faster once files are read as well, and has no blobs
QUEUED_BATCHES = 2
WITHOUT_LIMIT = 2**31 - 1


class _Abandoned(Exception):
    pass


class ShardWriter:
    """Writes batches of one schema; `finish` returns the fragment, synced to disk."""

    def __init__(self, uri: str, schema: pa.Schema, *, mode: Literal["create", "append", "overwrite"]) -> None:
        self._uri = uri
        self._schema = schema
        self._mode = mode
        self._queue: queue.Queue[pa.RecordBatch | BaseException | None] = queue.Queue(QUEUED_BATCHES)
        self._fragments: list[FragmentMetadata] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shard-writer", daemon=True)
        self._thread.start()

    def write(self, batch: pa.RecordBatch) -> None:
        self._put(batch)

    def finish(self) -> dict[str, Any]:
        """The fragment's metadata as JSON values, once its files are on disk."""
        self._put(None)
        self._thread.join()
        self._raise_error()
        (fragment,) = self._fragments
        if not is_remote(self._uri):
            for file in fragment.files:
                sync_data_file(Path(self._uri) / "data" / file.path)
        values: dict[str, Any] = fragment.to_json()
        return values

    def abandon(self) -> None:
        """Stop; files that nothing refers to stay behind."""
        if self._thread.is_alive():
            with contextlib.suppress(DataError):
                self._put(_Abandoned())
            self._thread.join()

    def _put(self, item: pa.RecordBatch | BaseException | None) -> None:
        while True:
            self._raise_error()
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue

    def _raise_error(self) -> None:
        if self._error is not None:
            raise writing_error(self._uri, self._error) from self._error

    def _batches(self) -> Iterator[pa.RecordBatch]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            reader = pa.RecordBatchReader.from_batches(self._schema, self._batches())
            self._fragments = write_fragments(
                reader,
                self._uri,
                mode=self._mode,
                max_rows_per_file=WITHOUT_LIMIT,
                max_bytes_per_file=2**50,
                data_storage_version=STORAGE_VERSION,
            )
        except BaseException as error:
            self._error = error


def sync_data_file(path: Path) -> None:
    """Put a data file and the blobs beside it on disk."""
    blobs = path.with_suffix("")
    files = [path, *(blobs.iterdir() if blobs.is_dir() else ())]
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    for folder in {file.parent for file in files}:
        sync(folder)


def writing_error(
    uri: str,
    error: BaseException,
    *,
    again: str = "run the same command with --resume: finished shards are kept",
) -> DataError:
    """What could not be written, and why."""
    text = str(error)
    file = getattr(error, "filename", None) or uri
    if "No space left" in text or "os error 28" in text or "Disk quota" in text:
        return DataError(f"the disk is full: `{file}` could not be written", f"free some space, then {again}")
    if isinstance(error, PermissionError) or "Permission denied" in text:
        return DataError(f"no permission to write `{file}`", f"{permission_hint(file)}, then {again}")
    return DataError(f"`{file}` could not be written: {first_line(error)}", f"fix the cause, then {again}")


def remove_orphans(uri: str, paths: Collection[str]) -> None:
    """Delete the files of shards that were never finished; only for a dataset that has no version yet."""
    data = Path(uri) / "data"
    kept = {name for path in paths for name in (path, Path(path).stem)}
    for path in data.iterdir() if data.is_dir() else ():
        if path.name not in kept:
            _remove(path)


def discard(uri: str, staging: Staging, *, has_versions: bool) -> None:
    """Delete what an interrupted ingest had finished."""
    if not is_remote(uri):
        if not has_versions:
            _remove(Path(uri) / "data")
        for path in (path for receipt in staging.receipts for path in receipt.paths):
            file = Path(uri) / "data" / path
            _remove(file)
            _remove(file.with_suffix(""))
    staging.clear()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
