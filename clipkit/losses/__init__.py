"""Losses of paired embeddings."""
