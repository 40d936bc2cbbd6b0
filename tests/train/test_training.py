"""`clipkit train` from its config to its run folder, and what it does in trouble."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from clipkit.config import DualEncoderConfig, TransformersText
from clipkit.config.file import parse_config
from clipkit.data.tokenizer import train_tokenizer
from clipkit.data.training_rows import TrainingRows
from clipkit.errors import CheckpointError, ConfigError, DataError, TrainingError
from clipkit.models import EncoderContext
from clipkit.models.text_encoder import make_tokenizer
from clipkit.runs.checkpoint import read_meta
from clipkit.runs.folder import find_checkpoint
from clipkit.runs.metrics import read_metrics
from clipkit.store import Dataset
from clipkit.train.session import open_session
from clipkit.workflows import train as training

Train = Callable[..., dict[str, Any]]
SHORT = ("train.duration=2st", "train.validate_every=null", "train.ema=null")


def lines_with(run: Path, key: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if key in line]


def test_a_run_leaves_its_numbers_its_config_and_its_checkpoints(
    tmp_path: Path, config_file: Path, train: Train
) -> None:
    summary = train(config_file, "train.keep=1")
    run = tmp_path / "run"
    steps = lines_with(run, "loss")
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert steps[-1]["epoch"] == 2.0
    assert steps[0]["lr"].keys() == {"image_encoder", "text_encoder", "heads", "temperature"}
    assert all(line["samples_per_s"] > 0 and 0 <= line["wait_share"] <= 1 for line in steps)
    validations = lines_with(run, "split")
    assert [(line["step"], line["split"]) for line in validations] == [(6, "test"), (12, "test")]
    assert 0 <= validations[0]["text_to_image"]["recall@10"] <= 1
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert best["value"] == max(line["text_to_image"]["recall@10"] for line in validations)
    kept = sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    assert kept == sorted({best["step"], 12})
    meta = read_meta(find_checkpoint(run, "last"))
    assert (meta["step"], meta["threads"], meta["dataset"]["version"]) == (12, 1, 1)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert (summary["step"], summary["reason"], summary["exit_code"]) == (12, "done", 0)
    assert parse_config((run / "config.yaml").read_text(), source="config").run.name == "tiny"


@pytest.mark.parametrize(
    ("sets", "attention"),
    [
        (["train.precision=bf16"], "eager"),
        (["train.precision=bf16", "data.max_tokens=256"], "sdpa"),
        (["train.precision=fp32"], "sdpa"),
    ],
)
def test_attention_is_what_is_fastest_here(config_file: Path, sets: list[str], attention: str) -> None:
    built = training.build_training(open_session(config_file, sets), torch.device("cpu"))
    built.loader.close()
    assert built.task.model.text_encoder.model.config._attn_implementation == attention


def test_the_dataset_version_is_tagged_and_kept(
    tmp_path: Path, config_file: Path, shapes_dataset: Path, train: Train
) -> None:
    copy = tmp_path / "copy.lance"
    shutil.copytree(shapes_dataset, copy)
    train(config_file, *SHORT, f"data.dataset={copy}")
    dataset = lance.dataset(str(copy))
    assert [tag["version"] for name, tag in dataset.tags.list().items() if name.startswith("clipkit-tiny")] == [1]
    lance.write_dataset(dataset.to_table(limit=8), str(copy), mode="append")
    train(None, "train.duration=3st", resume=str(tmp_path / "run"))
    assert read_meta(find_checkpoint(tmp_path / "run", "last"))["dataset"]["version"] == 1


def test_a_run_is_resumed_with_a_moved_dataset_but_not_with_another(
    tmp_path: Path, config_file: Path, shapes_dataset: Path, train: Train
) -> None:
    moved, run = tmp_path / "moved.lance", str(tmp_path / "run")
    shutil.copytree(shapes_dataset, moved)
    train(config_file, *SHORT)
    assert train(None, "train.duration=3st", f"data.dataset={moved}", resume=run)["dataset"] == str(moved)
    lance.dataset(str(moved)).delete("split = 'train' and image_id like '%9%'")
    shutil.rmtree(moved / "_refs")
    assert train(None, "train.duration=4st", resume=run)["dataset_version"] == 1
    other = tmp_path / "other.lance"
    lance.write_dataset(lance.dataset(str(moved)).to_table(), str(other))
    with pytest.raises(CheckpointError, match="samples to train on, the run began with 200"):
        train(None, "train.duration=5st", f"data.dataset={other}", resume=run)


def test_a_missing_dataset_is_named_with_its_version(
    tmp_path: Path, config_file: Path, shapes_dataset: Path, train: Train
) -> None:
    copy = tmp_path / "copy.lance"
    shutil.copytree(shapes_dataset, copy)
    train(config_file, *SHORT, f"data.dataset={copy}")
    shutil.rmtree(copy)
    with pytest.raises(DataError, match="there is no dataset") as caught:
        train(None, "train.duration=3st", resume=str(tmp_path / "run"))
    assert "version 1" in caught.value.hint
    assert "--set data.dataset=" in caught.value.hint


def test_a_dataset_that_cannot_be_tagged_is_a_warning(
    tmp_path: Path, config_file: Path, shapes_dataset: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy.lance"
    shutil.copytree(shapes_dataset, copy, ignore=shutil.ignore_patterns("_refs"))
    (copy / "_refs").touch()  # stands where tags would be made, for root as well
    with caplog.at_level("WARNING", logger="clipkit"):
        assert train(config_file, *SHORT, f"data.dataset={copy}")["step"] == 2
    assert "cannot be tagged" in caplog.text
    assert "trains on version 1 without a tag" in caplog.text


def test_an_existing_run_folder_is_refused(tmp_path: Path, config_file: Path, train: Train) -> None:
    train(config_file, *SHORT)
    with pytest.raises(CheckpointError, match="already exists") as caught:
        train(config_file, *SHORT)
    assert "--resume" in caught.value.hint


def test_a_dry_run_builds_everything_and_writes_nothing(tmp_path: Path, config_file: Path) -> None:
    result = training.dry_run(open_session(config_file, ["optim.freeze=[image_encoder]"]))
    assert result["groups"]["image_encoder"]["trained"] == 0
    assert result["groups"]["heads"]["trained"] == result["groups"]["heads"]["params"] > 0
    assert (result["steps"], result["steps_per_epoch"], result["samples"]) == (12, 6, 200)
    assert not (tmp_path / "run").exists()


def test_a_warm_start_takes_the_weights_and_the_tokenizer(tmp_path: Path, config_file: Path, train: Train) -> None:
    train(config_file, *SHORT)
    before = load_file(find_checkpoint(tmp_path / "run") / "model.safetensors")
    other = tmp_path / "other"
    train(
        config_file, "train.duration=1st", "train.validate_every=null", "train.ema=null",
        f"run.dir={other}", f"model.init={tmp_path / 'run'}",
        "optim.groups.image_encoder.lr=0", "optim.groups.text_encoder.lr=0",
    )  # fmt: skip
    after = load_file(find_checkpoint(other) / "model.safetensors")
    weights = [name for name in before if name.endswith("weight") and "_encoder" in name]
    assert weights
    assert all(before[name].equal(after[name]) for name in weights)


def test_a_checkpoint_of_another_model_is_an_error(tmp_path: Path, config_file: Path, train: Train) -> None:
    train(config_file, *SHORT)
    with pytest.raises(CheckpointError, match="12 tensors differ in shape"):
        train(
            config_file,
            *SHORT,
            f"run.dir={tmp_path / 'other'}",
            f"model.init={tmp_path / 'run'}",
            "model.embedding_dim=8",
        )
    assert not (tmp_path / "other").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, config_file: Path, train: Train
) -> None:
    with pytest.raises(
        TrainingError, match=r"step \d+ is not finite: loss .*largest gradient is that of `\w+`.*`shapes_"
    ) as caught:
        train(
            config_file, "train.checkpoint_every=2st", "train.validate_every=null", "optim.schedule.warmup=2st",
            "optim.groups.heads.lr=1e25", "train.guards.max_skipped=3", "train.ema=null",
        )  # fmt: skip
    run = tmp_path / "run"
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert len([line for line in lines_with(run, "lr") if line.get("skipped")]) == 3
    assert "learning rates" in caught.value.hint


def test_a_run_whose_last_step_was_skipped_has_its_last_weights(
    tmp_path: Path, config_file: Path, shapes_dataset: Path, train: Train
) -> None:
    table = lance.dataset(str(shapes_dataset)).to_table(filter="split = 'train'").slice(0, 64)
    vectors = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    vectors[-1] = np.nan
    column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 8)
    lance.write_dataset(table.append_column("vector", column), str(tmp_path / "vectors.lance"))
    train(
        config_file, f"data.dataset={tmp_path / 'vectors.lance'}", "data.features.image=vector", "data.shuffle=false",
        "model.image={kind: features, dim: 8}", "train.duration=2st", "train.validate_every=null",
        "optim.groups={text_encoder: {lr: 1e-3}, heads: {lr: 1e-3}}",
    )  # fmt: skip
    steps = lines_with(tmp_path / "run", "lr")
    assert [line.get("skipped", False) for line in steps] == [False, True]
    assert steps[1]["image_ids"] == table["image_id"].to_pylist()[32:]  # the message has room for some of them
    assert read_meta(find_checkpoint(tmp_path / "run", "last"))["step"] == 2


def test_statistics_that_an_overflow_spoiled_are_reset(config_file: Path) -> None:
    built = training.build_training(open_session(config_file), torch.device("cpu"))
    built.loader.close()
    norms = [module for module in built.task.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    spoiled, sound = norms[0], norms[1]
    spoiled.running_var[0] = torch.nan
    sound.running_mean.fill_(0.5)
    built.engine.mend_statistics()
    assert spoiled.running_var.eq(1).all()
    assert sound.running_mean.eq(0.5).all()


def test_a_rollback_continues_from_good_weights_at_a_lower_rate(
    tmp_path: Path, config_file: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    train(config_file, "train.duration=2st", "train.validate_every=null", "train.ema=null")
    with caplog.at_level("WARNING", logger="clipkit"):
        summary = train(
            None, "train.duration=12st", "optim.groups.heads.lr=1e25", "train.guards.on_nonfinite=rollback",
            "train.guards.max_skipped=2", "train.guards.rollback_lr_factor=1e-28", "train.checkpoint_every=50st",
            "train.validate_every=1st", resume=str(tmp_path / "run"),
        )  # fmt: skip
    assert summary["step"] == 12
    # The checkpoint of step 3 has weights that the ruinous rate spoiled: the next step fails too.
    restored = [line["checkpoint"] for line in lines_with(tmp_path / "run", "event")]
    assert restored == ["step-00000003", "step-00000002"]
    assert "continuing from the weights of" in caplog.text
    assert lines_with(tmp_path / "run", "loss")[-1]["loss"] is not None


def test_an_unknown_metric_is_an_error_that_lists_the_known_ones(config_file: Path, train: Train) -> None:
    with pytest.raises(ConfigError, match=r"`train\.best: recall`") as caught:
        train(config_file, "train.validate_every=1st", "train.best=recall", "train.duration=1st")
    assert "`text_to_image/recall@10`" in caught.value.hint


def test_a_run_in_minutes_measures_itself_once(tmp_path: Path, config_file: Path, train: Train) -> None:
    summary = train(config_file, "train.duration=0.01min", "train.validate_every=null", "train.ema=null")
    total = json.loads((tmp_path / "run" / "run.json").read_text())["total_steps"]
    assert summary["step"] == summary["total_steps"] == total
    again = train(None, rerun=str(tmp_path / "run"))
    assert again["step"] == total
    assert train(None, resume=str(tmp_path / "run"))["step"] == total
    assert train(None, "train.duration=0.05min", resume=str(tmp_path / "run"))["step"] > total


def test_a_group_is_unfrozen_at_its_step(tmp_path: Path, config_file: Path, train: Train) -> None:
    train(
        config_file,
        "optim.freeze={image_encoder: 2st}",
        "train.duration=4st",
        "train.validate_every=null",
        "train.ema=null",
    )
    trained = ["image_encoder" in line["lr"] for line in lines_with(tmp_path / "run", "lr")]
    assert trained == [False, False, True, True]


def test_a_group_that_matches_no_parameter_is_an_error(config_file: Path) -> None:
    adapters = "optim.groups.adapters={lr: 1e-3, params: ['*.lora_*']}"
    with pytest.raises(ConfigError, match=r"`optim\.groups\.adapters` matches no parameter"):
        training.dry_run(open_session(config_file, [adapters]))


def test_a_run_that_trains_nothing_is_an_error(config_file: Path) -> None:
    everything = "optim.freeze={image_encoder: 2st, text_encoder: 2st, heads: 2st, temperature: 2st}"
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        training.dry_run(open_session(config_file, [everything]))


def test_norms_a_group_are_logged(tmp_path: Path, config_file: Path, train: Train) -> None:
    train(config_file, *SHORT, "train.log_norms_every=2")
    lines = lines_with(tmp_path / "run", "norms")
    assert [line["step"] for line in lines] == [2]
    assert lines[0]["norms"]["weight"].keys() == lines[0]["norms"]["gradient"].keys()


@pytest.mark.parametrize(
    ("key", "named"), [("train", "the training filter `"), ("validation", "`data.validation: ")], ids=lambda text: text
)
def test_a_filter_that_chooses_nothing_is_an_error(
    key: str, named: str, tmp_path: Path, config_file: Path, train: Train
) -> None:
    with pytest.raises(DataError, match=f"{named}split = 'none'` matches no row"):
        train(config_file, f"data.{key}=split = 'none'")
    assert not (tmp_path / "run").exists()


def test_the_vocabulary_is_of_each_sources_training_rows(config_file: Path, shapes_dataset: Path) -> None:
    filters = ("scene = 30", "scene = 31")
    sources = ", ".join(f'{{dataset: {shapes_dataset}, train: "{where}"}}' for where in filters)
    config = open_session(config_file, ["data.dataset=null", f"data.sources=[{sources}]", "data.limit=1"]).config
    dataset = Dataset(shapes_dataset)
    captions = [text for where in filters for text in dataset.take_captions(dataset.select(where)[:1])[0]]
    assert isinstance(config.model, DualEncoderConfig)
    text = config.model.text
    assert isinstance(text, TransformersText)
    assert text.architecture is not None
    expected = train_tokenizer(
        captions,
        vocab_size=text.architecture.vocab_size,
        lowercase=text.architecture.lowercase,
        max_tokens=config.data.max_tokens,
        padding=config.data.padding,
    )
    made = make_tokenizer(text, EncoderContext(config.data, TrainingRows(config.data)))
    assert made.fingerprint == expected.fingerprint


def test_a_config_is_needed() -> None:
    with pytest.raises(ConfigError, match="no config"):
        open_session(None)
