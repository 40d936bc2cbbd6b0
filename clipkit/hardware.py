"""What this process may use: cores (by affinity and container quota) and a device."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.errors import ConfigError

if TYPE_CHECKING:
    import torch

CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def usable_cores() -> int:
    """Cores that this process may run on; a container's quota is rounded up."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _container_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def let_threads_sleep() -> None:
    """Make waiting compute threads sleep after a moment of spinning, because the loader's threads need the cores too.

    Call it before torch is imported.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _container_quota() -> float | None:
    """Cores that the Linux control group allows; None if it sets no limit."""
    try:
        if CGROUP_V2.exists():
            quota, period = CGROUP_V2.read_text().split()
        else:
            quota = (CGROUP_V1 / "cpu.cfs_quota_us").read_text().strip()
            period = (CGROUP_V1 / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is a GPU if there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"`{name}` is not a device", "use auto, cpu, cuda, cuda:1 or mps") from error
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise ConfigError(
            f"the device `{name}` is not available", "`clipkit doctor` lists the devices; `auto` chooses one"
        )
    return device
