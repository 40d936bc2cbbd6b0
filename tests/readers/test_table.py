from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from corpora import NUM_ROWS, check_records, make_captions, make_image

from clipkit import readers as ingest
from clipkit.errors import DataError
from clipkit.readers import ReadOptions, Rejected
from clipkit.readers.values import NOT_UTF8
from clipkit.types import Record, Url


def row_a_caption() -> tuple[list[str], list[str]]:
    pairs = [(f"{number:06d}.jpg", text) for number in range(NUM_ROWS) for text in make_captions(number)]
    return [name for name, _ in pairs], [text for _, text in pairs]


def extras(items: list[ingest.Item], name: str) -> list[object]:
    return [item.extra[name] for item in items if isinstance(item, Record)]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".csv", "|")])
def test_csv_of_pyarrow(tmp_path: Path, image_folder: Path, read_all, suffix: str, delimiter: str) -> None:
    names, captions = row_a_caption()
    table = pa.table({"weight": range(len(names)), "filepath": names, "title": captions})
    options = pa_csv.WriteOptions(delimiter=delimiter)
    pa_csv.write_csv(table, tmp_path / f"corpus{suffix}", options)
    source = tmp_path / f"corpus{suffix}"
    assert ingest.detect(str(source)) == "table"
    items = read_all(source, ReadOptions(image_dir=image_folder, keep=("weight",)))
    check_records(items)
    assert extras(items, "weight")[:3] == [0, 1, 3]


def test_gzipped_csv_with_several_caption_columns(tmp_path: Path, image_folder: Path, read_all) -> None:
    with gzip.open(tmp_path / "corpus.csv.gz", "wt", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["caption_1", "caption_0", "caption_2", "path", "code", "score", "flag"])
        for number in range(NUM_ROWS):
            texts = make_captions(number) + [""] * 3
            score = "" if number == 5 else f"{number / 4}"
            writer.writerow([texts[1], texts[0], texts[2], f"{number:06d}.jpg", f"{number:03d}", score, number % 2])
    items = read_all(tmp_path, ReadOptions(image_dir=image_folder, keep=("*",)))
    check_records(items)
    assert extras(items, "code")[7] == "007"  # a name, though it looks like a number
    assert extras(items, "score")[4:7] == [1.0, None, 1.5]
    assert extras(items, "flag")[4:7] == [0, 1, 0]


def test_json_lines(tmp_path: Path, image_folder: Path, read_all) -> None:
    with open(tmp_path / "train.jsonl", "w") as stream:
        for number in range(NUM_ROWS):
            row = {
                "image": f"{number:06d}.jpg",
                "captions": make_captions(number),
                "meta": {"n": number},
                "split": "val",
            }
            stream.write(json.dumps(row, ensure_ascii=number % 2 == 0) + "\n")
    items = read_all(tmp_path / "train.jsonl", ReadOptions(image_dir=image_folder, keep=("meta",)))
    check_records(items)
    assert extras(items, "meta")[3] == '{"n": 3}'
    assert {item.split for item in items} == {"dev"}  # what a row says goes before the file's name


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_parquet(tmp_path: Path, image_folder: Path, read_all, kind: str) -> None:
    names = [f"{number:06d}.jpg" for number in range(NUM_ROWS)]
    images = {
        "bytes": pa.array([make_image(number) for number in range(NUM_ROWS)]),
        "struct": pa.array([{"bytes": make_image(n), "path": name} for n, name in enumerate(names)]),
        "path": pa.array(names),
    }
    captions = pa.array([make_captions(number) for number in range(NUM_ROWS)])
    table = pa.table({"image": images[kind], "text": captions, "n": range(NUM_ROWS)})
    for part in range(3):
        path = tmp_path / f"train-{part:05d}-of-00003.parquet"
        pq.write_table(table.slice(part * 400, 400), path, row_group_size=150)
    items = read_all(tmp_path, ReadOptions(image_dir=image_folder, keep=("n",)))
    check_records(items)
    assert extras(items, "n") == list(range(NUM_ROWS))
    assert {item.split for item in items} == {"train"}
    named_by_row = {"bytes": "train-00001-of-00003-00000401", "struct": "000401.jpg", "path": "000401.jpg"}
    assert items[401].image_id == named_by_row[kind]


def test_struct_without_telling_paths_is_not_merged(tmp_path: Path, read_all) -> None:
    images = [{"bytes": make_image(number), "path": "image.jpg"} for number in range(4)]
    pq.write_table(pa.table({"image": images, "caption": ["a", "b", "c", "d"]}), tmp_path / "x.parquet")
    items = read_all(tmp_path / "x.parquet")
    assert [item.image for item in items] == [make_image(number) for number in range(4)]
    assert len({item.image_id for item in items}) == 4


