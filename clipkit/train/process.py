"""Sets up a training process: its rank, device, threads and kernels."""

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
    """The device of this rank, with a process group for the duration if torchrun started several processes."""
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
        own = own and not on_gpus  # NCCL would wait for the other ranks; the end of the process does not
        raise
    finally:
        if own:
            dist.destroy_process_group()


def _gpu_of_this_rank(config: TrainConfig) -> torch.device:
    num_ranks, num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if num_ranks <= num_gpus:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if config.device == "auto":
        log.warning("%d processes have only %d GPUs: training on the CPU", num_ranks, num_gpus)
        return torch.device("cpu")
    raise ConfigError(
        f"{num_ranks} processes on this machine have only {num_gpus} GPUs",
        "start one process per GPU, or set `train.device: cpu`",
    )


def _check_shares(config: TrainConfig) -> None:
    pieces = distributed.world() * config.accumulate
    if config.batch_size % pieces:
        raise ConfigError(
            f"`train.batch_size: {config.batch_size}` cannot be shared by {distributed.world()} processes"
            + (f" in {config.accumulate} pieces" if config.accumulate > 1 else ""),
            f"use a multiple of {pieces}",
        )


def check_same_start(step: int) -> None:
    """Refuse ranks that start from different checkpoints, as when each node has a run folder of its own."""
    if distributed.world() == 1:
        return
    steps: list[int] = [0] * distributed.world()
    dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        found = ", ".join(f"rank {rank} at {found}" for rank, found in enumerate(steps))
        raise CheckpointError(
            f"the processes would start at different steps: {found}",
            "put the run folder on a file system that all nodes share",
        )


def check_last_batch(config: TrainConfig, rest: int) -> None:
    """Refuse a last batch of an epoch, of `rest` samples, that leaves a rank without samples or shards out of step."""
    world = distributed.world()
    too_few = 0 < rest < world * config.accumulate
    uneven = config.strategy == "fsdp" and rest % world > 0  # the ranks must encode equally many chunks
    if world > 1 and (too_few or uneven):
        raise ConfigError(
            f"the last batch of an epoch, with {rest} samples, cannot be shared by {world} processes"
            + (f" in {config.accumulate} pieces" if config.accumulate > 1 else ""),
            "skip it with `data.drop_last: true`",
        )


def set_threads(config: TrainConfig) -> int:
    """Set the compute threads: `train.threads`, else `OMP_NUM_THREADS`, else this rank's share of the usable cores.

    Under torchrun `OMP_NUM_THREADS` is ignored, because torchrun itself sets it to 1.
    """
    asked = "" if "TORCHELASTIC_RUN_ID" in os.environ else os.environ.get("OMP_NUM_THREADS", "")
    own_share = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    threads = config.threads or (int(asked) if asked.isdigit() and int(asked) else own_share)
    torch.set_num_threads(threads)
    return threads


def set_kernels(*, deterministic: bool) -> None:
    """Choose deterministic kernels, or the fastest ones; torch warns where no deterministic one exists."""
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a pass over memory
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
