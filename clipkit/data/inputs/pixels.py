"""Pixels: of the encoded image, or of a column of pixels that were decoded before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
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
CACHE_PREFIX = "pixels_"
Source = memoryview | RGB | None
Time = Callable[[str, float], object]  # is told of seconds by stage


class Renderer(Protocol):
    """Where pixels come from, and how one image becomes what the encoder takes."""

    def fetch(self, samples: DrawnSamples) -> Sequence[Source]: ...
    def render(self, source: Source, orientation: int | None, uniforms: Sequence[float] | None, out: RGB) -> float:
        """Fill `out`; gives the seconds that decoding took. Raises BadImage.

        `orientation` is the EXIF orientation where the dataset holds one, which goes before the file's. No uniform
        numbers: as in evaluation.
        """
        ...


@dataclass(frozen=True)
class EncodedImages:
    config: DataConfig
    spec: ImageSpec
    jpeg: JpegDecoder

    def fetch(self, samples: DrawnSamples) -> Sequence[Source]:
        return samples.images()

    def render(self, source: Source, orientation: int | None, uniforms: Sequence[float] | None, out: RGB) -> float:
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
        augment, size_px, exact = self.config.augment, self.spec.size_px, self.config.decode == "full"
        box = (
            None
            if _shows_whole(self.spec, self.config, uniforms)
            else crop_box(width, height, size_px, augment, uniforms)
        )
        divisor = 1
        if not exact and self.spec.interpolation == "fast":
            region_width, region_height = (box.width, box.height) if box is not None else (width, height)
            divisor = choose_divisor(region_width, region_height, self.spec.shortest_px or size_px)
        pixels = decode(source, info, divisor=divisor, jpeg=self.jpeg)
        decode_s = time.perf_counter() - started
        pixels = turn_upright(pixels, orientation)
        if box is None:
            resize_for(pixels, self.spec, out, exact=exact)
        else:
            # The size that was really decoded, whatever the header or the scale said.
            region_pixels = cut(pixels, box, pixels.shape[1] / width)
            resize_for(region_pixels, replace(self.spec, resize="squash"), out, exact=exact)
        if uniforms is not None:
            augment_pixels(out, augment, uniforms)
        return decode_s


def _shows_whole(spec: ImageSpec, config: DataConfig, uniforms: Sequence[float] | None) -> bool:
    """Whether the spec's own way of making a square applies, and no crop of the augmentation's."""
    return spec.resize != "squash" and (uniforms is None or isinstance(config.augment, NoAugment))


@dataclass(frozen=True)
class CachedPixels:
    """Squares of `cache` pixels, made by `clipkit cache`; a crop is taken in the squashed image."""

    config: DataConfig
    spec: ImageSpec
    side_px: int

    def fetch(self, samples: DrawnSamples) -> Sequence[Source]:
        return samples.pixels(cache_column(self.side_px))

    def render(self, source: Source, orientation: int | None, uniforms: Sequence[float] | None, out: RGB) -> float:
        if source is None:
            raise BadImage("its pixels are not in the cache")
        assert isinstance(source, np.ndarray)
        square = source.reshape(self.side_px, self.side_px, 3)
        box = crop_box(self.side_px, self.side_px, self.spec.size_px, self.config.augment, uniforms)
        resize_for(cut(square, box, 1.0), replace(self.spec, resize="squash"), out)
        if uniforms is not None:
            augment_pixels(out, self.config.augment, uniforms)
        return 0.0


class Pixels(DecodedInput):
    """`pixels`, (B, size, size, 3) uint8 RGB, augmented in training."""

    def __init__(self, config: DataConfig, spec: ImageSpec, *, seed: int | None) -> None:
        """Without a seed nothing is augmented, as in evaluation."""
        self.spec = spec
        self.time: Time = lambda stage, seconds: None
        self._cache = config.cache
        if config.cache is None:
            self._renderer: Renderer = EncodedImages(config, spec, fastest_decoder())
        elif spec.resize != "squash":
            raise ConfigError(
                f"`data.cache` holds squashed images, and the image encoder is for `data.resize: {spec.resize}`",
                "leave `data.cache` out, or set `data.resize: squash`",
            )
        else:
            self._renderer = CachedPixels(config, spec, config.cache)
        is_augmented = seed is not None and not isinstance(config.augment, NoAugment)
        self._key = key(seed or 0, AUGMENT_PURPOSE) if is_augmented else None

    def check(self, dataset: Dataset) -> None:
        if self._cache is None:
            _ = dataset.image_column  # raises where it is missing
        elif cache_column(self._cache) not in dataset.schema.names:
            raise DataError(
                f"`{dataset.uri}` has no pixel cache of {self._cache} px",
                f"make it with `clipkit cache {dataset.uri} --size {self._cache}`, or leave `data.cache` out",
            )

    def fetch(self, samples: DrawnSamples) -> Sequence[Source]:
        """What the samples' pixels are made from: encoded images, or cached pixels."""
        return self._renderer.fetch(samples)

    def render(self, source: Source, orientation: int | None, uniforms: Sequence[float] | None, out: RGB) -> float:
        """See `Renderer.render`."""
        return self._renderer.render(source, orientation, uniforms, out)

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
        drawn: list[list[float]] | None,
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
        self._uniforms = drawn

    def decode(self, start: int, stop: int) -> Mapping[int, str]:
        started, decode_s = time.perf_counter(), 0.0
        failed = {}
        for i in range(start, stop):
            drawn = self._uniforms[i] if self._uniforms else None
            try:
                decode_s += self._input.render(self._sources[i], self._orientations[i], drawn, self._out[i])
            except BadImage as error:
                failed[i] = error.reason
        self._input.time("decode", decode_s)
        self._input.time("transform", time.perf_counter() - started - decode_s)
        return failed

    def replace(self, place: int, other: Decoding) -> None:
        self.tensors["pixels"][place] = other.tensors["pixels"][0]

    def blank(self, place: int) -> None:
        self.tensors["pixels"][place] = 0


def cache_column(side_px: int) -> str:
    return f"{CACHE_PREFIX}{side_px}"
