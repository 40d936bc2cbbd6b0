"""The map-style Dataset in torch's own DataLoader, as somebody uses it who has a training loop."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_datasets import jpeg
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from clipkit.config import DataConfig
from clipkit.data import ImageTextDataset
from clipkit.data.tokenizer import train_tokenizer
from clipkit.errors import DataError

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_snippet_of_the_docs_runs(plain_dataset: str, tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.+?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "snippet.py").write_text(snippet, encoding="utf-8")
    shutil.copytree(plain_dataset, tmp_path / "flickr8k.lance")
    done = subprocess.run(
        [sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "0", "1", "1"]
    assert "torch.Size([64, 224, 224, 3])" in lines[0]


def test_samples_and_batches(plain_dataset: str) -> None:
    tokenizer = train_tokenizer(
        ["picture seen by a b c d e"], vocab_size=100, lowercase=True, max_tokens=8, padding="max"
    )
    dataset = ImageTextDataset(DataConfig(dataset=plain_dataset, image_size=32), tokenizer=tokenizer)
    assert len(dataset) == 100
    assert dataset[3]["image_id"] == "image-3"
    assert dataset[-1]["row"] == 99
    batches = list(DataLoader(dataset, batch_sampler=BatchSampler(RandomSampler(dataset), 20, drop_last=True)))
    assert [batch["image"].shape for batch in batches] == [(20, 32, 32, 3)] * 5
    assert sorted(torch.cat([batch["row"] for batch in batches]).tolist()) == list(range(100))
    assert batches[0]["input_ids"].shape == (20, 8)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[7]["image"], dataset[7]["image"])


def test_a_bad_row_has_the_same_stand_in_whatever_it_is_read_with(write_dataset: Any) -> None:
    captions = [[f"picture {i}"] if i % 7 else [] for i in range(20)]
    path = write_dataset([jpeg(20, 20, seed=i) if i % 5 else b"no image" for i in range(20)], captions)
    dataset = ImageTextDataset(DataConfig(dataset=path, image_size=32))
    together = dataset.__getitems__(range(20))
    assert all(sample["row"] % 5 and sample["row"] % 7 for sample in together)
    assert all(sample["caption"] == f"picture {sample['row']}" for sample in together)
    assert [dataset[i]["row"] for i in range(20)] == [sample["row"] for sample in together]


@pytest.mark.parametrize("context", ["forkserver", "spawn"])
def test_workers_that_stay_heed_the_epoch(plain_dataset: str, context: str) -> None:
    config = DataConfig.model_validate(
        {"dataset": plain_dataset, "image_size": 32, "augment": {"kind": "random_resized_crop"}}
    )
    dataset = ImageTextDataset(config)
    loader = DataLoader(dataset, batch_size=50, num_workers=1, multiprocessing_context=context, persistent_workers=True)

    def images_of(epoch: int) -> torch.Tensor:
        dataset.set_epoch(epoch)
        return torch.cat([batch["image"] for batch in loader])

    first, second, again = images_of(0), images_of(1), images_of(0)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    dataset.set_epoch(1)
    assert torch.equal(second[7], dataset[7]["image"])


@pytest.mark.filterwarnings("ignore:lance is not fork-safe")
def test_a_forked_worker_refuses(plain_dataset: str) -> None:
    dataset = ImageTextDataset(DataConfig(dataset=plain_dataset, image_size=32))
    assert dataset[0]["row"] == 0
    context = multiprocessing.get_context("fork")
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=context)
    with pytest.raises(DataError, match=r"forked process(.|\n)*multiprocessing_context='forkserver'"):
        next(iter(loader))
