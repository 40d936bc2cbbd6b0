"""`clipkit init`: configs that fit a dataset."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from corpora import make_image

from clipkit.config import Config
from clipkit.config.file import parse_config
from clipkit.errors import DataError
from clipkit.workflows.init import ENGLISH_ENCODER, OTHER_ENCODER, propose_config

ENGLISH = "A dog with a ball runs through the grass of a park."


def write(path: Path, captions: list[str], *, splits: list[str | None] | None = None, side: int = 64) -> str:
    columns = {
        "image_id": [str(number) for number in range(len(captions))],
        "image": pa.array([make_image(number % 5, width=side, height=side) for number in range(len(captions))]),
        "captions": [[caption] for caption in captions],
    }
    lance.write_dataset(pa.table({**columns, **({"split": splits} if splits else {})}), str(path))
    return str(path)


def propose(uri: str, *, pretrained: bool = False) -> Config:
    return parse_config(propose_config(uri, pretrained=pretrained), source="test")


def test_few_rows_get_small_batches_and_many_epochs(tmp_path: Path) -> None:
    few, many = (propose(write(tmp_path / f"{n}.lance", [ENGLISH] * n)) for n in (40, 400))
    assert few.train.batch_size < many.train.batch_size <= 400 / 8
    assert few.train.batch_size * 2 <= 40
    tiny = propose(write(tmp_path / "tiny.lance", [ENGLISH] * 3))
    assert tiny.train.batch_size <= 3


@pytest.mark.parametrize(
    ("splits", "train", "validation"),
    [
        (None, None, None),
        (["train", "train", "dev", "test"], "split = 'train'", "split = 'dev'"),
        (["train", "train", "test", "test"], "split = 'train'", "split = 'test'"),
        ([None, None, None, "val"], "split is null or split != 'val'", "split = 'val'"),
        (["train", "train", None, None], "split = 'train'", None),
    ],
)
def test_filters_follow_the_splits(
    tmp_path: Path, splits: list[str | None] | None, train: str | None, validation: str | None
) -> None:
    config = propose(write(tmp_path / "x.lance", [ENGLISH] * 4, splits=splits))
    assert (config.data.train, config.data.validation) == (train, validation)


@pytest.mark.parametrize(
    ("caption", "encoder", "flip"),
    [
        (ENGLISH, ENGLISH_ENCODER, True),
        ("The dog is left of a ball.", ENGLISH_ENCODER, False),
        ("赤い四角形が左にあります。", OTHER_ENCODER, True),
        ("Một con chó chạy trên bãi cỏ.", OTHER_ENCODER, True),
    ],
)
def test_the_captions_decide_the_text_encoder(tmp_path: Path, caption: str, encoder: str, flip: bool) -> None:
    config = propose(write(tmp_path / "x.lance", [caption] * 8), pretrained=True)
    assert config.model.text.name == encoder
    assert config.data.augment.flip == flip


def test_longer_captions_get_more_tokens(tmp_path: Path) -> None:
    short, long = (propose(write(tmp_path / f"{n}.lance", [ENGLISH * n] * 8)) for n in (1, 4))
    assert short.data.max_tokens == 16
    assert long.data.max_tokens == 56


def test_small_images_are_not_enlarged(tmp_path: Path) -> None:
    assert propose(write(tmp_path / "x.lance", [ENGLISH] * 8, side=50)).data.image_size == 48


def test_a_dataset_without_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no captions"):
        propose_config(write(tmp_path / "x.lance", ["", ""]))


def test_what_it_prints_trains(
    shapes_dir: Path, tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert run_cli("ingest", shapes_dir, "my shapes.lance", cwd=tmp_path).returncode == 0
    done = run_cli("init", "my shapes.lance", cwd=tmp_path)
    assert done.stderr.startswith("next: clipkit train --config run.yaml")
    (tmp_path / "run.yaml").write_text(done.stdout)
    done = run_cli("train", "--config", "run.yaml", "--set", "train.duration=2st", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 2
    assert (tmp_path / "runs" / "my-shapes").is_dir()
