"""The picture of captions and the images found for them."""

from __future__ import annotations

import io
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageColor

from clipkit.evaluators.picture import (
    NUM_ANSWERS,
    NUM_FOUND,
    RIGHT,
    THUMBNAIL_PX,
    Answer,
    Found,
    draw_answers,
    find_answers,
)
from clipkit.store import Dataset


def encoded(color: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def framed_columns(sheet: Image.Image, row: int) -> int:
    """How many pixels of one row of thumbnails have the colour of the right one's frame."""
    pixels = np.asarray(sheet)[10 + row * (THUMBNAIL_PX + 10) + THUMBNAIL_PX // 2]
    return int((pixels == ImageColor.getrgb(RIGHT)).all(axis=-1).sum())


def test_the_right_image_is_framed() -> None:
    right = Answer("a red square", [Found(encoded("red"), True), Found(encoded("blue"), False)])
    wrong = Answer("a blue square that " + "goes on and " * 60, [Found(encoded("red"), False)])
    sheet = draw_answers([right, wrong])
    assert framed_columns(sheet, 0) == 6
    assert framed_columns(sheet, 1) == 0


def test_what_is_no_image_is_a_grey_field() -> None:
    draw_answers([Answer("broken", [Found(b"no image", False), Found(b"", False)])])


def test_answers_are_the_nearest_images(tmp_path: Path) -> None:
    num_images, rng = 12, np.random.default_rng(0)
    table = pa.table(
        {
            "image_id": [f"{i}" for i in range(num_images)],
            "image": pa.array([encoded("red", (i + 1, 1)) for i in range(num_images)], pa.large_binary()),
            "captions": [[f"image {i}", "another"] for i in range(num_images)],
        }
    )
    lance.write_dataset(table, tmp_path / "a.lance")
    rows = np.arange(1, num_images)
    image_ND = torch.from_numpy(rng.normal(size=(len(rows), 4)))
    answers = find_answers(
        Dataset(tmp_path / "a.lance"),
        rows,
        image_ND=image_ND,
        text_MD=image_ND.repeat_interleave(2, 0),
        owner_M=torch.arange(len(rows)).repeat_interleave(2),
    )
    assert [answer.caption for answer in answers] == ["image 1", "image 3", "image 6", "image 9", "image 11"]
    assert len(answers) == NUM_ANSWERS
    for answer in answers:
        row = int(answer.caption.split()[1])
        widths = [Image.open(io.BytesIO(found.data)).width - 1 for found in answer.found]
        similarity = (image_ND @ image_ND[row - 1]).numpy()
        assert widths == (np.argsort(-similarity)[:NUM_FOUND] + 1).tolist()
        assert [found.is_right for found in answer.found] == [width == row for width in widths]


def test_images_without_a_caption_are_passed_over(tmp_path: Path) -> None:
    captions = [[], ["one"], [], ["three"], []]
    images = pa.array([encoded("red")] * len(captions), pa.large_binary())
    table = pa.table({"image_id": list("abcde"), "image": images, "captions": captions})
    lance.write_dataset(table, tmp_path / "a.lance")
    image_ND = torch.eye(len(captions))
    answers = find_answers(
        Dataset(tmp_path / "a.lance"),
        np.arange(len(captions)),
        image_ND=image_ND,
        text_MD=image_ND[[1, 3]],
        owner_M=torch.tensor([1, 3]),
    )
    assert [answer.caption for answer in answers] == ["one", "three"]
    assert all(answer.found[0].is_right for answer in answers)
