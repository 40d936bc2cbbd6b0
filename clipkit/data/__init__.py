"""Rows to batches: the order, reading, decoding, tokenising, and the loader that training uses."""

from clipkit.data.dataset import ImageTextDataset
from clipkit.data.loader import Loader, build_loader

__all__ = ["ImageTextDataset", "Loader", "build_loader"]
