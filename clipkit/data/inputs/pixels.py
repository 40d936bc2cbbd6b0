"""Where a sample's pixels come from: the encoded image, or a column of pixels that were decoded before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clipkit.config import DataConfig
from clipkit.data.augment import augment_pixels, crop_box, cut_and_resize
from clipkit.data.samples import Corpus
from clipkit.errors import DataError
from clipkit.images.decode import JpegDecoder, Pixels, choose_divisor, decode, fastest_decoder, turn_upright
from clipkit.images.header import BadImage, parse_header

Source = memoryview | Pixels | None
CACHE_PREFIX = "pixels_"


class Images(Protocol):
    """What is read for a batch, and how one of its images becomes the pixels that the encoder gets."""

    def fetch(self, corpus: Corpus, rows: np.ndarray) -> Sequence[Source]: ...

    def render(self, source: Source, orientation: int | None, uniforms: Sequence[float] | None, out: Pixels) -> float:
        """Fill `out`; gives the seconds that decoding took. Raises BadImage.

        `orientation` is the EXIF orientation where the dataset holds one, which goes before the file's. No uniform
        numbers: as in validation.
        """
        ...


@dataclass(frozen=True)
class EncodedImages:
    config: DataConfig
    jpeg: JpegDecoder

    def fetch(self, corpus: Corpus, rows: np.ndarray) -> Sequence[memoryview]:
        return corpus.images(rows)

    def render(self, source: Source, orientation: int | None, uniforms: Sequence[float] | None, out: Pixels) -> float:
        assert isinstance(source, memoryview)
        if not source.nbytes:
            raise BadImage("empty")
        started = time.perf_counter()
        info = parse_header(source)
        if orientation is None:
            orientation = info.orientation
        width, height = info.width, info.height
        if orientation >= 5:
            width, height = height, width
        augment = self.config.augment
        box = crop_box(width, height, out.shape[0], augment, uniforms)
        divisor = choose_divisor(box.width, box.height, out.shape[0]) if self.config.decode == "scaled" else 1
        pixels = decode(source, info, divisor=divisor, jpeg=self.jpeg)
        decode_s = time.perf_counter() - started
        pixels = turn_upright(pixels, orientation)
        # The size that was really decoded, whatever the header or the scale said.
        cut_and_resize(pixels, box, pixels.shape[1] / width, out, exact=self.config.decode == "full")
        if uniforms is not None:
            augment_pixels(out, augment, uniforms)
        return decode_s


@dataclass(frozen=True)
class CachedPixels:
    """Squares of `cache` pixels, made by `clipkit cache`; a crop is taken in the squeezed image."""

    config: DataConfig
    side_px: int

    def fetch(self, corpus: Corpus, rows: np.ndarray) -> Sequence[Pixels | None]:
        return corpus.pixels(rows, cache_column(self.side_px))

    def render(self, source: Source, orientation: int | None, uniforms: Sequence[float] | None, out: Pixels) -> float:
        if source is None:
            raise BadImage("its pixels are not in the cache")
        assert isinstance(source, np.ndarray)
        source = source.reshape(self.side_px, self.side_px, 3)
        box = crop_box(self.side_px, self.side_px, out.shape[0], self.config.augment, uniforms)
        cut_and_resize(source, box, 1.0, out)
        if uniforms is not None:
            augment_pixels(out, self.config.augment, uniforms)
        return 0.0


def choose_images(config: DataConfig, corpora: Sequence[Corpus]) -> Images | None:
    """Where pixels come from by this config: nowhere, where the image encoder's outputs are stored."""
    if config.features.image is not None:
        return None
    if config.cache is None:
        return EncodedImages(config, fastest_decoder())
    for corpus in corpora:
        if cache_column(config.cache) not in corpus.dataset.schema.names:
            raise DataError(
                f"`{corpus.dataset.uri}` has no pixel cache of {config.cache} px",
                f"make it with `clipkit cache {corpus.dataset.uri} --size {config.cache}`, or leave `data.cache` out",
            )
    return CachedPixels(config, config.cache)


def cache_column(side_px: int) -> str:
    return f"{CACHE_PREFIX}{side_px}"
