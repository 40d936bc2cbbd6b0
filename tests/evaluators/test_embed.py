"""Evaluation of a gallery: the same numbers on any number of ranks, and the model left as it was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_task import make_gallery, make_task

WORKER = Path(__file__).parent.parent / "workers" / "rank_evaluation.py"


def evaluate_on(world: int, folder: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(WORKER), str(folder), str(rank), str(world)], env=environment)
        for rank in range(world)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0] * world
    return [json.loads((folder / f"world{world}rank{rank}.json").read_text()) for rank in range(world)]


def test_ranks_share_the_gallery_exactly(
    shapes_dir: Path, tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_cli("ingest", shapes_dir, tmp_path / "shapes.lance")
    assert done.returncode == 0, done.stderr
    task = make_task()
    task.model.text_encoder.eval()  # as a frozen encoder is while the rest trains
    alone = task.evaluate(make_gallery(tmp_path / "shapes.lance", task), batch_size=16)
    assert task.model.image_encoder.training
    assert not task.model.text_encoder.training
    assert alone["text_to_image"]["mean_rank"] > 1
    for shared in evaluate_on(2, tmp_path):
        for direction in ("text_to_image", "image_to_text"):
            assert shared[direction] == pytest.approx(alone[direction], rel=0.02)
        assert shared["embeddings"] == pytest.approx(alone["embeddings"], rel=1e-3)
