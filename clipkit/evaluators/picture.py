"""A picture of what a model finds: captions, and the images that fit them best.

Shapes: N images, M captions, D the embedding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from clipkit.errors import DataError
from clipkit.images.drawing import Lettering, make_thumbnail
from clipkit.store import Dataset, Rows

NUM_ANSWERS, NUM_FOUND = 5, 5
THUMBNAIL_PX, LABEL_PX = 128, 22
GAP_PX, WIDE_GAP_PX = 12, 36
CAPTION_PX = 300
FONT_PX, LINE_PX = 16, 21
BACKGROUND, INK, FAINT, RIGHT, BROKEN = "#ffffff", "#222222", "#777777", "#1a9641", "#cccccc"
COLUMN_PX, ROW_PX = THUMBNAIL_PX + GAP_PX, THUMBNAIL_PX + LABEL_PX + GAP_PX
HEAD_PX = 2 * LINE_PX + 2 * GAP_PX
LEGEND = "Below each image: rank and similarity. Green: the caption's own image, set apart if it was not found."


@dataclass(frozen=True, slots=True)
class Found:
    """An image (its encoded bytes) as the answer to a caption; `is_right` says whether the caption is its own."""

    data: bytes | memoryview
    is_right: bool
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A caption, the images found for it, the best first, and its own image where that is not among them."""

    caption: str
    found: Sequence[Found]
    missed: Found | None = None


def find_answers(dataset: Dataset, rows: Rows, *, image_ND: Tensor, text_MD: Tensor, owner_M: Tensor) -> list[Answer]:
    """Captions of images spread over the rows, each with the images nearest to it."""
    answers = []
    with_caption = np.unique(owner_M.cpu().numpy())
    chosen = np.unique(np.linspace(0, len(with_caption) - 1, NUM_ANSWERS).round().astype(int))
    for position in with_caption[chosen].tolist():
        score_N = image_ND @ text_MD[int((owner_M == position).nonzero()[0])]
        shown = score_N.topk(min(NUM_FOUND, len(rows))).indices.tolist()
        if position not in shown:
            shown.append(position)
        images = dataset.take_images(rows[shown])
        found = [
            Found(data, index == position, place, float(score_N[index]))
            for place, (index, data) in enumerate(zip(shown, images, strict=True), start=1)
        ]
        missed = None
        if len(found) > NUM_FOUND:
            rank = int((score_N >= score_N[position]).sum())  # ties count against the model
            missed = Found(found.pop().data, True, rank, float(score_N[position]))
        answers.append(Answer(dataset.take_captions(rows[[position]])[0][0], found, missed))
    return answers


def check_writable(path: Path) -> None:
    """Make the file's folder, and raise DataError where the file cannot be written into it."""
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the file's folder, and report what the system refuses in the meantime as a DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(f"`{path}` cannot be written: {error.strerror or error}", "name another file") from error


def save_picture(path: Path, answers: Sequence[Answer], *, title: str = "") -> None:
    """Write the drawing in the format that the file's name says. Raises DataError."""
    with writing(path):
        draw_answers(answers, title=title).save(path)


def draw_answers(answers: Sequence[Answer], *, title: str = "") -> Image.Image:
    """A row for each caption: its text, the images found, and at the right its own image if it was missed."""
    num_columns = max(len(answer.found) for answer in answers)
    missed_left = CAPTION_PX + GAP_PX + num_columns * COLUMN_PX + WIDE_GAP_PX
    width = missed_left + (COLUMN_PX if any(answer.missed for answer in answers) else GAP_PX - WIDE_GAP_PX)
    sheet = Image.new("RGB", (width, HEAD_PX + len(answers) * ROW_PX), BACKGROUND)
    text = Lettering(ImageDraw.Draw(sheet), FONT_PX)
    text.draw(GAP_PX, GAP_PX, text.wrap(title, width - 2 * GAP_PX, 1)[0], INK)
    text.draw(GAP_PX, GAP_PX + LINE_PX, text.wrap(LEGEND, width - 2 * GAP_PX, 1)[0], FAINT)
    for row, answer in enumerate(answers):
        top = HEAD_PX + row * ROW_PX
        lines = text.wrap(answer.caption, CAPTION_PX - GAP_PX, ROW_PX // LINE_PX)
        for number, line in enumerate(lines):
            text.draw(GAP_PX, top + number * LINE_PX, line, INK)
        for column, found in enumerate(answer.found):
            _draw_found(sheet, text, CAPTION_PX + GAP_PX + column * COLUMN_PX, top, found)
        if answer.missed:
            _draw_found(sheet, text, missed_left, top, answer.missed)
    return sheet


def _draw_found(sheet: Image.Image, text: Lettering, left: int, top: int, found: Found) -> None:
    broken = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), BROKEN)
    sheet.paste(make_thumbnail(found.data, THUMBNAIL_PX, BACKGROUND) or broken, (left, top))
    color = RIGHT if found.is_right else FAINT
    if found.is_right:
        frame = (left - 3, top - 3, left + THUMBNAIL_PX + 2, top + THUMBNAIL_PX + 2)
        ImageDraw.Draw(sheet).rectangle(frame, outline=RIGHT, width=3)
    text.draw(left, top + THUMBNAIL_PX + 4, f"{found.rank:,}.  {found.score:.3f}", color)
