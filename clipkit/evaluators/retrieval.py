"""Exact retrieval in both directions: each caption among all images, and each image among all captions.

Shapes: N images, M captions, D the embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit import config as sections
from clipkit.errors import ConfigError, DataError
from clipkit.evaluators.base import BaseEvaluator, EvaluatorContext
from clipkit.evaluators.gallery import Gallery
from clipkit.evaluators.picture import find_answers, save_picture
from clipkit.evaluators.twins import measure_twins
from clipkit.metrics.embeddings import effective_rank, mean_cosine
from clipkit.metrics.retrieval import retrieval
from clipkit.models import DualEncoder
from clipkit.tasks.contrastive import ContrastiveTask
from clipkit.types import Progress, Ranks, Table, no_progress

log = logging.getLogger(__name__)
RANK_SAMPLE = 2048  # embeddings that the effective rank is computed from
DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
RECALLS = ("recall@1", "recall@5", "recall@10")


class Retrieval(BaseEvaluator):
    main = "text_to_image/recall@10"
    lower_is_better = frozenset({"median_rank", "mean_rank"})
    shown = tuple(f"{direction}/{recall}" for direction in DIRECTIONS for recall in RECALLS)
    metrics = (
        *(f"{direction}/{name}" for direction in DIRECTIONS for name in (*RECALLS, "median_rank", "mean_rank")),
        *(f"embeddings/{side}_{name}" for side in ("image", "text") for name in ("cosine", "rank")),
    )

    def __init__(self, context: EvaluatorContext) -> None:
        if not isinstance(context.task, ContrastiveTask):
            raise ConfigError(
                "retrieval needs a model that embeds images and texts",
                "choose another `kind` in `evaluate`",
            )
        self._context = context
        self._gallery = Gallery(context)
        if not self._gallery.num_captions:
            raise DataError(
                f"the chosen rows of `{context.dataset.uri}` have no captions", "choose others by split or filter"
            )

    def run(self, model: nn.Module, ranks: Ranks, progress: Progress = no_progress) -> dict[str, Any]:
        """Recalls and ranks in both directions, and how spread out the embeddings are."""
        image_ND, text_MD, owner_M = self._embed(model, ranks, progress)
        spread = {
            "image_cosine": mean_cosine(image_ND).item(),
            "text_cosine": mean_cosine(text_MD).item(),
            "image_rank": effective_rank(image_ND[:RANK_SAMPLE]).item(),
            "text_rank": effective_rank(text_MD[:RANK_SAMPLE]).item(),
        }
        return {**retrieval(image_ND, text_MD, owner_M), "embeddings": spread}

    def report(self, model: nn.Module, *, picture: Path | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Recalls and ranks, also among twins, and the protocol; `picture` shows what is found for some captions."""
        image_ND, text_MD, owner_M = self._embed(model, Ranks(), progress)
        dataset, rows = self._context.dataset, self._context.rows
        if picture is not None:
            answers = find_answers(dataset, rows, image_ND=image_ND, text_MD=text_MD, owner_M=owner_M)
            try:
                save_picture(picture, answers, title=f"{len(answers)} of {len(owner_M):,} captions")
            except DataError as error:  # after minutes of work the numbers count
                log.warning("%s", error.message)
        num_images, num_captions = self._gallery.num_images, self._gallery.num_captions
        return {
            "num_images": num_images,
            "num_captions": num_captions,
            **retrieval(image_ND, text_MD, owner_M),
            **measure_twins(dataset, rows, image_ND=image_ND, text_MD=text_MD, owner_M=owner_M),
            "protocol": f"exact: each of {num_captions:,} captions ({num_captions / num_images:.2g} an image) against "
            f"all {num_images:,} images, each image against all captions, any of its own a hit; ties count against "
            "the model",
        }

    def describe(self, report: Mapping[str, Any]) -> Sequence[str | Table]:
        rows = [[label, *_cells(report[key])] for key, label in DIRECTIONS.items()]
        originals = report.get("without_twins")
        if originals and originals["num_images"] < report["num_images"]:
            rows += [[f"{label}, without twins", *_cells(originals[key])] for key, label in DIRECTIONS.items()]
        twins = [
            f"twins by {kind}: {of_kind['accuracy']:.1%} of captions pick their own image "
            f"({of_kind['num_pairs']:,} pairs)"
            for kind, of_kind in report.get("twins", {}).items()
        ]
        return [
            f"{report['num_images']:,} images, {report['num_captions']:,} captions\n",
            Table(("", *RECALLS, "median rank", "mean rank"), rows),
            *twins,
            f"\n{report['protocol']}",
        ]

    def _embed(self, model: nn.Module, ranks: Ranks, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(model, DualEncoder)
        image_ND, text_MD = self._gallery.embed(model, ranks, progress)
        return image_ND, text_MD, torch.from_numpy(self._gallery.caption_to_image).to(image_ND.device)


def _cells(direction: Mapping[str, float]) -> list[str]:
    recalls = [f"{direction[recall]:.3f}" for recall in RECALLS]
    return [*recalls, f"{direction['median_rank']:g}", f"{direction['mean_rank']:.1f}"]


def build(section: sections.Retrieval, context: EvaluatorContext) -> Retrieval:
    return Retrieval(context)
