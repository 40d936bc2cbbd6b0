"""The ingest workflow: lock, plan or resume, read the sources, commit."""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import lance

from clipkit.errors import DataError
from clipkit.files import permission_to
from clipkit.readers import Item, SourceReport, detect, read
from clipkit.readers.loading import SourceGuard, load_images
from clipkit.signals import StopSignals
from clipkit.store import commit
from clipkit.store.locks import exclusive, is_remote
from clipkit.store.rejections import record_rejections
from clipkit.store.shards import discard, remove_orphans, writing_error
from clipkit.store.staging import Staging
from clipkit.store.writer import DatasetWriter
from clipkit.workflows.ingest.intake import Intake
from clipkit.workflows.ingest.options import IngestOptions, absolute_source
from clipkit.workflows.ingest.start import Finished, IngestJob, start
from clipkit.workflows.ingest.summary import Progress, Summary, count_without_caption, describe_source

log = logging.getLogger(__name__)


def ingest(sources: Sequence[str], out: str, options: IngestOptions, *, progress: Progress | None = None) -> Summary:
    """Read the sources into the dataset; raises DataError, after which finished shards are there for `resume`."""
    started = time.monotonic()
    out = out if is_remote(out) else os.path.abspath(out)
    sources = [absolute_source(source) for source in sources]
    if options.retry is None:
        _check_sources(sources, options)
    with permission_to("write", out):
        _check_out(out)
    try:
        with exclusive(out) as folder, StopSignals() as signals:
            staging = Staging(folder)
            job = start(out, sources, options, staging)
            if isinstance(job, Finished):
                return replace(job.summary, seconds=time.monotonic() - started)
            summary = _run(out, job, staging, signals, progress)
    except OSError as error:  # a full disk, above all: lance and this package's own files say it alike
        raise writing_error(out, error) from error
    first_row_s = None if summary.first_row_s is None else summary.first_row_s - started
    return replace(summary, seconds=time.monotonic() - started, first_row_s=first_row_s)


def _check_sources(sources: Sequence[str], options: IngestOptions) -> None:
    for source in sources:
        with permission_to("read", source):
            _check_source(source, options)


def _check_source(source: str, options: IngestOptions) -> None:
    has_pattern = any(character in source for character in "{*?[")
    if "://" not in source and not has_pattern and not Path(source).exists():
        raise DataError(f"there is no `{source}`", "the first arguments are what to read, the last is the dataset")
    if options.read.format is None:
        detect(source)


def _check_out(out: str) -> None:
    path = Path(out)
    if is_remote(out) or not path.exists():
        return
    if not path.is_dir():
        raise DataError(f"`{out}` is a file, not a dataset", "choose another name for the dataset")
    if any(path.iterdir()) and not any((path / name).is_dir() for name in ("_versions", "_ingest")):
        raise DataError(f"`{out}` is a folder without a dataset", "choose another name for the dataset")


def _run(out: str, job: IngestJob, staging: Staging, signals: StopSignals, progress: Progress | None) -> Summary:
    if job.plan.kind == "replace" and job.plan.base_version is None and not is_remote(out):
        remove_orphans(out, [path for receipt in staging.receipts for path in receipt.paths])
    writer = DatasetWriter(out, staging, storage=job.options.storage)
    intake = Intake(out, job, staging, writer, progress)
    reports: list[SourceReport] = []
    is_whole = not writer.position.num_items
    first = writer.position.source
    try:
        for number in range(first, len(job.sources)):
            reports.append(SourceReport())
            _take_in(number, job, writer, intake, signals, reports[-1])
            if signals.exit_code:
                writer.finish_shard()
                log.warning("interrupted: %d rows are kept; run the same command with --resume", writer.counts.rows)
                signals.raise_exit()
        writer.finish_shard()
    except BaseException:
        writer.abandon()
        if not staging.receipts:  # there is nothing to resume
            discard(out, staging, has_versions=job.plan.base_version is not None)
        raise
    return replace(
        _finish(out, job, staging, writer, intake, reports),
        # The images of what an earlier attempt read are not known.
        without_caption=sum(map(count_without_caption, reports)) if is_whole else 0,
    )


