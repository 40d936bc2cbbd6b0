"""Number formats of the encoders, and the loss scaling that fp16 needs."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from clipkit.config import TrainConfig

log = logging.getLogger(__name__)
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Precision:
    name: str
    device_type: str
    scaler: torch.amp.GradScaler | None

    def autocast(self) -> AbstractContextManager[object]:
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=FORMATS[self.name])

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)


def choose_precision(config: TrainConfig, device: torch.device) -> Precision:
    """The config's format; for `auto`, the fastest that the device supports in hardware."""
    name: str = config.precision
    if name == "auto":
        name = _fastest(device)
    elif name == "fp16" and device.type == "cpu" and not _cpu_has("amx_fp16", "fp16_arith"):
        name = _fastest(device)
        log.warning("this CPU has no fp16 arithmetic: using %s", name)
    elif name == "bf16" and _fastest(device) == "fp32":
        log.warning(
            "`train.precision: bf16`: this %s has no bf16 arithmetic, which makes it several times slower than fp32; "
            "`auto` chooses what is fast",
            device.type,
        )
    scaled = name == "fp16" and config.grad_scaler
    return Precision(name, device.type, torch.amp.GradScaler(device.type) if scaled else None)


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and _cpu_has("avx512_bf16", "amx_bf16", "arm_bf16"):
        return "bf16"
    return "fp32"


def _cpu_has(*features: str) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature, False) for feature in features)
