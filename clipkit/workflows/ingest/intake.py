"""What happens to each item that was read: it is stored, skipped or rejected."""

from __future__ import annotations

import lance
import numpy as np

from clipkit.errors import DataError
from clipkit.readers import Rejected, read
from clipkit.readers.loading import Loaded, content_digest
from clipkit.store.carry import iterate_ids
from clipkit.store.commit import staged_ids
from clipkit.store.dataset import Dataset
from clipkit.store.groups import Groups
from clipkit.store.rows import DatasetRow
from clipkit.store.staging import Counts, Position, Staging
from clipkit.store.writer import DatasetWriter
from clipkit.types import Record
from clipkit.workflows.ingest.start import IngestJob
from clipkit.workflows.ingest.summary import Progress

READ_ROWS = 256


class Intake:
    """Decides about each item in turn and tells the writer; remembers the ids that are stored."""

    def __init__(
        self, out: str, job: IngestJob, staging: Staging, writer: DatasetWriter, progress: Progress | None
    ) -> None:
        self._job = job
        self._writer = writer
        self._progress = progress
        self._taken = Groups(staged_ids(out, staging.receipts))
        self._existing = Groups()
        if job.plan.kind == "append":
            base = lance.dataset(out, version=job.plan.base_version)
            self._existing = Groups(iterate_ids(base))
        self._digests = _known_digests(out, job, staging) if job.options.drop_repeats else None
        self._later_captions = _later_captions(job) if job.options.on_duplicate == "merge-captions" else {}
        self._source = writer.position.source
        self._num_items = writer.position.num_items
        self._num_rejected = sum("repeat_of" not in line for receipt in staging.receipts for line in receipt.rejected)
        self._num_seen = self._num_rejected + writer.counts.rows

    @property
    def settled(self) -> Groups:
        """The ids of the rows that this ingest stored."""
        return self._taken

    def start_source(self, number: int) -> None:
        if number != self._source:
            self._source, self._num_items = number, 0

    def wants(self, record: Record) -> bool:
        """Whether a record's image needs to be read at all."""
        image_id = record.image_id
        if self._job.only_ids is not None and image_id not in self._job.only_ids:
            return False
        if image_id in self._existing:
            return False
        return self._job.options.on_duplicate == "error" or image_id not in self._taken

    def take(self, loaded: Loaded) -> None:
        item = loaded.item
        self._num_items += 1
        if isinstance(item, Rejected):
            if self._job.only_ids is None or item.image_id in self._job.only_ids:
                self._reject(item)
        elif loaded.image is None:
            self._skip(item)
        elif item.image_id in self._taken:
            self._duplicate(item)
        elif self._digests is not None and (first_id := self._digests.get(loaded.digest)) is not None:
            self._repeat(item, first_id)
        else:
            self._store(item, loaded)
        self._writer.advance(Position(self._source, self._num_items, item.image_id))

    def check_limit(self, *, at_end: bool = False) -> None:
        """Raise DataError where more rows were rejected than `max_rejected` allows."""
        limit = self._job.options.max_rejected
        if limit is not None and limit.is_exceeded(self._num_rejected, self._num_seen, at_end=at_end):
            raise DataError(
                f"{self._num_rejected} of {self._num_seen} rows were rejected, more than --max-rejected {limit}",
                "nothing was committed; fix the source, or run again with --resume and a higher limit",
            )

    def _store(self, record: Record, loaded: Loaded) -> None:
        image = loaded.image
        assert image is not None
        captions = list(record.captions)
        for caption in self._later_captions.get(record.image_id, ()):
            if caption not in captions:
                captions.append(caption)
        row = DatasetRow(
            image_id=record.image_id,
            image=image.data,
            captions=captions,
            width=image.width,
            height=image.height,
            orientation=image.orientation,
            split=record.split,
            extra=record.extra,
        )
        self._taken.add(record.image_id)
        if self._digests is not None:
            self._digests[loaded.digest] = record.image_id
        self._writer.add(row, digest=loaded.digest)
        self._num_seen += 1
        if self._progress is not None:
            self._progress.update(rows=1, rejected=0, num_bytes=len(image.data))

    def _reject(self, item: Rejected) -> None:
        self._writer.reject({"id": item.image_id, "source": item.source, "reason": item.reason})
        self._num_rejected += 1
        self._num_seen += 1
        if self._progress is not None:
            self._progress.update(rows=0, rejected=1, num_bytes=0)
        self.check_limit()

    def _skip(self, record: Record) -> None:
        """Count a record whose image was not read: the dataset or an earlier record has its id."""
        if record.image_id in self._existing:
            self._writer.count(Counts(existing=1))
        elif record.image_id in self._taken:
            self._writer.count(Counts(duplicates=1))

    def _duplicate(self, record: Record) -> None:
        if self._job.options.on_duplicate == "error":
            raise DataError(
                f"the id `{record.image_id}` occurs twice (again at {record.source})",
                "keep the first with --on-duplicate first, or all captions with --on-duplicate merge-captions; if the "
                "rows are different images, name the column that tells them apart, such as --id-column image",
            )
        self._writer.count(Counts(duplicates=1))

    def _repeat(self, record: Record, first_id: str) -> None:
        reason = f"the same image as `{first_id}`"
        line = {"id": record.image_id, "source": record.source, "reason": reason, "repeat_of": first_id}
        self._writer.reject(line)
        self._writer.count(Counts(repeats=1))


def _known_digests(out: str, job: IngestJob, staging: Staging) -> dict[str, str]:
    """Digests of the images that are stored already, each with its image's id."""
    known: dict[str, str] = {}
    if job.plan.kind == "append":
        dataset = Dataset(out, version=job.plan.base_version)
        for start in range(0, len(dataset), READ_ROWS):
            rows = np.arange(start, min(start + READ_ROWS, len(dataset)))
            ids = dataset.take(rows, [dataset.columns.image_id]).column(0).to_pylist()
            for image_id, image in zip(ids, dataset.take_images(rows), strict=True):
                known.setdefault(content_digest(image), image_id)
    for receipt in staging.receipts:
        known.update(receipt.digests)
    return known


def _later_captions(job: IngestJob) -> dict[str, list[str]]:
    """For ids that occur more than once in the sources, the captions of all but the first occurrence."""
    seen = Groups()
    later: dict[str, list[str]] = {}
    for source in job.sources:
        for item in read(source, job.options.read):
            if isinstance(item, Record):
                if item.image_id in seen:
                    later.setdefault(item.image_id, []).extend(item.captions)
                seen.add(item.image_id)
    return later
