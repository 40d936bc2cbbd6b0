"""Text in several scripts, and thumbnails."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from corpora import make_image
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from clipkit.images import drawing
from clipkit.images.drawing import Lettering, make_thumbnail

LETTER = "\u1401"  # Canadian syllabics, which few fonts have


@pytest.fixture
def font_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with fonts beside the first one."""
    monkeypatch.setattr(drawing, "FONT_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(drawing, "FIRST_FONT", "none of this name")
    drawing._font_files.cache_clear()
    yield tmp_path
    drawing._font_files.cache_clear()


def write_font(path: Path, letter: str) -> None:
    """A font whose only letter is a black square, an em wide."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": square})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Square", "styleName": "Regular"})
    builder.setupPost()
    builder.save(path)


def lettering() -> tuple[Image.Image, Lettering]:
    sheet = Image.new("RGB", (200, 40), "white")
    return sheet, Lettering(ImageDraw.Draw(sheet), 20)


def test_a_letter_that_the_first_font_lacks_comes_from_another(font_folder: Path) -> None:
    write_font(font_folder / "square.ttf", LETTER)
    sheet, text = lettering()
    assert text.length(f"a{LETTER}b") == pytest.approx(text.length("a") + 20 + text.length("b"), abs=1)
    text.draw(0, 5, LETTER, "#ff0000")
    assert sheet.getpixel((10, 15)) == (255, 0, 0)


def test_a_script_that_no_font_has_is_reported_once(font_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, text = lettering()
    with caplog.at_level(logging.WARNING):
        text.length(LETTER * 3)
    assert [record.message.split(",")[0] for record in caplog.records] == ["no installed font has Canadian letters"]


def test_lines_break_at_spaces_and_end_in_an_ellipsis() -> None:
    _, text = lettering()
    lines = text.wrap("one two\nthree " * 20, 120, 3)
    assert len(lines) == 3
    assert lines[0].split() == lines[0].strip().split(" ")
    assert {word for line in lines[:2] for word in line.split()} <= {"one", "two", "three"}
    assert lines[2].endswith("…")
    assert all(text.length(line) <= 120 for line in lines)
    assert len(text.wrap("x" * 50, 100, 9)) > 1


def test_a_thumbnail_keeps_colours_and_proportions() -> None:
    thumbnail = make_thumbnail(make_image(3, width=80, height=40), 64, "#00ff00")
    assert thumbnail is not None
    assert thumbnail.size == (64, 64)
    assert thumbnail.getpixel((32, 4)) == (0, 255, 0)
    assert thumbnail.getpixel((32, 32)) != (0, 255, 0)
    assert make_thumbnail(b"damaged", 64, "white") is None
