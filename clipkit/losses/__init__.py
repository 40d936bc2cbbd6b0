"""Losses of paired embeddings: in each module a pure function, which gives the same on any number of ranks, and its
PairLoss."""

from clipkit.losses.base import PairLoss, Temperature

__all__ = ["PairLoss", "Temperature"]
