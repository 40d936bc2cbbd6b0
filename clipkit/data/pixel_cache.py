"""Decoded pixels as a column of the dataset, made once and read from then on."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import lance
import numpy as np
import pyarrow as pa

from clipkit.config import DataConfig
from clipkit.data.inputs.pixels import cache_column
from clipkit.errors import DataError
from clipkit.hardware import usable_cores
from clipkit.images.decode import choose_divisor, decode, fastest_decoder, turn_upright
from clipkit.images.header import BadImage, parse_header
from clipkit.images.resize import resize_for
from clipkit.store import Dataset
from clipkit.store.columns import count_missing, fill_column
from clipkit.store.dataset import fixed_size_values
from clipkit.store.shards import writing_error
from clipkit.types import ImageSpec

log = logging.getLogger(__name__)

BATCH_ROWS = 256
BATCH_BYTES = 64_000_000
MEGABYTE = 1_000_000
PROBE_BATCH = 64
PROBE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class CacheEstimate:
    """What a cache costs and gains, measured on some rows before anything is written."""

    column: str
    rows: int  # still to be computed
    bytes: int
    write_s: float
    decode_images_per_s: float
    cached_images_per_s: float

    @property
    def gain(self) -> float:
        return self.cached_images_per_s / self.decode_images_per_s


def estimate_cache(dataset: Dataset, *, side_px: int) -> CacheEstimate:
    """Decode some rows spread over the dataset; write their pixels into a dataset of their own, and cut out of it."""
    if not len(dataset):
        raise DataError(f"`{dataset.uri}` has no rows", "add some with `clipkit ingest --append`")
    missing = count_missing(dataset, cache_column(side_px))
    rows = np.unique(np.linspace(0, len(dataset) - 1, _rows_at_once(side_px)).astype(np.int64))
    decode_s = math.inf
    for _ in range(PROBE_ROUNDS):
        started = time.perf_counter()
        pixels, _ = _decode_rows(dataset, rows, side_px)
        decode_s = min(decode_s, time.perf_counter() - started)
    field = _pixel_field(side_px)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        values = pa.FixedSizeBinaryArray.from_buffers(field.type, len(rows), [None, pa.py_buffer(pixels)])
        try:
            probe = lance.write_dataset(pa.table([values], schema=pa.schema([field])), f"{folder}/probe.lance")
        except OSError as error:
            raise writing_error(folder, error, again="measure again (TMPDIR names another place)") from error
        write_s = time.perf_counter() - started
        cut_s = min(_time_cuts(probe, field.name, side_px, order) for order in _shuffles(len(rows)))
    return CacheEstimate(
        column=field.name,
        rows=missing,
        bytes=missing * side_px * side_px * 3,
        write_s=missing * (decode_s + write_s) / len(rows),
        decode_images_per_s=len(rows) / decode_s,
        cached_images_per_s=len(rows) / cut_s,
    )


def _shuffles(num_rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.permutation(num_rows) for _ in range(PROBE_ROUNDS)]


def _time_cuts(probe: lance.LanceDataset, column: str, side_px: int, order: np.ndarray) -> float:
    """Seconds that all cores would take to read these rows in batches and cut a square out of each."""
    size_px = side_px * 7 // 8  # 224 of 256
    out = np.empty((size_px, size_px, 3), np.uint8)
    started = time.perf_counter()
    for start in range(0, len(order), PROBE_BATCH):
        chosen = probe.take(order[start : start + PROBE_BATCH], columns=[column]).column(0).combine_chunks()
        for image in fixed_size_values(chosen):
            out[...] = image.reshape(side_px, side_px, 3)[:size_px, :size_px]
    return (time.perf_counter() - started) / usable_cores()


def _rows_at_once(side_px: int) -> int:
    return max(1, min(BATCH_ROWS, BATCH_BYTES // (side_px * side_px * 3)))


def _pixel_field(side_px: int) -> pa.Field:
    return pa.field(cache_column(side_px), pa.binary(side_px * side_px * 3))


def make_cache(
    dataset: Dataset, *, side_px: int, advance: Callable[[int], object] | None = None
) -> tuple[Dataset, list[str]]:
    """Decode every row that has no cached pixels; gives the new version and the ids that cannot be decoded.

    An image is squashed into a square of `side_px` pixels. A run that was killed is resumed with the missing rows.
    """
    _check_space(dataset, count_missing(dataset, cache_column(side_px)) * side_px * side_px * 3)
    field = _pixel_field(side_px)
    bad: list[str] = []

    def compute(part: Dataset, rows: np.ndarray) -> pa.Array:
        pixels, failed = _decode_rows(part, rows, side_px)
        bad.extend(part.take(rows[failed], [part.columns.image_id]).column(0).to_pylist() if failed.any() else [])
        valid = pa.array(~failed).buffers()[1]  # one bit a row, as a validity mask has
        return pa.Array.from_buffers(field.type, len(rows), [valid, pa.py_buffer(pixels)])

    return fill_column(dataset, field, compute, batch_rows=_rows_at_once(side_px), advance=advance), bad


def fill_missing(datasets: Sequence[Dataset], config: DataConfig) -> tuple[Dataset, ...]:
    """The datasets with the pixel cache that the config trains from, made where it is missing."""
    return tuple(_fill_one(dataset, config.cache) if config.cache else dataset for dataset in datasets)


def _fill_one(dataset: Dataset, side_px: int) -> Dataset:
    if not count_missing(dataset, cache_column(side_px)):
        return dataset
    estimate = estimate_cache(dataset, side_px=side_px)
    log.info(
        "making the pixel cache of `%s`: %.0f MB, about %.0f s",
        dataset.uri,
        estimate.bytes / MEGABYTE,
        estimate.write_s,
    )
    dataset, bad = make_cache(dataset, side_px=side_px)
    if bad:
        log.warning("%d images of `%s` cannot be decoded, `%s` first", len(bad), dataset.uri, bad[0])
    return dataset


def _decode_rows(dataset: Dataset, rows: np.ndarray, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, side, side, 3) pixels, and (B,) whether an image could not be decoded."""
    sources = dataset.take_images(rows)
    pixels = np.zeros((len(rows), side_px, side_px, 3), np.uint8)
    jpeg, spec = fastest_decoder(), ImageSpec(side_px)

    def decode_one(place: int) -> bool:
        try:
            info = parse_header(sources[place])
            divisor = choose_divisor(info.width, info.height, side_px)
            image = turn_upright(decode(sources[place], info, divisor=divisor, jpeg=jpeg), info.orientation)
        except BadImage:
            return True
        resize_for(image, spec, pixels[place])
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
            f"the pixel cache needs {needed / MEGABYTE:,.0f} MB, and {free / MEGABYTE:,.0f} MB are free",
            "a smaller `--size` needs less",
        )
