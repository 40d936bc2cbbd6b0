"""`evaluate`: what to measure during training, on which rows and how often."""

from __future__ import annotations

from typing import Literal

from clipkit.config.fields import Duration, Section
from clipkit.config.kinds import register


class EvaluatorSection(Section):
    """The keys that all evaluators have."""

    dataset: str | None = None
    """Path or URI of a Lance dataset; default: `data.dataset`."""
    where: str | None = None
    """SQL filter for the rows to measure on; default: every row."""
    every: Duration | None = "1ep"
    """How often to measure during training; null measures only in `clipkit eval`."""


class Retrieval(EvaluatorSection):
    kind: Literal["retrieval"] = "retrieval"
    """Retrieval among all rows: the image of each caption, and a caption of each image."""


register("evaluator", Retrieval, "clipkit.evaluators.retrieval:build")
