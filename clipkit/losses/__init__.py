"""Losses of paired embeddings, a module a loss: a pure function, alike on one rank and on several, and its PairLoss."""

from clipkit.losses.base import PairLoss, Temperature

__all__ = ["PairLoss", "Temperature"]
