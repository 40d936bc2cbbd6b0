"""`clipkit eval`: measures a checkpoint of a run on the chosen rows of a dataset."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from clipkit.config import Config, EvaluatorSection
from clipkit.data.training_rows import named_columns, training_sources
from clipkit.errors import DataError
from clipkit.evaluators import EvaluatorContext, build_evaluator
from clipkit.evaluators.picture import check_writable
from clipkit.opening import open_model
from clipkit.store import Dataset, Rows
from clipkit.types import Progress, Table, no_progress

log = logging.getLogger(__name__)

SPLIT = "split"
BATCH_SIZE = 128
IDS_AT_ONCE = 65536


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows to measure on: all that match `where`; `split` is set if they are those of one split."""

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
    progress: Progress = no_progress,
) -> tuple[dict[str, Any], list[str | Table]]:
    """Measure a checkpoint of a run on a dataset with the evaluators of the run; returns the report, and its text.

    With one evaluator its numbers are at the top level of the report, with several under `evaluations` by name.
    """
    if picture is not None:
        check_writable(picture)
    model = open_model(run, checkpoint=checkpoint, device=device)
    dataset = Dataset(uri, columns=named_columns(model.config.data))
    sections = _evaluators_of(model.config)
    report: dict[str, Any] = {
        "run": str(run),
        "checkpoint": str(model.checkpoint),
        "step": model.step,
        "dataset": str(uri),
        "dataset_version": dataset.version,
    }
    text: list[str | Table] = [f"run {run}, step {model.step}, on {uri} (version {dataset.version})"]
    for name, section in sections.items():
        chosen = select(dataset, section.where, split=split, where=where)
        result: dict[str, Any] = {
            "split": chosen.split,
            "where": chosen.where,
            "trained_on": count_trained_on(model.config, model.meta, dataset, chosen.rows),
        }
        context = EvaluatorContext(model.task, dataset, chosen.rows, model.task_data, BATCH_SIZE)
        evaluator = build_evaluator(section, context)
        with torch.no_grad():
            measured = evaluator.report(model.module, picture=picture, progress=progress)
        result |= measured
        rows = f"split `{chosen.split}`" if chosen.split else f"rows `{chosen.where or 'all'}`"
        text += [f"{name}: {rows}" if len(sections) > 1 else rows, *evaluator.describe(measured)]
        if len(sections) == 1:
            report |= result
        else:
            report.setdefault("evaluations", {})[name] = result
    return report, text


def _evaluators_of(config: Config) -> dict[str, EvaluatorSection]:
    """The evaluators of the run, or the one of its task; of those that differ only in their rows, the first."""
    sections = config.evaluators or {"": config.task.evaluator()}
    seen: list[EvaluatorSection] = []
    found: dict[str, EvaluatorSection] = {}
    for name, section in sections.items():
        without_rows = section.model_copy(update={"where": None, "dataset": None, "every": None})
        if without_rows not in seen:
            seen.append(without_rows)
            found[name] = section
    return found


def select(dataset: Dataset, default: str | None, *, split: str | None, where: str | None) -> Selection:
    """The rows of `split` and `where`, else of the run's filter `default`, else of the only split."""
    if split is not None or where is not None:
        if split is None and default is not None:
            log.warning("`--where` replaces the run's own filter, `%s`; add `--split` to stay in one split", default)
        return _select_asked(dataset, split=split, where=where)
    if default is not None and len(rows := _select_or_none(dataset, default)):
        return Selection(rows, default, _only_split(dataset, rows))
    splits = _splits(dataset, dataset.select())
    if len(splits) > 1:
        reason = "matches no row of it" if default is not None else "is not set in the run"
        raise DataError(
            f"`{dataset.uri}` has several splits: {_listed(splits)}; the filter of the run's evaluation {reason}",
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
    """The rows of a filter; none, with a warning, if it names columns that this dataset does not have."""
    try:
        return dataset.select(where)
    except DataError as error:
        log.info("%s", error.message)
        log.warning("the run's filter `%s` does not work on this dataset: choosing other rows", where)
        return np.empty(0, dtype=np.int64)


def _only_split(dataset: Dataset, rows: Rows) -> str | None:
    splits = _splits(dataset, rows)
    return next(iter(splits)) if len(splits) == 1 and sum(splits.values()) == len(rows) else None


def _splits(dataset: Dataset, rows: Rows) -> dict[str, int]:
    """The number of these rows in each split; empty for a dataset without splits."""
    if SPLIT not in dataset.schema.names:
        return {}
    counts = pc.value_counts(dataset.take(rows, [SPLIT]).column(0)).to_pylist()
    return {count["values"]: count["counts"] for count in counts if count["values"] is not None}


def _listed(splits: dict[str, int]) -> str:
    return ", ".join(f"`{name}` ({count:,} rows)" for name, count in sorted(splits.items()))


def count_trained_on(config: Config, meta: Mapping[str, Any], dataset: Dataset, rows: Rows) -> int | None:
    """How many of the chosen images the run was trained on, by id; None if its dataset cannot be opened."""
    ids = set(_ids(dataset, rows))
    versions = {entry["uri"]: entry["version"] for entry in meta.get("datasets", ())}
    seen: set[str] = set()
    for uri, where in training_sources(config.data):
        try:
            trained = Dataset(uri, version=versions.get(uri), columns=dataset.columns)
            chosen = trained.select(where, limit=config.data.limit)
        except DataError as error:
            log.warning("it is unknown whether the run was trained on these rows: %s", error.message)
            return None
        seen.update(ids.intersection(_ids(trained, chosen)))
    if seen:
        log.warning(
            "the run was trained on %d of these %d images (`data.train: %s`): expect lower numbers on new images",
            len(seen),
            len(rows),
            config.data.train or "every row",
        )
    return len(seen)


def _ids(dataset: Dataset, rows: Rows) -> Iterator[str]:
    for start in range(0, len(rows), IDS_AT_ONCE):
        column = dataset.take(rows[start : start + IDS_AT_ONCE], [dataset.columns.image_id]).column(0)
        yield from column.to_pylist()
