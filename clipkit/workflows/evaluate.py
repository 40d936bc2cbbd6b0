"""`clipkit eval`: retrieval of a run's checkpoint on a dataset, exact, and what was measured.

Shapes: N images, M captions, D the embedding, P pairs of twins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from clipkit import opening as encoder
from clipkit.config import Config, DataConfig
from clipkit.data.samples import named_columns, training_sources
from clipkit.errors import DataError
from clipkit.evaluators.embed import embed_gallery
from clipkit.evaluators.gallery import Gallery
from clipkit.metrics import retrieval as metrics
from clipkit.store import Dataset, Rows
from clipkit.workflows.picture import find_answers, save_picture

log = logging.getLogger(__name__)

SPLIT = "split"
TWIN_OF, TWIN_KIND, NO_KIND = "twin_of", "twin_kind", "any"
BATCH_SIZE = 128
IDS_AT_ONCE = 65536


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are evaluated: all that `where` chooses, of one named split or of several."""

    rows: Rows
    where: str | None
    split: str | None


def evaluate(
    run: str | Path,
    uri: str | Path,
    *,
    split: str | None = None,
    where: str | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    picture: Path | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure retrieval both ways, and draw what is found for some captions into the file `picture`.

    `progress` is told how many of all images and captions are encoded.
    """
    model = encoder.load(run, checkpoint=checkpoint, device=device)
    data = model.config.data.model_copy(update={"cache": None})  # another dataset need not have a cache of pixels
    dataset = Dataset(uri, columns=named_columns(data))
    chosen = select(dataset, data, split=split, where=where)
    seen = count_trained_on(model.config, model.meta, dataset, chosen.rows)
    gallery = Gallery(dataset, chosen.rows, spec=model.model.image_spec, tokenizer=model.tokenizer, config=data)
    if not gallery.num_captions:
        raise DataError(f"the chosen rows of `{uri}` have no captions", "choose others with `--split` or `--where`")
    image_ND, text_MD = _embed(model, gallery, progress)
    owner_M = torch.from_numpy(gallery.caption_to_image).to(image_ND.device)
    if picture is not None:
        save_picture(picture, find_answers(dataset, gallery.rows, image_ND=image_ND, text_MD=text_MD, owner_M=owner_M))
    return {
        "run": str(run),
        "checkpoint": str(model.checkpoint),
        "step": model.step,
        "dataset": str(uri),
        "dataset_version": dataset.version,
        "split": chosen.split,
        "where": chosen.where,
        "num_images": gallery.num_images,
        "num_captions": gallery.num_captions,
        "trained_on": seen,
        **metrics.retrieval(image_ND, text_MD, owner_M),
        **_twin_metrics(dataset, chosen.rows, image_ND, text_MD, owner_M),
        "protocol": _protocol(gallery.num_images, gallery.num_captions),
    }


def _protocol(num_images: int, num_captions: int) -> str:
    return (
        f"exact: each of {num_captions:,} captions ({num_captions / num_images:.2g} an image) against all "
        f"{num_images:,} images, each image against all captions, any of its own a hit; ties count against the model"
    )


def _embed(model: encoder.Encoder, gallery: Gallery, progress: Callable[[int, int], object]) -> tuple[Tensor, Tensor]:
    total = gallery.num_images + gallery.num_captions
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return embed_gallery(model.model, gallery, batch_size=BATCH_SIZE, progress=advance)


def select(dataset: Dataset, config: DataConfig, *, split: str | None, where: str | None) -> Selection:
    """The rows asked for; else those of the run's validation filter, else of the only split there is."""
    if split is not None or where is not None:
        return _select_asked(dataset, split=split, where=where)
    if config.validation is not None and len(rows := _select_or_none(dataset, config.validation)):
        return Selection(rows, config.validation, _only_split(dataset, rows))
    splits = _splits(dataset, dataset.select())
    if len(splits) > 1:
        reason = "chooses no row" if config.validation is not None else "is missing in the run's config"
        raise DataError(
            f"`data.validation` {reason}, and `{dataset.uri}` has several splits: {_listed(splits)}",
            "choose one with `--split NAME`, or rows with `--where SQL`",
        )
    rows = dataset.select()
    if not len(rows):
        raise DataError(f"`{dataset.uri}` has no rows", "add some with `clipkit ingest --append`")
    return Selection(rows, None, _only_split(dataset, rows))


def _select_asked(dataset: Dataset, *, split: str | None, where: str | None) -> Selection:
    conditions = [f"({where})"] if where is not None else []
    if split is not None:
        if SPLIT not in dataset.schema.names:
            raise DataError(f"`{dataset.uri}` has no column `{SPLIT}`", "choose rows with `--where SQL`")
        quoted = split.replace("'", "''")
        conditions.append(f"{SPLIT} = '{quoted}'")
    condition = " and ".join(conditions)
    rows = dataset.select(condition)
    if not len(rows):
        what = f"the split `{split}`" if where is None else f"`{condition}`"
        splits = _splits(dataset, dataset.select())
        raise DataError(f"{what} of `{dataset.uri}` is empty", f"it has the splits {_listed(splits)}" if splits else "")
    return Selection(rows, condition, split if split is not None else _only_split(dataset, rows))


def _select_or_none(dataset: Dataset, where: str) -> Rows:
    """A filter that was made for another dataset may name columns that this one lacks."""
    try:
        return dataset.select(where)
    except DataError as error:
        log.info("%s", error.message)
        log.warning("the run's validation filter `%s` does not work here: measuring other rows", where)
        return np.empty(0, dtype=np.int64)


def _only_split(dataset: Dataset, rows: Rows) -> str | None:
    splits = _splits(dataset, rows)
    return next(iter(splits)) if len(splits) == 1 and sum(splits.values()) == len(rows) else None


def _splits(dataset: Dataset, rows: Rows) -> dict[str, int]:
    """Rows a named split, among these; a dataset may have no splits."""
    if SPLIT not in dataset.schema.names:
        return {}
    counts = pc.value_counts(dataset.take(rows, [SPLIT]).column(0)).to_pylist()
    return {count["values"]: count["counts"] for count in counts if count["values"] is not None}


def _listed(splits: dict[str, int]) -> str:
    return ", ".join(f"`{name}` ({count:,} rows)" for name, count in sorted(splits.items()))


def count_trained_on(config: Config, meta: dict[str, Any], dataset: Dataset, rows: Rows) -> int | None:
    """How many of the chosen images the run was trained on, by id; None where its own dataset is gone."""
    ids = set(_ids(dataset, rows))
    versions = {entry["uri"]: entry["version"] for entry in meta.get("datasets", ())}
    seen: set[str] = set()
    for uri, where in training_sources(config.data):
        try:
            trained = Dataset(uri, version=versions.get(uri), columns=dataset.columns)
            chosen = trained.select(where, limit=config.data.limit)
        except DataError as error:
            log.warning("whether the run was trained on these rows cannot be told: %s", error.message)
            return None
        seen.update(ids.intersection(_ids(trained, chosen)))
    if seen:
        log.warning(
            "the run was trained on %d of these %d images (`data.train: %s`): the numbers flatter it on new ones",
            len(seen),
            len(rows),
            config.data.train or "every row",
        )
    return len(seen)


def _ids(dataset: Dataset, rows: Rows) -> Iterator[str]:
    for start in range(0, len(rows), IDS_AT_ONCE):
        column = dataset.take(rows[start : start + IDS_AT_ONCE], [dataset.columns.image_id]).column(0)
        yield from column.to_pylist()


def _twin_metrics(dataset: Dataset, rows: Rows, image_ND: Tensor, text_MD: Tensor, owner_M: Tensor) -> dict[str, Any]:
    """Where images have twins: retrieval among the originals, and how often a caption finds its image of the two."""
    names = set(dataset.schema.names)
    if TWIN_OF not in names:
        return {}
    ids, originals = (column.to_pylist() for column in dataset.take(rows, [dataset.columns.image_id, TWIN_OF]).columns)
    kinds = dataset.take(rows, [TWIN_KIND]).column(0).to_pylist() if TWIN_KIND in names else [None] * len(rows)
    positions = {image_id: position for position, image_id in enumerate(ids)}
    pairs: dict[str, list[tuple[int, int]]] = {}
    for twin, (original, kind) in enumerate(zip(originals, kinds, strict=True)):
        if original in positions:
            pairs.setdefault(kind or NO_KIND, []).append((positions[original], twin))
    is_original_N = torch.tensor([original is None for original in originals], device=owner_M.device)
    found: dict[str, Any] = {
        "twins": {
            kind: {
                "num_pairs": len(of_kind),
                "accuracy": metrics.pair_accuracy(image_ND, text_MD, owner_M, torch.tensor(of_kind)),
            }
            for kind, of_kind in sorted(pairs.items())
        }
    }
    captioned_M = is_original_N[owner_M]
    if captioned_M.any():
        new_position_N = is_original_N.cumsum(0) - 1
        found["without_twins"] = {
            "num_images": int(is_original_N.sum()),
            **metrics.retrieval(image_ND[is_original_N], text_MD[captioned_M], new_position_N[owner_M[captioned_M]]),
        }
    return found
