"""Sources of images and captions into a Lance dataset: read, checked, written a shard at a time, committed once."""

from clipkit.ingestion.options import IngestOptions, MaxRejected
from clipkit.ingestion.pipeline import ingest
from clipkit.ingestion.summary import Progress, Summary

__all__ = ["IngestOptions", "MaxRejected", "Progress", "Summary", "ingest"]
