from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpora import make_image

from clipkit import readers as ingest
from clipkit.errors import DataError
from clipkit.readers import ReadOptions, Rejected, SourceReport
from clipkit.types import Record


def write(folder: Path, name: str, text: str | bytes | None, *, image: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if image:
        (folder / f"{name}.png").write_bytes(make_image(1))
    if text is not None:
        (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("below", ["", "dataset", "a/b"])
def test_a_text_beside_each_image(tmp_path: Path, read_all, below: str) -> None:
    for number in range(4):
        write(tmp_path / below, str(number), f"caption {number}\n" if number else "one\n\ntwo")
    assert ingest.detect(str(tmp_path)) == "sidecar"
    items = read_all(tmp_path)
    prefix = f"{below}/" if below else ""
    assert [(item.image_id, item.captions) for item in items] == [
        (f"{prefix}0.png", ("one", "two")),
        *((f"{prefix}{number}.png", (f"caption {number}",)) for number in (1, 2, 3)),
    ]


def test_what_lacks_its_other_half_is_rejected(tmp_path: Path, read_all) -> None:
    write(tmp_path / "train", "0", "fine")
    write(tmp_path / "train", "1", None)
    write(tmp_path / "train", "2", "no image", image=False)
    write(tmp_path / "train", "3", b"\xff\xfe\x00")
    write(tmp_path / "train", "4", " ")
    (tmp_path / "train" / "._0.png").write_bytes(b"x")
    items = read_all(tmp_path)
    assert [item.split for item in items if isinstance(item, Record)] == ["train"]
    assert {item.image_id: item.reason for item in items if isinstance(item, Rejected)} == {
        "train/1.png": "no caption",
        "train/2.txt": "no image for this text",
        "train/3.png": "the text is not UTF-8 (--encoding says what it is, such as latin-1)",
        "train/4.png": "no caption",
    }


def test_img2dataset_files_are_read_instead_of_its_urls(tmp_path: Path, read_all) -> None:
    for number in range(3):
        write(tmp_path / "00000", f"{number:09d}", f"caption {number}")
        fields = {"caption": "not this", "url": f"http://127.0.0.1:9/{number}", "key": number}
        (tmp_path / "00000" / f"{number:09d}.json").write_text(json.dumps(fields))
    (tmp_path / "00000.csv").write_text("url,caption\nhttp://127.0.0.1:9/0,a\n")
    (tmp_path / "00000_stats.json").write_text("{}")
    items = read_all(tmp_path, ReadOptions(keep=("key",)))
    assert [(item.captions, item.extra) for item in items] == [((f"caption {n}",), {"key": n}) for n in range(3)]


def test_numbers_are_not_captions(tmp_path: Path) -> None:
    write(tmp_path / "images", "0", "0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="does not look like images with captions"):
        ingest.detect(str(tmp_path))


def test_the_report_says_that_lines_are_captions(tmp_path: Path) -> None:
    write(tmp_path, "0", "one\ntwo")
    report = SourceReport()
    list(ingest.read(str(tmp_path), ReadOptions(), report=report))
    assert report.reader == "sidecar"
    assert report.image_folders == {str(tmp_path): 1}
    assert report.notes == ["the text of `0.png` has several lines, each of which is a caption"]
