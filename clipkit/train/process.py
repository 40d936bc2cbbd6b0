"""What a training process is set up with: its ranks, device, threads and kernels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from clipkit import distributed
from clipkit.config import TrainConfig
from clipkit.errors import CheckpointError, ConfigError
from clipkit.hardware import choose_device, usable_cores

log = logging.getLogger(__name__)


@contextmanager
def process_group(config: TrainConfig) -> Iterator[torch.device]:
    """This rank's device, within the process group that is there or that torchrun's environment describes, if any."""
    device = choose_device(config.device)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and device.type == "cuda":
        device = _gpu_of_this_rank(config)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if not several:
        yield device
        return
    own = not dist.is_initialized()
    on_gpus = device.type == "cuda"
    if own:
        dist.init_process_group(
            "nccl" if on_gpus else "gloo",
            timeout=timedelta(seconds=config.timeout_s),
            device_id=device if on_gpus else None,
        )
    try:
        _check_shares(config)
        yield device
    except BaseException:
        own = own and not on_gpus  # NCCL would wait for collectives that others never join; the process's end does not
        raise
    finally:
        if own:
            dist.destroy_process_group()


def _gpu_of_this_rank(config: TrainConfig) -> torch.device:
    num_ranks, num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if num_ranks <= num_gpus:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if config.device == "auto":
        log.warning("%d processes see %d GPUs between them: training on the CPU", num_ranks, num_gpus)
        return torch.device("cpu")
    raise ConfigError(
        f"{num_ranks} processes on this machine, and {num_gpus} GPUs", "start one a GPU, or set `train.device: cpu`"
    )


def _check_shares(config: TrainConfig) -> None:
    pieces = distributed.world() * config.accumulate
    if config.batch_size % pieces:
        raise ConfigError(
            f"`train.batch_size` {config.batch_size} cannot be shared by {distributed.world()} processes"
            + (f" in {config.accumulate} pieces" if config.accumulate > 1 else ""),
            f"take a multiple of {pieces}",
        )


def check_same_start(step: int) -> None:
    """Refuse ranks that would go on from different checkpoints, as where a node sees a run folder of its own."""
    if distributed.world() == 1:
        return
    steps: list[int] = [0] * distributed.world()
    dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        found = ", ".join(f"rank {rank} at {found}" for rank, found in enumerate(steps))
        raise CheckpointError(
            f"the processes would begin at different steps: {found}",
            "all nodes must see one run folder: put it on a file system that they share",
        )


def check_last_batch(config: TrainConfig, rest: int) -> None:
    """Refuse an epoch's last batch, of `rest` samples, that leaves a rank with nothing or shards out of step."""
    world = distributed.world()
    too_few = 0 < rest < world * config.accumulate
    uneven = config.strategy == "fsdp" and rest % world > 0  # each rank must encode as many chunks
    if world > 1 and (too_few or uneven):
        raise ConfigError(
            f"an epoch's last batch of {rest} samples cannot be shared by {world} processes"
            + (f" in {config.accumulate} pieces" if config.accumulate > 1 else ""),
            "leave it out with `data.drop_last: true`",
        )


def set_threads(config: TrainConfig) -> int:
    """Compute threads: the config's, else `OMP_NUM_THREADS`, else the usable cores shared by this machine's ranks.

    torchrun sets `OMP_NUM_THREADS` to 1 of itself: that is nobody's wish.
    """
    asked = "" if "TORCHELASTIC_RUN_ID" in os.environ else os.environ.get("OMP_NUM_THREADS", "")
    own_share = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    threads = config.threads or (int(asked) if asked.isdigit() and int(asked) else own_share)
    torch.set_num_threads(threads)
    return threads


def set_kernels(*, deterministic: bool) -> None:
    """Deterministic kernels where they exist; elsewhere torch warns."""
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs a pass over memory
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
