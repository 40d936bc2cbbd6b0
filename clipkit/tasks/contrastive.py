"""Contrastive training of a dual encoder.

Shapes: B this rank's pairs, D the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clipkit.config import Config, Identity, InfoNCE, Loss, Ranking, Sigmoid, SoftTargets
from clipkit.distributed import shares
from clipkit.evaluators.embed import embed_gallery
from clipkit.losses import functional as losses
from clipkit.metrics import retrieval as metrics
from clipkit.models import DualEncoder, build_model
from clipkit.models.dual_encoder import architecture, inputs
from clipkit.tasks.remembered_texts import RememberedTexts
from clipkit.types import Batch, Gallery, LossOutput, Tokenizer

COLLAPSED_COSINE = 0.95
COLLAPSED_RANK = 2.0
RANK_SAMPLE = 2048  # embeddings that the effective rank is computed from


class ContrastiveTask:
    """A dual encoder, one of the losses over a batch of pairs, and retrieval as the evaluation."""

    def __init__(self, model: DualEncoder, loss: Loss, *, even_shares: bool = True) -> None:
        self.model = model
        self._loss = loss
        self._even_shares = even_shares
        self._remembered: RememberedTexts | None = None

    def remember_texts(self, tokenizer: Tokenizer, texts: Callable[[], Iterable[str]]) -> None:
        """Run the text encoder once for each of these, the texts of all batches to come: it must stay frozen."""
        self._remembered = RememberedTexts(self.model.text_encoder, tokenizer, texts)

    def encode(self, batch: Batch) -> tuple[Tensor, ...]:
        if self._remembered is not None:
            features = self._remembered(batch.captions, device=self.model.device)
            batch = replace(batch, tokens=None, text_features=features)
        image_BD, text_BD = self.model(*inputs(batch))
        return image_BD, text_BD

    def loss(self, features: tuple[Tensor, ...]) -> LossOutput:
        image_BD, text_BD = features
        with torch.autocast(image_BD.device.type, enabled=False):  # logits in bfloat16 are too coarse
            value = self._value(image_BD, text_BD)
        with torch.no_grad():
            watched = {
                "temperature": 1 / self.model.temperature.scale(),
                "image_cosine": metrics.mean_cosine(image_BD),
                "text_cosine": metrics.mean_cosine(text_BD),
            }
        return LossOutput(value, watched)

    def _value(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        of = shares(len(image_BD), even=self._even_shares, device=image_BD.device)
        temperature = self.model.temperature
        match self._loss:
            case InfoNCE(label_smoothing=smoothing):
                scale = temperature.scale()
                return losses.infonce(image_BD, text_BD, scale=scale, label_smoothing=smoothing, shares=of)
            case Sigmoid():
                scale, bias = temperature.scale(), temperature.bias
                return losses.sigmoid(image_BD, text_BD, scale=scale, bias=bias, shares=of)
            case SoftTargets(temperature=fixed):
                return losses.soft_targets(image_BD, text_BD, temperature=fixed, shares=of)
            case Ranking(direction=direction, temperature=fixed):
                return losses.ranking(image_BD, text_BD, direction=direction, temperature=fixed, shares=of)
            case Identity():
                return losses.identity(image_BD, text_BD, shares=of)

    def after_step(self) -> None:
        self.model.temperature.clamp()

    def evaluate(self, gallery: Gallery, *, batch_size: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """Retrieval both ways over the whole gallery, and how spread out its embeddings are."""
        image_ND, text_MD = embed_gallery(self.model, gallery, batch_size=batch_size, rank=rank, world=world)
        owner_M = torch.from_numpy(gallery.caption_to_image).to(image_ND.device)
        spread = {
            "image_cosine": metrics.mean_cosine(image_ND).item(),
            "text_cosine": metrics.mean_cosine(text_MD).item(),
            "image_rank": metrics.effective_rank(image_ND[:RANK_SAMPLE]).item(),
            "text_rank": metrics.effective_rank(text_MD[:RANK_SAMPLE]).item(),
        }
        return {**metrics.retrieval(image_ND, text_MD, owner_M), "embeddings": spread}

    def alarms(self, metrics: Mapping[str, float], *, batch_size: int) -> Mapping[str, str]:
        found = {}
        for side in ("image", "text"):
            cosine, rank = metrics.get(f"{side}_cosine", 0.0), metrics.get(f"{side}_rank", math.inf)
            if cosine > COLLAPSED_COSINE or rank < COLLAPSED_RANK:
                found[f"{side}_collapse"] = (
                    f"{side} embeddings collapse (mean cosine {cosine:.3f}): {self._cause_of_collapse()}"
                )
        if self._is_clamped(metrics.get("temperature")):
            found["temperature"] = (
                "the temperature is at its minimum: the model is overconfident; a lower learning rate, more data or "
                "augmentation, or a higher `loss.min_temperature` helps"
            )
        chance = losses.chance_level(self._loss, batch_size=batch_size)
        if chance is not None and metrics.get("loss", 0.0) > 0.99 * chance:
            found["chance"] = (
                f"the loss is at chance level ({chance:.2f}): nothing is learnt yet; check that captions belong to "
                "their images, and the learning rates (too high as often as too low)"
            )
        return found

    def _cause_of_collapse(self) -> str:
        if isinstance(self._loss, SoftTargets):
            return "`soft_targets` rewards it; use `loss.kind: infonce`, or `model.normalize: true`"
        return "the learning rate may be too high, or the batches too small"

    def _is_clamped(self, temperature: float | None) -> bool:
        if temperature is None or not isinstance(self._loss, InfoNCE | Sigmoid) or not self._loss.learn_temperature:
            return False
        return temperature <= self._loss.min_temperature * 1.001

    def architecture(self) -> dict[str, Any]:
        return architecture(self.model)


def build_task(config: Config, tokenizer: Tokenizer | None, *, saved: dict[str, Any] | None = None) -> ContrastiveTask:
    """The task that a config describes; `saved` is a checkpoint's architecture (see `build_model`)."""
    model = build_model(config.model, data=config.data, loss=config.loss, tokenizer=tokenizer, saved=saved)
    return ContrastiveTask(model, config.loss, even_shares=config.data.drop_last)
