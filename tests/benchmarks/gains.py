"""What each part of the training step gains: samples a second with it and without, on one batch again and again.

    python tests/benchmarks/gains.py CONFIG [--set KEY=VALUE …] [--steps 5] [--only NAME …]

The step as `clipkit train` makes it by the config and one that differs in a single part take turns, and the medians
count. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipkit.data.device import to_device
from clipkit.train.optimizer import build_optimizer
from clipkit.train.process import process_group, set_kernels
from clipkit.train.session import open_session
from clipkit.types import Batch
from clipkit.workflows.bench import time_steps
from clipkit.workflows.train import Training, build_training

ROUNDS = 7
WARM_STEPS = 3  # kernels are chosen, memory is allocated, and what is compiled is compiled


def unfused(built: Training) -> None:
    optim = built.config.optim.settled(built.task.from_scratch, like=built.config.task.groups)
    optimizer = build_optimizer(built.engine.groups, optim, fused=False)
    optimizer.register_step_pre_hook(lambda *_: setattr(optimizer, "found_inf", None))  # only a fused one looks at it
    built.engine.optimizer = optimizer


def contiguous_images(built: Training) -> None:
    """Images and weights with a channel's pixels side by side, as they are without `channels_last`."""
    encoder: Any = built.task.model.get_submodule("image_encoder")
    encoder.to(memory_format=torch.contiguous_format)
    encoder.register_forward_pre_hook(lambda _, inputs: tuple(images.contiguous() for images in inputs))


def other_attention(built: Training) -> None:
    """torch's fused attention where it was written out (bfloat16 on a CPU), and the other way around."""
    encoder: Any = built.task.model.get_submodule("text_encoder")
    model = encoder.model
    model.set_attn_implementation("sdpa" if model.config._attn_implementation == "eager" else "eager")


def nothing(built: Training) -> None: ...


@dataclass(frozen=True)
class Change:
    sets: list[str] = field(default_factory=list)
    apply: Callable[[Training], None] = nothing


CHANGES = {
    "float32": Change(["train.precision=fp32"]),
    "contiguous images, no `channels_last`": Change(apply=contiguous_images),
    "the optimizer not fused": Change(apply=unfused),
    "the other way to attend": Change(apply=other_attention),
    "tokens padded to `data.max_tokens`": Change(["data.padding=max"]),
    "`train.deterministic: false`": Change(["train.deterministic=false"]),
    "`train.compile: true`": Change(["train.compile=true"]),
}


class Contestant:
    def __init__(self, config: Path, sets: list[str], device: torch.device, change: Change) -> None:
        self.training = build_training(open_session(config, [*sets, *change.sets]), device)
        change.apply(self.training)
        with closing(self.training.loader.iterate()) as batches:
            self.batch = to_device(next(batches), device)
        self.training.loader.close()
        self.device = device
        self.run(WARM_STEPS)

    def run(self, num_steps: int) -> float:
        """Samples a second."""
        set_kernels(deterministic=self.training.config.train.deterministic)

        def train_step(batch: Batch, step: int) -> object:
            return self.training.engine.train_step(batch, step=step)

        return len(self.batch) / time_steps(lambda: self.batch, train_step, self.device, num_steps)


def compare(base: Contestant, other: Contestant, num_steps: int) -> tuple[float, float]:
    runs = [(base.run(num_steps), other.run(num_steps)) for _ in range(ROUNDS)]
    return statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=5, help="in each round")
    parser.add_argument("--only", action="append", choices=CHANGES, help="one of the changes")
    options = parser.parse_args()
    with process_group(open_session(options.config, options.sets).config.train) as device:
        base = Contestant(options.config, options.sets, device, Change())
        print(f"{base.training.describe()}\n\n| | with it | as it is | ratio |\n|---|---|---|---|")
        for name in options.only or CHANGES:
            other = Contestant(options.config, options.sets, device, CHANGES[name])
            as_it_is, changed = compare(base, other, options.steps)
            print(f"| {name} | {changed:,.1f} | {as_it_is:,.1f} | {changed / as_it_is:.2f} |", flush=True)
            del other
            gc.collect()


if __name__ == "__main__":
    main()
