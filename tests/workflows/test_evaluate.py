"""`clipkit eval`: what it reports, chooses, warns of and refuses."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
import torch
from PIL import Image

from clipkit.errors import ClipkitError, DataError
from clipkit.metrics.retrieval import retrieval
from clipkit.opening import open_model
from clipkit.workflows.evaluate import evaluate as measure

RunCli = Callable[..., subprocess.CompletedProcess[str]]
Evaluate = Callable[..., dict[str, Any]]
SETS = (
    "data.validation=split = 'test' and twin_of is null",
    "train.duration=4st",
    "train.validate_every=2st",
    "train.checkpoint_every=2st",
)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, write_config: Callable[[Path], Path], train: Callable[..., Any]
) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("eval")
    train(write_config(folder), *SETS)
    return folder / "run"


@pytest.fixture
def evaluate(run: Path, shapes_dataset: Path) -> Evaluate:
    def report(**options: Any) -> dict[str, Any]:
        return measure(run, options.pop("dataset", shapes_dataset), **options)[0]

    return report


def copy_with(source: Path, target: Path, old: str, new: str) -> Path:
    """A copy of a run or checkpoint whose configs say something else."""
    shutil.copytree(source, target)
    for config in target.glob("**/config.yaml"):
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))
    for meta in target.glob("**/meta.json"):
        content = json.loads(meta.read_text())
        del content["files"]["config.yaml"]  # else the checksum speaks first
        meta.write_text(json.dumps(content))
    return target


def test_report_is_what_brute_force_finds(
    run: Path, shapes_dataset: Path, evaluate: Evaluate, caplog: pytest.LogCaptureFixture
) -> None:
    report = evaluate(split="test")
    model = open_model(run)
    table = lance.dataset(shapes_dataset).to_table(filter="split = 'test'").to_pylist()
    image = torch.from_numpy(model.encode_images([row["image"] for row in table]))
    text = torch.from_numpy(model.encode_texts([caption for row in table for caption in row["captions"]]))
    owner = torch.arange(len(table)).repeat_interleave(5)
    assert (report["num_images"], report["num_captions"]) == (len(table), 5 * len(table))
    assert report["text_to_image"] == pytest.approx(retrieval(image, text, owner)["text_to_image"], abs=0.02, rel=0.02)
    assert set(report["image_to_text"]) == {"recall@1", "recall@5", "recall@10", "median_rank", "mean_rank"}
    assert report["step"] in (2, 4)
    assert (report["split"], report["dataset_version"]) == ("test", 1)
    assert "ties count against the model" in report["protocol"]
    assert report["trained_on"] == 0
    assert caplog.messages == []


def test_twins_are_reported_apart(evaluate: Evaluate) -> None:
    report = evaluate(split="test")
    assert report["without_twins"]["num_images"] == report["num_images"] // 2
    assert report["without_twins"]["text_to_image"]["mean_rank"] < report["text_to_image"]["mean_rank"]
    assert sum(kind["num_pairs"] for kind in report["twins"].values()) == report["num_images"] // 2
    assert all(0 <= kind["accuracy"] <= 1 for kind in report["twins"].values())
    assert set(report["twins"]) == {"colors", "places"}


def test_twins_need_no_kind(shapes_dataset: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    table = lance.dataset(shapes_dataset).to_table(filter="split = 'test'").drop(["twin_kind"])
    lance.write_dataset(table, tmp_path / "no_kind.lance")
    report = evaluate(dataset=tmp_path / "no_kind.lance", split="test")
    assert report["twins"]["any"]["num_pairs"] == report["without_twins"]["num_images"] == report["num_images"] // 2


def test_a_run_on_cached_pixels_is_measured_where_there_is_no_cache(
    run: Path, shapes_dataset: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    copy = copy_with(run, tmp_path / "run", "cache: null", "cache: 40")
    assert open_model(copy).config.data.cache == 40
    report, _ = measure(copy, shapes_dataset, split="test")
    assert report["text_to_image"] == evaluate(split="test")["text_to_image"]


def test_without_the_runs_own_dataset_it_is_unknown_what_was_trained_on(
    run: Path, shapes_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = copy_with(run, tmp_path / "run", "shapes.lance", "gone.lance")
    report, _ = measure(copy, shapes_dataset, split="train")
    assert report["trained_on"] is None
    assert "unknown whether the run was trained on these rows: there is no dataset at" in caplog.text


def test_the_runs_own_validation_rows_are_the_default(evaluate: Evaluate) -> None:
    report = evaluate()
    assert report["where"] == "split = 'test' and twin_of is null"
    assert report["split"] == "test"
    assert report["num_images"] == evaluate(split="test")["num_images"] // 2


def test_rows_that_were_trained_on_give_a_warning(evaluate: Evaluate, caplog: pytest.LogCaptureFixture) -> None:
    report = evaluate(where="split = 'train' or split = 'test'", checkpoint="2")
    assert report["split"] is None
    assert report["step"] == 2
    assert 0 < report["trained_on"] < report["num_images"]
    assert f"the run was trained on {report['trained_on']} of these" in caplog.text


def test_evaluators_that_differ_only_in_their_rows_are_measured_once(
    run: Path, shapes_dataset: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    both = "evaluate: {test: {kind: retrieval, where: split = 'test'}, all: {kind: retrieval}}"
    report, _ = measure(copy_with(run, tmp_path / "run", "evaluate: {}", both), shapes_dataset)
    assert report["text_to_image"] == evaluate(split="test")["text_to_image"]


def test_another_dataset_with_one_split_or_none(
    shapes_dataset: Path, evaluate: Evaluate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = lance.dataset(shapes_dataset).to_table(columns=["image_id", "image", "captions"], limit=12)
    lance.write_dataset(rows, tmp_path / "plain.lance")
    report = evaluate(dataset=tmp_path / "plain.lance")
    assert (report["num_images"], report["split"], report["where"]) == (12, None, None)
    assert "twins" not in report
    assert "does not work on this dataset" in caplog.text
    lance.write_dataset(rows.append_column("split", pa.array(["new"] * 12)), tmp_path / "one.lance")
    assert evaluate(dataset=tmp_path / "one.lance")["split"] == "new"
    lance.write_dataset(rows.append_column("split", pa.array(["a", "b"] * 6)), tmp_path / "two.lance")
    with pytest.raises(DataError, match=r"`a` \(6 rows\), `b` \(6 rows\)") as caught:
        evaluate(dataset=tmp_path / "two.lance")
    assert "--split NAME" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "the split `dev` of"),
        ({"where": "width > 9000"}, "`(width > 9000)` of"),
        ({"where": "colour = 3"}, "the filter"),
        ({"checkpoint": "3"}, "no checkpoint `3`"),
        ({"device": "abacus"}, "`abacus`"),
        ({"dataset": "gone.lance"}, "no dataset at `gone.lance`"),
    ],
)
def test_what_cannot_be_measured_is_an_error(evaluate: Evaluate, options: dict[str, str], message: str) -> None:
    with pytest.raises(ClipkitError) as caught:
        evaluate(**options)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_truncated_best_checkpoint_is_replaced_with_a_warning(
    run: Path, shapes_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    best = json.loads((copy / "checkpoints" / "best.json").read_text())["step"]
    weights = copy / "checkpoints" / f"step-{best:08d}" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert measure(copy, shapes_dataset)[0]["step"] == 6 - best
    assert "is damaged" in caplog.text


def test_table_and_picture(run: Path, shapes_dataset: Path, run_cli: RunCli, tmp_path: Path) -> None:
    picture = tmp_path / "found.png"
    done = run_cli("eval", run, shapes_dataset, "--split", "test", "--picture", picture)
    assert done.returncode == 0, done.stderr
    for expected in (
        "step",
        "version 1",
        "split `test`",
        "recall@10",
        "median rank",
        "text to image",
        "twins by colors",
    ):
        assert expected in done.stdout
    with Image.open(picture) as image:
        assert image.width > 500


def test_json_is_one_object_and_an_error_has_a_hint(run: Path, shapes_dataset: Path, run_cli: RunCli) -> None:
    done = run_cli("eval", run, shapes_dataset, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_images"] == 20
    done = run_cli("eval", run, shapes_dataset, "--split", "nope", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: the split `nope`" in done.stderr
    assert "\nhint: " in done.stderr
