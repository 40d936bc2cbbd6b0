"""clipkit: train, measure and use image-text models on one Lance dataset."""

__version__ = "0.1.0"
