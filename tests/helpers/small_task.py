"""A small untrained task and a gallery for it, the same in every process."""

from functools import cache
from pathlib import Path

import torch

from clipkit.config import Config
from clipkit.data.tokenizer import FastTokenizer, train_tokenizer
from clipkit.evaluators.gallery import Gallery
from clipkit.store import Dataset
from clipkit.tasks import build_task
from clipkit.tasks.contrastive import ContrastiveTask

CONFIG = Config.model_validate(
    {
        "data": {"dataset": "shapes.lance", "image_size": 32, "padding": "max"},
        "model": {
            "image": {"kind": "timm", "name": "resnet10t"},
            "text": {
                "kind": "transformers",
                "architecture": {"hidden_size": 32, "layers": 1, "heads": 2, "initializer_range": 0.5},
            },
            "embedding_dim": 32,
        },
    }
)


@cache
def tokenizer() -> FastTokenizer:
    captions = ["a small red circle is left of a large blue star", "the green cross is above a yellow ring"]
    return train_tokenizer(captions, vocab_size=100, lowercase=True, max_tokens=32, padding="max")


def make_task() -> ContrastiveTask:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return build_task(CONFIG, tokenizer())


def make_gallery(uri: Path, task: ContrastiveTask) -> Gallery:
    dataset = Dataset(uri)
    rows = dataset.select("split = 'test'")[:-1]  # 39 images: no number of ranks divides them
    return Gallery(dataset, rows, spec=task.model.image_spec, tokenizer=tokenizer(), config=CONFIG.data)
