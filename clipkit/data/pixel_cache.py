"""The pixel cache: a column of decoded pixels, so that training decodes nothing."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from timeit import repeat

import cv2
import lance
import numpy as np
import pyarrow as pa

from clipkit.config import DataConfig
from clipkit.data.inputs.pixels import Pixels, cache_column
from clipkit.errors import DataError
from clipkit.hardware import usable_cores
from clipkit.images.header import BadImage
from clipkit.store import Dataset
from clipkit.store.columns import count_missing, fill_column
from clipkit.store.shards import writing_error
from clipkit.types import ImageSpec

log = logging.getLogger(__name__)

BATCH_ROWS = 256
BATCH_BYTES = 64_000_000
MEGABYTE = 1_000_000
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class CacheEstimate:
    """What a cache costs and gains, measured on some rows before anything is written."""

    column: str
    rows: int  # still to be decoded
    bytes: int
    write_s: float
    gain: float  # how many times as fast as decoding the cache can be read


def estimate_cache(dataset: Dataset, *, side_px: int) -> CacheEstimate:
    """Decode some rows spread over the dataset, write their pixels into a temporary dataset, and read them again."""
    if not len(dataset):
        raise DataError(f"`{dataset.uri}` has no rows", "add some with `clipkit ingest --append`")
    missing = count_missing(dataset, cache_column(side_px))
    rows = np.unique(np.linspace(0, len(dataset) - 1, _rows_at_once(side_px)).astype(np.int64))
    decode_s = min(repeat(lambda: _decode_rows(dataset, rows, side_px), number=1, repeat=ROUNDS))
    field = _pixel_field(side_px)
    with tempfile.TemporaryDirectory() as folder:
        pixels, _ = _decode_rows(dataset, rows, side_px)
        started = time.perf_counter()
        values = pa.FixedSizeBinaryArray.from_buffers(field.type, len(rows), [None, pa.py_buffer(pixels)])
        try:
            probe = lance.write_dataset(pa.table([values], schema=pa.schema([field])), f"{folder}/probe.lance")
        except OSError as error:
            raise writing_error(folder, error, again="measure again (TMPDIR names another folder)") from error
        write_s = time.perf_counter() - started
        shuffled = np.random.default_rng(0).permutation(len(rows))
        read_s = min(repeat(lambda: probe.take(shuffled), number=1, repeat=ROUNDS))
    return CacheEstimate(
        column=field.name,
        rows=missing,
        bytes=missing * side_px * side_px * 3,
        write_s=missing * (decode_s + write_s) / len(rows),
        gain=decode_s / read_s,
    )


def make_cache(
    dataset: Dataset, *, side_px: int, advance: Callable[[int], object] | None = None
) -> tuple[Dataset, list[str]]:
    """Decode every row that has no cached pixels; returns the new version and the ids that cannot be decoded.

    An image is squashed into a square of `side_px` pixels. After an interruption the missing rows are decoded.
    """
    _check_space(dataset, count_missing(dataset, cache_column(side_px)) * side_px * side_px * 3)
    field = _pixel_field(side_px)
    bad: list[str] = []

    def compute(part: Dataset, rows: np.ndarray) -> pa.Array:
        pixels, failed = _decode_rows(part, rows, side_px)
        bad.extend(part.take(rows[failed], [part.columns.image_id]).column(0).to_pylist() if failed.any() else [])
        valid = pa.array(~failed).buffers()[1]  # one bit per row, as a validity mask has
        return pa.Array.from_buffers(field.type, len(rows), [valid, pa.py_buffer(pixels)])

    return fill_column(dataset, field, compute, batch_rows=_rows_at_once(side_px), advance=advance), bad


def fill_missing(datasets: Sequence[Dataset], config: DataConfig) -> tuple[Dataset, ...]:
    """The datasets with the pixel cache that the config asks for; it is made where it is missing."""
    return tuple(_fill_one(dataset, config.cache) if config.cache else dataset for dataset in datasets)


def _fill_one(dataset: Dataset, side_px: int) -> Dataset:
    if not count_missing(dataset, cache_column(side_px)):
        return dataset
    estimate = estimate_cache(dataset, side_px=side_px)
    size_mb = estimate.bytes / MEGABYTE
    log.info("making the pixel cache of `%s`: %.0f MB, about %.0f s", dataset.uri, size_mb, estimate.write_s)
    dataset, bad = make_cache(dataset, side_px=side_px)
    if bad:
        log.warning("%d images of `%s` cannot be decoded, starting with `%s`", len(bad), dataset.uri, bad[0])
    return dataset


def _rows_at_once(side_px: int) -> int:
    return max(1, min(BATCH_ROWS, BATCH_BYTES // (side_px * side_px * 3)))


def _pixel_field(side_px: int) -> pa.Field:
    return pa.field(cache_column(side_px), pa.binary(side_px * side_px * 3))


def _decode_rows(dataset: Dataset, rows: np.ndarray, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, side, side, 3) pixels, and (B,) whether an image could not be decoded."""
    sources = dataset.take_images(rows)
    pixels = np.zeros((len(rows), side_px, side_px, 3), np.uint8)
    images = Pixels(DataConfig(dataset=dataset.uri, image_size=side_px), ImageSpec(side_px), seed=None)

    def decode_one(place: int) -> bool:
        try:
            images.render(sources[place], None, None, pixels[place])
        except BadImage:
            return True
        return False

    cv2.setNumThreads(1)
    with ThreadPoolExecutor(usable_cores()) as pool:
        failed = np.fromiter(pool.map(decode_one, range(len(rows))), dtype=bool, count=len(rows))
    return pixels, failed


def _check_space(dataset: Dataset, needed: int) -> None:
    if "://" in dataset.uri:
        return
    free = shutil.disk_usage(Path(dataset.uri)).free
    if needed > free:
        raise DataError(
            f"the pixel cache needs {needed / MEGABYTE:,.0f} MB, but only {free / MEGABYTE:,.0f} MB are free",
            "a smaller `--size` needs less",
        )
