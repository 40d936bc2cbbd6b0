"""`clipkit eval` on a run of the real command: what it reports, chooses, warns of and refuses."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from clipkit import opening as encoder
from clipkit.errors import CheckpointError, ClipkitError, DataError
from clipkit.metrics import retrieval as metrics
from clipkit.workflows.evaluate import evaluate as measure

CONFIG = """
run: {{name: small, dir: {folder}/run}}
data:
  dataset: {folder}/shapes.lance
  train: "split = 'train'"
  validation: "split = 'test' and twin_of is null"
  image_size: 32
model:
  image: {{kind: timm, name: resnet10t}}
  text: {{kind: transformers, architecture: {{hidden_size: 32, layers: 1, heads: 2}}}}
  embedding_dim: 32
optim:
  groups: {{image_encoder: {{lr: 1e-3}}, text_encoder: {{lr: 1e-3}}, heads: {{lr: 1e-3}}}}
train: {{duration: 4st, batch_size: 16, validate_every: 2st, checkpoint_every: 2st, threads: 1}}
"""
RunCli = Callable[..., subprocess.CompletedProcess[str]]
Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def workplace(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory, run_cli: RunCli) -> Path:
    """A folder with `shapes.lance` and a `run` of four steps on it."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    for command in (["ingest", shapes_dir, folder / "shapes.lance"], ["train", "--config", folder / "config.yaml"]):
        done = run_cli(*command)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def evaluate(workplace: Path) -> Evaluate:
    def run(**options: Any) -> dict[str, Any]:
        return measure(workplace / "run", options.pop("dataset", workplace / "shapes.lance"), **options)

    return run


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
    workplace: Path, evaluate: Evaluate, caplog: pytest.LogCaptureFixture
) -> None:
    report = evaluate(split="test")
    model = encoder.load(workplace / "run")
    table = lance.dataset(workplace / "shapes.lance").to_table(filter="split = 'test'").to_pylist()
    image = torch.from_numpy(model.encode_images([row["image"] for row in table]))
    text = torch.from_numpy(model.encode_texts([caption for row in table for caption in row["captions"]]))
    owner = torch.arange(len(table)).repeat_interleave(5)
    assert (report["num_images"], report["num_captions"]) == (len(table), 5 * len(table))
    assert report["text_to_image"] == pytest.approx(
        metrics.retrieval(image, text, owner)["text_to_image"], abs=0.02, rel=0.02
    )
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


def test_twins_need_no_kind(workplace: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    table = lance.dataset(workplace / "shapes.lance").to_table(filter="split = 'test'").drop(["twin_kind"])
    lance.write_dataset(table, tmp_path / "no_kind.lance")
    report = evaluate(dataset=tmp_path / "no_kind.lance", split="test")
    assert report["twins"]["any"]["num_pairs"] == report["without_twins"]["num_images"] == report["num_images"] // 2


def test_a_run_on_cached_pixels_is_measured_where_there_is_no_cache(
    workplace: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    run = copy_with(workplace / "run", tmp_path / "run", "cache: null", "cache: 40")
    assert encoder.load(run).config.data.cache == 40
    report = measure(run, workplace / "shapes.lance", split="test")
    assert report["text_to_image"] == evaluate(split="test")["text_to_image"]


def test_a_dataset_that_has_moved_leaves_open_what_was_trained_on(
    workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_with(workplace / "run", tmp_path / "run", "shapes.lance", "gone.lance")
    report = measure(run, workplace / "shapes.lance", split="train")
    assert report["trained_on"] is None
    assert "cannot be told: there is no dataset at" in caplog.text


def test_the_runs_own_validation_rows_are_the_default(evaluate: Evaluate) -> None:
    report = evaluate()
    assert report["where"] == "split = 'test' and twin_of is null"
    assert report["split"] == "test"
    assert report["num_images"] == evaluate(split="test")["num_images"] // 2


def test_rows_that_were_trained_on_are_warned_of(evaluate: Evaluate, caplog: pytest.LogCaptureFixture) -> None:
    report = evaluate(where="split = 'train' or split = 'test'", checkpoint="2")
    assert report["split"] is None
    assert report["step"] == 2
    assert 0 < report["trained_on"] < report["num_images"]
    assert f"the run was trained on {report['trained_on']} of these" in caplog.text


def test_another_dataset_with_one_split_or_none(
    workplace: Path, evaluate: Evaluate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = lance.dataset(workplace / "shapes.lance").to_table(columns=["image_id", "image", "captions"], limit=12)
    lance.write_dataset(rows, tmp_path / "plain.lance")
    report = evaluate(dataset=tmp_path / "plain.lance")
    assert (report["num_images"], report["split"], report["where"]) == (12, None, None)
    assert "twins" not in report
    assert "does not work here" in caplog.text
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
def test_what_cannot_be_measured_is_said(evaluate: Evaluate, options: dict[str, str], message: str) -> None:
    with pytest.raises(ClipkitError) as caught:
        evaluate(**options)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_truncated_best_checkpoint_falls_back_and_says_so(
    workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(workplace / "run", run)
    best = json.loads((run / "checkpoints" / "best.json").read_text())["step"]
    weights = run / "checkpoints" / f"step-{best:08d}" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert measure(run, workplace / "shapes.lance")["step"] == 6 - best
    assert "is damaged" in caplog.text


def test_a_checkpoint_can_be_named_itself(workplace: Path) -> None:
    checkpoint = workplace / "run" / "checkpoints" / "step-00000002"
    assert encoder.load(checkpoint).step == 2
    with pytest.raises(CheckpointError, match="is a checkpoint already"):
        encoder.load(checkpoint, checkpoint="last")


def test_a_checkpoint_of_another_model_is_refused(workplace: Path, tmp_path: Path) -> None:
    source = sorted((workplace / "run" / "checkpoints").glob("step-*"))[-1]
    checkpoint = copy_with(source, tmp_path / "checkpoint", "embedding_dim: 32", "embedding_dim: 16")
    with pytest.raises(CheckpointError, match="another model"):
        encoder.load(checkpoint)


def test_table_and_picture(workplace: Path, run_cli: RunCli, tmp_path: Path) -> None:
    picture = tmp_path / "found.png"
    done = run_cli("eval", workplace / "run", workplace / "shapes.lance", "--split", "test", "--picture", picture)
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


def test_the_encoder_reads_files_bytes_and_texts(workplace: Path, shapes_dir: Path, tmp_path: Path) -> None:
    model = encoder.load(workplace / "run", checkpoint="last")
    files = sorted((shapes_dir / "Images").iterdir())[:3]
    vectors = model.encode_images([files[0], files[1].read_bytes(), files[2]], batch_size=2)
    assert vectors.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.encode_images(files), vectors, rtol=1e-3, atol=1e-5)
    assert model.encode_texts([]).shape == (0, 32)
    assert model.encode_texts(["a red circle", "a blue star"]).shape == (2, 32)
    (tmp_path / "torn.jpg").write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"torn\.jpg"):
        model.encode_images([tmp_path / "torn.jpg"])


def test_json_is_one_object_and_errors_are_ours(workplace: Path, run_cli: RunCli) -> None:
    done = run_cli("eval", workplace / "run", workplace / "shapes.lance", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_images"] == 20
    done = run_cli("eval", workplace / "run", workplace / "shapes.lance", "--split", "nope", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: the split `nope`" in done.stderr
    assert "\nhint: " in done.stderr
