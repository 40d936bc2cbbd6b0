from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from corpora import NUM_ROWS, check_records, make_captions

from clipkit import readers as ingest
from clipkit.errors import DataError
from clipkit.readers import ReadOptions, Rejected
from clipkit.readers.values import NOT_UTF8
from clipkit.types import Record


def write_corpus(folder: Path, name: str, text: str | bytes, images: list[str]) -> Path:
    (folder / "some pictures").mkdir()
    for image in images:
        (folder / "some pictures" / image).write_bytes(b"x")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def captions_of(folder: Path) -> dict[str, tuple[str, ...]]:
    assert ingest.detect(str(folder)) == "flickr"
    return {
        item.image_id: item.captions for item in ingest.read(str(folder), ReadOptions()) if isinstance(item, Record)
    }


def test_written_by_csv_writer(tmp_path: Path, image_folder: Path, read_all) -> None:
    with open(tmp_path / "captions.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        for number in range(NUM_ROWS):
            writer.writerows([f"{number:06d}.jpg", caption] for caption in make_captions(number))
    (tmp_path / "any name").symlink_to(image_folder)
    items = read_all(tmp_path, ReadOptions(image_dir=tmp_path / "any name"))
    check_records(items)


def test_real_flickr8k(flickr8k_dir: Path) -> None:
    records = [item for item in ingest.read(str(flickr8k_dir), ReadOptions()) if isinstance(item, Record)]
    assert len(records) == 7000
    assert sum(len(record.captions) for record in records) == 35000
    assert Counter(record.split for record in records) == {"train": 6000, "dev": 1000}
    by_id = {record.image_id: record.captions for record in records}
    assert 'Young boy with a black " ADHD " t-shirt nodding off' in by_id["1253275679_e955fb7304.jpg"]


@pytest.mark.parametrize("header", ["image,caption\n", "image_name, comment\n", ""])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_captions_txt(tmp_path: Path, header: str, newline: str, space: str, bom: bytes) -> None:
    lines = [
        f"a.jpg,{space}A dog, a cat, and a bird .",
        f'a.jpg,{space}"Quoted, with ""inner"" quotes"',
        f'b.jpg,{space}"Stop" is what the sign says',
        f"b.jpg,{space}  đứng  trong mưa ",
        f"b.jpg,{space}  đứng  trong mưa ",
        "",
    ]
    text = bom + (header + "\n".join(lines)).replace("\n", newline).encode()
    write_corpus(tmp_path, "captions.txt", text, ["a.jpg", "b.jpg"])
    assert captions_of(tmp_path) == {
        "a.jpg": ("A dog, a cat, and a bird .", 'Quoted, with "inner" quotes'),
        "b.jpg": ('"Stop" is what the sign says', "đứng  trong mưa", "đứng  trong mưa"),
    }


def test_quoted_line_breaks_and_stray_quotes(tmp_path: Path) -> None:
    text = 'image,caption\na.jpg,"two\nlines"\na.jpg,"a stray quote\nb.jpg,fine\n"c.jpg","all quoted"\n'
    write_corpus(tmp_path, "captions.txt", text, ["a.jpg", "b.jpg", "c.jpg"])
    assert captions_of(tmp_path) == {
        "a.jpg": ("two\nlines", '"a stray quote'),
        "b.jpg": ("fine",),
        "c.jpg": ("all quoted",),
    }


def test_a_stray_quote_among_names_without_suffix(tmp_path: Path) -> None:
    lines = ['n0,"never closed', *(f"n{number},caption {number}" for number in range(1, 200))]
    names = [f"n{number}" for number in range(200)]
    write_corpus(tmp_path, "captions.txt", "image,caption\n" + "\n".join(lines), names)
    found = captions_of(tmp_path)
    assert len(found) == 200
    assert found["n0"] == ('"never closed',)


def test_flickr8k_token(tmp_path: Path) -> None:
    text = "a.jpg#0\tA dog , a cat .\na.jpg#1\tNumber #2 .\nb.jpg#0\tB .\n"
    write_corpus(tmp_path, "Flickr8k.token.txt", text, ["a.jpg", "b.jpg"])
    (tmp_path / "Flickr8k.lemma.token.txt").write_text("a.jpg#0\tdog\n")
    assert captions_of(tmp_path) == {"a.jpg": ("A dog , a cat .", "Number #2 ."), "b.jpg": ("B .",)}


@pytest.mark.parametrize("header", ["image| number| comment\n", "image_name| comment_number| comment\n", ""])
def test_flickr30k_results(tmp_path: Path, header: str) -> None:
    # The fourth line lacks its second delimiter, as one in the published file does.
    text = header + "a.jpg| 0| Two men , one | old .\na.jpg| 1|  Hands .\nb.jpg| 0| B .\nb.jpg| 4   A dog runs .\n"
    write_corpus(tmp_path, "results.csv", text, ["a.jpg", "b.jpg"])
    assert captions_of(tmp_path) == {"a.jpg": ("Two men , one | old .", "Hands ."), "b.jpg": ("B .", "A dog runs .")}


def test_kaggle_flickr30k_with_numbers(tmp_path: Path) -> None:
    text = 'image_name,comment_number,comment\na.jpg,0,First , second\na.jpg,1,"Third, fourth"\n'
    write_corpus(tmp_path, "captions.txt", text, ["a.jpg"])
    assert captions_of(tmp_path) == {"a.jpg": ("First , second", "Third, fourth")}


def test_flickr30k_token(tmp_path: Path) -> None:
    write_corpus(tmp_path, "results_20130124.token", "a.jpg#0\tOne .\na.jpg#1\tTwo .\n", ["a.jpg"])
    assert captions_of(tmp_path) == {"a.jpg": ("One .", "Two .")}


def test_captions_apart_from_nested_images(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "data" / "Flicker8k_Dataset").mkdir(parents=True)
    (tmp_path / "data" / "Flicker8k_Dataset" / "a.jpg").write_bytes(b"x")
    (tmp_path / "text" / "Flickr8k.token.txt").write_text("a.jpg#0\tOne .\n")
    (tmp_path / "text" / "Flickr_8k.testImages.txt").write_text("a.jpg\n")
    [record] = ingest.read(str(tmp_path), ReadOptions())
    assert isinstance(record, Record)
    assert record.image == tmp_path / "data" / "Flicker8k_Dataset" / "a.jpg"
    assert record.split == "test"


def test_attributes_are_carried(tmp_path: Path) -> None:
    write_corpus(tmp_path, "captions.txt", "image,caption\na.jpg,A\nb.jpg,B\nc.jpg,C\n", ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "attributes.csv").write_text("image,twin_of,scene\na.jpg,,1\nb.jpg,a.jpg,1\n")
    extras = [item.extra for item in ingest.read(str(tmp_path), ReadOptions()) if isinstance(item, Record)]
    assert extras == [{"twin_of": None, "scene": 1}, {"twin_of": "a.jpg", "scene": 1}, {}]


def test_attributes_of_any_type(tmp_path: Path) -> None:
    write_corpus(tmp_path, "captions.txt", "a.jpg,one\n", ["a.jpg"])
    (tmp_path / "attributes.csv").write_text("image,day,flag,width\na.jpg,2020-01-02,true,7\n")
    [record] = ingest.read(str(tmp_path), ReadOptions())
    assert isinstance(record, Record)
    assert record.extra == {"day": "2020-01-02", "flag": True, "source_width": 7}


def test_bad_lines_are_rejected_by_name(tmp_path: Path) -> None:
    text = b"image,caption\na.jpg,fine\nno comma here\nb.jpg,\nc.jpg,\xff\xfe\n../../etc/passwd,out\n,no name\n"
    write_corpus(tmp_path, "captions.txt", text, ["a.jpg", "b.jpg", "c.jpg"])
    rejected = [item for item in ingest.read(str(tmp_path), ReadOptions()) if isinstance(item, Rejected)]
    assert {(item.source, item.reason) for item in rejected} == {
        ("captions.txt:3", "the line has 1 field, not 2"),
        ("captions.txt:4", "no caption"),
        ("captions.txt:5", NOT_UTF8),
        ("captions.txt:6", "the path leads out of the corpus's folder (--allow-outside lets it)"),
        ("captions.txt:7", "no image"),
    }


def test_no_images_found(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,A\n")
    with pytest.raises(DataError, match=r"no folder below .* holds the images"):
        list(ingest.read(str(tmp_path), ReadOptions()))


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"a single line"])
def test_what_is_no_corpus(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "captions.txt").write_bytes(content)
    with pytest.raises(DataError, match="is not understood"):
        ingest.detect(str(tmp_path))
