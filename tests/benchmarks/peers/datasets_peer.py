"""Hugging Face datasets: Arrow files mapped into memory, read at random."""

from __future__ import annotations

from typing import Any

import common
import datasets
import lance
import torch
from torch.utils.data import DataLoader


def prepare(source: str, folder: str) -> None:
    table = lance.dataset(source).to_table(columns=["image", "captions"])
    datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(folder)


class Decode:
    """A transform that workers can be sent."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            "image": [common.decode(data, self.size_px) for data in batch["image"]],
            "caption": [max(captions, key=len) for captions in batch["captions"]],
        }


def run(folder: str, size_px: int, seconds: float) -> None:
    dataset = datasets.load_from_disk(folder).with_transform(Decode(size_px))
    loader = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=common.BATCH_SIZE,
        shuffle=True,
        num_workers=common.NUM_WORKERS,
        persistent_workers=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(0),
    )
    common.measure(lambda: (batch["image"] for batch in loader), seconds)


if __name__ == "__main__":
    common.main(prepare, run)
