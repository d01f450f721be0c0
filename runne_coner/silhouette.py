"""Silhouettes of labelled embeddings in one blockwise pass over their distances (Rousseeuw 1987).

A block of the distance matrix times the one-hot membership of the clusters gives the sums of distances from every point of
the block to every cluster, which is all that a silhouette needs; the whole matrix is never held.
"""

import numpy as np
from sklearn.metrics import pairwise_distances
from tqdm.auto import tqdm

BLOCK_SIZE = 1024
"""Rows of the distance matrix that are held at once."""


def type_silhouettes(
    embeddings: np.ndarray,
    membership: np.ndarray,
    *,
    metric: str = "euclidean",
    block_size: int = BLOCK_SIZE,
    progress: bool = False,
) -> np.ndarray:
    """How far each type stands apart from all the rest: a silhouette for each two-cluster labelling, member or not.

    Args:
        embeddings: `(N, D)`, finite.
        membership: `(N, T)` bool; a point may belong to any number of the T types.
        metric: any of `sklearn.metrics.pairwise_distances`.
        block_size: rows of the distance matrix that are held at once.
        progress: whether to show a progress bar.
    Returns:
        `(T,)` float64: entry `t` is `sklearn.metrics.silhouette_score(embeddings, membership[:, t])`, the mean over all N
        points; NaN where a type has no point or all of them, or where N < 3.
    Raises:
        ValueError: the shapes do not fit, `block_size` is less than 1, or an embedding is not finite.
    """
    membership = _checked_membership(embeddings, membership)
    sums = distance_sums(embeddings, membership, metric=metric, block_size=block_size, progress=progress)
    return _rest_silhouettes(sums, membership)


def silhouette(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    metric: str = "euclidean",
    block_size: int = BLOCK_SIZE,
    progress: bool = False,
) -> float:
    """Mean silhouette of all points over the clusters that their labels make, as `sklearn.metrics.silhouette_score`.

    Args:
        embeddings: `(N, D)`, finite.
        labels: `(N,)`, of any type that can be sorted.
        metric, block_size, progress, and what is raised: as in `type_silhouettes`.
    Returns:
        A value in [-1, 1]; NaN if there are fewer than 2 labels or more than N - 1.
    """
    return label_silhouettes(embeddings, labels, metric=metric, block_size=block_size, progress=progress)[0]


def label_silhouettes(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    metric: str = "euclidean",
    block_size: int = BLOCK_SIZE,
    progress: bool = False,
) -> tuple[float, dict]:
    """`silhouette` of the labels, and that of each label against the rest as a dictionary, from one and the same pass."""
    names, index = np.unique(np.asarray(labels), return_inverse=True)
    membership = _checked_membership(embeddings, index[:, None] == np.arange(len(names)))
    sums = distance_sums(embeddings, membership, metric=metric, block_size=block_size, progress=progress)
    alone = _rest_silhouettes(sums, membership)
    return _silhouette(sums, index), dict(zip(names.tolist(), alone.tolist(), strict=True))


def distance_sums(
    embeddings: np.ndarray,
    membership: np.ndarray,
    *,
    metric: str = "euclidean",
    block_size: int = BLOCK_SIZE,
    progress: bool = False,
) -> np.ndarray:
    """Sums of the distances from each point to the members of each type, and to all points.

    Args: as `type_silhouettes`.
    Returns:
        `(N, T + 1)` float64; the last column is the sum over all points.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    columns = np.column_stack([membership, np.ones(len(membership), dtype=bool)]).astype(np.float64)
    sums = np.zeros(columns.shape)
    starts = range(0, len(embeddings), block_size)
    for start in tqdm(starts, desc="silhouettes", unit="block", disable=not progress):
        rows = np.arange(start, min(start + block_size, len(embeddings)))
        distances = pairwise_distances(embeddings[rows], embeddings, metric=metric)
        # By rounding, a point may seem to be at a distance from itself.
        distances[np.arange(len(rows)), rows] = 0.0
        sums[rows] = distances @ columns
    return sums


def _checked_membership(embeddings: np.ndarray, membership: np.ndarray) -> np.ndarray:
    if np.ndim(embeddings) != 2 or np.ndim(membership) != 2 or len(embeddings) != len(membership):
        raise ValueError(
            f"expected embeddings (N, D) and membership (N, T), got {np.shape(embeddings)} and {np.shape(membership)}"
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings must be finite: leave out the points that are NaN or infinite")
    return np.asarray(membership, dtype=bool)


def _coefficients(own: np.ndarray, others: np.ndarray, single: np.ndarray) -> np.ndarray:
    """(b - a) / max(a, b) of the mean distances to one's own cluster and to the next; 0 for the only point of a cluster."""
    larger = np.maximum(own, others)
    values = np.divide(others - own, larger, out=np.zeros_like(larger), where=larger > 0)
    return np.where(single, 0.0, values)


def _rest_silhouettes(sums: np.ndarray, membership: np.ndarray) -> np.ndarray:
    """`(T,)` silhouettes of each type against the rest, from `distance_sums`."""
    points, types = membership.shape
    inside, outside = sums[:, :types], sums[:, types:] - sums[:, :types]
    size = membership.sum(axis=0)
    own_size = np.where(membership, size, points - size)
    other_size = points - own_size
    own = np.where(membership, inside, outside) / np.maximum(own_size - 1, 1)
    other = np.where(membership, outside, inside) / np.maximum(other_size, 1)
    values = _coefficients(own, other, own_size == 1).sum(axis=0) / max(points, 1)
    return np.where((size > 0) & (size < points) & (points >= 3), values, np.nan)


def _silhouette(sums: np.ndarray, index: np.ndarray) -> float:
    """Mean silhouette over clusters, from `distance_sums` and the cluster `(N,)` of each point."""
    points, clusters = len(sums), sums.shape[1] - 1
    if not 2 <= clusters <= points - 1:
        return float("nan")
    size = np.bincount(index, minlength=clusters)
    row = np.arange(points)
    own = sums[row, index] / np.maximum(size[index] - 1, 1)
    means = sums[:, :clusters] / size
    means[row, index] = np.inf
    return float(_coefficients(own, means.min(axis=1), size[index] == 1).mean())
