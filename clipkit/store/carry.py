"""What rows that are replaced keep: the values of columns that the new rows do not bring."""

from __future__ import annotations

from collections.abc import Iterator

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.store.groups import Groups
from clipkit.store.rows import base_schema
from clipkit.store.schema import ORIENTATION, OWN, is_blob


class Carry:
    """The rows of a dataset by their id, for the columns that rows with the same id are to keep."""

    def __init__(self, dataset: lance.LanceDataset) -> None:
        self._dataset = dataset
        self._new = {*base_schema(image_is_blob=False).names, ORIENTATION}
        self._row_of = Groups(iterate_ids(dataset)).first

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns that an upsert writes: all, but for blobs that were added later (they become null)."""
        return pa.schema([f for f in schema if f.name in self._new or not is_blob(f)])

    def fill(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with the old values where it has none."""
        kept = [f.name for f in batch.schema if f.name not in self._new and f.name in self._dataset.schema.names]
        ids = batch.column(OWN.image_id).to_pylist()
        rows = [self._row_of(image_id) for image_id in ids]
        known = [row for row in rows if row is not None]
        if not kept or not known:
            return batch
        old = self._dataset.take(known, columns=kept)
        places = np.cumsum([row is not None for row in rows]) - 1
        indices = pa.array(places, mask=np.array([row is None for row in rows]))
        arrays = batch.columns
        for name in kept:
            number = batch.schema.get_field_index(name)
            values = old.column(name).combine_chunks().take(indices)
            new = arrays[number]
            arrays[number] = values if new.null_count == len(new) else pc.coalesce(new, values)
        return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def iterate_ids(dataset: lance.LanceDataset) -> Iterator[str]:
    """The ids of a dataset in stored order."""
    for batch in dataset.scanner(columns=[OWN.image_id], scan_in_order=True).to_batches():
        yield from batch.column(0).to_pylist()
