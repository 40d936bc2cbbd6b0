from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset
from corpora import NUM_ROWS, check_records, make_captions, make_image

from clipkit import readers as ingest
from clipkit.readers import ReadOptions, Rejected
from clipkit.readers.webdataset import expand_braces
from clipkit.types import Record


def write_shards(folder: Path, suffix: str) -> None:
    """As img2dataset does: jpg, txt and json, through webdataset's own writer."""
    with webdataset.ShardWriter(str(folder / f"part-%05d{suffix}"), maxcount=500, verbose=0) as writer:
        for number in range(NUM_ROWS):
            captions = make_captions(number)
            fields = {
                "captions": captions,
                "url": f"http://x/{number}",
                "width": 16,
                "sha256": "ab",
                "error_message": None,
            }
            sample = {"__key__": f"{number:09d}", "jpg": make_image(number), "txt": captions[0], "json": fields}
            writer.write(sample)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_shards_of_webdataset(tmp_path: Path, read_all, suffix: str) -> None:
    write_shards(tmp_path, suffix)
    assert ingest.detect(str(tmp_path)) == "webdataset"
    items = read_all(tmp_path)
    check_records(items)
    assert items[1].extra == {"url": "http://x/1", "sha256": "ab", "error_message": None}
    assert items[1].source == f"part-00000{suffix}/000000001"
    by_pattern = read_all(f"{tmp_path}/part-{{00000..00001}}{suffix}")
    assert [item.image_id for item in by_pattern] == [f"{number:09d}" for number in range(1000)]


def test_braces() -> None:
    assert expand_braces("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand_braces("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]


def write_tar(path: Path, members: list[tuple[str, bytes]], links: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(info)
    return path


def test_captions_and_splits(tmp_path: Path) -> None:
    members = [
        ("a/1.png", b"1"), ("a/1.caption", b" one "),
        ("a/2.jpeg", b"2"), ("a/2.json", json.dumps({"text": "two", "n": 2**70}).encode()),
        ("a/3.v2.JPG", b"3"), ("a/4.webp", b"4"), ("a/4.txt", "vier, ü".encode()), ("a/4.cls", b"9"),
    ]  # fmt: skip
    shard = write_tar(tmp_path / "val-0.tar", members)
    items = list(ingest.read(str(shard), ReadOptions()))
    assert [(item.image_id, item.captions, item.split) for item in items if isinstance(item, Record)] == [
        ("a/1", ("one",), "dev"),
        ("a/2", ("two",), "dev"),
        ("a/4", ("vier, ü",), "dev"),
    ]
    assert items[1].extra == {"n": str(2**70)}
    given = ReadOptions(caption_columns=("n",), keep=("text",))
    assert [item.extra for item in ingest.read(str(shard), given) if isinstance(item, Record)] == [{"text": "two"}]


def test_bad_samples(tmp_path: Path) -> None:
    members = [
        ("../1.jpg", b"1"), ("../1.txt", b"out"), ("2.jpg", b"2"), ("2.json", b"{"), ("3.jpg", b"3"),
        ("3.txt", b"\xff"), ("4.txt", b"no image"), ("5.jpg", b"5"), ("6.jpg", b"6"), ("6.json", b"[]"),
        ("8.jpg", b"8"), ("8.txt", b"one"), ("8.jpg", b"8"), ("8.txt", b"another"),
    ]  # fmt: skip
    shard = write_tar(tmp_path / "x.tar", members, links=("7.jpg",))
    reasons = {
        item.image_id: item.reason for item in ingest.read(str(shard), ReadOptions()) if isinstance(item, Rejected)
    }
    assert set(reasons) == {"../1", "2", "3", "4", "5", "6", "7", "8"}
    assert reasons["8"].startswith("the sample has two files `.")
    assert "--allow-outside" in reasons["../1"]
    assert reasons["7"] == "the image is a link, not a file"


def test_no_shard(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"")
    [item] = ingest.read(str(tmp_path / "x.tar"), ReadOptions())
    assert isinstance(item, Rejected)
    assert "cannot be read any further" in item.reason


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_truncated_shard_costs_only_its_rest(tmp_path: Path, read_all, suffix: str) -> None:
    write_shards(tmp_path, suffix)
    first = tmp_path / f"part-00000{suffix}"
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    items = read_all(tmp_path)
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert 1 <= len(rejected) <= 2  # the sample that is cut, and the rest of the shard
    assert all(item.source.startswith(first.name) for item in rejected)
    assert any("shard" in item.reason for item in rejected)
    assert len(items) > 700 + 100
    assert items[-1].image_id == f"{NUM_ROWS - 1:09d}"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_files_of_a_sample_may_lie_apart(tmp_path: Path, suffix: str) -> None:
    images = [(f"{number}.jpg", b"image %d" % number) for number in range(5)]
    texts = [(f"{number}.txt", b"caption %d" % number) for number in reversed(range(5))]
    shard = write_tar(tmp_path / "a.tar", [*images, *texts])
    if suffix == ".tar.gz":
        shard = tmp_path / "packed.tar.gz"
        shard.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    items = list(ingest.read(str(shard), ReadOptions()))
    expected = [(str(number), b"image %d" % number, (f"caption {number}",)) for number in range(5)]
    assert [(item.image_id, item.image, item.captions) for item in items if isinstance(item, Record)] == expected
    assert list(ingest.read(str(shard), ReadOptions(), skip=3)) == items[3:]


def test_names_with_dots_and_what_archivers_add(tmp_path: Path) -> None:
    members = [
        ("x/a.v1.jpg", b"1"), ("x/a.v1.txt", b"one"), ("x/a.v2.jpg", b"2"), ("x/a.v2.txt", b"two"),
        ("b.depth.png", b"depth"), ("b.jpg", b"3"), ("b.meta.json", b"[1]"), ("b.txt", b"three"),
        ("._b.jpg", b"mac"), ("__MACOSX/b.jpg", b"mac"), (".DS_Store", b"mac"),
    ]  # fmt: skip
    shard = write_tar(tmp_path / "a.tar", members)
    (tmp_path / "._a.tar").write_bytes(b"mac")
    items = list(ingest.read(str(tmp_path), ReadOptions()))
    found = [(item.image_id, item.image, item.captions) for item in items if isinstance(item, Record)]
    assert found == [("x/a.v1", b"1", ("one",)), ("x/a.v2", b"2", ("two",)), ("b", b"3", ("three",))]
    assert len(items) == 3
    assert items[0].source == f"{shard.name}/x/a.v1"
