"""The picture of captions and the images found for them."""

from __future__ import annotations

import io
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageColor

from clipkit.errors import DataError
from clipkit.evaluators.picture import (
    BROKEN,
    CAPTION_PX,
    COLUMN_PX,
    HEAD_PX,
    NUM_ANSWERS,
    NUM_FOUND,
    RIGHT,
    ROW_PX,
    THUMBNAIL_PX,
    WIDE_GAP_PX,
    Answer,
    Found,
    check_writable,
    draw_answers,
    find_answers,
)
from clipkit.store import Dataset


def encoded(color: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def frame_left(sheet: Image.Image, row: int) -> list[int]:
    """Where the frames of right images begin, in the middle of a row of thumbnails."""
    line = np.asarray(sheet)[HEAD_PX + row * ROW_PX + THUMBNAIL_PX // 2]
    places = np.flatnonzero((line == ImageColor.getrgb(RIGHT)).all(axis=-1))
    return places[0::6].tolist()


def test_the_right_image_is_framed_and_set_apart_where_it_was_missed() -> None:
    red, blue = encoded("red"), encoded("blue")
    hit = Answer("a red square", [Found(red, True, 1, 0.9), Found(blue, False, 2, 0.1)])
    miss = Answer(
        "blue " + "again " * 60, [Found(red, False, 1, 0.9), Found(red, False, 2, 0.8)], Found(blue, True, 7, 0)
    )
    sheet = draw_answers([hit, miss], title="run x")
    ((hit_left,), (miss_left,)) = frame_left(sheet, 0), frame_left(sheet, 1)
    assert miss_left - hit_left == 2 * COLUMN_PX + WIDE_GAP_PX
    assert sheet.getpixel((miss_left + 20, HEAD_PX + ROW_PX + THUMBNAIL_PX // 2)) == (0, 0, 255)


def test_an_image_that_cannot_be_decoded_is_grey() -> None:
    sheet = draw_answers([Answer("broken", [Found(b"no image", False, 1, 0.0)])])
    assert sheet.getpixel((CAPTION_PX + 50, HEAD_PX + 50)) == ImageColor.getrgb(BROKEN)


@pytest.mark.parametrize("name", ["file/found.png", "folder"])
def test_a_place_that_cannot_be_written_is_found_out_before(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        check_writable(tmp_path / name)


def test_checking_a_place_leaves_nothing_there(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "found.png")
    assert list((tmp_path / "new").iterdir()) == []


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
        order = (np.argsort(-similarity) + 1).tolist()
        assert widths == order[:NUM_FOUND]
        assert [found.is_right for found in answer.found] == [width == row for width in widths]
        assert [found.score for found in answer.found] == sorted(similarity, reverse=True)[:NUM_FOUND]
        if row in widths:
            assert answer.missed is None
        else:
            assert (answer.missed.rank, answer.missed.is_right) == (order.index(row) + 1, True)
            assert Image.open(io.BytesIO(answer.missed.data)).width - 1 == row


def test_images_without_a_caption_are_skipped(tmp_path: Path) -> None:
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
