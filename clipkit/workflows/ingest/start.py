"""How an ingest begins: from nothing, on top of a dataset, or where an earlier attempt stopped."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import lance

from clipkit.errors import DataError
from clipkit.readers import detect
from clipkit.store import commit
from clipkit.store.provenance import first_provenance, provenances
from clipkit.store.rejections import dataset_name, read_rejections, rejections_path
from clipkit.store.schema import OWN, is_blob
from clipkit.store.shards import discard
from clipkit.store.staging import Counts, IngestPlan, Kind, Staging
from clipkit.workflows.ingest.options import IMAGE_OPTIONS, READ_OPTIONS, IngestOptions, describe, fingerprint
from clipkit.workflows.ingest.summary import Summary

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IngestJob:
    """The plan, and what to read."""

    plan: IngestPlan
    sources: Sequence[str]
    options: IngestOptions
    only_ids: frozenset[str] | None = None  # the rows to retry


@dataclass(frozen=True, slots=True)
class Finished:
    """The ingest was finished before."""

    summary: Summary


def start(out: str, sources: Sequence[str], options: IngestOptions, staging: Staging) -> IngestJob | Finished:
    """The job that this command asks for; raises DataError where the existing dataset does not allow it."""
    only_ids = None
    current = commit.current_version(out)
    if options.retry is not None:
        sources, options, only_ids = _retry(out, sources, options, current)
    kind = _kind(options, current)
    formats = [options.read.format or detect(source) for source in sources]
    description = describe(sources, options, formats=formats)
    mark = fingerprint(kind, description)
    _settle_leftovers(out, options, staging, has_versions=current is not None)
    if staging.plan is not None:
        _check_same(out, staging.plan, mark, description)
        log.info("resuming after %d rows", sum(receipt.counts.rows for receipt in staging.receipts))
        return IngestJob(staging.plan, sources, options, only_ids)
    if current is not None and kind == "replace":
        done = first_provenance(lance.dataset(out))
        if options.resume and done.get("fingerprint") == mark:
            return Finished(_summary_of(out, done))
        if options.mode == "create":
            raise DataError(
                f"`{out}` already exists" + (", from other sources or options" if options.resume else ""),
                "replace it with --overwrite, or add to it with --append or --upsert",
            )
    plan = IngestPlan(
        id=uuid.uuid4().hex[:12],
        kind=kind,
        fingerprint=mark,
        provenance=description,
        base_version=current,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    staging.begin(plan)
    return IngestJob(plan, sources, options, only_ids)


def _settle_leftovers(out: str, options: IngestOptions, staging: Staging, *, has_versions: bool) -> None:
    """Drop what an earlier attempt left, unless it is resumed; DataError where the options do not say which."""
    if staging.plan is None:
        return
    if not staging.receipts or commit.is_committed(out, staging.receipts):
        staging.clear()  # it finished no shard, or crashed after its commit
    elif options.mode == "overwrite" and not options.resume:
        discard(out, staging, has_versions=has_versions)
    elif not options.resume:
        raise DataError(
            f"an ingest into `{out}` was interrupted, and its finished shards are still there",
            "resume it with the same command and --resume, or start over with --overwrite; to drop them, remove "
            f"`{staging.folder}`",
        )


def _kind(options: IngestOptions, current: int | None) -> Kind:
    if current is None:
        return "replace"
    if options.mode == "upsert":
        return "upsert"
    return "append" if options.mode == "append" or options.retry is not None else "replace"


def _check_same(out: str, plan: IngestPlan, mark: str, description: Mapping[str, Any]) -> None:
    if plan.fingerprint == mark:
        return
    differences = [name for name, value in description.items() if plan.provenance.get(name) != value]
    raise DataError(
        f"the interrupted ingest into `{out}` had another command"
        + (f" (other {', '.join(differences)})" if differences else f" (--{plan.kind})"),
        "resume it with the command that began it, or start over with --overwrite",
    )


def _summary_of(out: str, provenance: Mapping[str, Any]) -> Summary:
    dataset = lance.dataset(out)
    counts = Counts(
        rows=provenance["rows"],
        captions=provenance["captions"],
        bytes=provenance["bytes"],
        splits=provenance["splits"],
    )
    path = rejections_path(out)
    return Summary(
        out=out,
        version=dataset.version,
        total_rows=dataset.count_rows(),
        counts=counts,
        rejected=provenance["rejected"],
        rejected_file=path if provenance["rejected"] and path.exists() else None,
        image_storage="blob" if is_blob(dataset.schema.field(OWN.image)) else "binary",
        already_finished=True,
    )


def _retry(
    out: str, sources: Sequence[str], options: IngestOptions, current: int | None
) -> tuple[Sequence[str], IngestOptions, frozenset[str]]:
    """Sources, options and ids of the rows that an earlier ingest rejected."""
    assert options.retry is not None
    if not options.retry.exists():
        raise DataError(f"there is no `{options.retry}`", "name the `rejected.jsonl` that an ingest wrote")
    name = dataset_name(out)
    lines = [
        line for line in read_rejections(options.retry) if line.get("dataset", name) == name and "repeat_of" not in line
    ]
    if not lines:
        raise DataError(f"`{options.retry}` names no row of `{name}`", "there is nothing to retry")
    ids = frozenset(line["id"] for line in lines)
    if sources:
        return sources, options, ids
    if current is None:
        raise DataError(
            f"there is no dataset at `{out}` that says where its rows came from",
            "name the source too: clipkit ingest SOURCE OUT --retry REJECTED.jsonl",
        )
    wanted = {line.get("ingest") for line in lines}
    runs = [run for run in provenances(out) if run["id"] in wanted or wanted == {None}]
    if not runs or len({json.dumps([run["read"], run["image"]]) for run in runs}) > 1:
        raise DataError(
            f"`{out}` does not say how the rows of `{options.retry}` were read"
            if not runs
            else f"the rows of `{options.retry}` were read by ingests with different options",
            "name the source and its options too: clipkit ingest SOURCE OUT --retry REJECTED.jsonl",
        )
    sources = list(dict.fromkeys(source for run in reversed(runs) for source in run["sources"]))
    options = replace(
        options,
        read=READ_OPTIONS.validate_python(runs[0]["read"]),
        image=IMAGE_OPTIONS.validate_python(runs[0]["image"]),
        drop_repeats=runs[0]["dedupe"] == "exact",
        on_duplicate=runs[0]["on_duplicate"],
    )
    return sources, options, ids
