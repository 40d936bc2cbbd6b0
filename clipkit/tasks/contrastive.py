"""Contrastive training of a dual encoder.

Shapes: B this rank's pairs, D the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.config import DualEncoderConfig, TimmImage, TransformersText, builder_of
from clipkit.data.inputs import Input
from clipkit.distributed import shares
from clipkit.losses import PairLoss
from clipkit.metrics.embeddings import mean_cosine
from clipkit.models import DualEncoder, Encoder, EncoderContext, build_dual_encoder, build_encoders, load_matching
from clipkit.models.text_encoder import always_mask, use_eager_attention
from clipkit.tasks.base import BaseTask, TaskContext
from clipkit.tasks.remembered_texts import RememberedTexts
from clipkit.types import Batch, Features, LossOutput, Progress, no_progress

COLLAPSED_COSINE = 0.95
COLLAPSED_RANK = 2.0
SHORT_TEXT = 128  # tokens; the memory of eager attention grows with their square
GROUPS = {
    "image_encoder": ("image_encoder.*",),
    "text_encoder": ("text_encoder.*",),
    "heads": ("image_head.*", "text_head.*"),
    "temperature": ("temperature.*",),
}


class ContrastiveTask(BaseTask):
    """A dual encoder and a loss over the pairs of a batch."""

    model: DualEncoder
    shards = ("image_encoder", "text_encoder", "image_head", "text_head")

    def __init__(
        self,
        model: DualEncoder,
        loss: PairLoss,
        *,
        image: Encoder,
        text: Encoder,
        seed: int = 0,
        even_shares: bool = True,
        from_scratch: Collection[str] = (),
    ) -> None:
        super().__init__(model, GROUPS)
        self.image = image
        self.text = text
        self._loss = loss
        self._seed = seed
        self._even_shares = even_shares
        self._from_scratch = from_scratch
        self._remembered: RememberedTexts | None = None

    @property
    def from_scratch(self) -> Collection[str]:
        return self._from_scratch

    def inputs(self) -> Sequence[Input]:
        return [*self.image.inputs(self._seed), *self.text.inputs(self._seed)]

    def remember_texts(self, texts: Callable[[], Iterable[str]]) -> None:
        """Run the text encoder only once per text, for these texts of all batches; it must stay frozen."""
        assert self.text.tokenizer is not None, "the config is checked for it"
        self._remembered = RememberedTexts(self.model.text_encoder, self.text.tokenizer, texts)

    def prepare(self, progress: Progress = no_progress) -> None:
        if self._remembered is not None:
            self._remembered.encode_all(self.model.device, progress)

    def encode(self, batch: Batch) -> Features:
        tensors = batch.tensors
        if self._remembered is not None and self._remembered.is_ready:
            tensors = {**tensors, "text_features": self._remembered(batch.captions, device=self.model.device)}
        image_BD, text_BD = self.model(tensors)
        return image_BD, text_BD

    def loss_of(self, features: Features, batch: Batch) -> LossOutput:
        image_BD, text_BD = features
        with torch.autocast(image_BD.device.type, enabled=False):  # logits in bfloat16 are too coarse
            of = shares(len(image_BD), even=self._even_shares, device=image_BD.device)
            value = self._loss(image_BD, text_BD, shares=of)
        with torch.no_grad():
            watched = {
                "temperature": 1 / self._loss.temperature.scale(),
                "image_cosine": mean_cosine(image_BD),
                "text_cosine": mean_cosine(text_BD),
            }
        return LossOutput(value, len(image_BD), watched)

    def loss(self, batch: Batch) -> LossOutput:
        return self.loss_of(self.encode(batch), batch)

    def after_step(self) -> None:
        self._loss.temperature.clamp()

    def alarms(self, metrics: Mapping[str, float], *, batch_size: int) -> Mapping[str, str]:
        found = self._loss.alarms(metrics)
        for side in ("image", "text"):
            cosine, rank = metrics.get(f"{side}_cosine", 0.0), metrics.get(f"{side}_rank", math.inf)
            if cosine > COLLAPSED_COSINE or rank < COLLAPSED_RANK:
                cause = self._loss.collapse_cause
                found[f"{side}_collapse"] = f"{side} embeddings collapse (mean cosine {cosine:.3f}): {cause}"
        chance = self._loss.chance(batch_size)
        if chance is not None and metrics.get("loss", 0.0) > 0.99 * chance:
            found["chance"] = (
                f"the loss is at chance level ({chance:.2f}): the model has learned nothing yet; check that captions "
                "belong to their images, and that learning rates are neither too high nor too low"
            )
        return found

    def tune(self, *, device_type: str, precision: str) -> None:
        tokenizer = self.text.tokenizer
        if device_type == "cuda":
            always_mask(self.model.text_encoder)
        elif device_type == "cpu" and precision == "bf16" and tokenizer and tokenizer.max_tokens <= SHORT_TEXT:
            # There torch's fused kernel is 4 to 8 times slower in a bfloat16 backward pass.
            use_eager_attention(self.model.text_encoder)

    def start_from(self, weights: Mapping[str, Tensor], *, source: str) -> None:
        load_matching(self.model, weights, source=source, may_differ=["temperature."])

    def architecture(self) -> dict[str, Any]:
        return {"image": self.image.architecture, "text": self.text.architecture}

    def save(self, folder: Path) -> None:
        if self.text.tokenizer is not None:
            self.text.tokenizer.save(folder / "tokenizer")


def build(context: TaskContext) -> ContrastiveTask:
    config = context.config
    model_config = config.model
    assert isinstance(model_config, DualEncoderConfig)
    sources = EncoderContext(config.data, context.training, context.checkpoint)
    image, text = build_encoders(model_config, sources, context.architecture)
    loss: PairLoss = builder_of(config.loss)(config.loss)
    task = ContrastiveTask(
        build_dual_encoder(model_config, image, text, loss.temperature),
        loss,
        image=image,
        text=text,
        seed=config.run.seed,
        even_shares=config.data.drop_last,
        from_scratch=_from_scratch(model_config),
    )
    optim = config.optim.settled(task.from_scratch, like=config.task.groups)
    is_remembered = isinstance(model_config.text, TransformersText) and model_config.text.remember
    if is_remembered and optim.freezes_for_good("text_encoder") and context.training is not None:
        task.remember_texts(context.training.all_captions)
    return task


def _from_scratch(config: DualEncoderConfig) -> frozenset[str]:
    """The encoders that start with random weights."""
    if config.init:
        return frozenset()
    image, text = config.image, config.text
    scratch = {
        "image_encoder": isinstance(image, TimmImage) and not (image.pretrained or image.weights),
        "text_encoder": isinstance(text, TransformersText) and not (text.name and text.pretrained),
    }
    return frozenset(name for name, is_so in scratch.items() if is_so)
