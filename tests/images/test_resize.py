"""Resizing for a model, against Pillow and against the processors of published models."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor

from clipkit.images.resize import resize_for
from clipkit.types import ImageSpec

SIZE_PX = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.fixture(scope="module")
def photographs(photographs_dir: Path) -> list[np.ndarray]:
    return [np.array(Image.open(path).convert("RGB")) for path in sorted(photographs_dir.iterdir())[:12]]


def resized(pixels: np.ndarray, spec: ImageSpec) -> np.ndarray:
    out = np.full((spec.size_px, spec.size_px, 3), 77, np.uint8)
    resize_for(pixels, spec, out)
    return out.astype(float)


def by_pillow(pixels: np.ndarray, spec: ImageSpec) -> np.ndarray:
    image, filter = Image.fromarray(pixels), Image.Resampling[spec.interpolation.upper()]
    size, (width, height) = spec.size_px, image.size
    if spec.resize == "squash":
        return np.asarray(image.resize((size, size), filter), dtype=float)
    if spec.resize == "crop":
        shortest = spec.shortest_px or size
        new = int(shortest * width / min(image.size)), int(shortest * height / min(image.size))
        left, top = (new[0] - size) // 2, (new[1] - size) // 2
        return np.asarray(image.resize(new, filter).crop((left, top, left + size, top + size)), dtype=float)
    new = round(size * width / max(image.size)), round(size * height / max(image.size))
    square = Image.new("RGB", (size, size), tuple(round(255 * value) for value in spec.mean))
    square.paste(image.resize(new, filter), ((size - new[0]) // 2, (size - new[1]) // 2))
    return np.asarray(square, dtype=float)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "change", [{"resize": "squash"}, {"resize": "crop"}, {"resize": "crop", "shortest_px": 256}, {"resize": "pad"}]
)
def test_pixels_are_those_of_pillow(photographs: list[np.ndarray], change: dict, interpolation: str) -> None:
    spec = ImageSpec(SIZE_PX, MEAN, interpolation=interpolation, **change)
    for pixels in photographs:
        assert np.abs(resized(pixels, spec) - by_pillow(pixels, spec)).mean() < 0.3


@pytest.mark.parametrize("change", [{"resize": "crop"}, {"resize": "crop", "shortest_px": 256}, {"resize": "pad"}])
def test_the_fast_interpolation_takes_the_same_region(photographs: list[np.ndarray], change: dict) -> None:
    for sharp in photographs:
        pixels = cv2.GaussianBlur(sharp, (0, 0), 3)  # so that only the region makes a difference
        fast, pillow = (
            resized(pixels, ImageSpec(SIZE_PX, MEAN, interpolation=name, **change)) for name in ("fast", "bilinear")
        )
        assert np.abs(fast - pillow).mean() < 3  # a crop may lie half a pixel beside


def of_processor(processor: CLIPImageProcessor | SiglipImageProcessor, pixels: np.ndarray) -> np.ndarray:
    normalised = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return np.asarray(255 * (normalised * std + mean).permute(1, 2, 0))


@pytest.mark.parametrize(
    ("processor", "spec"),
    [
        (
            CLIPImageProcessor(size={"shortest_edge": SIZE_PX}, crop_size=SIZE_PX),
            ImageSpec(SIZE_PX, resize="crop", interpolation="bicubic"),
        ),
        (
            SiglipImageProcessor(size={"height": SIZE_PX, "width": SIZE_PX}, resample=Image.Resampling.BICUBIC),
            ImageSpec(SIZE_PX, resize="squash", interpolation="bicubic"),
        ),
    ],
    ids=["clip", "siglip"],
)
def test_pixels_are_those_of_published_models(
    photographs: list[np.ndarray], processor: CLIPImageProcessor | SiglipImageProcessor, spec: ImageSpec
) -> None:
    for pixels in photographs:
        assert np.abs(resized(pixels, spec) - of_processor(processor, pixels)).mean() < 0.3


def test_read_only_pixels_and_small_images_are_resized() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    for interpolation in ("fast", "bicubic"):
        for resize in ("squash", "crop", "pad"):
            assert resized(pixels, ImageSpec(8, interpolation=interpolation, resize=resize)).std() > 10
