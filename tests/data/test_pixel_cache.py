"""The pixel and token caches, and the commands that measure and make."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
import torch

from clipkit.config import DataConfig
from clipkit.data.loader import build_loader
from clipkit.data.pixel_cache import fill_missing
from clipkit.data.token_column import token_column
from clipkit.data.tokenizer import load_tokenizer
from clipkit.errors import DataError
from clipkit.store import Dataset
from clipkit.types import Batch, ImageSpec, Tokenizer
from clipkit.workflows.bench import ceiling_work


def first_batches(path: str, tokenizer: Tokenizer | None = None, **data: Any) -> list[Batch]:
    config = DataConfig.model_validate({"dataset": path, "image_size": 32, **data})
    loader = build_loader(config, spec=ImageSpec(32), tokenizer=tokenizer, batch_size=10, seed=1)
    with closing(loader), closing(loader.iterate(0, 4)) as batches:
        return list(batches)


def test_training_from_cached_pixels(write_dataset: Any, jpeg: Callable[..., bytes], run_cli: Any) -> None:
    path = write_dataset([jpeg(60, 40, seed=i) for i in range(40)])
    with pytest.raises(DataError, match="no pixel cache of 48 px"):
        first_batches(path, cache=48)
    dry = run_cli("cache", path, "--size", 48, "--dry-run")
    assert dry.returncode == 0
    assert "276.5 KB on disk" in dry.stderr
    assert "pixels_48" not in lance.dataset(path).schema.names
    done = run_cli("cache", path, "--size", 48, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rows"], result["bytes"], result["written"]) == (40, 40 * 48 * 48 * 3, True)
    assert json.loads(run_cli("cache", path, "--size", 48, "--json").stdout)["written"] is False
    for plain, cached in zip(first_batches(path), first_batches(path, cache=48), strict=True):
        assert plain.image_ids == cached.image_ids
        assert plain.images is not None
        assert cached.images is not None
        assert (plain.images.float() - cached.images.float()).abs().mean() < 4
    augmented = {"kind": "random_resized_crop", "flip": True}
    assert first_batches(path, cache=48, augment=augmented)[0].images is not None


def test_an_image_that_cannot_be_decoded_stays_out_of_the_cache(
    write_dataset: Any, jpeg: Callable[..., bytes], run_cli: Any
) -> None:
    path = write_dataset([jpeg(60, 40, seed=i) for i in range(11)] + [b"no image"])
    done = run_cli("cache", path, "--size", 32, "--json")
    assert done.returncode == 0
    assert "`image-11`" in done.stderr
    assert json.loads(done.stdout)["undecodable"] == 1
    batches = first_batches(path, cache=32)
    assert all("image-11" not in batch.image_ids for batch in batches)
    assert sum(batch.num_replaced for batch in batches) > 0


def test_a_dataset_without_rows_is_refused(write_dataset: Any, jpeg: Callable[..., bytes], run_cli: Any) -> None:
    path = write_dataset([jpeg(20, 20)])
    lance.dataset(path).delete("true")
    done = run_cli("cache", path)
    assert done.returncode == 1
    assert "has no rows" in done.stderr


def test_cached_tokens_are_the_same_tokens(write_dataset: Any, jpeg: Callable[..., bytes], minilm_dir: Path) -> None:
    captions = [[] if i % 10 == 9 else [f"picture {i}", "", f"another of {i}"] for i in range(40)]
    path = write_dataset([jpeg(20, 20)] * 40, captions)
    tokenizer = load_tokenizer(minilm_dir, max_tokens=12, padding="longest")
    config = DataConfig(dataset=path, token_cache=True)
    (filled,) = fill_missing([Dataset(path)], config, tokenizer)
    assert token_column(tokenizer) in filled.schema.names
    assert fill_missing([filled], config, tokenizer)[0].version == filled.version
    for plain, cached in zip(
        first_batches(path, tokenizer, shuffle=False),
        first_batches(path, tokenizer, shuffle=False, token_cache=True),
        strict=True,
    ):
        assert plain.tokens is not None
        assert cached.tokens is not None
        assert torch.equal(plain.tokens.input_ids, cached.tokens.input_ids)
        assert torch.equal(plain.tokens.attention_mask, cached.tokens.attention_mask)


def test_bench_loader_reports(plain_dataset: str, run_cli: Any, minilm_dir: Path) -> None:
    arguments = ["--dataset", plain_dataset, "--image-size", 32, "--batch-size", 16, "--seconds", 0.5]
    done = run_cli("bench", "loader", *arguments, "--tokenizer", minilm_dir, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    keys = {"images_per_s", "ceiling_images_per_s", "ratio", "first_batch_s", "peak_rss_mb", "stages_ms"}
    assert keys <= report.keys()
    assert {"read", "decode", "transform", "tokenize", "wait"} <= report["stages_ms"].keys()
    assert report["ratio"] == pytest.approx(report["images_per_s"] / report["ceiling_images_per_s"], abs=0.01)
    assert np.isfinite(list(report["stages_ms"].values())).all()
    text = run_cli("bench", "loader", *arguments)
    assert "images a second in batches of 16" in text.stdout


@pytest.mark.parametrize("num_images", [1, 30])
def test_bench_of_what_is_no_jpeg_or_hardly_anything(
    write_dataset: Any, png: Callable[..., bytes], run_cli: Any, num_images: int
) -> None:
    path = write_dataset([b"no image"] * (num_images // 20) + [png(60, 40, seed=i) for i in range(num_images)])
    done = run_cli("bench", "loader", "--dataset", path, "--batch-size", 1, "--seconds", 0.2, "--json", timeout_s=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ceiling_images_per_s"] > 0


def test_bench_takes_the_ceiling_of_all_sources(write_dataset: Any, jpeg: Callable[..., bytes]) -> None:
    small, large = (write_dataset([jpeg(px, px, seed=i) for i in range(20)]) for px in (16, 24))
    sources = [{"dataset": small, "weight": 3}, {"dataset": large}]
    config = DataConfig.model_validate({"sources": sources, "image_size": 16})
    with closing(build_loader(config, spec=ImageSpec(16), tokenizer=None, batch_size=8, seed=0)) as loader:
        work = ceiling_work(loader, config)
    assert sorted(call().shape[0] for call in work) == [16] * 30 + [24] * 10


def test_bench_needs_one_source(run_cli: Any) -> None:
    assert run_cli("bench", "loader").returncode == 2
    assert run_cli("bench", "step").returncode == 2


def test_bench_step_reports(shapes_dir: Path, run_cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "shapes.lance"
    assert run_cli("ingest", shapes_dir, path).returncode == 0
    config = tmp_path / "small.yaml"
    config.write_text(
        f"""
data: {{dataset: {path}, train: "split = 'train'", image_size: 32}}
model:
  image: {{kind: timm, name: resnet10t}}
  text: {{kind: transformers, architecture: {{hidden_size: 32, layers: 1, heads: 2}}}}
  embedding_dim: 16
train: {{batch_size: 16, duration: 2st}}
""",
        encoding="utf-8",
    )
    done = run_cli("bench", "step", "--config", config, "--steps", 1, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"samples_per_s", "synthetic_samples_per_s", "ratio"} <= report.keys()
    assert report["samples_per_s"] > 0
    loader = run_cli("bench", "loader", "--config", config, "--seconds", 0.5, "--json")
    assert loader.returncode == 0, loader.stderr
    assert json.loads(loader.stdout)["batch_size"] == 16
