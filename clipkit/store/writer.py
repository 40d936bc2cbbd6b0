"""Rows into a dataset, a shard at a time: batches, fragments, receipts, and one commit at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import lance
import pyarrow as pa

from clipkit.store import commit
from clipkit.store.carry import Carry
from clipkit.store.rows import DatasetRow, base_schema, further_fields, to_batch
from clipkit.store.schema import OWN, is_blob
from clipkit.store.shards import ShardWriter
from clipkit.store.staging import Counts, IngestPlan, Position, Receipt, Staging

Storage = Literal["auto", "binary", "blob"]
# Measured (us a row read at random, blob against binary): 21 KB 11-12 / 9, 165 KB 25 / 77-93. Below, plain bytes are
# as fast and everybody's tools read them.
BLOB_FROM_BYTES = 128_000
FIRST_BATCH_ROWS = 1024  # the types of further columns and the storage of images are decided by these
BATCH_ROWS = 256
BATCH_BYTES = 32_000_000


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """When a shard is finished: the most that a crash can cost."""

    rows: int = 25_000
    bytes: int = 1_000_000_000
    seconds: float = 60.0


@dataclass(slots=True)
class _Shard:
    """What has been added since the last receipt."""

    fragments: list[Mapping[str, Any]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    rejected: list[Mapping[str, str]] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)


class DatasetWriter:
    """Writes rows after those that the staging folder has receipts for; only for the holder of the dataset's lock."""

    def __init__(
        self,
        uri: str,
        staging: Staging,
        *,
        storage: Storage = "auto",
        limits: ShardLimits | None = None,
    ) -> None:
        if staging.plan is None:
            raise ValueError("the staging folder has no plan")
        self._uri = uri
        self._staging = staging
        self.plan: IngestPlan = staging.plan
        self._storage = storage
        self._limits = limits or ShardLimits()
        self._base = None
        if self.plan.kind != "replace":
            self._base = lance.dataset(uri, version=self.plan.base_version)
        self._carry = Carry(self._base) if self.plan.kind == "upsert" else None
        self._schema = self._known_schema()
        self._rows: list[DatasetRow] = []
        self._num_bytes = 0
        self._position = staging.receipts[-1].position if staging.receipts else Position()
        self._writer: ShardWriter | None = None
        self._shard = _Shard()
        self.first_write_at: float | None = None  # on the clock of time.monotonic

    @property
    def position(self) -> Position:
        return self._position

    @property
    def counts(self) -> Counts:
        """Of everything that has been written, in earlier attempts as well."""
        return sum((receipt.counts for receipt in self._staging.receipts), self._shard.counts)

    @property
    def image_storage(self) -> str:
        return "blob" if self._image_is_blob() else "binary"

    def add(self, row: DatasetRow, *, digest: str = "") -> None:
        self._rows.append(row)
        self._num_bytes += len(row.image)
        if digest:
            self._shard.digests[digest] = row.image_id

    def reject(self, row: Mapping[str, str]) -> None:
        self._shard.rejected.append(row)

    def count(self, counts: Counts) -> None:
        self._shard.counts += counts

    def advance(self, position: Position) -> None:
        """Note how far the sources are read: everything up to there has been added, rejected or counted."""
        self._position = position
        limit = FIRST_BATCH_ROWS if self._schema is None else BATCH_ROWS
        if len(self._rows) >= limit or self._num_bytes >= BATCH_BYTES:
            self._flush()
        counts = self._shard.counts
        if (
            counts.rows >= self._limits.rows
            or counts.bytes >= self._limits.bytes
            or time.monotonic() - self._shard.started >= self._limits.seconds
        ):
            self.finish_shard()

    def finish_shard(self) -> None:
        """Write what there is to disk, with its receipt."""
        self._flush()
        self._close_fragment()
        shard, self._shard = self._shard, _Shard()
        self._staging.add(
            Receipt(
                fragments=tuple(shard.fragments),
                columns=self._further_columns(),
                image_is_blob=self._image_is_blob(),
                position=self._position,
                counts=shard.counts,
                rejected=tuple(shard.rejected),
                digests=shard.digests,
            )
        )

    def abandon(self) -> None:
        """Stop after an error: finished shards are kept, the current one is dropped."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        self._rows = []

    def commit(self, provenance: Mapping[str, Any]) -> int:
        """Make all finished shards visible in one new version; returns its number."""
        receipts = self._staging.receipts
        if self.plan.kind == "replace":
            version = commit.commit_replace(
                self._uri, receipts, self._schema, provenance, base_version=self.plan.base_version
            )
        elif self.plan.kind == "append":
            assert self.plan.base_version is not None
            version = commit.commit_append(self._uri, receipts, provenance, base_version=self.plan.base_version)
        else:
            version = commit.commit_upsert(self._uri, receipts, provenance)
        self._staging.clear()
        return version

    def _image_is_blob(self) -> bool:
        return self._schema is not None and is_blob(self._schema.field(OWN.image))

    def _known_schema(self) -> pa.Schema | None:
        """The schema that the existing dataset or earlier shards settle; None where there are none."""
        receipts = [receipt for receipt in self._staging.receipts if receipt.fragments]
        if self._base is not None:
            return self._schema_of_base([])
        if not receipts:
            return None
        schema = base_schema(image_is_blob=receipts[-1].image_is_blob)
        for name, type_name in receipts[-1].columns.items():
            schema = schema.append(pa.field(name, pa.type_for_alias(type_name)))
        return schema

    def _schema_of_base(self, names: Sequence[str]) -> pa.Schema:
        """Those of the dataset's columns that rows fill: the usual ones and `names`; all of them in an upsert."""
        schema = lance.dataset(self._uri).schema
        if self._carry is not None:
            return self._carry.schema(schema)
        usual = {*base_schema(image_is_blob=False).names, *names}
        return pa.schema([f for f in schema if f.name in usual])

    def _further_columns(self) -> dict[str, str]:
        if self._schema is None or self._base is not None:
            return {}
        usual = base_schema(image_is_blob=False).names
        return {f.name: str(f.type) for f in self._schema if f.name not in usual}

    def _flush(self) -> None:
        """Hand the collected rows to the shard's thread, after adding the columns that are new."""
        if not self._rows:
            return
        rows, self._rows, self._num_bytes = self._rows, [], 0
        if self._schema is None:
            self._schema = base_schema(image_is_blob=self._wants_blob(rows))
        if fields := further_fields(rows, self._schema.names):
            self._close_fragment()
            self._grow(fields)
        batch = to_batch(rows, self._schema)
        if self._carry is not None:
            batch = self._carry.fill(batch)
        if self._writer is None:
            self._writer = ShardWriter(self._uri, self._schema, mode=self._mode())
        self._writer.write(batch)
        if self.first_write_at is None:
            self.first_write_at = time.monotonic()
        splits = Counter(row.split for row in rows if row.split is not None)
        num_captions, num_bytes = sum(len(row.captions) for row in rows), sum(len(row.image) for row in rows)
        self.count(Counts(rows=len(rows), captions=num_captions, bytes=num_bytes, splits=splits))

    def _grow(self, fields: Sequence[pa.Field]) -> None:
        """Add columns, null in the rows written before."""
        assert self._schema is not None
        if self._base is None:
            for field_ in fields:
                self._schema = self._schema.append(field_)
            return
        dataset = lance.dataset(self._uri)
        missing = [field_ for field_ in fields if field_.name not in dataset.schema.names]
        if missing:
            dataset.add_columns(missing)
        self._schema = self._schema_of_base([*self._schema.names, *(field_.name for field_ in fields)])

    def _wants_blob(self, rows: Sequence[DatasetRow]) -> bool:
        if self._storage == "auto":
            return sum(len(row.image) for row in rows) >= BLOB_FROM_BYTES * len(rows)
        return self._storage == "blob"

    def _mode(self) -> Literal["create", "append", "overwrite"]:
        if self.plan.kind != "replace":
            return "append"
        return "create" if self.plan.base_version is None else "overwrite"

    def _close_fragment(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            self._shard.fragments.append(writer.finish())
