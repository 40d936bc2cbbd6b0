"""The Lance tutorial's Dataset: a row at a time, two reads a row, a full decode."""

from __future__ import annotations

import shutil

import common
import lance
import torch
from torch.utils.data import DataLoader, Dataset


class TutorialDataset(Dataset[tuple[torch.Tensor, str]]):
    def __init__(self, path: str, size_px: int) -> None:
        self.path, self.size_px = path, size_px
        self.num_rows = lance.dataset(path).count_rows()
        self.lance: lance.LanceDataset | None = None

    def __len__(self) -> int:
        return int(self.num_rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        if self.lance is None:  # opened in the worker: a dataset does not survive a fork
            self.lance = lance.dataset(self.path)
        image = self.lance.take([index], columns=["image"]).to_pylist()[0]["image"]
        captions = self.lance.take([index], columns=["captions"]).to_pylist()[0]["captions"]
        return common.decode(image, self.size_px), max(captions, key=len)


def prepare(source: str, folder: str) -> None:
    shutil.copytree(source, folder)


def run(folder: str, size_px: int, seconds: float) -> None:
    loader = DataLoader(
        TutorialDataset(folder, size_px),
        batch_size=common.BATCH_SIZE,
        shuffle=True,
        num_workers=common.NUM_WORKERS,
        multiprocessing_context="forkserver",
        persistent_workers=True,
        drop_last=True,
    )
    common.measure(lambda: (images for images, _ in loader), seconds)


if __name__ == "__main__":
    common.main(prepare, run)
