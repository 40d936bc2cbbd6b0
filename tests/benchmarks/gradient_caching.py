"""Memory of one gradient by gradient caching, at growing batches, each in a process of its own (Linux).

    python tests/benchmarks/gradient_caching.py [--batches 256 1024 4096 8192] [--chunk 128] [--loss infonce]

A small ViT and a two-layer text encoder at 64 px, on the CPU. Counted is what a gradient needs at its peak beside the
model, its gradients and the batch itself; `--plain` takes the gradient in one go, for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from clipkit.config import TrainConfig, parse_values
from clipkit.data.tokenizer import train_tokenizer
from clipkit.tasks import TaskContext, build_task
from clipkit.train.gradient import GradientMaker, split_batch
from clipkit.train.parallel import Strategy
from clipkit.train.precision import choose_precision
from clipkit.types import Batch

SIZE_PX = 64
CAPTION = "a small red disc left of a large blue star and a green cone"


def measure(batch_size: int, chunk_size: int | None, loss: str) -> dict[str, float]:
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([CAPTION], vocab_size=200, lowercase=True, max_tokens=24, padding="max")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        architecture = {"hidden_size": 64, "layers": 2, "heads": 2}
        config = parse_values(
            {
                "data": {"dataset": "unused.lance", "image_size": SIZE_PX, "max_tokens": 24},
                "model": {
                    "image": {"kind": "timm", "name": "test_vit"},
                    "text": {"kind": "transformers", "architecture": architecture, "tokenizer": folder},
                    "embedding_dim": 64,
                },
                "loss": {"kind": loss},
            }
        )
        task = build_task(TaskContext(config))
    maker = GradientMaker(
        task,
        precision=choose_precision(TrainConfig(precision="fp32"), torch.device("cpu")),
        strategy=Strategy(),
        batch_size=batch_size,
        seed=0,
        chunk_size=chunk_size,
        accumulate=1,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    batch = Batch(
        step=0,
        epoch=0,
        rows=np.arange(batch_size),
        image_ids=[""] * batch_size,
        captions=[CAPTION] * batch_size,
        tensors={"pixels": torch.from_numpy(pixels), **tokenizer([CAPTION] * batch_size)},
    )
    maker(split_batch(batch, 32)[0])  # gradients and kernels are there
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    began = time.perf_counter()
    maker(batch)
    return {"peak_mb": round(resident_mb("VmHWM") - before, 1), "seconds": round(time.perf_counter() - began, 1)}


def resident_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--loss", default="infonce")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chunk = None if options.plain else options.chunk
    if options.here:
        (batch_size,) = options.batches
        print(json.dumps({"batch": batch_size, "chunk": chunk, **measure(batch_size, chunk, options.loss)}))
        return
    for batch_size in options.batches:
        arguments = [*sys.argv[1:], "--here", "--batches", str(batch_size)]
        returned_at_once = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"}  # else the allocator keeps what is freed
        subprocess.run([sys.executable, __file__, *arguments], env=returned_at_once, check=True)


if __name__ == "__main__":
    main()
