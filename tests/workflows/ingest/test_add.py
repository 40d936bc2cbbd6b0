"""Adding to a dataset: --append, --upsert and --retry."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from small_corpus import numbered_jpeg, read_rows, rejected_lines, rotated_jpeg

from clipkit.errors import DataError
from clipkit.readers import ReadOptions
from clipkit.store import Dataset, Rows
from clipkit.store.columns import fill_column
from clipkit.workflows.ingest import IngestOptions, ingest
from clipkit.workflows.ingest.options import Mode

RunCli = Callable[..., subprocess.CompletedProcess[str]]
MakeCorpus = Callable[..., Path]


def add_embeddings(out: str) -> None:
    """A column added later, whose values tell the image they were made for."""

    def compute(dataset: Dataset, rows: Rows) -> pa.Array:
        sums = [float(sum(image[:40]) % 1000) for image in dataset.take_images(rows)]
        return pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(sums, 4), pa.float32()), 4)

    fill_column(Dataset(out), pa.field("emb", pa.list_(pa.float32(), 4)), compute)


def test_append_adds_only_new_ids_in_one_version(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    out = str(tmp_path / "o.lance")
    ingest([str(make_corpus(range(10)))], out, IngestOptions())
    add_embeddings(out)
    before = lance.dataset(out)
    more = make_corpus(range(5, 15), name="more", caption="other")
    summary = ingest([str(more)], out, IngestOptions(mode="append"))
    assert (summary.counts.rows, summary.counts.existing, summary.total_rows) == (5, 5, 15)
    assert summary.version == before.version + 1
    rows = read_rows(out)
    assert [row["image_id"] for row in rows] == [f"{number:06d}.jpg" for number in range(15)]
    assert rows[7]["captions"] == ["caption of 7", "again 7"]
    assert [row["emb"] is None for row in rows] == [False] * 10 + [True] * 5
    again = ingest([str(more)], out, IngestOptions(mode="append"))
    assert again.version == summary.version
    assert again.counts.existing == 10


def test_upsert_replaces_and_adds_in_one_version(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    out = str(tmp_path / "o.lance")
    ingest([str(make_corpus(range(10)))], out, IngestOptions())
    add_embeddings(out)
    before = {row["image_id"]: row for row in read_rows(out)}
    version = lance.dataset(out).version
    more = make_corpus(range(5, 15), name="more", caption="other")
    summary = ingest([str(more)], out, IngestOptions(mode="upsert"))
    assert (summary.counts.rows, summary.total_rows, summary.version) == (10, 15, version + 1)
    rows = {row["image_id"]: row for row in read_rows(out)}
    assert len(rows) == 15
    for number in range(15):
        row = rows[f"{number:06d}.jpg"]
        assert row["captions"][0] == (f"caption of {number}" if number < 5 else f"other {number}")
        assert row["image"] == numbered_jpeg(number)
        assert row["emb"] == (before[row["image_id"]]["emb"] if number < 10 else None)
    assert lance.dataset(out, version=version).count_rows() == 10


def test_upsert_of_every_row(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    out = str(tmp_path / "o.lance")
    ingest([str(make_corpus(range(10)))], out, IngestOptions())
    summary = ingest([str(make_corpus(range(10), name="b", caption="new"))], out, IngestOptions(mode="upsert"))
    assert summary.total_rows == 10
    assert [row["captions"][0] for row in read_rows(out)] == [f"new {number}" for number in range(10)]


def test_append_to_nothing_makes_a_dataset(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    summary = ingest([str(make_corpus(range(4)))], str(tmp_path / "o.lance"), IngestOptions(mode="append"))
    assert (summary.version, summary.total_rows) == (1, 4)


def test_append_brings_columns_that_the_dataset_lacks(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    out = str(tmp_path / "o.lance")
    ingest([str(make_corpus(range(4)))], out, IngestOptions())
    more = make_corpus(range(4, 8), name="more")
    (more / "Images" / "000006.jpg").write_bytes(rotated_jpeg())
    ingest([str(more)], out, IngestOptions(mode="append"))
    assert [row["orientation"] for row in read_rows(out)] == [None] * 4 + [1, 1, 6, 1]


def test_append_to_a_dataset_of_somebody_else(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    out = str(tmp_path / "theirs.lance")
    images = pa.array([numbered_jpeg(number) for number in range(3)], pa.binary())
    theirs = pa.table({"image_id": ["a", "b", "c"], "image": images, "captions": [["x"], ["y"], ["z"]]})
    lance.write_dataset(theirs, out)
    summary = ingest([str(make_corpus(range(4)))], out, IngestOptions(mode="append"))
    assert summary.total_rows == 7
    assert Dataset(out).take_captions([0, 3]) == [["x"], ["caption of 0", "again 0"]]


def test_retry_takes_only_what_was_rejected(make_corpus: MakeCorpus, tmp_path: Path, run_cli: RunCli) -> None:
    corpus, out = make_corpus(range(12)), tmp_path / "o.lance"
    for number in (3, 5, 7):
        (corpus / "Images" / f"{number:06d}.jpg").write_bytes(b"no")
    assert run_cli("ingest", corpus, out).returncode == 0
    assert len(rejected_lines(tmp_path)) == 3
    for number in (3, 7):
        (corpus / "Images" / f"{number:06d}.jpg").write_bytes(numbered_jpeg(number))
    done = run_cli("ingest", "--retry", tmp_path / "rejected.jsonl", out, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rows"], result["rejected"], result["total_rows"]) == (2, 1, 11)
    assert [line["id"] for line in rejected_lines(tmp_path)] == ["000005.jpg"]
    (corpus / "Images" / "000005.jpg").write_bytes(numbered_jpeg(5))
    assert run_cli("ingest", "--retry", tmp_path / "rejected.jsonl", out).returncode == 0
    assert rejected_lines(tmp_path) == []
    assert sorted(row["image_id"] for row in read_rows(out)) == [f"{number:06d}.jpg" for number in range(12)]
    nothing = run_cli("ingest", "--retry", tmp_path / "rejected.jsonl", out)
    assert nothing.returncode == 1
    assert "there is no" in nothing.stderr


def test_retry_of_an_append_uses_its_source(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    out = str(tmp_path / "o.lance")
    ingest([str(make_corpus(range(3)))], out, IngestOptions())
    more = make_corpus(range(3, 6), name="more")
    (more / "Images" / "000004.jpg").unlink()
    ingest([str(more)], out, IngestOptions(mode="append"))
    (more / "Images" / "000004.jpg").write_bytes(numbered_jpeg(4))
    summary = ingest([], out, IngestOptions(retry=tmp_path / "rejected.jsonl"))
    assert (summary.counts.rows, summary.total_rows) == (1, 6)


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_retry_of_an_ingest_that_stored_nothing(make_corpus: MakeCorpus, tmp_path: Path, mode: Mode) -> None:
    out, rejected = str(tmp_path / "o.lance"), tmp_path / "rejected.jsonl"
    ingest([str(make_corpus(range(3)))], out, IngestOptions())
    more = make_corpus(range(5, 6), name="more")
    (more / "Images" / "000005.jpg").unlink()
    read = ReadOptions(image_dir=more / "Images")
    assert ingest([str(more)], out, IngestOptions(read=read, mode=mode)).rejected == 1
    for _ in range(2):
        summary = ingest([], out, IngestOptions(retry=rejected))
        assert (summary.rejected, summary.total_rows) == (1, 3)
    (more / "Images" / "000005.jpg").write_bytes(numbered_jpeg(5))
    assert ingest([], out, IngestOptions(retry=rejected)).total_rows == 4
    assert rejected_lines(tmp_path) == []


def test_rejections_of_ids_with_odd_line_breaks(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus, out = make_corpus(range(2)), str(tmp_path / "o.lance")
    with open(corpus / "captions.txt", "a") as stream:
        stream.write("gone\u2028\x85.jpg,nowhere\n")
    for mode in ("create", "append"):  # the second reads what the first has written
        ingest([str(corpus)], out, IngestOptions(mode=mode))
        assert [line["id"] for line in rejected_lines(tmp_path)] == ["gone\u2028\x85.jpg"]


def test_rejections_of_other_datasets_stay(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    for name in ("a", "b"):
        corpus = make_corpus(range(3), name=name)
        (corpus / "Images" / "000001.jpg").unlink()
        ingest([str(corpus)], str(tmp_path / f"{name}.lance"), IngestOptions())
    assert [line["dataset"] for line in rejected_lines(tmp_path)] == ["a.lance", "b.lance"]
    (tmp_path / "a" / "Images" / "000001.jpg").write_bytes(numbered_jpeg(1))
    ingest([], str(tmp_path / "a.lance"), IngestOptions(retry=tmp_path / "rejected.jsonl"))
    assert [line["dataset"] for line in rejected_lines(tmp_path)] == ["b.lance"]


def test_a_retry_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    path.write_text('{"image": 3}\n')
    with pytest.raises(DataError, match="no `id`"):
        ingest([], str(tmp_path / "o.lance"), IngestOptions(retry=path))
    path.write_text('{"id": "a", "source": "b", "reason": "c"}\n')
    with pytest.raises(DataError, match="no dataset"):
        ingest([], str(tmp_path / "o.lance"), IngestOptions(retry=path))
