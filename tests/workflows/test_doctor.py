"""`clipkit doctor`: what it finds agrees with the machine and with pyproject.toml."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import torch

from clipkit.workflows.doctor import PURPOSES, diagnose

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


def test_every_extra_has_a_purpose_and_is_in_all() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    (everything,) = extras.pop("all")
    assert set(PURPOSES) == set(extras)
    assert set(everything.removeprefix("clipkit-train[").removesuffix("]").split(",")) == set(extras)


def test_this_machine() -> None:
    diagnosis = diagnose()
    assert 1 <= diagnosis.usable_cores <= len(os.sched_getaffinity(0))
    assert diagnosis.devices[0].name == "cpu"
    assert len(diagnosis.devices) - 1 == torch.cuda.device_count() + torch.backends.mps.is_available()
    assert diagnosis.packages["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert diagnosis.problems == ()


def test_the_command(run_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_cli("doctor", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert {"clipkit", "python", "platform", "usable_cores", "devices", "packages", "extras", "problems"} == set(found)
    text = run_cli("doctor").stdout
    assert f"usable cores: {found['usable_cores']}" in text
    assert f"pyarrow {found['packages']['pyarrow']}" in text
