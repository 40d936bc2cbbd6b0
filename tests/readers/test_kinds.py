"""Kinds of corpora that people have, each with what it should give; hints are followed as a user would."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import make_image

from clipkit import readers as ingest
from clipkit.errors import DataError
from clipkit.readers import ReadOptions, Rejected, SourceReport
from clipkit.types import Record


def make_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make_image(number))


def captions(source: Path, **options: object) -> dict[str, tuple[str, ...]]:
    items = ingest.read(str(source), ReadOptions(**options))
    return {item.image_id: item.captions for item in items if isinstance(item, Record)}


EXPECTED = {"0.jpg": ("cap 0",), "1.jpg": ("cap 1",)}
ROWS = [{"image": f"{number}.jpg", "caption": f"cap {number}"} for number in range(2)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", "image_id,caption\n0.jpg,cap 0\n1.jpg,cap 1\n"),
        ("train_captions.txt", "0.jpg\tcap 0\n1.jpg\tcap 1\n"),
        ("captions.txt", "0.jpg cap 0\n1.jpg cap 1\n"),
        ("captions.txt", "file;description\n0.jpg;cap 0\n1.jpg;cap 1\n"),
        ("texts.txt", "image\ttext\r\n0.jpg\tcap 0\r\n1.jpg\tcap 1\r\n"),
        ("captions.json", json.dumps({row["image"]: row["caption"] for row in ROWS})),
        ("captions.json", json.dumps({row["image"]: [row["caption"]] for row in ROWS}, indent=1)),
        ("captions.json", json.dumps({row["image"]: {"caption": row["caption"]} for row in ROWS})),
        ("textcaps.json", json.dumps({"data": [{"image": f"{n}.jpg", "caption_str": f"cap {n}"} for n in (0, 1)]})),
        ("sbu.json", json.dumps({"images": ["0.jpg", "1.jpg"], "user": ["a", "b"], "captions": ["cap 0", "cap 1"]})),
        ("lines.json", "\n".join(json.dumps(row) for row in ROWS)),
        ("annotations/captions.csv", "image,caption\n0.jpg,cap 0\n1.jpg,cap 1\n"),
    ],
)  # fmt: skip
def test_captions_files_of_every_form(tmp_path: Path, name: str, text: str) -> None:
    make_images(tmp_path, "photos/0.jpg", "photos/1.jpg")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    (tmp_path / "._captions.csv").write_bytes(b"\0\5")
    (tmp_path / "README.txt").write_text("captions of images")
    assert captions(tmp_path) == EXPECTED


def test_ids_without_extension_in_text_and_json(tmp_path: Path) -> None:
    make_images(tmp_path, "images/R_00.jpg", "images/R_01.jpg")
    (tmp_path / "captions.txt").write_text("R_00\t one\nR_01\ttwo \n")
    expected = {"R_00": ("one",), "R_01": ("two",)}
    assert captions(tmp_path) == expected
    (tmp_path / "captions.txt").unlink()
    (tmp_path / "captions.json").write_text(json.dumps({"R_00": "one", "R_01": "two"}))
    assert captions(tmp_path) == expected


def test_a_captions_file_that_is_not_understood_is_named(tmp_path: Path) -> None:
    make_images(tmp_path, "cat/0.jpg", "dog/1.jpg")
    (tmp_path / "captions.txt").write_text("a line without any structure\nand another one\n")
    with pytest.raises(DataError, match=r"first line is `a line without any structure`") as caught:
        captions(tmp_path)
    assert "--format imagefolder" in caught.value.hint
    assert captions(tmp_path, format="imagefolder") == {
        "cat/0.jpg": ("a photo of a cat",),
        "dog/1.jpg": ("a photo of a dog",),
    }


def test_one_folder_of_images_is_not_a_class(tmp_path: Path) -> None:
    make_images(tmp_path, "images/0.jpg")
    with pytest.raises(DataError, match="does not look like images with captions") as caught:
        captions(tmp_path)
    (tmp_path / "captions.csv").write_text("0.jpg,as the hint says\n")
    assert "`captions.csv` of lines `image,caption`" in caught.value.hint
    assert captions(tmp_path) == {"0.jpg": ("as the hint says",)}


def test_instances_are_not_captions(tmp_path: Path) -> None:
    make_images(tmp_path, "train2017/0.jpg")
    instances = {"images": [{"id": 0, "file_name": "0.jpg"}], "annotations": [{"image_id": 0, "category_id": 1}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(instances))
    with pytest.raises(DataError, match=r"instances_train2017.json` may hold captions, but it is not understood"):
        captions(tmp_path)


@pytest.mark.parametrize(
    ("header", "values", "expected"),
    [
        ("caption,caption.1,caption.2", "a,b,c", ("a", "b", "c")),
        ("caption,caption,caption", "a,b,c", ("a", "b", "c")),
        ("caption_1,caption_0", "a,b", ("b", "a")),
        ("text,text_1,caption", "a,b,c", ("a", "b", "c")),
        ("title,title_2", "a,b", ("a", "b")),
        ("Caption,Caption 2", "a,b", ("a", "b")),
        ("title,caption", "a,b", ("b",)),
    ],
)
def test_every_caption_column(tmp_path: Path, header: str, values: str, expected: tuple[str, ...]) -> None:
    make_images(tmp_path, "0.jpg")
    (tmp_path / "t.csv").write_text(f"path,{header}\n0.jpg,{values}\n")
    assert captions(tmp_path / "t.csv") == {"0.jpg": expected}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"[\'a dog\', \'a ""big"" dog\']"', ["a dog", 'a "big" dog']),
        ('"[""it\'s a cat"", \'two\']"', ["it's a cat", "two"]),
        ("['one']", ["one"]),
        ("\" [ 'x, y', 'z']\"", ["x, y", "z"]),
        ("\"['a'\n 'b']\"", ["a", "b"]),
        ("\ufeffplain\ufeff", ["plain"]),
        ("[a sign] a dog", ["[a sign] a dog"]),
        ("[laughter]", ["[laughter]"]),
        ("[]", None),
        ("nan", None),
        ("", None),
    ],
)
def test_lists_and_missing_captions_as_text(tmp_path: Path, text: str, expected: list[str] | None) -> None:
    make_images(tmp_path, "0.jpg")
    (tmp_path / "t.csv").write_text(f"path,captions\n0.jpg,{text}\n")
    [item] = ingest.read(str(tmp_path / "t.csv"), ReadOptions())
    if expected is None:
        assert isinstance(item, Rejected)
        assert item.reason == "no caption"
    else:
        assert isinstance(item, Record)
        assert list(item.captions) == expected


def test_one_image_written_in_two_ways(tmp_path: Path) -> None:
    make_images(tmp_path, "images/0.jpg")
    (tmp_path / "t.csv").write_text("path,caption,n\n./images/0.jpg,a,1\nimages\\0.jpg,b,2\nimages//0.jpg,c,3\n")
    assert captions(tmp_path / "t.csv") == {"images/0.jpg": ("a", "b", "c")}


def test_splits_by_the_folders_of_the_images(tmp_path: Path) -> None:
    make_images(tmp_path, "train/0.jpg", "test/1.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text\ntrain/0.jpg,a\ntest/1.jpg,b\n")
    items = list(ingest.read(str(tmp_path), ReadOptions()))
    assert [item.split for item in items if isinstance(item, Record)] == ["train", "test"]


def test_several_images_an_item(tmp_path: Path) -> None:
    names = [f"img/{item}_{side}.jpg" for item in "AB" for side in ("front", "back")]
    make_images(tmp_path, *names)
    (tmp_path / "long.csv").write_text("id,image,title\n" + "".join(f"{n[4]},{n},Item {n[4]}\n" for n in names))
    (tmp_path / "wide.csv").write_text(
        "id,image,title\n" + "".join(f'{i},"img/{i}_front.jpg, img/{i}_back.jpg",Item {i}\n' for i in "AB")
    )
    lines = [{"id": i, "images": [f"img/{i}_front.jpg", f"img/{i}_back.jpg"], "title": f"Item {i}"} for i in "AB"]
    (tmp_path / "multi.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for file in ("long.csv", "wide.csv", "multi.jsonl"):
        report = SourceReport()
        items = list(ingest.read(str(tmp_path / file), ReadOptions(), report=report))
        found = {item.image_id: (item.captions, item.extra) for item in items if isinstance(item, Record)}
        assert found == {name: ((f"Item {name[4]}",), {"id": name[4]}) for name in names}
        assert report.notes == ["the column `id` names several images: ids are the images' names, and it is kept"]


def test_a_sequence_of_images(tmp_path: Path, read_all) -> None:
    images = [[{"bytes": make_image(2 * n + k), "path": None} for k in range(2)] for n in range(3)]
    pq.write_table(pa.table({"id": [0, 1, 2], "image": images, "caption": ["a", "b", "c"]}), tmp_path / "t.parquet")
    items = read_all(tmp_path / "t.parquet")
    assert [(item.image, item.captions) for item in items] == [(make_image(n), ("aabbcc"[n],)) for n in range(6)]
    assert len({item.image_id for item in items}) == 6


@pytest.mark.parametrize("kind", ["csv", "parquet", "data-uri", "bytes-as-numbers"])
def test_images_within_tables(tmp_path: Path, read_all, kind: str) -> None:
    texts = [base64.b64encode(make_image(number)).decode() for number in range(3)]
    if kind == "csv":
        file = tmp_path / "t.tsv"
        file.write_text("image_id\timage\tcaption\n" + "".join(f"{n}\t{t}\tcap {n}\n" for n, t in enumerate(texts)))
    else:
        file = tmp_path / "t.parquet"
        column = {
            "parquet": texts,
            "data-uri": [f"data:image/jpeg;base64,{text}" for text in texts],
            "bytes-as-numbers": [np.frombuffer(make_image(n), np.uint8) for n in range(3)],
        }[kind]
        pq.write_table(pa.table({"image": column, "caption": [f"cap {n}" for n in range(3)]}), file)
    items = read_all(file)
    assert [(item.image, item.captions) for item in items] == [(make_image(n), (f"cap {n}",)) for n in range(3)]


def test_latin_1_is_rejected_with_a_hint_that_works(tmp_path: Path) -> None:
    make_images(tmp_path, "0.jpg")
    (tmp_path / "captions.csv").write_bytes("image,caption\n0.jpg,größer\n".encode("latin-1"))
    [item] = ingest.read(str(tmp_path), ReadOptions())
    assert isinstance(item, Rejected)
    assert "--encoding" in item.reason
    assert captions(tmp_path, encoding="latin-1") == {"0.jpg": ("größer",)}
    with pytest.raises(DataError, match="there is no encoding `nix`"):
        captions(tmp_path, encoding="nix")


def test_a_header_in_latin_1(tmp_path: Path) -> None:
    make_images(tmp_path, "0.jpg")
    (tmp_path / "t.csv").write_bytes("path,größe,caption\n0.jpg,1,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8") as caught:
        captions(tmp_path / "t.csv")
    assert "--encoding latin-1" in caught.value.hint
    assert captions(tmp_path / "t.csv", encoding="latin-1") == {"0.jpg": ("x",)}


def test_excel_files_are_named(tmp_path: Path) -> None:
    make_images(tmp_path, "a/0.jpg", "b/1.jpg")
    (tmp_path / "captions.xlsx").write_bytes(b"PK\3\4")
    for source in (tmp_path, tmp_path / "captions.xlsx"):
        with pytest.raises(DataError, match="is an Excel file") as caught:
            captions(source)
        assert "CSV" in caught.value.hint


def test_a_folder_with_several_tables(tmp_path: Path) -> None:
    make_images(tmp_path, "pictures/0.jpg")
    (tmp_path / "a_prices.csv").write_text("sku,price\n1,2\n")
    (tmp_path / "products.csv").write_text("image,title\n0.jpg,A thing\n")
    report = SourceReport()
    items = list(ingest.read(str(tmp_path), ReadOptions(), report=report))
    assert [item.captions for item in items if isinstance(item, Record)] == [("A thing",)]
    assert (report.reader, report.files, report.passed_over) == ("table", ["products.csv"], ["a_prices.csv"])
    assert report.image_folders == {str(tmp_path / "pictures"): 1}


def test_columns_that_no_name_tells(tmp_path: Path) -> None:
    make_images(tmp_path, "images/15970.jpg")
    (tmp_path / "styles.csv").write_text("id,colour,productDisplayName\n15970,Navy,Check Shirt\n1,Red,Watch, gold\n")
    with pytest.raises(DataError, match="no column that looks like captions") as caught:
        captions(tmp_path / "styles.csv")
    assert "--caption-column" in caught.value.hint
    assert captions(tmp_path / "styles.csv", caption_columns=("productDisplayName",)) == {"15970": ("Check Shirt",)}


def test_the_column_of_the_images_as_the_id(tmp_path: Path) -> None:
    make_images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "t.csv").write_text("id,image,title\n1,a.jpg,x\n1,b.jpg,y\n")
    assert captions(tmp_path / "t.csv", id_column="image") == {"a.jpg": ("x",), "b.jpg": ("y",)}
