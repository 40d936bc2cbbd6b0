"""One device, a replica on each of several (DDP), or parameters and optimizer in shards (FSDP2)."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from clipkit.errors import TrainingError


class Strategy:
    """A single device. The subclasses differ in how they average the gradients of the ranks."""

    def __init__(self, *, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world

    def prepare(self, model: nn.Module, device: torch.device, *, shards: Sequence[str]) -> None:
        """Move the model to the device, and shard it where the strategy does; call it before making the optimizer."""
        model.to(device)
        if device.type != "mps":
            model.to(memory_format=torch.channels_last)

    def wrap(self, piece: nn.Module) -> nn.Module:
        """The module whose backward pass synchronises the ranks."""
        return piece

    def synced(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        """For a backward pass: gradients are averaged over the ranks in the `last` one of a step."""
        return nullcontext()

    def finish_gradients(self) -> None:
        """Average what `synced` does not; call it after the last backward pass of a step."""

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks."""
        return values

    def gathered(self, items: Sequence[str]) -> Sequence[str]:
        """The items of every rank, in the order of ranks."""
        return items

    def whole(self, model: nn.Module) -> AbstractContextManager[object]:
        """For an evaluation: the model needs no other rank for its forward pass."""
        return nullcontext()


class Replicas(Strategy):
    """DDP."""

    def wrap(self, piece: nn.Module) -> nn.Module:
        gc.collect()  # removes the hooks of an earlier wrapper
        return DistributedDataParallel(piece, gradient_as_bucket_view=True)

    def synced(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        assert isinstance(module, DistributedDataParallel)
        return nullcontext() if last else module.no_sync()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        values = values / self.world
        dist.all_reduce(values)
        return values

    def gathered(self, items: Sequence[str]) -> Sequence[str]:
        parts: list[Sequence[str]] = [()] * self.world
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]


class Shards(Replicas):
    """FSDP2: each of the task's shards is gathered when it is used; other parameters are replicated."""

    def __init__(self, *, rank: int, world: int) -> None:
        super().__init__(rank=rank, world=world)
        self._replicated: list[nn.Parameter] = []

    def prepare(self, model: nn.Module, device: torch.device, *, shards: Sequence[str]) -> None:
        model.to(device)
        for param in model.parameters():
            param.data = param.data.contiguous()  # FSDP2 cannot shard channels_last
        mesh = init_device_mesh(device.type, (self.world,))  # FSDP's default is a GPU if there is one
        for name in shards:
            module = model.get_submodule(name)
            if any(True for _ in module.parameters()):
                fully_shard(module, mesh=mesh)
        self._replicated = [param for param in model.parameters() if not isinstance(param, DTensor)]

    def wrap(self, piece: nn.Module) -> nn.Module:
        for module in piece.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # a frozen one stays gathered, which is wrong once it is unfrozen
        return piece

    def synced(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        for child in module.modules():
            if isinstance(child, FSDPModule):
                child.set_requires_gradient_sync(last)
        return nullcontext()

    def finish_gradients(self) -> None:
        for param in self._replicated:
            if param.grad is not None:
                param.grad = self.mean(param.grad)

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """Gather all shards once, because the ranks may have different numbers of batches."""
        shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in shards:
            module.unshard()
        try:
            yield
        finally:
            for module in shards:
                module.reshard()


@torch.no_grad()
def fill(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a value into a tensor, or this rank's shard of it into a sharded one."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def fill_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict, whose names and shapes are known to fit, into a model that may be sharded."""
    for name, target in model.state_dict().items():
        fill(target, state[name])


@contextmanager
def lost_ranks_named(strategy: Strategy, step: int) -> Iterator[None]:
    """Turn the errors of a collective whose other ranks have died into one that says so."""
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "nccl", "connection", "timed out", "timeout", "socket")
        is_about_a_rank = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
        if strategy.world == 1 or not is_about_a_rank:
            raise
        reason = str(error).splitlines()[0][:200]
        raise TrainingError(
            f"rank {strategy.rank}: another rank died or stopped answering at step {step} ({reason})",
            "read the log of the other ranks, then resume with `--resume`; the number of ranks may differ",
        ) from error
