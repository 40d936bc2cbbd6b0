"""What is installed, the devices of this machine, and what is missing."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from clipkit import __version__
from clipkit.errors import DISTRIBUTION
from clipkit.hardware import usable_cores

# What each extra of pyproject.toml is for.
PURPOSES = {
    "fast": "faster JPEG decoding",
    "heic": "HEIC images",
    "lora": "training with `model.lora`",
    "tensorboard": "tracking runs with TensorBoard",
    "wandb": "tracking runs with Weights & Biases",
    "mlflow": "tracking runs with MLflow",
    "test": "`make test`",
    "check": "`make check`",
}
# Flags of /proc/cpuinfo, the fastest first.
BF16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "ARM BF16"}
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)[^;]*(?:;.*extra == ['\"]([A-Za-z0-9_-]+)['\"])?")


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    description: str
    memory_gb: float | None
    bf16: str | None  # the unit that computes bfloat16; None where there is none


@dataclass(frozen=True, slots=True)
class Extra:
    purpose: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    clipkit: str
    python: str
    platform: str
    usable_cores: int
    devices: tuple[Device, ...]
    packages: Mapping[str, str | None]  # required packages and their versions
    extras: Mapping[str, Extra]
    problems: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Examine this installation and this machine; never raises for what is missing."""
    required, optional = _requirements()
    packages = {name: _version(name) for name in required}
    problems = [f"`{name}` is required and not installed" for name, found in packages.items() if not found]
    if not packages:
        problems.append(f"`{DISTRIBUTION}` is not installed: run `pip install .` in its checkout")
    accelerators: tuple[Device, ...] = ()
    try:
        accelerators = _accelerators()
    except (ImportError, OSError, RuntimeError) as error:
        problems.append(f"torch does not work: {error}")
    return Diagnosis(
        clipkit=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        usable_cores=usable_cores(),
        devices=(_cpu(), *accelerators),
        packages=packages,
        extras={
            extra: Extra(purpose, tuple(name for name in optional.get(extra, ()) if _version(name) is None))
            for extra, purpose in PURPOSES.items()
        },
        problems=tuple(problems),
    )


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that clipkit requires, and those that each extra adds; none where it is not installed."""
    required: list[str] = []
    optional: dict[str, list[str]] = {}
    for line in metadata.requires(DISTRIBUTION) or [] if _version(DISTRIBUTION) else []:
        if match := REQUIREMENT.match(line):
            name, extra = match.groups()
            (optional.setdefault(extra, []) if extra else required).append(name)
    return required, optional


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> Device:
    info = _cpu_info()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    bf16 = next((name for flag, name in BF16_FLAGS.items() if flag in flags), None)
    description = info.get("model name") or platform.processor() or platform.machine()
    return Device("cpu", description, _memory_gb(), bf16)


def _cpu_info() -> dict[str, str]:
    """The first entry of /proc/cpuinfo; empty on systems without it."""
    try:
        entry = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in entry.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_gb() -> float | None:
    if sys.platform != "linux":
        return None
    match = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return round(int(match[1]) * 1024 / 1e9, 1) if match else None


def _accelerators() -> tuple[Device, ...]:
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "tensor cores" if properties.major >= 8 else None
        devices.append(Device(f"cuda:{index}", properties.name, round(properties.total_memory / 1e9, 1), bf16))
    if torch.backends.mps.is_available():
        devices.append(Device("mps", "Apple GPU", None, None))
    return tuple(devices)
