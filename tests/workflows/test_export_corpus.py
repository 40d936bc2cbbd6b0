from __future__ import annotations

import json
from pathlib import Path

import datasets
import lance
import pyarrow as pa
import pytest
import webdataset
from corpora import make_captions, make_image
from pycocotools.coco import COCO

from clipkit.errors import DataError
from clipkit.readers import ReadOptions
from clipkit.workflows.export_corpus import export_corpus
from clipkit.workflows.ingest import IngestOptions, ingest

COUNT = 2100
# Ids that are no file names, or that differ in their suffix alone.
ODD_IDS = (
    "../up",
    "/root.jpg",
    "a:b",
    "a.b.c",
    "twin.jpg",  # this and the next of one split, and of the formats that they say
    "twin.png",
    "d..",
    "ünï 1.jpg",
    "dir/x",
    "dir/x.jpg",
    "http://x/1.jpg?a=b",
    "x" * 300,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "x.lance"
    ids = [*ODD_IDS, *(f"{number:06d}.jpg" for number in range(len(ODD_IDS), COUNT))]
    table = pa.table(
        {
            "image_id": ids,
            "image": pa.array(
                [make_image(n, suffix=".png" if n % 5 == 0 else ".jpg") for n in range(COUNT)], pa.large_binary()
            ),
            "captions": [make_captions(number) for number in range(COUNT)],
            "split": [("train", "train", "dev", None)[number % 4] for number in range(COUNT)],
            "score": [None if number % 3 == 0 else number / 2 for number in range(COUNT)],
        }
    )
    lance.write_dataset(table, str(path))
    return path


def rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, object]]:
    table = lance.dataset(str(path)).to_table(columns=list(columns))
    return sorted(table.to_pylist(), key=lambda row: row["image_id"])


@pytest.mark.parametrize("format", ["webdataset", "imagefolder", "coco"])
def test_round_trip(dataset: Path, tmp_path: Path, format: str) -> None:
    assert export_corpus(str(dataset), tmp_path / "out", format=format) == COUNT
    options = IngestOptions(read=ReadOptions(keep=("*",)))
    ingest([str(tmp_path / "out")], str(tmp_path / "again.lance"), options)
    columns = ("image_id", "image", "captions", "split", *(() if format == "coco" else ("score",)))
    assert rows(tmp_path / "again.lance", columns) == rows(dataset, columns)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.lance", "out"]


def test_webdataset_reads_it(dataset: Path, tmp_path: Path) -> None:
    export_corpus(str(dataset), tmp_path / "out", format="webdataset", where="split = 'train'")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train-000000.tar", "train-000001.tar"]
    shards = [str(path) for path in sorted((tmp_path / "out").iterdir())]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == COUNT // 2
    assert json.loads(samples[7]["json"])["captions"][0] == samples[7]["txt"].decode()


def test_datasets_reads_it(dataset: Path, tmp_path: Path) -> None:
    export_corpus(str(dataset), tmp_path / "out", format="imagefolder", where="split = 'dev' or split = 'train'")
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    by_id = {row["image_id"]: row for split in theirs for row in theirs[split]}
    assert len(by_id) == COUNT * 3 // 4
    assert by_id["000021.jpg"]["captions"] == make_captions(21)
    assert by_id["000021.jpg"]["image"].size == (16, 12)


def test_pycocotools_reads_it(dataset: Path, tmp_path: Path) -> None:
    export_corpus(str(dataset), tmp_path / "out", format="coco")
    coco = COCO(str(tmp_path / "out" / "annotations" / "captions_dev.json"))
    [image] = [image for image in coco.imgs.values() if image["image_id"] == "000022.jpg"]
    assert [annotation["caption"] for annotation in coco.imgToAnns[image["id"]]] == make_captions(22)
    assert (tmp_path / "out" / "dev" / image["file_name"]).read_bytes() == make_image(22)


def test_refusals(dataset: Path, tmp_path: Path, run_cli) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    done = run_cli("export-corpus", dataset, tmp_path / "out", "--format", "coco")
    assert done.returncode == 1
    assert "already exists" in done.stderr
    assert run_cli("export-corpus", dataset, tmp_path / "new", "--format", "zip").returncode == 2
    with pytest.raises(DataError, match="matches no rows"):
        export_corpus(str(dataset), tmp_path / "new", format="coco", where="split = 'none'")
    assert not (tmp_path / "new").exists()
    done = run_cli("export-corpus", dataset, tmp_path / "new", "--format", "coco", "--json", "--where", "split = 'dev'")
    assert json.loads(done.stdout) == {"rows": COUNT // 4, "format": "coco", "out": str(tmp_path / "new")}
