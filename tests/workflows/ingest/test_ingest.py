"""What `clipkit ingest` stores, reports and refuses."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import lance
import pytest
from small_corpus import numbered_jpeg, read_rows, rejected_lines, rotated_jpeg

from clipkit.errors import DataError
from clipkit.images.prepare import ImageOptions
from clipkit.readers import ReadOptions
from clipkit.store import Dataset
from clipkit.workflows.ingest import IngestOptions, MaxRejected, ingest

RunCli = Callable[..., subprocess.CompletedProcess[str]]
MakeCorpus = Callable[..., Path]


def test_real_corpus_is_taken_whole(flickr8k_dir: Path, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("ingest", flickr8k_dir, tmp_path / "f.lance", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rows"], result["captions"], result["rejected"]) == (7000, 35000, 0)
    assert result["splits"] == {"train": 6000, "dev": 1000}
    rows = read_rows(tmp_path / "f.lance")
    assert result["bytes"] == sum(len(row["image"]) for row in rows)
    assert all((flickr8k_dir / "Images" / row["image_id"]).read_bytes() == row["image"] for row in rows[::100])
    assert not (tmp_path / "rejected.jsonl").exists()


def test_unusable_images_are_named_and_the_rest_is_stored(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus(range(10))
    images = corpus / "Images"
    (images / "000001.jpg").unlink()
    (images / "000002.jpg").write_bytes(b"")
    (images / "000003.jpg").write_bytes(numbered_jpeg(3)[:-10])
    (images / "000004.jpg").write_text("this is no image at all")
    (images / "000005.jpg").unlink()
    os.mkfifo(images / "000005.jpg")  # to read it would be to wait for ever
    summary = ingest([str(corpus)], str(tmp_path / "o.lance"), IngestOptions())
    assert summary.counts.rows == 5
    assert summary.rejected == 5
    lines = rejected_lines(tmp_path)
    assert [line["id"] for line in lines] == [f"{number:06d}.jpg" for number in (1, 2, 3, 4, 5)]
    assert all(line["reason"] and "captions.txt" in line["source"] for line in lines)


def test_nothing_readable_is_an_error(make_corpus: MakeCorpus, tmp_path: Path, run_cli: RunCli) -> None:
    corpus = make_corpus(range(3))
    for path in (corpus / "Images").iterdir():
        path.write_bytes(b"")
    done = run_cli("ingest", corpus, tmp_path / "o.lance")
    assert done.returncode == 1
    assert "no row could be read" in done.stderr
    assert not (tmp_path / "o.lance").exists()
    assert len(rejected_lines(tmp_path)) == 3


def test_what_is_there_is_not_touched_unless_told(make_corpus: MakeCorpus, tmp_path: Path, run_cli: RunCli) -> None:
    corpus, out = make_corpus(range(5)), tmp_path / "o.lance"
    assert run_cli("ingest", corpus, out).returncode == 0
    again = run_cli("ingest", corpus, out)
    assert again.returncode == 1
    assert "--overwrite" in again.stderr
    finished = run_cli("ingest", corpus, out, "--resume", "--json")
    assert finished.returncode == 0
    assert json.loads(finished.stdout)["already_finished"] is True
    other = run_cli("ingest", corpus, out, "--resume", "--resize", "8")
    assert other.returncode == 1
    assert lance.dataset(str(out)).version == 1
    assert run_cli("ingest", make_corpus(range(3), name="other"), out, "--overwrite").returncode == 0
    assert lance.dataset(str(out)).count_rows() == 3
    assert lance.dataset(str(out), version=1).count_rows() == 5


@pytest.mark.parametrize("flags", [["--append", "--upsert"], ["--split-file", "train"], ["--max-rejected", "few"]])
def test_wrong_usage_exits_with_2(make_corpus: MakeCorpus, tmp_path: Path, run_cli: RunCli, flags: list[str]) -> None:
    assert run_cli("ingest", make_corpus(range(2)), tmp_path / "o.lance", *flags).returncode == 2


def test_a_folder_that_is_no_dataset_is_left_alone(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(numbered_jpeg(1))
    with pytest.raises(DataError, match="a folder without a dataset"):
        ingest([str(make_corpus())], str(folder), IngestOptions(mode="overwrite"))
    assert [path.name for path in folder.iterdir()] == ["a.jpg"]


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        ingest([str(tmp_path / "nowhere")], str(tmp_path / "o.lance"), IngestOptions())
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(make_corpus: MakeCorpus) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        ingest([str(make_corpus())], "/proc/o.lance", IngestOptions())


def test_a_failure_before_the_first_shard_leaves_nothing(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    twice = make_corpus(range(5))
    with pytest.raises(DataError, match="occurs twice"):
        ingest([str(twice), str(twice)], str(tmp_path / "o.lance"), IngestOptions())
    assert not (tmp_path / "o.lance").exists()


def test_strict_and_max_rejected(make_corpus: MakeCorpus, tmp_path: Path, run_cli: RunCli) -> None:
    corpus = make_corpus(range(100))
    for number in range(3):
        (corpus / "Images" / f"{number:06d}.jpg").write_bytes(b"no")
    strict = run_cli("ingest", corpus, tmp_path / "strict.lance", "--strict", "--json")
    assert strict.returncode == 3
    assert json.loads(strict.stdout)["rows"] == 97
    stopped = run_cli("ingest", corpus, tmp_path / "o.lance", "--max-rejected", "2%")
    assert stopped.returncode == 1
    assert "--max-rejected 2%" in stopped.stderr
    assert not (tmp_path / "o.lance" / "_versions").exists()
    resumed = run_cli("ingest", corpus, tmp_path / "o.lance", "--max-rejected", "3%", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert lance.dataset(str(tmp_path / "o.lance")).count_rows() == 97


def test_max_rejected_stops_early() -> None:
    limit = MaxRejected.parse("1%")
    assert not limit.is_exceeded(5, 6, at_end=False)
    assert limit.is_exceeded(11, 11, at_end=False)
    assert limit.is_exceeded(1, 99, at_end=True)
    assert MaxRejected.parse("2").is_exceeded(3, 1000, at_end=False)
    with pytest.raises(ValueError, match="invalid"):
        MaxRejected.parse("1 per cent")


def test_orientation_is_kept_where_an_image_has_one(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus(range(4))
    plain = ingest([str(corpus)], str(tmp_path / "plain.lance"), IngestOptions())
    assert "orientation" not in Dataset(plain.out).schema.names
    (corpus / "Images" / "000002.jpg").write_bytes(rotated_jpeg())
    ingest([str(corpus)], str(tmp_path / "o.lance"), IngestOptions())
    rows = read_rows(tmp_path / "o.lance")
    assert [row["orientation"] for row in rows] == [1, 1, 6, 1]
    assert (rows[2]["width"], rows[2]["height"]) == (32, 20)
    resized = IngestOptions(image=ImageOptions(resize=10))
    ingest([str(corpus)], str(tmp_path / "small.lance"), resized)
    rows = read_rows(tmp_path / "small.lance")
    assert "orientation" not in rows[2]
    assert (rows[2]["width"], rows[2]["height"]) == (10, 16)


@pytest.mark.parametrize("storage", ["binary", "blob", "auto"])
def test_storage_of_images(tmp_path: Path, photographs_dir: Path, storage: str) -> None:
    folder = tmp_path / "cats"
    (folder / "Images").mkdir(parents=True)
    paths = sorted(photographs_dir.glob("*.jpg"))[:12]
    for path in paths:
        (folder / "Images" / path.name).write_bytes(path.read_bytes())
    captions = "".join(f"{path.name},a photograph\n" for path in paths)
    (folder / "captions.txt").write_text(f"image,caption\n{captions}")
    options = IngestOptions(storage=storage)
    summary = ingest([str(folder)], str(tmp_path / "o.lance"), options)
    dataset = Dataset(summary.out)
    mean_bytes = sum(path.stat().st_size for path in paths) / len(paths)
    expected = {"auto": "blob" if mean_bytes >= 128_000 else "binary"}.get(storage, storage)
    assert summary.image_storage == ("blob" if dataset.image_is_blob else "binary") == expected
    stored = {bytes(image) for image in dataset.take_images(range(len(paths)))}
    assert stored == {path.read_bytes() for path in paths}


def test_several_sources_and_ids_that_occur_twice(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    first, second = make_corpus(range(6), name="a"), make_corpus(range(4, 9), name="b", caption="second of")
    out = str(tmp_path / "o.lance")
    with pytest.raises(DataError, match="occurs twice"):
        ingest([str(first), str(second)], out, IngestOptions())
    for policy, captions in (
        ("first", ["caption of 4", "again 4"]),
        ("merge-captions", ["caption of 4", "again 4", "second of 4"]),
    ):
        summary = ingest([str(first), str(second)], out, IngestOptions(mode="overwrite", on_duplicate=policy))
        assert summary.counts.rows == 9
        assert summary.counts.duplicates == 2
        assert read_rows(out)[4]["captions"] == captions


def test_repeated_images_are_dropped_and_named(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus, out = make_corpus(range(6)), str(tmp_path / "o.lance")
    (corpus / "Images" / "000004.jpg").write_bytes(numbered_jpeg(1))
    summary = ingest([str(corpus)], out, IngestOptions(drop_repeats=True))
    assert (summary.counts.rows, summary.counts.repeats, summary.rejected) == (5, 1, 0)
    (line,) = rejected_lines(tmp_path)
    assert (line["id"], line["repeat_of"]) == ("000004.jpg", "000001.jpg")
    more = make_corpus([2, 3, 11], name="more")
    (more / "Images" / "000011.jpg").write_bytes(numbered_jpeg(5))
    summary = ingest([str(more)], out, IngestOptions(mode="append", drop_repeats=True))
    assert (summary.counts.rows, summary.counts.existing, summary.counts.repeats) == (0, 2, 1)


def test_splits_by_flags(make_corpus: MakeCorpus, tmp_path: Path, run_cli: RunCli) -> None:
    corpus = make_corpus(range(300))
    flags = ("--val-fraction", "0.2", "--test-fraction", "0.1", "--json")
    done = run_cli("ingest", corpus, tmp_path / "o.lance", *flags)
    splits = json.loads(done.stdout)["splits"]
    assert sum(splits.values()) == 300
    assert 35 < splits["dev"] < 90
    assert 12 < splits["test"] < 55
    names = tmp_path / "names.txt"
    names.write_text("000001.jpg\n000002.jpg\n")
    done = run_cli("ingest", corpus, tmp_path / "p.lance", "--split-file", f"holdout={names}", "--json")
    assert json.loads(done.stdout)["splits"] == {"holdout": 2}


def test_a_split_list_that_names_nothing_is_told(
    make_corpus: MakeCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = make_corpus(range(3))
    read = ReadOptions(split_files={"train": corpus / "captions.txt"})
    summary = ingest([str(corpus)], str(tmp_path / "o.lance"), IngestOptions(read=read))
    assert summary.counts.splits == {}
    assert "no row is in a list of --split-file" in caplog.text


def test_columns_of_the_corpus_are_carried(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    make_corpus(range(5))
    lines = [
        json.dumps({"file_name": f"Images/{n:06d}.jpg", "text": f"number {n}", "width": 7, "score": n / 2})
        for n in range(5)
    ]
    table = tmp_path / "corpus" / "table.jsonl"
    table.write_text("\n".join(lines))
    options = IngestOptions(read=ReadOptions(format="table", keep=("*",)))
    ingest([str(table)], str(tmp_path / "o.lance"), options)
    rows = read_rows(tmp_path / "o.lance")
    assert [row["score"] for row in rows] == [0, 0.5, 1, 1.5, 2]
    assert {row["width"] for row in rows} == {24}


def test_provenance_is_in_the_schema(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus(range(5))
    summary = ingest([str(corpus)], str(tmp_path / "o.lance"), IngestOptions())
    provenance = json.loads(Dataset(summary.out).schema.metadata[b"clipkit"])
    assert provenance["sources"] == [str(corpus)]
    assert provenance["formats"] == ["flickr"]
    assert (provenance["rows"], provenance["captions"], provenance["rejected"]) == (5, 10, 0)


def test_json_is_alone_on_stdout(make_corpus: MakeCorpus, tmp_path: Path, run_cli: RunCli) -> None:
    done: subprocess.CompletedProcess[str] = run_cli("ingest", make_corpus(), tmp_path / "o.lance", "--json")
    assert len(done.stdout.splitlines()) == 1
    assert {"rows", "captions", "rejected", "bytes", "splits", "version"} <= json.loads(done.stdout).keys()
