"""Rows to batches: the order, reading, decoding, tokenising, and the loader that training uses."""

from clipkit.data.loader import Loader, build_loader
from clipkit.data.torch_dataset import ImageTextDataset

__all__ = ["ImageTextDataset", "Loader", "build_loader"]
