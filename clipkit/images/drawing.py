"""What pictures are made of: lines of text in any script, and thumbnails."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
from PIL import Image, ImageDraw, ImageFont

from clipkit.images.decode import decode_upright
from clipkit.images.header import BadImage

log = logging.getLogger(__name__)

FIRST_FONT = "DejaVuSans.ttf"
FONT_FOLDERS = (
    *("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts"),
    *("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts"),
)
UNUSUAL_STYLES = ("bold", "italic", "oblique", "mono", "serif", "light", "thin", "black")
NO_LETTER = "\U0010ffff"  # no font has it, and each draws its sign for a missing letter

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Lettering:
    """Draws lines of text on a canvas; letters that the first font lacks come from another installed font."""

    def __init__(self, canvas: ImageDraw.ImageDraw, size_px: int) -> None:
        self._canvas = canvas
        self._size_px = size_px
        self._first = _load_first(size_px)
        self._by_script: dict[str, Font] = {}

    def length(self, text: str) -> float:
        """The width of a line in pixels."""
        return sum(self._canvas.textlength(run, font=font) for run, font in self._runs(text))

    def draw(self, left: float, top: int, text: str, fill: str) -> None:
        for run, font in self._runs(text):
            self._canvas.text((left, top + self._size_px), run, fill=fill, font=font, anchor="ls")
            left += self._canvas.textlength(run, font=font)

    def wrap(self, text: str, width_px: int, num_lines: int) -> list[str]:
        """The text in at most `num_lines` lines; an ellipsis stands for what does not fit."""
        lines = [""]
        for char in " ".join(text.split()):
            if self.length(f"{lines[-1]}{char}…") <= width_px:
                lines[-1] += char
            elif len(lines) == num_lines:
                lines[-1] += "…"
                break
            else:
                head, space, tail = lines[-1].rpartition(" ")
                lines[-1:] = [head, tail + char] if space else [lines[-1], char]
        return lines

    def _runs(self, text: str) -> Iterator[tuple[str, Font]]:
        """Stretches of the text and the font of each. Marks and spaces do not change the font."""
        run, font = "", self._first
        for char in text:
            kind = unicodedata.category(char)[0]
            keeps = kind in "MZC" or (kind == "P" and _has(font, char))
            wanted = font if keeps else self._font_for(char)
            if wanted is not font and run:
                yield run, font
                run = ""
            font = wanted
            run += char
        if run:
            yield run, font

    def _font_for(self, char: str) -> Font:
        if _has(self._first, char):
            return self._first
        script = unicodedata.name(char, "?").split()[0] if char.isalpha() else "SYMBOL"
        if script not in self._by_script:
            found = next((font for font in _installed_fonts(self._size_px) if _has(font, char)), None)
            if found is None and char.isalpha():
                name = script if script == "CJK" else script.title()
                log.warning("no installed font has %s letters, so they are drawn as boxes; Noto Sans has them", name)
            self._by_script[script] = found or self._first
        return self._by_script[script]


def _load_first(size_px: int) -> Font:
    try:
        return ImageFont.truetype(FIRST_FONT, size_px)
    except OSError:
        return ImageFont.load_default(size_px)


@cache
def _font_files() -> list[Path]:
    """Installed fonts, plain styles first."""
    folders = (Path(folder).expanduser() for folder in FONT_FOLDERS)
    paths = [path for folder in folders for path in folder.rglob("*.[ot]t[fc]")]
    return sorted(paths, key=lambda path: (any(style in path.name.lower() for style in UNUSUAL_STYLES), path.name))


def _installed_fonts(size_px: int) -> Iterator[Font]:
    for path in _font_files():
        try:
            yield ImageFont.truetype(path, size_px)
        except OSError:  # damaged, or made of pictures of another size
            continue


@cache
def _has(font: Font, char: str) -> bool:
    return bytes(font.getmask(char)) not in (bytes(font.getmask(NO_LETTER)), b"")


def make_thumbnail(data: bytes | memoryview, side_px: int, background: str) -> Image.Image | None:
    """The image in the middle of a square; None where it cannot be decoded."""
    try:
        pixels = decode_upright(data, at_least=(side_px, side_px))
    except BadImage:
        return None
    scale = side_px / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    square = Image.new("RGB", (side_px, side_px), background)
    square.paste(Image.fromarray(pixels), ((side_px - size[0]) // 2, (side_px - size[1]) // 2))
    return square
