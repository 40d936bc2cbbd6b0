"""A small untrained task on the shapes, and its measurement, the same in every process."""

from pathlib import Path

import torch

from clipkit.config import DataConfig, parse_values
from clipkit.data.training_rows import TrainingRows
from clipkit.evaluators import EvaluatorContext
from clipkit.evaluators.retrieval import Retrieval
from clipkit.store import Dataset
from clipkit.tasks import TaskContext, build_task
from clipkit.tasks.contrastive import ContrastiveTask


def data_config(uri: Path) -> DataConfig:
    return DataConfig(dataset=str(uri), image_size=32, padding="max")


def make_task(uri: Path) -> ContrastiveTask:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    architecture = {"hidden_size": 32, "layers": 1, "heads": 2, "initializer_range": 0.5, "vocab_size": 100}
    config = parse_values(
        {
            "data": data_config(uri).model_dump(),
            "model": {
                "image": {"kind": "timm", "name": "resnet10t"},
                "text": {"kind": "transformers", "architecture": architecture},
                "embedding_dim": 32,
            },
        }
    )
    task = build_task(TaskContext(config, TrainingRows(config.data)))
    assert isinstance(task, ContrastiveTask)
    return task


def make_retrieval(uri: Path, task: ContrastiveTask) -> Retrieval:
    dataset = Dataset(uri)
    rows = dataset.select("split = 'test'")[:-1]  # 39 images: no number of ranks divides them
    return Retrieval(EvaluatorContext(task, dataset, rows, data_config(uri), batch_size=16))
