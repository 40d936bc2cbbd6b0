"""`loss`: what training minimises."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import model_validator

from clipkit.config.fields import BelowOne, Conflicts, Number, Positive, Section
from clipkit.config.kinds import register

L = TypeVar("L", "InfoNCE", "Sigmoid")


def _starts_in_its_bounds(loss: L) -> L:
    if loss.learn_temperature and loss.temperature < loss.min_temperature:
        raise Conflicts([("temperature", f"starts below `min_temperature`, {loss.min_temperature}")])
    return loss


class InfoNCE(Section):
    kind: Literal["infonce"] = "infonce"
    """Each caption against the batch's images and each image against its captions (CLIP)."""
    temperature: Positive = 0.07
    """Similarities are divided by it; where it starts, if it is learned."""
    learn_temperature: bool = True
    """Train the temperature with the model."""
    min_temperature: Positive = 0.01
    """A learned temperature does not fall below it."""
    label_smoothing: BelowOne = 0.0
    """The share of the target that is spread over the whole batch."""

    _check = model_validator(mode="after")(_starts_in_its_bounds)


class Sigmoid(Section):
    kind: Literal["sigmoid"] = "sigmoid"
    """Each pair of the batch judged by itself (SigLIP)."""
    temperature: Positive = 0.1
    """Similarities are divided by it; where it starts, if it is learned."""
    bias: Number = -10.0
    """Added to the logits; where it starts, learned with the temperature."""
    learn_temperature: bool = True
    """Train the temperature and the bias with the model."""
    min_temperature: Positive = 0.005
    """A learned temperature does not fall below it."""

    _check = model_validator(mode="after")(_starts_in_its_bounds)


class SoftTargets(Section):
    kind: Literal["soft_targets"] = "soft_targets"
    """The Lance tutorial's loss: a baseline that can collapse, above all without normalisation."""
    temperature: Positive = 1.0
    """Fixed; similarities are divided by it."""


class Ranking(Section):
    kind: Literal["ranking"] = "ranking"
    """-mean of the diagonal of log-softmax of the cosine matrix, one way."""
    direction: Literal["image_to_text", "text_to_image"] = "image_to_text"
    """Each image ranks the captions, or each caption the images."""
    temperature: Positive = 1.0
    """Fixed; similarities are divided by it."""


class Identity(Section):
    kind: Literal["identity"] = "identity"
    """Frobenius distance of the cosine matrix from the identity."""


register("contrastive_loss", InfoNCE, "clipkit.losses.infonce:build")
register("contrastive_loss", Sigmoid, "clipkit.losses.sigmoid:build")
register("contrastive_loss", SoftTargets, "clipkit.losses.soft_targets:build")
register("contrastive_loss", Ranking, "clipkit.losses.ranking:build")
register("contrastive_loss", Identity, "clipkit.losses.identity:build")
