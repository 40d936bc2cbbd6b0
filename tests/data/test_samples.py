"""What is stored of a batch's samples, in the order drawn, from one dataset and from several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from small_datasets import batches_of, jpeg, loader_of, vector_column

from clipkit.config import DataConfig
from clipkit.data.order.base import Draw
from clipkit.data.pixel_cache import make_cache
from clipkit.data.samples import DatasetSamples, Samples
from clipkit.store import Dataset

SIDE = 4


@pytest.fixture(scope="module")
def samples(write_dataset: Any) -> Samples:
    """Every second row of one dataset and all rows of another, whose values tell which row they are of."""
    parts = []
    for first, num_rows, step in ((0, 20, 2), (100, 10, 1)):
        numbers = range(first, first + num_rows)
        columns = {
            "label": pa.array([f"label {i}" for i in numbers]),
            "emb": vector_column(np.array([[i, -i] for i in numbers])),
            "orientation": pa.array([i % 8 + 1 for i in numbers], pa.int8()),
        }
        images = [jpeg(SIDE, SIDE, seed=i) for i in numbers]
        dataset = Dataset(write_dataset(images, [[f"caption {i}"] for i in numbers], **columns))
        dataset, bad = make_cache(dataset, side_px=SIDE)
        assert not bad
        rows = np.arange(0, num_rows, step)
        config = DataConfig(dataset=dataset.uri)
        parts.append(DatasetSamples(dataset, rows, config, seed=0, columns=["captions", "label"]))
    return Samples(parts)


@pytest.mark.parametrize("drawn", [[13, 2, 19, 0, 9, 10, 2], [12, 11], [3], []], ids=str)
def test_every_kind_of_value_keeps_the_order_drawn(samples: Samples, drawn: list[int]) -> None:
    """Samples 0 to 9 are of the first dataset, and 10 to 19 of the second."""
    found = samples.at(Draw(np.array(drawn, dtype=np.int64), np.zeros(len(drawn), dtype=np.int64)))
    numbers = [2 * sample if sample < 10 else 90 + sample for sample in drawn]
    assert found.rows.tolist() == [number if number < 100 else number - 80 for number in numbers]
    assert found.image_ids == [f"image-{number % 100}" for number in numbers]
    assert found.captions == [f"caption {number}" for number in numbers]
    assert found.values("label") == [f"label {number}" for number in numbers]
    assert found.orientations == [number % 8 + 1 for number in numbers]
    assert found.vectors("emb").tolist() == [[number, -number] for number in numbers]
    assert [bytes(image) for image in found.images()] == [jpeg(SIDE, SIDE, seed=number) for number in numbers]
    pixels = [part.dataset.take_pixels(part.rows, f"pixels_{SIDE}") for part in samples.parts]
    of_sample = [*pixels[0], *pixels[1]]
    assert all(map(np.array_equal, found.pixels(f"pixels_{SIDE}"), [of_sample[sample] for sample in drawn]))


def test_caption_choices(write_dataset: Any) -> None:
    path = write_dataset([jpeg(20, 20)] * 8, [["one", "the longest one", "last"]] * 8)
    for choice, allowed in {"first": {"one"}, "longest": {"the longest one"}}.items():
        (batch,) = batches_of(loader_of(path, caption=choice, batch_size=8), stop=1)
        assert set(batch.captions) == allowed
    drawn = batches_of(loader_of(path, caption="random", batch_size=8), stop=12)
    assert {caption for batch in drawn for caption in batch.captions} == {"one", "the longest one", "last"}
    each = batches_of(loader_of(path, caption="each", batch_size=8), stop=3)
    pairs = [pair for batch in each for pair in zip(batch.image_ids, batch.captions, strict=True)]
    assert len(set(pairs)) == len(pairs) == 24
    assert all(len(set(batch.image_ids)) == 8 for batch in each)


@pytest.mark.parametrize("as_string", [False, True])
def test_each_caption_of_rows_that_have_any(write_dataset: Any, as_string: bool) -> None:
    captions = [[], ["a", "", "b"], None, ["c"], [""], [None, "d"], ["e", "f", "g"], []]
    path = write_dataset([jpeg(20, 20)] * 8, captions, text=pa.array(["a", "", None, "b", "c", None, "d", "e"]))
    wish = {"captions_column": "text"} if as_string else {}
    loader = loader_of(path, caption="each", train="image_id <> 'image-3'", batch_size=2, drop_last=False, **wish)
    drawn = batches_of(loader, stop=loader.steps_per_epoch)
    pairs = [pair for batch in drawn for pair in zip(batch.rows.tolist(), batch.captions, strict=True)]
    expected = "0a 4c 6d 7e" if as_string else "1a 1b 5d 6e 6f 6g"
    assert sorted(f"{row}{caption}" for row, caption in pairs) == expected.split()


def test_the_orientation_column_goes_before_the_file(write_dataset: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = jpeg(64, 32, seed=3, exif=exif)
    stored = write_dataset([turned] * 2, None, orientation=pa.array([3, None], pa.int8()))
    sources = [{"dataset": stored}, {"dataset": write_dataset([turned] * 2)}]
    (batch,) = batches_of(loader_of("", dataset=None, sources=sources, batch_size=4, shuffle=False), stop=1)
    images = {row: batch["pixels"][i] for i, row in enumerate(batch.rows.tolist())}
    assert torch.equal(images[0].flip(0, 1), images[1])
    assert all(torch.equal(images[0], images[row]) for row in (2, 3))  # no column: as the file says
