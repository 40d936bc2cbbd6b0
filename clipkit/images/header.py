"""What an image file's header and structure say without decoding it: format, size, orientation, wholeness."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Data = bytes | memoryview


class BadImage(ValueError):
    """Bytes that are not a usable image; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Size as decoders give it, that is before the EXIF `orientation` (1 to 8) is applied."""

    format: str
    width: int
    height: int
    orientation: int = 1
    has_alpha: bool = False
    is_cmyk: bool = False


def parse_header(data: Data) -> ImageInfo:
    """Raises BadImage for what is empty, truncated, or not an image."""
    if not len(data):
        raise BadImage("empty file")
    if isinstance(data, memoryview):
        data = data.cast("B")  # Arrow's are of signed bytes
    head = bytes(data[:16])
    for matches, parse in PARSERS:
        if matches(head):
            try:
                info = parse(data)
            except (struct.error, IndexError) as error:
                raise BadImage("truncated: the header is incomplete") from error
            if info.width <= 0 or info.height <= 0:
                raise BadImage(f"the header says {info.width}x{info.height} pixels")
            return info
    raise BadImage("not an image: not the start of a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC file")


# --- JPEG -----------------------------------------------------------------------------------------

SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
STANDALONE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))


def _parse_jpeg(data: Data) -> ImageInfo:
    position, orientation = 2, 1
    width = height = components = 0
    while True:
        if data[position] != 0xFF:
            raise BadImage("not an image: damaged JPEG header")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in STANDALONE_MARKERS:
            position += 2
            continue
        if marker in (0xDA, 0xD9):
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in SOF_MARKERS:
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
        elif marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    if not width:
        raise BadImage("not an image: a JPEG without a frame")
    # In a scan an FF is always followed by 00 or a restart marker, so that FF D9 is the end and nothing else.
    if data[-2:] != b"\xff\xd9" and bytes(data[position:]).rfind(b"\xff\xd9") < 0:
        raise BadImage("truncated: no JPEG end marker")
    return ImageInfo("jpeg", width, height, orientation, is_cmyk=components == 4)


def _exif_orientation(exif: Data) -> int:
    """The orientation in the first directory of an EXIF (that is, TIFF) block; 1 where it is not known."""
    try:
        return _orientation_of(_tiff_tags(exif))
    except (BadImage, struct.error, IndexError):
        return 1


def _orientation_of(tags: dict[str, list[int]]) -> int:
    value = tags.get("orientation", [1])[0]
    return value if 1 <= value <= 8 else 1


# --- PNG ------------------------------------------------------------------------------------------

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _parse_png(data: Data) -> ImageInfo:
    if data[12:16] != b"IHDR":
        raise BadImage("not an image: a PNG without a header")
    width, height, _, color_type = struct.unpack_from(">IIBB", data, 16)
    has_alpha, orientation = color_type in (4, 6), 1
    for kind, start, end in _png_chunks(data):
        if kind == b"tRNS":
            has_alpha = True
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[start:end])
        elif kind == b"IEND":
            return ImageInfo("png", width, height, orientation, has_alpha)
    raise BadImage("truncated: no PNG end chunk (IEND)")


def _png_chunks(data: Data) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk that is there in full."""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if start + length + 4 > len(data):
            return
        yield kind, start, start + length
        position = start + length + 4


# --- WebP -----------------------------------------------------------------------------------------


def _parse_webp(data: Data) -> ImageInfo:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise BadImage(f"truncated: the RIFF header says {size + 8} bytes, there are {len(data)}")
    width = height = 0
    orientation, has_alpha = 1, False
    position = 12
    while position + 8 <= size + 8:
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if kind == b"VP8X":
            has_alpha = bool(data[start] & 0x10)
            width = 1 + int.from_bytes(data[start + 4 : start + 7], "little")
            height = 1 + int.from_bytes(data[start + 7 : start + 10], "little")
        elif kind == b"VP8 " and not width:
            width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, start + 6))
        elif kind == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", data, start + 1)
            width, height, has_alpha = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bool(bits >> 28 & 1)
        elif kind == b"EXIF":
            exif = data[start : start + length]
            orientation = _exif_orientation(exif[6:] if exif[:6] == b"Exif\0\0" else exif)
        position = start + length + length % 2
    return ImageInfo("webp", width, height, orientation, has_alpha)


# --- BMP, GIF -------------------------------------------------------------------------------------


def _parse_bmp(data: Data) -> ImageInfo:
    pixels, header_size = struct.unpack_from("<II", data, 10)
    if header_size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative where the rows run from the top
    if compression in (0, 3) and pixels + (width * bits + 31) // 32 * 4 * height > len(data):
        raise BadImage("truncated: fewer bytes than the BMP header asks for")
    return ImageInfo("bmp", width, height)


def _parse_gif(data: Data) -> ImageInfo:
    width, height = struct.unpack_from("<HH", data, 6)
    if not bytes(data[-64:]).rstrip(b"\0").endswith(b";"):
        raise BadImage("truncated: no GIF end marker")
    return ImageInfo("gif", width, height, has_alpha=True)


# --- TIFF -----------------------------------------------------------------------------------------

TIFF_TAGS = {
    256: "width",
    257: "height",
    258: "bits",
    262: "photometric",
    273: "offsets",  # of strips
    274: "orientation",
    277: "bands",
    279: "counts",
    324: "offsets",  # of tiles
    325: "counts",
    338: "extra_samples",
    339: "number_formats",
}
NUMBER_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}  # besides 1, unsigned
TIFF_TYPES = {1: "B", 3: "H", 4: "I"}


