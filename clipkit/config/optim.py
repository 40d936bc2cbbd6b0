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
    """Peak learning rate."""
    weight_decay: NonNegative = 0.0
    """Weight decay; never applied to norms, biases and the temperature."""
    params: tuple[str, ...] = ()
    """Patterns (`fnmatch`) of parameter names; only for groups of your own."""
    layer_decay: Fraction | None = None
    """For an encoder: each layer's learning rate is that of the layer above times this."""


class Schedule(Section):
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after the warm-up."""
    warmup: Warmup = "0%"
    """Length of the warm-up: a share of the run (`3%`) or a duration (`500st`)."""
    final: Fraction = 0.0
    """Final learning rate as a share of the peak."""


Freeze = Annotated[
    Annotated[tuple[str, ...], Tag("plain")] | Annotated[dict[str, Frozen], Tag("section")],
    Discriminator(is_section),
]


class OptimConfig(Section):
    kind: Literal["adamw", "adam"] = "adamw"
    """Weight decay decoupled from the gradient (AdamW) or added to it (Adam)."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.98)
    """Decay rates of the running means of the gradient and its square."""
    eps: Positive = 1e-6
    """Added to the denominator of the update for numerical stability."""
    groups: dict[str, Group] = Field(default_factory=dict)
    """Learning rate and weight decay of each group of parameters: the task's own (image_encoder, text_encoder, heads,
    and temperature, which defaults to heads), or your own with `params`. Every parameter must be in a group."""
    schedule: Schedule = Schedule()
    """How learning rates change over the run."""
    clip_grad_norm: Positive | None = 1.0
    """Clip the gradient to this norm; null is off."""
    freeze: Freeze = ()
    """Groups to freeze: a list, or how long to freeze each (`{image_encoder: 500st}`). `pretrained` freezes a group
    only if it starts from pretrained weights."""

    def freezes_for_good(self, group: str) -> bool:
        return group in self.freeze and (not isinstance(self.freeze, dict) or self.freeze[group] == PRETRAINED)

    def settled(self, from_scratch: Collection[str], *, like: Mapping[str, str | None]) -> OptimConfig:
        """With `freeze: {…: pretrained}` and left-out groups resolved.

        `from_scratch` are the groups without pretrained weights; a left-out group has the rate of the one in `like`.
        """
        groups = dict(self.groups)
        for name, other in like.items():
            if name not in groups and other in groups:
                groups[name] = Group(lr=groups[other].lr)
        freeze = self.freeze
        if isinstance(freeze, dict):
            freeze = {name: until for name, until in freeze.items() if until != PRETRAINED or name not in from_scratch}
        return self.model_copy(update={"groups": groups, "freeze": freeze})
