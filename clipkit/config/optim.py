"""`optim`: the optimizer, its learning rates and their schedule."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from clipkit.config.fields import (
    PRETRAINED,
    BelowOne,
    Fraction,
    Frozen,
    NonNegative,
    Positive,
    Section,
    Warmup,
    is_section,
)


class Group(Section):
    lr: NonNegative
    """The learning rate at its peak."""
    weight_decay: NonNegative = 0.0
    """Never applied to norms, biases and the temperature."""
    params: tuple[str, ...] = ()
    """Patterns (`fnmatch`) of parameter names; the task's own groups have theirs."""
    layer_decay: Fraction | None = None
    """Each layer's rate is the next one's times this (of an encoder's group)."""


class Schedule(Section):
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """How learning rates fall after the warm-up."""
    warmup: Warmup = "0%"
    """A share of the run (`3%`) or a duration (`500st`)."""
    final: Fraction = 0.0
    """Where the rate ends, as a share of its peak."""


Freeze = Annotated[
    Annotated[tuple[str, ...], Tag("plain")] | Annotated[dict[str, Frozen], Tag("section")],
    Discriminator(is_section),
]


class OptimConfig(Section):
    kind: Literal["adamw", "adam"] = "adamw"
    """Weight decay apart from the gradient (AdamW) or added to it (Adam)."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.98)
    """How slowly the means of the gradient and of its square forget."""
    eps: Positive = 1e-6
    """Added to the denominator of the update."""
    groups: dict[str, Group] = Field(default_factory=dict)
    """Learning rate and weight decay of each group of parameters: the task's (image_encoder, text_encoder, heads and
    temperature, which has the heads' rate when left out), or your own with `params`. Every parameter must be in one."""
    schedule: Schedule = Schedule()
    """How learning rates change over the run."""
    clip_grad_norm: Positive | None = 1.0
    """Scale the gradient down to this norm where it is longer; null is off."""
    freeze: Freeze = ()
    """Groups that are not trained: a list, or each with how long it is frozen (`{image_encoder: 500st}`). With
    `pretrained` a group is frozen if it starts from weights, and trained if it starts from scratch."""

    def freezes_for_good(self, group: str) -> bool:
        return group in self.freeze and (not isinstance(self.freeze, dict) or self.freeze[group] == PRETRAINED)

    def settled(self, from_scratch: Collection[str], *, like: Mapping[str, str | None]) -> OptimConfig:
        """What is left to the model: `freeze: {…: pretrained}`, and groups with the rate of another (`like`).

        `from_scratch` are the groups that start from no weights.
        """
        groups = dict(self.groups)
        for name, other in like.items():
            if name not in groups and other in groups:
                groups[name] = Group(lr=groups[other].lr)
        freeze = self.freeze
        if isinstance(freeze, dict):
            freeze = {name: until for name, until in freeze.items() if until != PRETRAINED or name not in from_scratch}
        return self.model_copy(update={"groups": groups, "freeze": freeze})
