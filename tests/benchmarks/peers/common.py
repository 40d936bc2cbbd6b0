"""What the peers share: decoding as their users do it, and timing a DataLoader. Each peer is a script of its own:

python PEER.py prepare DATASET.lance FOLDER        write the corpus in the peer's format
python PEER.py run FOLDER SIZE_PX SECONDS          print JSON: images_per_s, first_batch_s
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
import torch

BATCH_SIZE = 64
NUM_WORKERS = 2


def decode(data: bytes, size_px: int) -> torch.Tensor:
    """A full decode, RGB, resized to a square."""
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(cv2.resize(pixels, (size_px, size_px)))


def measure(make_batches: Callable[[], Iterable[Any]], seconds: float) -> None:
    """Time to the first batch, then images a second over as many epochs as it takes."""
    started = time.perf_counter()
    first_batch_s, began, count = 0.0, 0.0, 0
    while True:
        for images in make_batches():
            now = time.perf_counter()
            if not began:
                first_batch_s, began = now - started, now
                continue
            count += len(images)
            if now - began > seconds:
                print(json.dumps({"images_per_s": count / (now - began), "first_batch_s": first_batch_s}))
                return


def main(prepare: Callable[[str, str], None], run: Callable[[str, int, float], None]) -> None:
    cv2.setNumThreads(1)
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2], sys.argv[3])
    else:
        run(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
