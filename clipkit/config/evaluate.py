"""`evaluate`: what is measured during training, on which rows and how often."""

from __future__ import annotations

from typing import Literal

from clipkit.config.fields import Duration, Section
from clipkit.config.kinds import register


class EvaluatorSection(Section):
    """What every kind of measurement has."""

    dataset: str | None = None
    """Path or URI of another Lance dataset than `data.dataset`."""
    where: str | None = None
    """SQL that chooses the rows to measure on; every row when left out."""
    every: Duration | None = "1ep"
    """How often it is measured; null measures in `clipkit eval` alone."""


class Retrieval(EvaluatorSection):
    kind: Literal["retrieval"] = "retrieval"
    """Each caption finds its image among all images, and each image one of its captions."""


register("evaluator", Retrieval, "clipkit.evaluators.retrieval:build")
