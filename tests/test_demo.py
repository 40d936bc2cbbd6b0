"""The commands of `make demo` on a small corpus, for a few steps."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
SMALLER = {
    "sample": ["--num-images", "120"],
    "train": ["--set", "train.duration=2st", "--set", "train.validate_every=1st", "--set", "train.batch_size=16"],
}


def test_the_demo_from_corpus_to_picture(
    run_cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    shown = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [shlex.split(line)[1:] for line in shown.splitlines() if line.startswith(".venv/bin/clipkit ")]
    assert [command[0] for command in commands] == ["sample", "ingest", "train", "eval"]
    for command in commands:
        done = run_cli(*command, *SMALLER.get(command[0], ()), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "text to image, without twins" in done.stdout
    assert "twins by colors" in done.stdout
    with Image.open(tmp_path / "demo" / "found.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 500


def test_the_demo_installs_no_extras() -> None:
    shown = subprocess.run(["make", "-n", "-B", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (installation,) = (line for line in shown.splitlines() if "pip install" in line)
    assert installation.endswith("--editable .")
