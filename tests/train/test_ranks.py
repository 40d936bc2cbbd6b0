"""Ranks train as one process does: runs of every loss, whose losses, gradients and weights are compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipkit.config.kinds import kinds_of

WORKER = Path(__file__).parent.parent / "workers" / "rank_runs.py"
KINDS = [kind.name for kind in kinds_of("contrastive_loss")]
MODES = {
    "whole": (),
    "cached": ("train.chunk_size=3",),  # does not divide a rank's share
    "accumulated": ("train.accumulate=2",),
    "sharded": ("train.strategy=fsdp", "train.chunk_size=5"),
    "uneven": ("data.limit=35", "data.drop_last=false"),  # three samples for the second step
}
ALONE = ("whole", "accumulated", "uneven")  # also trained by one process; the others must agree with "whole"
MODES_OF = {2: tuple(MODES), 4: ("whole", "cached")}  # by number of ranks
# Without dropout and BatchNorm, whose results depend on how a batch is shared. A larger `eps` keeps Adam from making
# a whole step of a gradient that is nothing but rounding.
SETS = (
    "model.image={kind: timm, name: test_vit}",
    "model.text.architecture.dropout=0",
    "model.head={kind: linear}",
    "optim.eps=1e-3",
    "optim.schedule.warmup=1st",
    "train.precision=fp32",
    "train.duration=2st",
    "train.validate_every=null",
    "train.checkpoint_every=null",
    "train.trackers=[]",
)


def run_of(folder: Path, kind: str, mode: str) -> tuple[Path, list[str]]:
    run = folder / f"{kind}-{mode}"
    return run, [*SETS, *MODES[mode], f"loss={{kind: {kind}}}"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, write_config: Callable[[Path], Path]) -> Path:
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, config: Path, train: Callable[..., Any]) -> Path:
    """Runs of every loss."""
    folder = tmp_path_factory.mktemp("one")
    for kind in KINDS:
        for mode in ALONE:
            run, sets = run_of(folder, kind, mode)
            train(config, *sets, f"run.dir={run}")
    return folder


@pytest.fixture(scope="module", params=MODES_OF, ids=lambda world: f"{world} ranks")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """Every loss in every mode, by so many processes."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = [run_of(folder, kind, mode) for kind in KINDS for mode in MODES_OF[request.param]]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"),
            *(str(WORKER), str(config), json.dumps(runs, default=str)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_train_as_one_process_does(
    kind: str, ranks: Path, one_process: Path, assert_alike: Callable[[Path, Path], None]
) -> None:
    runs = sorted(ranks.glob(f"{kind}-*"))
    assert len(runs) >= 2
    for run in runs:
        expected = one_process / run.name
        assert_alike(run, expected if expected.exists() else one_process / f"{kind}-whole")
