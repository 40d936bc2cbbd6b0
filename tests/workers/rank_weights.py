"""One rank of `test_weights.test_ranks_count_by_their_targets`: FOLDER RANK WORLD."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from clipkit.train.parallel import Replicas, Shards

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))
from next_token import LENGTHS, gradient_of

folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
found = {}
for strategy in (Replicas, Shards):
    for lengths in (LENGTHS, (1, 1, 1, 1, *LENGTHS[4:])):  # of the second, rank 0 has no target
        for options in ({}, {"accumulate": 2}, {"accumulate": 4}, {"chunk_size": 3}):
            name = f"{strategy.__name__} {lengths} {options}"
            found[name] = lengths, gradient_of(lengths, strategy=strategy(rank=rank, world=world), **options)
torch.save(found, folder / f"rank{rank}.pt")
dist.destroy_process_group()
