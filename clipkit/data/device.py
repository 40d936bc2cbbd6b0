"""Batches to the device; the next one is copied while the step runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from clipkit.types import Batch


def cuda_is_initialized() -> bool:
    """Whether this process uses CUDA; asking does not initialize it, which would take a second and memory."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; the copy from pinned memory does not block the host."""
    return batch if device.type == "cpu" else batch.map(lambda tensor: move(tensor, device))


def prefetch_to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Keep one batch ahead on the device, copied on a stream of its own while the step before it computes."""
    if device.type != "cuda":
        yield from (to_device(batch, device) for batch in batches)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = to_device(batch, device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in copied.tensors.values():
            tensor.record_stream(torch.cuda.current_stream(device))
        ahead = copied
    if ahead is not None:
        yield ahead


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; a copy to a GPU blocks neither the host nor the steps queued there."""
    if device.type != "cuda":
        return tensor.to(device)
    if not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
