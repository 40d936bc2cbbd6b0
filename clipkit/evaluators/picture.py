"""A picture of captions and the images that a model finds for them.

Shapes: N images, M captions, D the embedding.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from clipkit.store import Dataset, Rows

NUM_ANSWERS, NUM_FOUND = 5, 5
THUMBNAIL_PX = 120
GAP_PX = 10
CAPTION_PX = 300
FONT_PX = 16
BACKGROUND, INK, RIGHT, WRONG = "#ffffff", "#222222", "#1a9641", "#cccccc"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was found for a caption: its encoded bytes, and whether it is the caption's own image."""

    data: bytes | memoryview
    is_right: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A caption and the images found for it, best first."""

    caption: str
    found: Sequence[Found]


def find_answers(dataset: Dataset, rows: Rows, *, image_ND: Tensor, text_MD: Tensor, owner_M: Tensor) -> list[Answer]:
    """The first captions of some images spread over the rows, each with the images closest to it."""
    answers = []
    with_caption = np.unique(owner_M.cpu().numpy()).tolist()
    for place in np.unique(np.linspace(0, len(with_caption) - 1, NUM_ANSWERS).round().astype(int)).tolist():
        position = with_caption[place]
        text_D = text_MD[int((owner_M == position).nonzero()[0])]
        best = (image_ND @ text_D).topk(min(NUM_FOUND, len(rows))).indices.tolist()
        images = dataset.take_images(rows[best])
        found = [Found(data, is_right=index == position) for index, data in zip(best, images, strict=True)]
        answers.append(Answer(dataset.take_captions(rows[[position]])[0][0], found))
    return answers


def save_picture(path: Path, answers: Sequence[Answer]) -> None:
    """Write the picture in the format of the file's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_answers(answers).save(path)


def draw_answers(answers: Sequence[Answer]) -> Image.Image:
    """One row per caption: its text, then the images found; the right one has a green frame."""
    font = load_font(FONT_PX)
    num_columns = max(len(answer.found) for answer in answers)
    row_px = THUMBNAIL_PX + GAP_PX
    width = CAPTION_PX + 2 * GAP_PX + num_columns * row_px
    sheet = Image.new("RGB", (width, GAP_PX + len(answers) * row_px), BACKGROUND)
    canvas = ImageDraw.Draw(sheet)
    for row, answer in enumerate(answers):
        top = GAP_PX + row * row_px
        lines = wrap_text(answer.caption, font, width_px=CAPTION_PX, num_lines=THUMBNAIL_PX // (FONT_PX + 5))
        canvas.multiline_text((GAP_PX, top), "\n".join(lines), fill=INK, font=font)
        for column, found in enumerate(answer.found):
            left = CAPTION_PX + 2 * GAP_PX + column * row_px
            sheet.paste(_thumbnail(found.data), (left, top))
            frame = (left - 3, top - 3, left + THUMBNAIL_PX + 2, top + THUMBNAIL_PX + 2)
            canvas.rectangle(frame, outline=RIGHT if found.is_right else WRONG, width=3 if found.is_right else 1)
    return sheet


def load_font(size_px: int) -> Font:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size_px)  # has more scripts than the default
    except OSError:
        return ImageFont.load_default(size_px)


def _thumbnail(data: bytes | memoryview) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return ImageOps.pad(upright, (THUMBNAIL_PX, THUMBNAIL_PX), color=BACKGROUND)
    except (UnidentifiedImageError, OSError):
        return Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), WRONG)


def wrap_text(text: str, font: Font, *, width_px: int, num_lines: int) -> list[str]:
    """The text in at most `num_lines` lines, with an ellipsis for what is left out."""
    lines = [""]
    for char in text.replace("\n", " "):
        if font.getlength(lines[-1] + char + "…") <= width_px:
            lines[-1] += char
        elif len(lines) == num_lines:
            lines[-1] += "…"
            break
        else:
            head, space, tail = lines[-1].rpartition(" ")
            lines[-1:] = [head, tail + char] if space else [lines[-1], char]
    return lines
