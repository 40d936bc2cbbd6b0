"""Corpora in Kaggle's Flickr8k format, of as many small images as a test needs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lance
from PIL import Image


def _plain_jpeg(size: tuple[int, int], *, exif: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 90, 40)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


PLAIN = _plain_jpeg((24, 16))


def numbered_jpeg(number: int) -> bytes:
    """A whole JPEG whose bytes, in a comment, differ from every other number's."""
    comment = f"{number:010d}".encode()
    return PLAIN[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + PLAIN[2:]


def rotated_jpeg() -> bytes:
    """A JPEG that EXIF says is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return _plain_jpeg((32, 20), exif=exif.tobytes())


def write_corpus(folder: Path, numbers: Iterable[int], *, caption: str = "caption of") -> Path:
    """`captions.txt` and `Images/`, an image a number, with two captions."""
    images = folder / "Images"
    images.mkdir(parents=True, exist_ok=True)
    with open(folder / "captions.txt", "w") as file:
        file.write("image,caption\n")
        for number in numbers:
            (images / f"{number:06d}.jpg").write_bytes(numbered_jpeg(number))
            file.write(f"{number:06d}.jpg,{caption} {number}\n{number:06d}.jpg,again {number}\n")
    return folder


def read_rows(uri: Path | str) -> list[dict[str, Any]]:
    """Every row of a dataset with binary images, in order."""
    return lance.dataset(str(uri)).to_table().to_pylist()


def rejected_lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rejected.jsonl"
    return [json.loads(line) for line in path.read_text().strip().split("\n")] if path.exists() else []