def _parse_tiff(data: Data) -> ImageInfo:
    tags = _tiff_tags(data)
    if "width" not in tags or "height" not in tags:
        raise BadImage("not an image: a TIFF without a size")
    for offset, count in zip(tags.get("offsets", []), tags.get("counts", []), strict=False):
        if offset + count > len(data):
            raise BadImage("truncated: the TIFF's pixels lie beyond the end of the file")
    _check_numbers(tags)
    width, height = tags["width"][0], tags["height"][0]
    if _orientation_of(tags) >= 5:  # every decoder turns a TIFF upright by itself
        width, height = height, width
    return ImageInfo("tiff", width, height, has_alpha="extra_samples" in tags, is_cmyk=tags.get("photometric") == [5])


def _check_numbers(tags: dict[str, list[int]]) -> None:
    """Refuse what decoders read as black, or not at all: measurements, whose range only their maker knows."""
    kind = next((NUMBER_FORMATS[value] for value in tags.get("number_formats", []) if value in NUMBER_FORMATS), None)
    bits = max(tags.get("bits", [1]))
    if kind is not None or bits > 16:
        raise BadImage(f"a TIFF of {kind or 'unsigned'} {bits}-bit numbers: save it as 8-bit RGB")
    if (bands := tags.get("bands", [1])[0]) > 4:
        raise BadImage(f"a TIFF of {bands} bands: choose three and save them as 8-bit RGB")


def _tiff_tags(data: Data) -> dict[str, list[int]]:
    """The integers of those tags of the first directory that are used here."""
    if data[:2] not in (b"II", b"MM"):
        raise BadImage("not an image: damaged TIFF header")
    order = "<" if data[:2] == b"II" else ">"
    (position,) = struct.unpack_from(order + "I", data, 4)
    (num_entries,) = struct.unpack_from(order + "H", data, position)
    tags: dict[str, list[int]] = {}
    for entry in range(position + 2, position + 2 + 12 * num_entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", data, entry)
        if tag not in TIFF_TAGS or kind not in TIFF_TYPES:
            continue
        layout = f"{order}{count}{TIFF_TYPES[kind]}"
        place = entry + 8
        if struct.calcsize(layout) > 4:
            (place,) = struct.unpack_from(order + "I", data, place)
        if place + struct.calcsize(layout) > len(data):
            raise BadImage("truncated: a TIFF tag lies beyond the end of the file")
        tags[TIFF_TAGS[tag]] = list(struct.unpack_from(layout, data, place))
    return tags


# --- AVIF, HEIC -----------------------------------------------------------------------------------

AVIF_BRANDS = (b"avif", b"avis")
# What `irot` (quarter turns to the left) and `imir` (axis) come to as EXIF's orientation.
HEIF_ORIENTATIONS = {
    (None, 1): 2,
    (2, None): 3,
    (None, 0): 4,
    (1, 0): 5,
    (3, None): 6,
    (3, 0): 7,
    (1, None): 8,
    # other ways to say the same
    (2, 0): 2,
    (2, 1): 4,
    (3, 1): 5,
    (1, 1): 7,
}
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def _parse_heif(data: Data) -> ImageInfo:
    position = 0
    while position + 8 <= len(data):
        size, _ = struct.unpack_from(">I4s", data, position)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, position + 8)
        if size == 0:
            break  # to the end of the file
        position += size
    if position > len(data):
        raise BadImage("truncated: a box reaches beyond the end of the file")
    sizes = [struct.unpack(">II", match[1]) for match in re.finditer(rb"ispe\0\0\0\0(.{8})", data, re.DOTALL)]
    width, height = max(sizes, key=lambda size: int(size[0]) * int(size[1]), default=(0, 0))
    # Turning and mirroring are boxes of their own there; EXIF's orientation is not used.
    turn, mirror = (_one_byte_box(data, name) for name in (b"irot", b"imir"))
    orientation = HEIF_ORIENTATIONS.get((None if turn is None else turn & 3, None if mirror is None else mirror & 1), 1)
    if bytes(data[8:12]) in AVIF_BRANDS or b"av01" in bytes(data[:1024]):
        return ImageInfo("avif", width, height, orientation)
    # HEIC's decoder turns the image upright by itself.
    return ImageInfo("heic", *((height, width) if orientation >= 5 else (width, height)))


def _one_byte_box(data: Data, name: bytes) -> int | None:
    match = re.search(rb"\0\0\0\x09" + name + rb"(.)", data, re.DOTALL)
    return match[1][0] if match else None


PARSERS: tuple[tuple[Callable[[bytes], bool], Callable[[Data], ImageInfo]], ...] = (
    (lambda head: head.startswith(b"\xff\xd8\xff"), _parse_jpeg),
    (lambda head: head.startswith(PNG_SIGNATURE), _parse_png),
    (lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", _parse_webp),
    (lambda head: head.startswith(b"BM"), _parse_bmp),
    (lambda head: head.startswith((b"GIF87a", b"GIF89a")), _parse_gif),
    (lambda head: head.startswith((b"II*\0", b"MM\0*")), _parse_tiff),
    (lambda head: head[4:8] == b"ftyp" and head[8:12] in AVIF_BRANDS + HEIC_BRANDS, _parse_heif),
)
