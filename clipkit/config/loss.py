"""`loss`: the function that training minimises."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import model_validator

from clipkit.config.fields import BelowOne, Conflicts, Number, Positive, Section
from clipkit.config.kinds import register

L = TypeVar("L", "InfoNCE", "Sigmoid")


def _starts_in_its_bounds(loss: L) -> L:
    if loss.learn_temperature and loss.temperature < loss.min_temperature:
        raise Conflicts([("temperature", f"must be at least `min_temperature`, {loss.min_temperature}")])
    return loss


class InfoNCE(Section):
    kind: Literal["infonce"] = "infonce"
    """Softmax over the batch: each caption against all images, and each image against all captions (CLIP)."""
    temperature: Positive = 0.07
    """Similarities are divided by it. The initial value if it is learned."""
    learn_temperature: bool = True
    """Train the temperature with the model."""
    min_temperature: Positive = 0.01
    """Lower limit of a learned temperature."""
    label_smoothing: BelowOne = 0.0
    """Share of the target that is spread over the whole batch."""

    _check = model_validator(mode="after")(_starts_in_its_bounds)


class Sigmoid(Section):
    kind: Literal["sigmoid"] = "sigmoid"
    """Each image-caption pair of the batch classified on its own (SigLIP)."""
    temperature: Positive = 0.1
    """Similarities are divided by it. The initial value if it is learned."""
    bias: Number = -10.0
    """Added to the logits. The initial value if the temperature is learned."""
    learn_temperature: bool = True
    """Train the temperature and the bias with the model."""
    min_temperature: Positive = 0.005
    """Lower limit of a learned temperature."""

    _check = model_validator(mode="after")(_starts_in_its_bounds)


class SoftTargets(Section):
    kind: Literal["soft_targets"] = "soft_targets"
    """The loss of the Lance tutorial: a baseline that can collapse, especially without normalisation."""
    temperature: Positive = 1.0
    """Similarities are divided by it. Not learned."""


class Ranking(Section):
    kind: Literal["ranking"] = "ranking"
    """Softmax cross-entropy of the cosine similarities in one direction."""
    direction: Literal["image_to_text", "text_to_image"] = "image_to_text"
    """Each image ranks the captions, or each caption the images."""
    temperature: Positive = 1.0
    """Similarities are divided by it. Not learned."""


class Identity(Section):
    kind: Literal["identity"] = "identity"
    """Frobenius distance between the cosine similarity matrix and the identity."""


register("contrastive_loss", InfoNCE, "clipkit.losses.infonce:InfoNCELoss")
register("contrastive_loss", Sigmoid, "clipkit.losses.sigmoid:SigmoidLoss")
register("contrastive_loss", SoftTargets, "clipkit.losses.soft_targets:SoftTargetsLoss")
register("contrastive_loss", Ranking, "clipkit.losses.ranking:RankingLoss")
register("contrastive_loss", Identity, "clipkit.losses.identity:IdentityLoss")
