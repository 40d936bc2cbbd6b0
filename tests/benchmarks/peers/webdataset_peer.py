"""webdataset: tar shards read in a stream, shuffled in a buffer."""

from __future__ import annotations

from pathlib import Path

import common
import lance
import torch
import webdataset
from torch.utils.data import DataLoader


def prepare(source: str, folder: str) -> None:
    Path(folder).mkdir(parents=True)
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=500) as shards:
        for number, row in enumerate(_rows(source)):
            shards.write({"__key__": f"{number:08d}", "jpg": row["image"], "txt": max(row["captions"], key=len)})


def _rows(source: str):  # type: ignore[no-untyped-def]
    for batch in lance.dataset(source).to_batches(columns=["image", "captions"], batch_size=256):
        yield from batch.to_pylist()


class Decode:
    """A callable that workers can be sent."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px

    def __call__(self, sample: tuple[bytes, bytes]) -> tuple[torch.Tensor, str]:
        return common.decode(sample[0], self.size_px), sample[1].decode()


def run(folder: str, size_px: int, seconds: float) -> None:
    shards = sorted(map(str, Path(folder).glob("*.tar")))
    samples = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).to_tuple("jpg", "txt")
    batches = samples.map(Decode(size_px)).batched(common.BATCH_SIZE, partial=False)
    loader = DataLoader(batches, batch_size=None, num_workers=common.NUM_WORKERS, persistent_workers=True)
    common.measure(lambda: (images for images, _ in loader), seconds)


if __name__ == "__main__":
    common.main(prepare, run)
