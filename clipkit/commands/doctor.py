"""`clipkit doctor`: what is installed, and what this machine can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clipkit import console

if TYPE_CHECKING:
    from clipkit.workflows.doctor import Device, Diagnosis


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False) -> None:
    """Show what is installed, and what there is to compute on."""
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
        state = f"lacks {', '.join(extra.missing)}: pip install 'clipkit-train[{name}]'" if extra.missing else "installed"
        lines.append(f"extra {name}, for {extra.purpose}: {state}")
    lines += ["", *(f"problem: {problem}" for problem in diagnosis.problems)]
    if not diagnosis.problems:
        lines.append("nothing is missing that a command cannot do without")
    return lines


def _device_line(device: Device) -> str:
    memory = f", {device.memory_gb} GB" if device.memory_gb else ""
    return f"{device.name}: {device.description}{memory}, bf16 {device.bf16 or 'slow or not at all'}"
