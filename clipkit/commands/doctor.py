"""`clipkit doctor`: what is installed, and the devices of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clipkit import console
from clipkit.errors import DISTRIBUTION

if TYPE_CHECKING:
    from clipkit.workflows.doctor import Device, Diagnosis


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False) -> None:
    """Show what is installed, and the devices of this machine."""
    from dataclasses import asdict

    from clipkit.workflows.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        console.print_json(asdict(diagnosis))
    else:
        console.print_result("\n".join(_lines(diagnosis)))


def _lines(diagnosis: Diagnosis) -> list[str]:
    lines = [f"clipkit {diagnosis.clipkit}, Python {diagnosis.python}, {diagnosis.platform}", ""]
    lines += [f"usable cores: {diagnosis.usable_cores}", *map(_device_line, diagnosis.devices), ""]
    lines += [f"{name} {version or 'MISSING'}" for name, version in diagnosis.packages.items()]
    lines.append("")
    for name, extra in diagnosis.extras.items():
        hint = f"`pip install '{DISTRIBUTION}[{name}]'` adds {', '.join(extra.missing)}"
        lines.append(f"extra {name}, for {extra.purpose}: {hint if extra.missing else 'installed'}")
    problems = [f"problem: {problem}" for problem in diagnosis.problems]
    return [*lines, "", *(problems or ["no problems: every required package is installed"])]


def _device_line(device: Device) -> str:
    memory = f", {device.memory_gb} GB" if device.memory_gb else ""
    return f"{device.name}: {device.description}{memory}, bf16 {device.bf16 or 'slow or not supported'}"
