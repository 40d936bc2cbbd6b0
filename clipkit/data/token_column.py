"""Captions' token ids kept in the dataset: a column named for the tokenizer that made them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clipkit.types import Tokenizer


def token_column(tokenizer: Tokenizer) -> str:
    return f"tokens_{tokenizer.fingerprint}"


def token_field(tokenizer: Tokenizer) -> pa.Field:
    """A list a caption, in the captions' order."""
    return pa.field(token_column(tokenizer), pa.list_(pa.list_(pa.int32())))


def tokens_array(tokenizer: Tokenizer, captions: Sequence[Sequence[str]]) -> pa.Array:
    """The token ids of each row's captions."""
    ids = tokenizer.encode([caption for of_row in captions for caption in of_row])
    rows = np.cumsum([0, *map(len, captions)], dtype=np.int32)
    texts = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    flat = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
    return pa.ListArray.from_arrays(rows, pa.ListArray.from_arrays(texts, flat))
