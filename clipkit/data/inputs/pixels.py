"""Pixels, decoded from the encoded image or read from a column of cached pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from clipkit.config import DataConfig, NoAugment
from clipkit.data.augment import NUM_UNIFORMS, augment_pixels, crop_box, cut
from clipkit.data.inputs.base import DecodedInput, Decoding
from clipkit.data.random import key, uniforms
from clipkit.data.samples import DrawnSamples
from clipkit.errors import ConfigError, DataError
from clipkit.images.decode import JpegDecoder, choose_divisor, decode, fastest_decoder, turn_upright
from clipkit.images.decode import Pixels as RGB
from clipkit.images.header import BadImage, parse_header
from clipkit.images.resize import resize_for
from clipkit.store import Dataset
from clipkit.types import ImageSpec

AUGMENT_PURPOSE = 2
Source = memoryview | RGB | None


class Pixels(DecodedInput):
    """`pixels`, (B, size, size, 3) uint8 RGB, augmented in training.

    With `data.cache` they are cut out of the squares that `clipkit cache` has stored.
    """

    def __init__(
        self, config: DataConfig, spec: ImageSpec, *, seed: int | None, jpeg: JpegDecoder | None = None
    ) -> None:
        """Without a seed nothing is augmented, as in evaluation. `jpeg` is the fastest decoder by default."""
        if config.cache is not None and spec.resize != "squash":
            raise ConfigError(
                f"`data.cache` holds squashed images, but the image encoder expects `data.resize: {spec.resize}`",
                "remove `data.cache`, or set `data.resize: squash`",
            )
        self.spec = spec
        self.report_time: Callable[[str, float], object] = lambda stage, seconds: None
        self._config = config
        self._jpeg = jpeg or fastest_decoder()
        self._squashed = replace(spec, resize="squash")
        is_augmented = seed is not None and not isinstance(config.augment, NoAugment)
        self._key = key(seed or 0, AUGMENT_PURPOSE) if is_augmented else None

    def check(self, dataset: Dataset) -> None:
        cache = self._config.cache
        if cache is None:
            _ = dataset.image_column  # raises DataError if there is none
        elif cache_column(cache) not in dataset.schema.names:
            raise DataError(
                f"`{dataset.uri}` has no pixel cache of {cache} px",
                f"make it with `clipkit cache {dataset.uri} --size {cache}`, or remove `data.cache`",
            )

    def fetch(self, samples: DrawnSamples) -> Sequence[Source]:
        """What the samples' pixels are made from: encoded images, or cached pixels."""
        cache = self._config.cache
        return samples.images() if cache is None else samples.pixels(cache_column(cache))

    def render(self, source: Source, orientation: int | None, uniforms: Sequence[float] | None, out: RGB) -> float:
        """Fill `out` from one image; returns the seconds that decoding took. Raises BadImage.

        A stored `orientation` (EXIF) takes precedence over the file's. Without `uniforms` nothing is random.
        """
        if source is None:
            raise BadImage("its pixels are not in the cache")
        if isinstance(source, memoryview):
            return self._render_encoded(source, orientation, uniforms, out)
        side_px = self._config.cache
        assert side_px is not None
        box = crop_box(side_px, side_px, self.spec.size_px, self._config.augment, uniforms)
        resize_for(cut(source.reshape(side_px, side_px, 3), box, 1.0), self.spec, out)
        self._augment(out, uniforms)
        return 0.0

    def _render_encoded(
        self, source: memoryview, orientation: int | None, uniforms: Sequence[float] | None, out: RGB
    ) -> float:
        if not source.nbytes:
            raise BadImage("empty")
        started = time.perf_counter()
        info = parse_header(source)
        if orientation is None:
            orientation = info.orientation
        width, height = (info.height, info.width) if orientation >= 5 else (info.width, info.height)
        spec, augment, is_full = self.spec, self._config.augment, self._config.decode == "full"
        is_cropped = spec.resize == "squash" or not (uniforms is None or isinstance(augment, NoAugment))
        box = crop_box(width, height, spec.size_px, augment, uniforms) if is_cropped else None
        divisor = 1
        if not is_full and spec.interpolation == "fast":
            region_width, region_height = (box.width, box.height) if box is not None else (width, height)
            divisor = choose_divisor(region_width, region_height, spec.shortest_px or spec.size_px)
        pixels = decode(source, info, divisor=divisor, jpeg=self._jpeg)
        decode_s = time.perf_counter() - started
        pixels = turn_upright(pixels, orientation)
        if box is not None:  # its scale comes from the decoded size, which headers and scaling only approximate
            pixels, spec = cut(pixels, box, pixels.shape[1] / width), self._squashed
        resize_for(pixels, spec, out, exact=is_full)
        self._augment(out, uniforms)
        return decode_s

    def _augment(self, out: RGB, uniforms: Sequence[float] | None) -> None:
        if uniforms is not None:
            augment_pixels(out, self._config.augment, uniforms)

    def start(self, samples: DrawnSamples, *, pin_memory: bool) -> Decoding:
        drawn = None
        if self._key is not None:
            drawn = uniforms(self._key, samples.rows, samples.drawn.epochs, count=NUM_UNIFORMS).tolist()
        return _PixelDecoding(self, self.fetch(samples), samples.orientations, drawn, pin_memory=pin_memory)


class _PixelDecoding:
    def __init__(
        self,
        pixels: Pixels,
        sources: Sequence[Source],
        orientations: Sequence[int | None],
        uniforms: list[list[float]] | None,
        *,
        pin_memory: bool,
    ) -> None:
        size = pixels.spec.size_px
        self.tensors: Mapping[str, torch.Tensor] = {
            "pixels": torch.empty((len(sources), size, size, 3), dtype=torch.uint8, pin_memory=pin_memory)
        }
        self._out: RGB = self.tensors["pixels"].numpy()
        self._input = pixels
        self._sources = sources
        self._orientations = orientations
        self._uniforms = uniforms

    def decode(self, start: int, stop: int) -> Mapping[int, str]:
        started, decode_s = time.perf_counter(), 0.0
        failed = {}
        for i in range(start, stop):
            drawn = self._uniforms[i] if self._uniforms else None
            try:
                decode_s += self._input.render(self._sources[i], self._orientations[i], drawn, self._out[i])
            except BadImage as error:
                failed[i] = error.reason
        self._input.report_time("decode", decode_s)
        self._input.report_time("transform", time.perf_counter() - started - decode_s)
        return failed

    def replace(self, place: int, other: Decoding) -> None:
        self.tensors["pixels"][place] = other.tensors["pixels"][0]

    def blank(self, place: int) -> None:
        self.tensors["pixels"][place] = 0


def cache_column(side_px: int) -> str:
    return f"pixels_{side_px}"
