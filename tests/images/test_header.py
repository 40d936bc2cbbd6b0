"""Headers: what is truncated or damaged is recognised without decoding."""

from __future__ import annotations

import random
import struct

import pytest
from image_files import FILES, encoded, photo
from PIL import Image

from clipkit.images.header import BadImage, parse_header


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("avif", "heic")])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_files_are_told_by_their_structure(name: str, share: float) -> None:
    data = FILES[name]()
    cut = data[: int(len(data) * share)]
    with pytest.raises(BadImage, match=r"^(empty file|truncated|not an image)"):
        parse_header(cut)


def test_bytes_behind_the_end_do_no_harm() -> None:
    for name in ("jpeg", "png", "webp", "gif"):
        assert parse_header(FILES[name]() + b"\0" * 10).width == 96


def test_a_thumbnails_end_marker_is_not_the_images() -> None:
    data = encoded(photo(400, 300), "JPEG", exif=Image.Exif().tobytes() + FILES["jpeg"]())
    assert data.index(b"\xff\xd9") < len(data) // 2
    with pytest.raises(BadImage, match="no JPEG end marker"):
        parse_header(data[: len(data) // 2])


def test_damaged_headers_raise_nothing_else() -> None:
    draw = random.Random(0)
    for name, make in FILES.items():
        data = make()
        for _ in range(60):
            damaged = bytearray(data[: draw.randrange(1, len(data) + 1)])
            for _ in range(draw.randrange(1, 6)):
                damaged[draw.randrange(min(len(damaged), 200))] = draw.randrange(256)
            try:
                info = parse_header(bytes(damaged))
            except BadImage:
                continue
            assert info.width > 0, name


def tiff(*tags: tuple[int, int]) -> bytes:
    """A TIFF of 8x8 pixels, with further tags of one number each."""
    entries = sorted([(256, 8), (257, 8), *tags])
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ([(258, 32), (339, 3)], "a TIFF of floating-point 32-bit numbers"),
        ([(258, 16), (339, 2)], "a TIFF of signed 16-bit numbers"),
        ([(258, 32), (339, 1)], "a TIFF of unsigned 32-bit numbers"),
        ([(277, 13)], "a TIFF of 13 bands"),
    ],
)
def test_tiffs_of_measurements_are_refused(tags: list[tuple[int, int]], reason: str) -> None:
    assert parse_header(tiff((258, 16), (277, 4))).width == 8
    with pytest.raises(BadImage, match=reason):
        parse_header(tiff(*tags))
