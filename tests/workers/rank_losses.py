"""One rank of `test_losses.test_ranks_agree_with_one_process`: FOLDER RANK WORLD."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from clipkit.distributed import gather_arrays, shares
from clipkit.losses import tiles
from clipkit.losses.identity import identity
from clipkit.losses.infonce import infonce
from clipkit.losses.ranking import ranking
from clipkit.losses.sigmoid import sigmoid
from clipkit.losses.soft_targets import soft_targets

folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
given = torch.load(folder / "input.pt", weights_only=True)
even = len(set(given["sizes"])) == 1
of = shares(given["sizes"][rank], even=even)
assert of.sizes == tuple(given["sizes"])
whole_image, whole_text, scale, bias = given["tensors"]
image, text = (whole[of.rows].clone().requires_grad_() for whole in (whole_image, whole_text))
scale.requires_grad_()
bias.requires_grad_()

functions = {
    "infonce": lambda: infonce(image, text, scale=scale, shares=of),
    "sigmoid": lambda: sigmoid(image, text, scale=scale, bias=bias, shares=of),
    "soft_targets": lambda: soft_targets(image, text, temperature=1.3, shares=of),
    "ranking": lambda: ranking(image, text, shares=of),
    "identity": lambda: identity(image, text, shares=of),
}
results = {}
for suffix, elements in (("", tiles.TILE_ELEMENTS), (", tiled", 2 * of.total)):
    tiles.TILE_ELEMENTS = elements
    for name, function in functions.items():
        loss = function() * (len(image) / of.total)  # ranks count in proportion to their pairs
        inputs = [image, text, scale, bias]
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        results[name + suffix] = [loss.detach(), *gradients]
assert torch.equal(torch.cat(gather_arrays(image)), whole_image)
torch.save(results, folder / f"rank{rank}.pt")
dist.destroy_process_group()

# A thread of gloo's that lets go of a tensor while Python shuts down aborts the process.
threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
assert not [name for name in threads if "gloo" in name], threads
