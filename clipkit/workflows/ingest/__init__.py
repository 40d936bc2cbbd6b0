"""Sources of images and captions into a Lance dataset: read, checked, written a shard at a time, committed once."""

from clipkit.workflows.ingest.options import IngestOptions, MaxRejected
from clipkit.workflows.ingest.pipeline import ingest
from clipkit.workflows.ingest.summary import Progress, Summary

__all__ = ["IngestOptions", "MaxRejected", "Progress", "Summary", "ingest"]
