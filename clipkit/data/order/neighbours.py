"""Groups of rows with similar embeddings, which are hard negatives for each other in a batch."""

from __future__ import annotations

import numpy as np

from clipkit.data.random import key, uniforms

LEAF = 2048


def group_neighbours(vectors: np.ndarray, *, group_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples in groups of `group_size`, or smaller at the end of a region; returns (members, sizes).

    Rows are first split along random directions into regions of at most `LEAF`. Within a region, each row that has no
    group yet forms one with its nearest rows without a group. vectors: (N, D), any scale; compared by cosine.
    """
    vectors = np.nan_to_num(vectors.astype(np.float32), posinf=0.0, neginf=0.0)  # NaN is not near anything
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    members: list[int] = []
    sizes: list[int] = []
    for region in _split(vectors, np.arange(len(vectors)), seed):
        for group in _greedy_groups(vectors[region], group_size):
            members.extend(region[group].tolist())
            sizes.append(len(group))
    return np.array(members, dtype=np.int64), np.array(sizes, dtype=np.int64)


def _split(vectors: np.ndarray, rows: np.ndarray, seed: int) -> list[np.ndarray]:
    """Halve by the projection onto a random direction until regions are small enough."""
    if len(rows) <= LEAF:
        return [rows]
    zero = np.zeros(1, dtype=np.int64)
    direction = uniforms(key(seed, len(rows), int(rows[0])), zero, zero, count=vectors.shape[1])[0] - 0.5
    ranked = rows[np.argsort(vectors[rows] @ direction.astype(np.float32), kind="stable")]
    middle = len(rows) // 2
    return [*_split(vectors, np.sort(ranked[:middle]), seed), *_split(vectors, np.sort(ranked[middle:]), seed)]


def _greedy_groups(vectors: np.ndarray, group_size: int) -> list[np.ndarray]:
    similarity = vectors @ vectors.T
    free = np.ones(len(vectors), dtype=bool)
    groups = []
    for row in range(len(vectors)):
        if not free[row]:
            continue
        free[row] = False
        near = np.where(free, similarity[row], -np.inf)
        take = min(group_size - 1, int(free.sum()))
        chosen = np.argsort(-near, kind="stable")[:take]
        free[chosen] = False
        groups.append(np.array([row, *chosen.tolist()]))
    return groups
