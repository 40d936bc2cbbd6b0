"""Trains one run after another in one process group: JSON of [[FOLDER, SETS], ...], started by torchrun."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from clipkit.train.session import open_session
from clipkit.workflows import train as training

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))
from training_runs import Quiet

config, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
for folder, sets in runs:
    training.train(open_session(config, [*sets, f"run.dir={folder}"]), progress=Quiet())
dist.destroy_process_group()
