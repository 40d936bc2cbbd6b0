"""The Lance tutorial's training loop against clipkit's, on the same encoders, images and batch.

    python tests/benchmarks/tutorial_loop.py DATASET [--steps 12] [--threads 2]

The tutorial: fp32, Adam, two single-row reads and a full decode an image, `.item()` every step. Both train resnet50
and a 12-layer BERT from scratch at 128 px with 18 tokens; the first two steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import lance
import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertModel

from clipkit.data.tokenizer import train_tokenizer
from clipkit.train.session import open_session
from clipkit.workflows import train as training

WARM_STEPS = 2
BATCH_SIZE = 32
CONFIG = """
run: {{name: benchmark, dir: {folder}}}
data:
  {{dataset: {dataset}, image_size: 128, caption: longest, max_tokens: 18, shuffle: false,
    mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}
model:
  image: {{kind: timm, name: resnet50}}
  text:
    kind: transformers
    pooling: cls
    architecture: {{vocab_size: 4000, hidden_size: 768, layers: 12, heads: 12}}
  head: {{kind: residual, dropout: 0.3}}
  normalize: false
loss: {{kind: soft_targets}}
optim:
  kind: adam
  groups: {{image_encoder: {{lr: 1e-4}}, text_encoder: {{lr: 1e-5}}, heads: {{lr: 1e-3}}}}
  clip_grad_norm: null
train: {{batch_size: 32, duration: {steps}st, threads: {threads}, validate_every: null, checkpoint_every: null}}
"""


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 256), nn.Linear(256, 256)
        self.dropout, self.norm = nn.Dropout(0.3), nn.LayerNorm(256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected = self.first(x)
        result: torch.Tensor = self.norm(projected + self.dropout(self.second(F.gelu(projected))))
        return result


class TutorialRows(Dataset[tuple[torch.Tensor, Any]]):
    def __init__(self, uri: str, tokenizer: Any) -> None:
        self.rows = lance.dataset(uri)
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return int(self.rows.count_rows())

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        data = self.rows.take([index], columns=["image"]).to_pydict()["image"][0]
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        captions = self.rows.take([index], columns=["captions"]).to_pydict()["captions"][0]
        tokens = self.tokenizer([max(captions, key=len)])
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        pixels = (F.interpolate(pixels[None], size=(128, 128), mode="bilinear", antialias=True)[0] - 0.5) / 0.5
        return pixels, (tokens["input_ids"][0], tokens["attention_mask"][0])


def tutorial_steps(dataset: str, tokenizer: Any) -> Iterator[float]:
    image_encoder = timm.create_model("resnet50", num_classes=0)
    text_encoder = BertModel(BertConfig(vocab_size=tokenizer.vocab_size))
    image_head, text_head = Head(2048), Head(768)
    modules = nn.ModuleList([image_encoder, text_encoder, image_head, text_head])
    optimizer = torch.optim.Adam(
        [
            {"params": image_encoder.parameters(), "lr": 1e-4},
            {"params": text_encoder.parameters(), "lr": 1e-5},
            {"params": [*image_head.parameters(), *text_head.parameters()], "lr": 1e-3},
        ]
    )
    modules.train()
    loader = DataLoader(TutorialRows(dataset, tokenizer), batch_size=BATCH_SIZE, drop_last=True)
    for pixels, (input_ids, attention_mask) in loader:
        optimizer.zero_grad()
        image = image_head(image_encoder(pixels))
        text = text_head(text_encoder(input_ids, attention_mask).last_hidden_state[:, 0])
        targets = ((image @ image.T + text @ text.T) / 2).softmax(-1)
        logits = text @ image.T
        text_loss = -(targets * logits.log_softmax(-1)).sum(-1)
        image_loss = -(targets.T * logits.T.log_softmax(-1)).sum(-1)
        loss = ((text_loss + image_loss) / 2).mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


class Clock:
    """Notes when steps end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, step: int, total: int | None, fields: object) -> None:
        self.times.append(time.perf_counter())

    def evaluated(self, step: int, label: str, shown: object) -> None: ...


def images_per_s(times: list[float]) -> float:
    return round(BATCH_SIZE * (len(times) - WARM_STEPS) / (times[-1] - times[WARM_STEPS - 1]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    captions = [
        text for row in lance.dataset(options.dataset).to_table(["captions"])["captions"].to_pylist() for text in row
    ]
    tokenizer = train_tokenizer(captions, vocab_size=4000, lowercase=True, max_tokens=18, padding="max")
    theirs = Clock()
    for step, _ in zip(range(options.steps), tutorial_steps(options.dataset, tokenizer), strict=False):
        theirs.update(step, None, None)
    ours = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            CONFIG.format(folder=f"{folder}/run", dataset=options.dataset, steps=options.steps, threads=options.threads)
        )
        training.train(open_session(config), progress=ours)
    result = {"tutorial_images_per_s": images_per_s(theirs.times), "clipkit_images_per_s": images_per_s(ours.times)}
    result["ratio"] = round(result["clipkit_images_per_s"] / result["tutorial_images_per_s"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