def test_captions_of_bytes_with_an_id_are_put_together(tmp_path: Path, read_all) -> None:
    table = pa.table({"jpg": [b"1", b"2", b"1"], "image_id": [7, 8, 7], "caption": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "x.parquet")
    items = read_all(tmp_path / "x.parquet")
    assert [(item.image_id, item.image, item.captions) for item in items] == [
        ("7", b"1", ("a", "c")),
        ("8", b"2", ("b",)),
    ]


def test_urls_and_ids(tmp_path: Path) -> None:
    inside = (tmp_path / "a b.jpg").resolve()
    inside.write_bytes(b"x")
    rows = [
        ("1", "http://example.org/1.jpg", "web"),
        ("2", inside.as_uri(), "file"),
        ("3", "file:///etc/hostname", "outside"),
        ("4", "ftp://example.org/4.jpg", "ftp"),
        ("5", "", "none"),
    ]
    with open(tmp_path / "urls.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("key", "url", "caption"), *rows])
    items = list(ingest.read(str(tmp_path / "urls.csv"), ReadOptions()))
    assert [(item.image_id, item.image) for item in items if isinstance(item, Record)] == [
        ("1", Url("http://example.org/1.jpg")),
        ("2", inside),
    ]
    rejected = {item.image_id: item.reason for item in items if isinstance(item, Rejected)}
    assert set(rejected) == {"3", "4", "5"}
    assert "--allow-outside" in rejected["3"]
    allowed = list(ingest.read(str(tmp_path / "urls.csv"), ReadOptions(allow_outside=True)))
    assert [item.image_id for item in allowed if isinstance(item, Record)] == ["1", "2", "3"]


def test_given_columns(tmp_path: Path, image_folder: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("Nummer,Bild,Text A,Text B\nx1,000001.jpg,eins,zwei\n")
    options = ReadOptions(
        image_column="Bild", caption_columns=("Text B", "Text A"), id_column="Nummer", image_dir=image_folder
    )
    [record] = ingest.read(str(path), options)
    assert isinstance(record, Record)
    assert (record.image_id, record.captions) == ("x1", ("zwei", "eins"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ReadOptions(), "no column that looks like images; its columns are `Bild`, `wert`"),
        (ReadOptions(image_column="Bild"), "no column that looks like captions"),
        (ReadOptions(image_column="bild"), "no column `bild`"),
        (ReadOptions(image_column="Bild", caption_columns=("wert",), keep=("nix",)), "no column `nix`"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, options: ReadOptions, message: str) -> None:
    (tmp_path / "odd.csv").write_text("Bild,wert\na.jpg,1\n")
    with pytest.raises(DataError, match=message):
        list(ingest.read(str(tmp_path / "odd.csv"), options))


def test_damaged_rows_are_rejected_by_line(tmp_path: Path, read_all) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.jpg").write_bytes(b"x")
    (tmp_path / "t.csv").write_bytes(
        b'path,caption,n\na.jpg,"two\nlines",1\na.jpg,too,many,fields\n'
        b"b.jpg,\xff,2\n\xfe.jpg,x,3\nb.jpg,  ,4\n../a.jpg,out,5\n"
    )
    items = read_all(tmp_path / "t.csv")
    rejected = [(item.source, item.reason) for item in items if isinstance(item, Rejected)]
    assert ("t.csv:4", "the line has 4 fields, not 3") in rejected
    assert ("t.csv:5", NOT_UTF8) in rejected
    assert ("t.csv:6", NOT_UTF8) in rejected
    assert [item.captions for item in items if isinstance(item, Record)] == [("two\nlines",)]
    (tmp_path / "t.jsonl").write_text('{"path": "a.jpg", "text": "fine"}\n{"path": \n[]\n')
    items = read_all(tmp_path / "t.jsonl")
    assert [(type(item).__name__, item.source) for item in items] == [
        ("Rejected", "t.jsonl:2"),
        ("Rejected", "t.jsonl:3"),
        ("Record", "t.jsonl:1"),
    ]


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(ingest.read(str(tmp_path / "x.parquet"), ReadOptions()))


def test_a_table_beside_a_folder_of_images(tmp_path: Path, image_folder: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(make_image(1))
    (tmp_path / "things.csv").write_text("filename,title,price\na.jpg,A thing,3\n")
    assert ingest.detect(str(tmp_path)) == "table"
    [record] = ingest.read(str(tmp_path), ReadOptions())
    assert isinstance(record, Record)
    assert (record.image, record.captions) == (tmp_path / "pictures" / "a.jpg", ("A thing",))


def test_a_table_of_another_name(tmp_path: Path, image_folder: Path) -> None:
    (tmp_path / "corpus.dat").write_text("path;text\n000001.jpg;A thing\n")
    options = ReadOptions(format="table", image_dir=image_folder)
    [record] = ingest.read(str(tmp_path / "corpus.dat"), options)
    assert isinstance(record, Record)
    assert record.captions == ("A thing",)


def test_a_kept_column_by_a_name_of_the_datasets_own(tmp_path: Path, image_folder: Path) -> None:
    (tmp_path / "t.csv").write_text("path,caption,width,price\n000001.jpg,A,7,9\n")
    for keep, extra in ((("width",), {"source_width": 7}), (("*",), {"price": 9})):
        [record] = ingest.read(str(tmp_path / "t.csv"), ReadOptions(image_dir=image_folder, keep=keep))
        assert isinstance(record, Record)
        assert record.extra == extra


def test_stray_quotes_between_tabs(tmp_path: Path, image_folder: Path) -> None:
    lines = ["path\tcaption", '000001.jpg\t"never closed', '000002.jpg\t"quoted ""so"""', '000003.jpg\t5" tall']
    (tmp_path / "t.tsv").write_text("\r\n".join(lines))
    items = ingest.read(str(tmp_path / "t.tsv"), ReadOptions(image_dir=image_folder))
    captions = [item.captions for item in items if isinstance(item, Record)]
    assert captions == [('"never closed',), ('quoted "so"',), ('5" tall',)]


def test_options_that_say_nothing_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jpg").write_bytes(make_image(1))
    (tmp_path / "captions.txt").write_text("a.jpg,one\n")
    list(ingest.read(str(tmp_path), ReadOptions(class_template="a {}", image_dir=tmp_path)))
    assert [record.getMessage() for record in caplog.records] == [
        f"--class-template has no effect on `{tmp_path}`, which is read as flickr"
    ]


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_an_array_of_objects(tmp_path: Path, image_folder: Path, read_all, suffix: str) -> None:
    rows = [{"image": f"{number:06d}.jpg", "caption": make_captions(number)} for number in range(NUM_ROWS)]
    source = tmp_path / f"corpus{suffix}"
    source.write_bytes(gzip.compress(json.dumps(rows).encode()) if suffix == ".json.gz" else json.dumps(rows).encode())
    assert ingest.detect(str(source)) == "table"
    items = read_all(source, ReadOptions(image_dir=image_folder))
    check_records(items)
    assert items[3].source == f"corpus{suffix}:[3]"


def test_an_array_with_other_things_and_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    path = tmp_path / "t.json"
    path.write_text('[\n {"image": "a.jpg", "text": "fine"},\n 7, ["image"]]')
    items = list(ingest.read(str(path), ReadOptions()))
    assert [(item.source, item.reason) for item in items if isinstance(item, Rejected)] == [
        ("t.json:[1]", "it is not a JSON object"),
        ("t.json:[2]", "it is not a JSON object"),
    ]
    path.write_text('[{"image": "a.jpg", "text": "fine"}, {"image": ')
    with pytest.raises(DataError, match="is no valid JSON"):
        list(ingest.read(str(path), ReadOptions()))


def test_json_that_is_no_table_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(make_image(1))
    (tmp_path / "settings.json").write_text('{"image": "a.jpg", "text": "fine"}')
    with pytest.raises(DataError, match=r"`.*settings.json` may hold captions, but it is not understood"):
        ingest.detect(str(tmp_path))


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large_string", "string_view", "dictionary"],
)
def test_every_way_to_store_names(tmp_path: Path, image_folder: Path, read_all, kind: pa.DataType) -> None:
    names, captions = row_a_caption()
    pq.write_table(pa.table({"filepath": pa.array(names, kind), "caption": captions}), tmp_path / "x.parquet")
    (tmp_path / "pictures").symlink_to(image_folder)
    check_records(read_all(tmp_path / "x.parquet", ReadOptions(allow_outside=True)))


def test_a_header_that_names_a_column_twice_or_not_at_all(tmp_path: Path, image_folder: Path) -> None:
    (tmp_path / "t.csv").write_text(",path,caption,caption,a.b,_rowid\n0,000001.jpg,first,second,1,2\n")
    [record] = ingest.read(str(tmp_path / "t.csv"), ReadOptions(image_dir=image_folder, keep=("*",)))
    assert isinstance(record, Record)
    assert record.captions == ("first", "second")
    assert record.extra == {"unnamed": 0, "a_b": 1, "source__rowid": 2}  # Lance takes none of the names there
