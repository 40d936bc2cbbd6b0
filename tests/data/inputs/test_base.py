"""An input of a user's own, in a loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch
from small_datasets import batches_of, jpeg, loader_of

from clipkit.data.inputs import Input
from clipkit.data.samples import DrawnSamples

TAGS = ("red", "green", "blue")


class Tags(Input):
    """A column of lists of tags as `tags`, (B, 3), one where a sample has the tag. A row without tags is unusable."""

    columns = ("tags",)

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        return {"tags": torch.tensor([[tag in tags for tag in TAGS] for tags in self._tags(samples)]).float()}

    def find_unusable(self, samples: DrawnSamples) -> Mapping[int, str]:
        return {place: "it has no tags" for place, tags in enumerate(self._tags(samples)) if not tags}

    def _tags(self, samples: DrawnSamples) -> list[Any]:
        return samples.values("tags")


def test_a_list_column_becomes_a_tensor_and_rows_without_it_are_replaced(write_dataset: Any) -> None:
    tags = [[tag for place, tag in enumerate(TAGS) if i >> place & 1] for i in range(32)]  # one in eight has none
    images = [jpeg(20, 20, seed=i) if i != 5 else b"damaged" for i in range(32)]
    path = write_dataset(images, None, tags=pa.array([*tags[:16], None, *tags[17:]]))
    loader = loader_of(path, Tags(), batch_size=8)
    batches = batches_of(loader, stop=8)
    usable = {i for i in range(32) if i % 8 and i != 5}
    assert {row for batch in batches for row in batch.rows.tolist()} <= usable
    assert loader.stats().num_replaced == sum(batch.num_replaced for batch in batches) == 2 * (32 - len(usable))
    for batch in batches:
        expected = [[row >> place & 1 for place in range(3)] for row in batch.rows.tolist()]
        assert batch["tags"].tolist() == expected
        assert batch["pixels"].shape == (8, 32, 32, 3)
    shares = [batches_of(loader_of(path, Tags(), batch_size=8, rank=rank, world=2), stop=8) for rank in (0, 1)]
    for batch, *parts in zip(batches, *shares, strict=True):
        for name in ("tags", "pixels"):
            assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
