"""Rows to batches: the order, reading, decoding, tokenising, and the loader that training uses."""
