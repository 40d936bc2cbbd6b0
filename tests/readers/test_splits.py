from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from clipkit import readers as ingest
from clipkit.errors import DataError
from clipkit.readers import ReadOptions, SourceReport
from clipkit.readers.source import split_in_name
from clipkit.readers.splits import SplitLists, split_by_hash, split_lists_in
from clipkit.types import Record

NAMES = [f"{number}.jpg" for number in range(50)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "captions.txt").write_text("".join(f"{name},A picture\n" for name in NAMES))
    return tmp_path


def splits(corpus: Path, options: ReadOptions) -> dict[str, str | None]:
    return {item.image_id: item.split for item in ingest.read(str(corpus), options) if isinstance(item, Record)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt"],
            {"train", "dev", "test"},
        ),
        (["flickr30k_train.txt", "flickr30k_val.txt"], {"train", "dev"}),
        (["test.txt", "captions.txt", "contest.txt", "readme.txt"], {"test"}),
    ],
)
def test_lists_beside_the_captions(tmp_path: Path, names: list[str], expected: set[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("a.jpg\n")
    assert set(split_lists_in(tmp_path)) == expected


def test_given_lists_replace_those_found(corpus: Path, tmp_path: Path) -> None:
    (corpus / "train.txt").write_text("\n".join(NAMES[:30]))
    assert Counter(splits(corpus, ReadOptions()).values()) == {"train": 30, None: 20}
    mine = tmp_path / "mine.list"
    mine.write_text("\ufeff" + "\r\n".join(name.removesuffix(".jpg") for name in NAMES[:5]))
    assert Counter(splits(corpus, ReadOptions(split_files={"gold": mine})).values()) == {"gold": 5, None: 45}
    assert set(splits(corpus, ReadOptions(split="all")).values()) == {"all"}


def test_a_name_in_two_lists(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("1.jpg\n")
    with pytest.raises(DataError, match=r"`1.jpg` is in the lists of two splits, a and b"):
        SplitLists({"a": tmp_path / "a", "b": tmp_path / "b"})
    with pytest.raises(DataError, match="cannot be read"):
        SplitLists({"a": tmp_path / "gone"})


def test_fractions_stay_when_the_corpus_grows(corpus: Path) -> None:
    before = splits(corpus, ReadOptions(val_fraction=0.2, test_fraction=0.3))
    (corpus / "captions.txt").write_text("".join(f"{name},A picture\n" for name in ["new.jpg", *reversed(NAMES)]))
    (corpus / "new.jpg").write_bytes(b"x")
    after = splits(corpus, ReadOptions(val_fraction=0.2, test_fraction=0.3))
    assert {name: after[name] for name in NAMES} == before


def test_fractions_are_what_they_say() -> None:
    counts = Counter(split_by_hash(f"image {number}", 0.1, 0.25) for number in range(20_000))
    assert abs(counts["dev"] / 20_000 - 0.1) < 0.01
    assert abs(counts["test"] / 20_000 - 0.25) < 0.01
    assert set(counts) == {"train", "dev", "test"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("captions_train2014", "train"), ("captions_val2014", "dev"), ("test-00000-of-00001.parquet", "test"),
        ("contest.csv", None), ("my_validation_set", "dev"), ("trainer", None), ("data/train", "train"),
    ],
)  # fmt: skip
def test_splits_in_names(name: str, split: str | None) -> None:
    assert split_in_name(name) == split


@pytest.mark.parametrize("form", ["images/{}.jpg", "{}", "/data/Images/{}.jpg", "{}.jpg 3", "./{}.jpg"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_names_in_lists_take_many_forms(corpus: Path, form: str, newline: str) -> None:
    (corpus / "train.txt").write_text(newline.join(form.format(number) for number in range(10)))
    assert Counter(splits(corpus, ReadOptions()).values()) == {"train": 10, None: 40}


def test_one_name_in_the_folders_of_two_splits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("train/1.jpg\ntrain/2.jpg\n")
    (tmp_path / "b.txt").write_text("val/1.jpg\n")
    split_of = SplitLists({"train": tmp_path / "a.txt", "dev": tmp_path / "b.txt"})
    assert [split_of(name) for name in ("train/1.jpg", "x/val/1.jpg", "1.jpg", "2.jpg")] == [
        "train", "dev", None, "train",
    ]  # fmt: skip


def test_a_list_that_matches_half_is_said(corpus: Path) -> None:
    (corpus / "mine.txt").write_text("".join(f"{number}.jpg\n" for number in range(25, 75)))
    report = SourceReport()
    options = ReadOptions(split_files={"train": corpus / "mine.txt"})
    assert len(list(ingest.read(str(corpus), options, report=report))) == 50
    assert report.notes == [
        "the split lists `mine.txt` have 50 names, of which 25 match an image: a name there is `25.jpg`, "
        "an image here `0.jpg`"
    ]
