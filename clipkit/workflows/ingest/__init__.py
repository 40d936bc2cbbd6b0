"""Ingest: sources of images and captions are read, checked, written a shard at a time, and committed once."""

from clipkit.workflows.ingest.options import IngestOptions, MaxRejected
from clipkit.workflows.ingest.pipeline import ingest
from clipkit.workflows.ingest.summary import Progress, Summary

__all__ = ["IngestOptions", "MaxRejected", "Progress", "Summary", "ingest"]
