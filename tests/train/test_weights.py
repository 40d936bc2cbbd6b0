"""Pieces and ranks count by their numbers of targets: however a batch is split, its loss and gradient are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from next_token import LENGTHS, NextToken, gradient_of, make_batch

from clipkit.train.parallel import Strategy

WORKER = Path(__file__).parent.parent / "workers" / "rank_weights.py"


def plain(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Of the whole batch at once, by torch alone."""
    task = NextToken()
    output = task.loss(make_batch(lengths))
    output.loss.backward()
    gradients = {name: param.grad for name, param in task.model.named_parameters() if param.grad is not None}
    return {"loss": output.loss.detach(), **output.metrics, **gradients}


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str) -> None:
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-5, atol=1e-6, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"accumulate": 4}, {"chunk_size": 3}], ids=str)
def test_pieces_count_by_their_targets(options: dict[str, int]) -> None:
    assert_equal(gradient_of(LENGTHS, strategy=Strategy(), **options), plain(LENGTHS), str(options))


def test_a_batch_without_targets_has_no_gradient() -> None:
    found = gradient_of((1,) * 8, strategy=Strategy(), accumulate=2)
    assert [tensor.abs().max().item() for tensor in found.values()] == [0.0] * len(found)


def test_ranks_count_by_their_targets(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(WORKER), str(tmp_path), str(rank), "2"], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=100) for process in ranks] == [0, 0]
    for rank in range(2):
        for name, (lengths, found) in torch.load(tmp_path / f"rank{rank}.pt").items():
            assert_equal(found, plain(lengths), name)