def _take_in(
    number: int, job: IngestJob, writer: DatasetWriter, intake: Intake, signals: StopSignals, report: SourceReport
) -> None:
    """Read one source, from where an earlier attempt stopped."""
    source = job.sources[number]
    guard = SourceGuard(source)
    intake.start_source(number)
    loaded = load_images(
        _items(source, number, job, writer, report),
        job.options.image,
        fetch=job.options.fetch,
        wanted=intake.wants,
        guard=guard,
        stopped=lambda: signals.exit_code > 0,
        digests=job.options.drop_repeats,
    )
    for one in loaded:
        intake.take(one)


def _items(source: str, number: int, job: IngestJob, writer: DatasetWriter, report: SourceReport) -> Iterator[Item]:
    """The source's items after those that have receipts."""
    position = writer.position
    done = position.num_items if position.source == number else 0
    try:
        items = read(source, job.options.read, skip=max(0, done - 1), report=report)
        if done and (last := next(items, None)) is not None and last.image_id != position.last_id:
            raise DataError(
                f"`{source}` has changed since the ingest was interrupted: its item {done} was "
                f"`{position.last_id}` and is `{last.image_id}`",
                "start over with --overwrite",
            )
        with permission_to("read", source):
            yield from items
    except (OSError, EOFError, zlib.error) as error:  # the last two of compressed files that are truncated or damaged
        raise DataError(
            f"`{source}` cannot be read any further: {error}",
            "fix it, then run the same command with --resume: finished shards are kept",
        ) from error


def _finish(
    out: str,
    job: IngestJob,
    staging: Staging,
    writer: DatasetWriter,
    intake: Intake,
    reports: Sequence[SourceReport],
) -> Summary:
    """Write down what was rejected, then commit."""
    rejected = [line for receipt in staging.receipts for line in receipt.rejected]
    reasons = Counter(line["reason"] for line in rejected if "repeat_of" not in line)
    num_rejected = reasons.total()
    counts = writer.counts
    lines = [{**line, "ingest": job.plan.id} for line in rejected]
    path = record_rejections(out, lines, settled=None if job.plan.kind == "replace" else intake.settled)
    intake.check_limit(at_end=True)
    if not counts.rows and job.plan.kind == "replace":
        staging.clear()
        most = "; ".join(f"{reason}: {number}" for reason, number in reasons.most_common(3))
        raise DataError(
            f"no row could be read from {', '.join(f'`{s}`' for s in job.sources)}" + (f" ({most})" if most else ""),
            f"`{path}` names every row" if path else "check the folder and --format",
        )
    read_sources = job.sources[len(job.sources) - len(reports) :]  # without those that an earlier attempt read
    described = [describe_source(source, report) for source, report in zip(read_sources, reports, strict=True)]
    provenance = {
        **job.plan.provenance,
        "reports": described,
        "id": job.plan.id,
        "fingerprint": job.plan.fingerprint,
        "created": job.plan.created,
        "rows": counts.rows,
        "captions": counts.captions,
        "bytes": counts.bytes,
        "splits": dict(counts.splits),
        "rejected": num_rejected,
    }
    image_storage = writer.image_storage
    if job.options.read.split_files and counts.rows and not counts.splits:
        log.warning("no row is in a list of --split-file: a list names one image a line")
    if counts.rows or num_rejected:  # a retry reads from the dataset how the rejected rows were read
        version = writer.commit(provenance)
    else:
        version = commit.current_version(out) or 0
        staging.clear()
    return Summary(
        out=out,
        version=version,
        total_rows=lance.dataset(out).count_rows(),
        counts=counts,
        rejected=num_rejected,
        reasons=dict(reasons.most_common()),
        rejected_file=path,
        image_storage=image_storage,
        first_row_s=writer.first_write_at,
        sources=described,
    )
