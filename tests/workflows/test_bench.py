"""`clipkit bench`: what it reports, of whatever there is to measure."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_datasets import encode, jpeg, write_dataset

from clipkit.config import DataConfig
from clipkit.data.inputs import Pixels
from clipkit.data.loader import build_loader
from clipkit.types import ImageSpec
from clipkit.workflows.bench import ceiling_work


def test_loader(tmp_path: Path, run_cli: Any, minilm_dir: Path) -> None:
    path = write_dataset(tmp_path / "a.lance", [jpeg(60, 40, seed=i) for i in range(100)])
    arguments = ["--dataset", path, "--image-size", 32, "--batch-size", 16, "--seconds", 0.5]
    done = run_cli("bench", "loader", *arguments, "--tokenizer", minilm_dir, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    keys = {"images_per_s", "ceiling_images_per_s", "ratio", "first_batch_s", "peak_rss_mb", "stages_ms"}
    assert keys <= report.keys()
    assert {"read", "decode", "transform", "tokenize", "wait"} <= report["stages_ms"].keys()
    assert report["ratio"] == pytest.approx(report["images_per_s"] / report["ceiling_images_per_s"], abs=0.01)
    assert np.isfinite(list(report["stages_ms"].values())).all()
    text = run_cli("bench", "loader", *arguments)
    assert "images per second in batches of 16" in text.stdout


@pytest.mark.parametrize("num_images", [1, 30])
def test_loader_of_what_is_not_a_jpeg_and_of_hardly_anything(tmp_path: Path, run_cli: Any, num_images: int) -> None:
    images = [b"no image"] * (num_images // 20) + [encode(60, 40, "PNG", seed=i) for i in range(num_images)]
    path = write_dataset(tmp_path / "a.lance", images)
    done = run_cli("bench", "loader", "--dataset", path, "--batch-size", 1, "--seconds", 0.2, "--json", timeout_s=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ceiling_images_per_s"] > 0


def test_the_ceiling_is_of_all_sources(tmp_path: Path) -> None:
    small, large = (
        write_dataset(tmp_path / f"{px}.lance", [jpeg(px, px, seed=i) for i in range(20)]) for px in (16, 24)
    )
    sources = [{"dataset": small, "weight": 3}, {"dataset": large}]
    config = DataConfig.model_validate({"sources": sources, "image_size": 16})
    pixels = Pixels(config, ImageSpec(16), seed=0)
    with closing(build_loader(config, [pixels], batch_size=8, seed=0)) as loader:
        work = ceiling_work(loader, pixels, config)
    assert sorted(call().shape[0] for call in work) == [16] * 30 + [24] * 10


def test_bench_needs_one_source(run_cli: Any) -> None:
    assert run_cli("bench", "loader").returncode == 2
    assert run_cli("bench", "step").returncode == 2


def test_step(config_file: Path, run_cli: Any) -> None:
    done = run_cli("bench", "step", "--config", config_file, "--steps", 1, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"samples_per_s", "synthetic_samples_per_s", "ratio"} <= report.keys()
    assert report["samples_per_s"] > 0
    loader = run_cli("bench", "loader", "--config", config_file, "--seconds", 0.5, "--json")
    assert loader.returncode == 0, loader.stderr
    assert json.loads(loader.stdout)["batch_size"] == 32
