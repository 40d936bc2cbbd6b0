"""The Lance dataset: its schema, reading, the crash-safe writer, versions, provenance and added columns."""

from clipkit.store.dataset import Dataset, Rows
from clipkit.store.schema import Columns

__all__ = ["Columns", "Dataset", "Rows"]
