"""Resident memory over many rows: `python tests/benchmarks/memory.py [--rows 200000] [--dataset D.lance]`.

Goes once through a dataset of generated tiny images, or of your own, as training does, and prints the resident memory
on the way and the most there was. It should not grow once the loader runs.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from PIL import Image

from clipkit.config import DataConfig, RandomResizedCrop
from clipkit.data.inputs import Pixels, Tokens
from clipkit.data.loader import build_loader
from clipkit.data.tokenizer import train_tokenizer
from clipkit.types import ImageSpec

PART = 20_000
NUM_IMAGES = 200
NUM_LINES = 12
SCHEMA = pa.schema([("image_id", pa.string()), ("image", pa.large_binary()), ("captions", pa.list_(pa.string()))])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dataset", help="a dataset of your own, gone through as often as `--rows` takes")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.dataset or write_dataset(Path(folder) / "tiny.lance", options.rows)
        config = DataConfig(dataset=path, image_size=options.image_size, augment=RandomResizedCrop())
        iterate(config, options.rows, options.batch_size)


def write_dataset(path: Path, num_rows: int) -> str:
    """Tiny JPEGs, two captions each."""
    images = [encode(seed) for seed in range(NUM_IMAGES)]
    for start in range(0, num_rows, PART):
        numbers = range(start, min(start + PART, num_rows))
        table = pa.table(
            {
                "image_id": [f"image-{number:08d}" for number in numbers],
                "image": pa.array([images[number % NUM_IMAGES] for number in numbers], pa.large_binary()),
                "captions": [[f"a picture, number {number}", f"{number} again"] for number in numbers],
            },
            schema=SCHEMA,
        )
        lance.write_dataset(table, str(path), mode="append" if start else "create", data_storage_version="2.2")
    return str(path)


def encode(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((48, 36)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def iterate(config: DataConfig, num_rows: int, batch_size: int) -> None:
    print(f"before the loader: {resident_mb('VmRSS'):,.0f} MB")
    words = ["a picture, number 0123456789 again"]
    tokenizer = train_tokenizer(words, vocab_size=200, lowercase=True, max_tokens=32, padding="longest")
    inputs = [Pixels(config, ImageSpec(config.image_size), seed=0), Tokens(tokenizer, column=config.captions_column)]
    loader = build_loader(config, inputs, batch_size=batch_size, seed=0)
    num_batches = num_rows // batch_size
    started = time.perf_counter()
    for number, _ in enumerate(loader.iterate(0, num_batches), start=1):
        if number == 1 or number % max(1, num_batches // NUM_LINES) == 0:
            print(f"{number * batch_size:>9,} rows: {resident_mb('VmRSS'):,.0f} MB", flush=True)
    speed = num_batches * batch_size / (time.perf_counter() - started)
    print(f"at most {resident_mb('VmHWM'):,.0f} MB; {speed:,.0f} images a second")


def resident_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    main()
