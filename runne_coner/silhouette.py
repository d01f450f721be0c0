"""Silhouettes of labelled embeddings in one blockwise pass over their distances (Rousseeuw 1987).

A block of the distance matrix times the one-hot membership of the clusters gives the sums of distances from every point of
the block to every cluster, which is all that a silhouette needs; the whole matrix is never held.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from tqdm.auto import tqdm

BLOCK_SIZE = 1024
"""Rows of the distance matrix that are held at once."""

Points = np.ndarray | sparse.csr_matrix


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
    sums = _distance_sums(embeddings, membership, metric=metric, block_size=block_size, progress=progress)
    return rest_silhouettes(sums, membership)


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
    names, index = np.unique(np.asarray(labels), return_inverse=True)
    membership = _checked_membership(embeddings, index[:, None] == np.arange(len(names)))
    sums = _distance_sums(embeddings, membership, metric=metric, block_size=block_size, progress=progress)
    return mean_silhouette(sums, index)


def distance_blocks(
    embeddings: Points, *, metric: str = "euclidean", block_size: int = BLOCK_SIZE, progress: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The distance matrix in blocks of rows: indices `(B,)` of the points and their distances `(B, N)` to all points.

    Args: as `type_silhouettes`; embeddings may be a sparse matrix.
    """
    # Imported late: the command line needs the error of `span_metrics`, and scikit-learn takes a second.
    from sklearn.metrics import pairwise_distances

    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    points = embeddings.shape[0]
    for start in tqdm(range(0, points, block_size), desc="distances", unit="block", disable=not progress):
        rows = np.arange(start, min(start + block_size, points))
        distances = pairwise_distances(embeddings[rows], embeddings, metric=metric)
        # By rounding, a point may seem to be at a distance from itself.
        distances[np.arange(len(rows)), rows] = 0.0
        yield rows, distances


def membership_columns(membership: np.ndarray) -> np.ndarray:
    """`(N, T + 1)` float64: the one-hot membership and a column of ones, by which distances are summed per type and in all."""
    return np.column_stack([membership, np.ones(len(membership), dtype=bool)]).astype(np.float64)


def _distance_sums(embeddings: Points, membership: np.ndarray, **options) -> np.ndarray:
    """`(N, T + 1)` sums of the distances from each point to the members of each type, and to all points."""
    columns = membership_columns(membership)
    sums = np.zeros(columns.shape)
    for rows, distances in distance_blocks(embeddings, **options):
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


def rest_silhouettes(sums: np.ndarray, membership: np.ndarray) -> np.ndarray:
    """`(T,)` silhouettes of each type against the rest, as `type_silhouettes`.

    Args:
        sums: `(N, T + 1)`, the distances of each point times `membership_columns`.
        membership: `(N, T)` bool.
    """
    points, types = membership.shape
    inside, outside = sums[:, :types], sums[:, types:] - sums[:, :types]
    size = membership.sum(axis=0)
    own_size = np.where(membership, size, points - size)
    other_size = points - own_size
    own = np.where(membership, inside, outside) / np.maximum(own_size - 1, 1)
    other = np.where(membership, outside, inside) / np.maximum(other_size, 1)
    values = _coefficients(own, other, own_size == 1).sum(axis=0) / max(points, 1)
    return np.where((size > 0) & (size < points) & (points >= 3), values, np.nan)


def mean_silhouette(sums: np.ndarray, index: np.ndarray) -> float:
    """Mean silhouette over clusters, as `silhouette`.

    Args:
        sums: `(N, T + 1)`, the distances of each point times `membership_columns`.
        index: `(N,)` cluster of each point, less than T; clusters without a point are no clusters.
    """
    points, clusters = len(sums), sums.shape[1] - 1
    size = np.bincount(index, minlength=clusters)
    if not 2 <= np.count_nonzero(size) <= points - 1:
        return float("nan")
    row = np.arange(points)
    own = sums[row, index] / np.maximum(size[index] - 1, 1)
    means = np.where(size > 0, sums[:, :clusters] / np.maximum(size, 1), np.inf)
    means[row, index] = np.inf
    return float(_coefficients(own, means.min(axis=1), size[index] == 1).mean())
