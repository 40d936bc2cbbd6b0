"""Batches from real Lance datasets: what is in them, that nothing changes it, and what a bad row gets."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageOps

from clipkit.config import DataConfig
from clipkit.data.loader import Loader, build_loader
from clipkit.data.order.base import Share
from clipkit.data.order.neighbours import group_neighbours
from clipkit.data.samples import Corpus
from clipkit.data.tokenizer import train_tokenizer
from clipkit.errors import ConfigError, DataError
from clipkit.evaluators.gallery import Gallery
from clipkit.store import Dataset
from clipkit.types import Batch, ImageSpec

Jpeg = Callable[..., bytes]
AUGMENTED = {
    "kind": "random_resized_crop",
    "scale": (0.3, 1.0),
    "flip": True,
    "color_jitter": 0.3,
    "random_erasing": 0.5,
}


def loader_of(path: str, *, size: int = 32, batch_size: int = 16, rank: int = 0, world: int = 1, **data: Any) -> Loader:
    config = DataConfig.model_validate({"dataset": path, "image_size": size, **data})
    share = Share(rank, world)
    return build_loader(config, spec=ImageSpec(size), tokenizer=None, batch_size=batch_size, seed=5, share=share)


def batches_of(loader: Loader, start: int = 0, stop: int = 6) -> list[Batch]:
    with closing(loader), closing(loader.iterate(start, stop)) as batches:
        return list(batches)


def same(one: Batch, other: Batch) -> bool:
    assert one.images is not None
    assert other.images is not None
    return (
        one.step == other.step
        and one.image_ids == other.image_ids
        and one.captions == other.captions
        and torch.equal(one.images, other.images)
    )


def test_batches_hold_what_the_dataset_holds(plain_dataset: str, jpeg: Jpeg) -> None:
    batches = batches_of(loader_of(plain_dataset, train="split = 'train'"), stop=4)
    rows = np.concatenate([batch.rows for batch in batches])
    assert len(np.unique(rows)) == 64
    assert all(row % 4 for row in rows)
    for batch in batches:
        assert batch.images is not None
        assert batch.images.shape == (16, 32, 32, 3)
        assert batch.images.dtype == torch.uint8
        assert batch.image_ids == [f"image-{row}" for row in batch.rows]
        assert all(f"picture {row} seen" in text for row, text in zip(batch.rows, batch.captions, strict=True))
        expected = Image.open(io.BytesIO(jpeg(60, 40, seed=int(batch.rows[0])))).resize((32, 32))
        assert np.abs(np.asarray(expected, float) - batch.images[0].numpy()).mean() < 6


@pytest.mark.parametrize("changed", [{"workers": 1}, {"workers": 5, "prefetch": 1}, {"worker_kind": "processes"}])
def test_workers_do_not_change_a_batch(plain_dataset: str, changed: dict[str, Any]) -> None:
    plain = batches_of(loader_of(plain_dataset, augment=AUGMENTED))
    other = batches_of(loader_of(plain_dataset, augment=AUGMENTED, **changed))
    assert len(plain) == len(other) == 6
    assert all(map(same, plain, other))


def test_starting_at_a_step_is_a_seek(plain_dataset: str) -> None:
    whole = batches_of(loader_of(plain_dataset, augment=AUGMENTED), 0, 20)
    assert [batch.epoch for batch in whole] == [step // 6 for step in range(20)]
    assert all(map(same, whole[13:], batches_of(loader_of(plain_dataset, augment=AUGMENTED), 13, 20)))


def test_ranks_share_the_global_batch(plain_dataset: str) -> None:
    (whole,) = batches_of(loader_of(plain_dataset, augment=AUGMENTED), 7, 8)
    parts = [batches_of(loader_of(plain_dataset, augment=AUGMENTED, rank=r, world=2), 7, 8)[0] for r in (0, 1)]
    assert whole.images is not None
    assert torch.equal(torch.cat([part.images for part in parts if part.images is not None]), whole.images)
    assert [*parts[0].captions, *parts[1].captions] == whole.captions


def test_a_smaller_last_batch_is_kept_where_asked(plain_dataset: str) -> None:
    loader = loader_of(plain_dataset, drop_last=False)
    assert loader.steps_per_epoch == 7
    assert [len(batch) for batch in batches_of(loader, 5, 9)] == [16, 4, 16, 16]


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_rank_may_have_nothing_of_a_small_batch(plain_dataset: str, kind: str) -> None:
    loaders = [
        loader_of(plain_dataset, drop_last=False, rank=rank, world=8, worker_kind=kind, workers=1) for rank in range(8)
    ]
    parts = [batches_of(loader, 6, 8) for loader in loaders]
    assert [len(part) for part, _ in parts] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert all(len(part) == 2 for _, part in parts)


def test_caption_choices(write_dataset: Any, jpeg: Jpeg) -> None:
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
def test_each_caption_of_rows_that_have_any(write_dataset: Any, jpeg: Jpeg, as_string: bool) -> None:
    captions = [[], ["a", "", "b"], None, ["c"], [""], [None, "d"], ["e", "f", "g"], []]
    path = write_dataset([jpeg(20, 20)] * 8, captions, text=pa.array(["a", "", None, "b", "c", None, "d", "e"]))
    wish = {"captions_column": "text"} if as_string else {}
    loader = loader_of(path, caption="each", train="image_id <> 'image-3'", batch_size=2, drop_last=False, **wish)
    drawn = batches_of(loader, stop=loader.steps_per_epoch)
    pairs = [pair for batch in drawn for pair in zip(batch.rows.tolist(), batch.captions, strict=True)]
    expected = "0a 4c 6d 7e" if as_string else "1a 1b 5d 6e 6f 6g"
    assert sorted(f"{row}{caption}" for row, caption in pairs) == expected.split()


def test_limit_and_sources(plain_dataset: str, write_dataset: Any, jpeg: Jpeg) -> None:
    limited = loader_of(plain_dataset, limit=20, drop_last=False)
    assert {int(row) for batch in batches_of(limited, stop=2) for row in batch.rows} == set(range(20))
    other = write_dataset([jpeg(30, 30)] * 40, [["from the second"]] * 40)
    mixed = loader_of(
        plain_dataset, dataset=None, sources=[{"dataset": plain_dataset}, {"dataset": other, "weight": 3}]
    )
    batch = batches_of(mixed, stop=1)[0]
    second = [caption == "from the second" for caption in batch.captions]
    assert 11 <= sum(second) <= 13
    assert [row >= 100 for row in batch.rows] == second


def test_groups_share_a_batch(write_dataset: Any, jpeg: Jpeg) -> None:
    scenes = pa.array([f"scene {i // 2}" if i < 40 else None for i in range(60)])
    path = write_dataset([jpeg(20, 20)] * 60, None, scene=scenes)
    for batch in batches_of(loader_of(path, group_by="scene", drop_last=False, batch_size=15), stop=8):
        rows = set(batch.rows.tolist())
        assert all(row ^ 1 in rows for row in rows if row < 40)
    with pytest.raises(DataError, match="no column `place`"):
        loader_of(path, group_by="place")
    for other in ({"caption": "each"}, {"shuffle": {"block": 8}}):
        with pytest.raises(ValueError, match="which samples share a batch is also decided by"):
            loader_of(path, group_by="scene", **other)


@pytest.mark.parametrize(
    "wish",
    [
        {"shuffle": False},
        {"shuffle": {"block": 8}},
        {"caption": "each"},
        {"caption": "each", "shuffle": {"block": 8}},
        {"group_by": "scene"},
    ],
    ids=str,
)
def test_sources_go_with_other_orders(write_dataset: Any, jpeg: Jpeg, wish: dict[str, Any]) -> None:
    paths = [
        write_dataset([jpeg(20, 20)] * 60, [[f"{name}{i} one", f"{name}{i} two"] for i in range(60)], scene=scenes)
        for name, scenes in (("a", pa.array([f"{i // 4}" for i in range(60)])), ("b", pa.array(["x", None] * 30)))
    ]
    sources = [{"dataset": paths[0], "weight": 3}, {"dataset": paths[1]}]

    def batches(start: int, stop: int) -> list[Batch]:
        return batches_of(loader_of("", dataset=None, sources=sources, **wish), start, stop)

    drawn = batches(0, 20)
    for batch in drawn:
        assert len(set(batch.rows.tolist())) == 16
        assert (batch.rows < 60).sum() == 12
        assert all(
            text.startswith(f"{'ab'[row // 60]}{row % 60} ")
            for row, text in zip(batch.rows, batch.captions, strict=True)
        )
    assert all(map(same, drawn[9:], batches(9, 20)))


def test_groups_in_sources_need_whole_shares(plain_dataset: str) -> None:
    sources = [{"dataset": plain_dataset, "weight": 2}, {"dataset": plain_dataset}]
    with pytest.raises(ConfigError, match="whole number of a batch's 16 samples"):
        loader_of("", dataset=None, sources=sources, group_by="split")


def test_near_neighbours_share_a_batch(write_dataset: Any, jpeg: Jpeg) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 8))
    vectors = np.repeat(centres, 4, axis=0) + rng.normal(scale=0.01, size=(80, 8))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), 8)
    path = write_dataset([jpeg(20, 20)] * 80, None, emb=column)
    hard = {"column": "emb", "group_size": 4}
    for batch in batches_of(loader_of(path, hard_negatives=hard, batch_size=8), stop=10):
        clusters = batch.rows // 4
        assert sorted(np.unique(clusters, return_counts=True)[1].tolist()) == [4, 4]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_row_whose_vector_is_near_nothing_comes_once(value: float) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    vectors[[3, 4, 5, 20, 21, 40]] = value
    members, sizes = group_neighbours(vectors.astype(np.float16), group_size=4, seed=0)
    assert sorted(members.tolist()) == list(range(50))
    assert sizes.sum() == 50


def test_stored_features_take_the_place_of_pixels(write_dataset: Any) -> None:
    vectors = np.arange(40 * 6, dtype=np.float32).reshape(40, 6)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 6)
    path = write_dataset([b"never decoded"] * 40, None, emb=column)
    (batch,) = batches_of(loader_of(path, features={"image": "emb"}), stop=1)
    assert batch.images is None
    assert batch.image_features is not None
    assert np.array_equal(batch.image_features.numpy(), vectors[batch.rows])


@pytest.fixture(scope="module")
def damaged_dataset(write_dataset: Any, jpeg: Jpeg) -> str:
    images = [jpeg(60, 40, seed=i) for i in range(40)]
    images[7], images[21] = b"not an image", images[21][:40]
    return str(write_dataset(images))


def test_a_bad_row_is_replaced_and_counted(damaged_dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="clipkit"):
        loader = loader_of(damaged_dataset, batch_size=10)
        batches = batches_of(loader, stop=8)
    rows = [batch.rows.tolist() for batch in batches]
    assert not {7, 21} & {row for of_batch in rows for row in of_batch}
    assert all(len(set(of_batch)) == 10 for of_batch in rows)
    assert loader.stats().num_replaced == sum(batch.num_replaced for batch in batches) == 4
    assert "`image-7` (row 7)" in caplog.text
    for batch in batches:
        assert batch.image_ids == [f"image-{row}" for row in batch.rows]
        assert all(f"picture {row} " in text for row, text in zip(batch.rows, batch.captions, strict=True))
    again = batches_of(loader_of(damaged_dataset, batch_size=10, workers=1), stop=8)
    assert [batch.rows.tolist() for batch in again] == rows


def test_a_null_image_in_a_blob_column_is_a_bad_row(jpeg: Jpeg, tmp_path: Path) -> None:
    """A column that somebody else wrote; clipkit writes no nulls."""
    blob = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    schema = pa.schema([pa.field("image_id", pa.string()), blob, pa.field("captions", pa.string())])
    images = [jpeg(20, 20) if i != 4 else None for i in range(10)]
    columns = {"image_id": [f"image-{i}" for i in range(10)], "image": images, "captions": ["a"] * 10}
    lance.write_dataset(pa.table(columns, schema=schema), str(tmp_path / "data.lance"), data_storage_version="2.0")
    (batch,) = batches_of(loader_of(str(tmp_path / "data.lance"), batch_size=9, shuffle=False), stop=1)
    assert batch.rows.tolist() == [0, 1, 2, 3, 9, 5, 6, 7, 8]


def test_ranks_replace_a_bad_row_as_one_process_does(damaged_dataset: str) -> None:
    """Also where a batch has nearly every row: then a stand-in may come twice."""
    for batch_size in (10, 38):
        whole = batches_of(loader_of(damaged_dataset, batch_size=batch_size), stop=12)
        shares = [
            batches_of(loader_of(damaged_dataset, batch_size=batch_size, rank=rank, world=4), stop=12)
            for rank in range(4)
        ]
        for step, batch in enumerate(whole):
            assert batch_size == 38 or len(set(batch.rows.tolist()) - {7, 21}) == batch_size
            assert [row for share in shares for row in share[step].rows] == batch.rows.tolist()


def test_stand_ins_of_a_damaged_stretch_differ(write_dataset: Any, jpeg: Jpeg) -> None:
    path = write_dataset([b"damaged" if 40 <= i < 60 else jpeg(20, 20, seed=i) for i in range(240)])
    for batch in batches_of(loader_of(path, shuffle=False, batch_size=24), stop=20):
        assert len({*batch.rows.tolist(), *range(40, 60)}) == 24 + 20


def test_a_row_comes_twice_rather_than_that_the_run_stops(damaged_dataset: str) -> None:
    (batch,) = batches_of(loader_of(damaged_dataset, batch_size=40), stop=1)
    assert set(batch.rows.tolist()) == set(range(40)) - {7, 21}


def test_a_bad_row_stops_the_run_where_asked(damaged_dataset: str) -> None:
    with pytest.raises(DataError, match=r"`image-(7|21)` \(row (7|21)\)"):
        batches_of(loader_of(damaged_dataset, bad_rows="stop", batch_size=10), stop=4)


def test_nothing_but_bad_rows_is_an_error_and_no_hang(write_dataset: Any) -> None:
    with pytest.raises(DataError, match="too many rows cannot be used"):
        batches_of(loader_of(write_dataset([b"x"] * 20), batch_size=10), stop=1)


@pytest.mark.parametrize("features", [{}, {"image": "emb"}], ids=["pixels", "features"])
def test_a_row_without_captions_is_replaced(write_dataset: Any, jpeg: Jpeg, features: dict[str, str]) -> None:
    captions = [[f"caption {i}"] if i not in (3, 9) else [["", ""], None][i == 9] for i in range(20)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(40, dtype=np.float32)), 2)
    path = write_dataset([jpeg(20, 20, seed=i) for i in range(20)], captions, emb=vectors)
    tokenizer = train_tokenizer(
        [f"caption {i}" for i in range(20)], vocab_size=100, lowercase=True, max_tokens=8, padding="max"
    )
    config = DataConfig.model_validate({"dataset": path, "image_size": 32, "features": features})
    loader = build_loader(config, spec=ImageSpec(32), tokenizer=tokenizer, batch_size=10, seed=1)
    batches = batches_of(loader, stop=2)
    assert sum(batch.num_replaced for batch in batches) == 2
    for batch in batches:
        assert len({*batch.rows.tolist(), 3, 9}) == 12
        assert batch.captions == [f"caption {row}" for row in batch.rows]
        assert batch.tokens is not None
        assert torch.equal(batch.tokens.input_ids, tokenizer(batch.captions).input_ids)
        if batch.image_features is not None:
            assert batch.image_features[:, 0].tolist() == (2 * batch.rows).tolist()
    with pytest.raises(DataError, match=r"`image-(3|9)` \(row (3|9)\) cannot be used: it has no caption"):
        batches_of(loader_of(path, bad_rows="stop", features=features), stop=1)
    with pytest.raises(DataError, match="none of the 2 chosen rows"):
        loader_of(path, caption="each", train="image_id IN ('image-3', 'image-9')")


def test_columns_that_do_not_fit_are_refused(write_dataset: Any, jpeg: Jpeg) -> None:
    path = write_dataset([jpeg(20, 20)] * 20, None, ragged=pa.array([[1.0]] * 20), number=pa.array(range(20)))
    with pytest.raises(DataError, match=r"the id column `number` .* is int64, not text"):
        loader_of(path, image_id_column="number")
    for wish in ({"features": {"image": "captions"}}, {"hard_negatives": {"column": "ragged"}}):
        with pytest.raises(DataError, match="not vectors of one size"):
            loader_of(path, **wish)
    with pytest.raises(DataError, match="no column `nowhere`"):
        loader_of(path, features={"text": "nowhere"})
    with pytest.raises(DataError, match="rows cannot be grouped by that"):
        loader_of(path, group_by="captions")
    with pytest.raises(ValueError, match="must be at least `image_size`, 32"):
        loader_of(path, augment={"kind": "random_crop", "resize": 24})


def test_a_dataset_that_changes_meanwhile_is_read_as_it_was(write_dataset: Any, jpeg: Jpeg) -> None:
    path = write_dataset([jpeg(20, 20)] * 40)
    expected = [batch.image_ids for batch in batches_of(loader_of(path), stop=10)]
    loader = loader_of(path)
    with closing(loader), closing(loader.iterate(0, 10)) as batches:
        found = [next(batches).image_ids]
        changed = lance.dataset(path)
        lance.write_dataset(changed.to_table(), path, mode="append")
        lance.dataset(path).delete("image_id = 'image-3'")
        found += [batch.image_ids for batch in batches]
    assert found == expected


def test_closing_early_ends_the_threads(plain_dataset: str) -> None:
    before = threading.active_count()
    loader = loader_of(plain_dataset)
    with closing(loader), closing(loader.iterate()) as batches:
        next(batches)
    assert threading.active_count() == before


def test_a_stall_is_reported(plain_dataset: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    held = threading.Event()
    take_images = Dataset.take_images

    def slow(self: Dataset, rows: Any) -> Any:
        held.wait(1.0)
        return take_images(self, rows)

    monkeypatch.setattr(Dataset, "take_images", slow)  # a disk that does not answer
    with caplog.at_level(logging.WARNING, logger="clipkit"):
        batches_of(loader_of(plain_dataset, stall_timeout_s=0.2), stop=1)
    assert "reading step 0" in caplog.text


def test_too_few_rows_for_a_batch(plain_dataset: str) -> None:
    with pytest.raises(DataError, match="do not fill one batch of 200"):
        loader_of(plain_dataset, batch_size=200)
    with pytest.raises(DataError, match="chooses no row"):
        loader_of(plain_dataset, train="split = 'nowhere'")


def test_exif_orientation_is_applied(write_dataset: Any, jpeg: Jpeg) -> None:
    turned = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned.append(jpeg(64, 32, seed=3, exif=exif))
    path = write_dataset(turned)
    loader = loader_of(path, batch_size=8, shuffle=False)
    (batch,) = batches_of(loader, stop=1)
    assert batch.images is not None
    for data, pixels in zip(turned, batch.images.numpy(), strict=True):
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize((32, 32))
        assert np.abs(np.asarray(expected, float) - pixels).mean() < 6


def test_the_orientation_column_goes_before_the_file(write_dataset: Any, jpeg: Jpeg) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = jpeg(64, 32, seed=3, exif=exif)
    stored = write_dataset([turned] * 2, None, orientation=pa.array([3, None], pa.int8()))
    sources = [{"dataset": stored}, {"dataset": write_dataset([turned] * 2)}]
    loader = loader_of("", dataset=None, sources=sources, batch_size=4, shuffle=False)
    (batch,) = batches_of(loader, stop=1)
    images = {row: batch.images[i] for i, row in enumerate(batch.rows.tolist()) if batch.images is not None}
    assert torch.equal(images[0].flip(0, 1), images[1])
    assert all(torch.equal(images[0], images[row]) for row in (2, 3))  # no column: as the file says


def test_large_texts_are_read_with_the_batch(plain_dataset: str) -> None:
    dataset = Dataset(plain_dataset)
    corpus = Corpus(dataset, np.arange(100), DataConfig(dataset=plain_dataset), seed=0)
    corpus._small._limit_bytes = 10
    rows, epochs = np.arange(5, 15), np.zeros(10, dtype=np.int64)
    first = corpus.texts(rows, epochs)
    corpus.close()
    assert not corpus._small.in_memory
    assert corpus.texts(rows, epochs) == first


def test_images_are_kept_in_memory_where_they_fit(plain_dataset: str) -> None:
    chosen = np.arange(3, 90, 2)
    corpus = Corpus(Dataset(plain_dataset), chosen, DataConfig(dataset=plain_dataset), seed=0)
    asked = chosen[[4, 0, 9]]
    read = [bytes(image) for image in corpus.images(asked)]
    for limit_bytes in (1000, 1_000_000):
        corpus.keep_images(limit_bytes=limit_bytes)
        corpus.images(asked)
        corpus._images._kept.join()
        assert corpus._images.in_memory == (limit_bytes == 1_000_000)
        assert bool(corpus.image_bytes_an_epoch) == (limit_bytes == 1000)
        assert [bytes(image) for image in corpus.images(asked)] == read


def test_gallery_gives_every_image_and_caption_once(damaged_dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = np.array([5, 7, 11, 30, 31])
    tokenizer = train_tokenizer(
        ["picture seen by a b c d e"], vocab_size=100, lowercase=True, max_tokens=8, padding="max"
    )
    config = DataConfig.model_validate({"dataset": damaged_dataset, "image_size": 32, "augment": AUGMENTED})
    gallery = Gallery(Dataset(damaged_dataset), rows, spec=ImageSpec(32), tokenizer=tokenizer, config=config)
    assert (gallery.num_images, gallery.num_captions) == (5, 25)
    assert gallery.caption_to_image.tolist() == np.repeat(np.arange(5), 5).tolist()
    whole = list(gallery.image_batches(2))
    assert np.concatenate([batch.rows for batch in whole]).tolist() == rows.tolist()
    assert sum(batch.num_replaced for batch in whole) == 1
    assert not whole[0].images[1].any()  # row 7 cannot be decoded: left black
    shared = [batch for rank in range(3) for batch in gallery.image_batches(2, rank, 3)]
    assert np.concatenate([batch.rows for batch in shared]).tolist() == rows.tolist()
    places = [place for rank in range(2) for place, _ in gallery.text_batches(4, rank, 2)]
    assert np.concatenate(places).tolist() == list(range(25))
