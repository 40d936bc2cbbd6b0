"""Kinds of measurement: a model on fixed rows, to numbers."""
