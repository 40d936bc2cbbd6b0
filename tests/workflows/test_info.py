from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import lance
import numpy as np
import pyarrow as pa
import pytest
from corpora import make_captions, make_image

from clipkit.errors import DataError
from clipkit.workflows.info import Spread, describe
from clipkit.workflows.ingest import IngestOptions, ingest
from clipkit.workflows.leaks import find_leaks


@pytest.fixture(scope="module")
def shapes_lance(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("info") / "shapes.lance"
    ingest([str(shapes_dir)], str(path), IngestOptions())
    return path


def test_command(shapes_lance: Path, run_cli) -> None:
    done = run_cli("info", shapes_lance, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["captions"], found["splits"]) == (240, 1200, {"test": 40, "train": 200})
    assert found["captions_per_image"] == {"min": 5, "median": 5, "mean": 5, "max": 5}
    assert {"name": "image", "type": "large_binary"} in found["columns"]
    assert found["images"]["formats"] == {"jpeg": 240}
    assert found["images"]["storage"] == "binary"
    assert found["provenance"][0]["formats"] == ["flickr"]
    assert [version["rows"] for version in found["versions"]] == [240]
    text = run_cli("info", shapes_lance, "--leaks").stdout
    assert "240 rows, 1200 captions" in text
    assert "files captions.txt\n    images from Images" in text
    assert "leaks: 0 images" in text


def test_the_way_to_read_it_works(shapes_lance: Path) -> None:
    scope: dict[str, bytes] = {}
    exec(describe(str(shapes_lance)).images.how_to_read, scope)
    assert cv2.imdecode(np.frombuffer(scope["data"], np.uint8), cv2.IMREAD_COLOR) is not None


def test_blob_columns(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(8):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(make_image(number, width=320, height=240))
    lines = [f"{number}.jpg,{caption}\n" for number in range(8) for caption in make_captions(number)]
    (tmp_path / "captions.txt").write_text("".join(lines))
    ingest([str(tmp_path)], str(tmp_path / "x.lance"), IngestOptions(storage="blob"))
    found = describe(str(tmp_path / "x.lance"))
    assert (found.images.storage, found.images.formats) == ("blob", {"jpeg": 8})
    assert found.total_bytes > found.images.bytes.mean * 8
    scope: dict[str, bytes] = {}
    exec(found.images.how_to_read, scope)
    assert scope["data"] == make_image(0, width=320, height=240)


def test_a_dataset_of_somebody_else(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image_id": ["a", "b", "c"],
            "image": [make_image(1), b"broken", make_image(2)],
            "captions": ["one", "two words", ""],
        }
    )
    lance.write_dataset(table, str(tmp_path / "x.lance"))
    found = describe(str(tmp_path / "x.lance"))
    assert (found.rows, found.captions, found.splits, found.num_without_split) == (3, 2, {}, 3)
    assert found.images.formats == {"jpeg": 2, "unreadable": 1}
    assert found.images.width == Spread(16, 16, 16, 16)
    assert found.provenance == []
    with pytest.raises(DataError, match="no column `split`"):
        find_leaks(str(tmp_path / "x.lance"))


def test_rows_without_a_split(tmp_path: Path) -> None:
    columns = {"image_id": ["a", "b", "c"], "image": [make_image(n) for n in range(3)], "captions": ["x", "y", "z"]}
    lance.write_dataset(pa.table({**columns, "split": ["train", None, "test"]}), str(tmp_path / "x.lance"))
    found = describe(str(tmp_path / "x.lance"))
    assert (found.splits, found.num_without_split) == ({"test": 1, "train": 1}, 1)


def test_versions_and_tags(shapes_lance: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_lance, tmp_path / "x.lance")
    dataset = lance.dataset(str(tmp_path / "x.lance"))
    dataset.delete("split = 'test'")
    dataset.tags.create("small", dataset.version)
    found = describe(str(tmp_path / "x.lance"))
    assert [(version.rows, version.tags) for version in found.versions] == [(240, ()), (200, ("small",))]
    assert describe(str(tmp_path / "x.lance"), version=1).rows == 240
    with pytest.raises(DataError, match="no version or tag `huge`"):
        describe(str(tmp_path / "x.lance"), version="huge")


def test_spread() -> None:
    assert Spread.of({}) is None
    assert Spread.of({1: 1, 2: 1, 10: 1}) == Spread(1, 2, 4.33, 10)
    assert Spread.of({3: 4, 5: 1}) == Spread(3, 3, 3.4, 5)


def altered(pixels: np.ndarray, way: int) -> bytes:
    height, width = pixels.shape[:2]
    if way == 0:
        return bytes(cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, 40))[1])
    if way == 1:
        small = cv2.resize(pixels, (width // 3, height // 3), interpolation=cv2.INTER_AREA)
        return bytes(cv2.imencode(".webp", small)[1])
    if way == 2:
        return bytes(cv2.imencode(".png", pixels[4:-4, 4:-4])[1])
    return bytes(cv2.imencode(".jpg", cv2.resize(pixels, (256, 256)))[1])


def test_a_dataset_without_images_and_captions(tmp_path: Path, run_cli) -> None:
    lance.write_dataset(pa.table({"image_id": ["a", "b"], "tags": [["x"], []]}), tmp_path / "x.lance")
    info = describe(str(tmp_path / "x.lance"))
    assert (info.rows, info.captions, info.images) == (2, 0, None)
    assert "images: none" in run_cli("info", tmp_path / "x.lance").stdout


def test_leaks(photographs_dir: Path, tmp_path: Path) -> None:
    """Copies of photographs in another split, as they are and made anew, among others that are not."""
    paths = sorted(photographs_dir.iterdir())[:160]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines, splits = [], {"train": [], "test": []}
    for number, path in enumerate(paths):
        name = f"{number}.jpg"
        shutil.copy(path, corpus / name)
        splits["train" if number < 120 else "test"].append(name)
        lines.append(f"{name},photo {number}\n")
    for number in range(60):
        name = f"copy{number}.jpg"
        if number < 20:
            shutil.copy(paths[number], corpus / name)
        else:
            (corpus / name).write_bytes(altered(cv2.imread(str(paths[number])), number % 4))
        splits["test"].append(name)
        lines.append(f"{name},copy {number}\n")
    (corpus / "captions.txt").write_text("".join(lines))
    for split, names in splits.items():
        (corpus / f"{split}.txt").write_text("\n".join(names))
    ingest([str(corpus)], str(tmp_path / "x.lance"), IngestOptions())
    leaks = find_leaks(str(tmp_path / "x.lance"))
    exact = {tuple(sorted(member.image_id for member in members)) for members in leaks.exact}
    assert exact == {tuple(sorted((f"{number}.jpg", f"copy{number}.jpg"))) for number in range(20)}
    near = {tuple(sorted(member.image_id for member in pair.images)) for pair in leaks.near}
    wanted = {tuple(sorted((f"{number}.jpg", f"copy{number}.jpg"))) for number in range(20, 60)}
    assert len(near & wanted) >= 38
    assert not near - wanted
