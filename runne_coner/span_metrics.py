"""How well the embeddings of spans tell entity types apart: what the evaluation of stage 1 reports, and its picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .files import replacing
from .silhouette import BLOCK_SIZE, Points, distance_blocks, mean_silhouette, membership_columns, rest_silhouettes

DISTANCE_BINS = 1 << 16
"""Bins of [0, 2] in which the distances of all pairs are counted; those of one bin count as equal in the AUC."""
# Okabe and Ito's colours, which the colour-blind tell apart, with one form of mark after the other.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MARKS = ("o", "^", "s", "D", "v", "P", "X", "*")


class SpanMetricError(ValueError):
    """A metric that evaluation cannot give; the message names those that it can."""


def defined_span_metrics(types: np.ndarray, identity: np.ndarray, names: Sequence[str]) -> list[str]:
    """Names of the values that `span_metrics` gives for spans of these types, whatever their embeddings.

    Args: as `span_metrics`.
    """
    spans, counts = len(types), np.bincount(types, minlength=len(names))
    _, copies = np.unique(identity, return_counts=True)
    same_words = (copies * (copies - 1)).sum()
    positive, negative = (counts >= 2).any(), spans**2 - (counts**2).sum() > same_words
    defined = {
        "pair_auc": positive and negative,
        "positive_distance": positive,
        "negative_distance": negative,
        "neighbour_accuracy": len(copies) >= 2,
        "silhouette": 2 <= np.count_nonzero(counts) <= spans - 1,
    }
    defined |= {f"silhouette_{name}": 0 < count < spans and spans >= 3 for name, count in zip(names, counts, strict=True)}
    return [name for name, is_defined in defined.items() if is_defined]


def span_metrics(
    embeddings: Points,
    types: np.ndarray,
    identity: np.ndarray,
    names: Sequence[str],
    *,
    neighbours: int = 10,
    block_size: int = BLOCK_SIZE,
    progress: bool = False,
) -> dict[str, float]:
    """What the distances between all spans say, from one blockwise pass over them.

    Args:
        embeddings: `(N, D)` of length 1, dense or sparse.
        types: `(N,)` index of each span's type in `names`.
        identity: `(N,)` number of each span: the same words under two types share one, and are no pair.
        names: names of the types.
        neighbours: k of the nearest-neighbour accuracy.
        block_size, progress: as in `silhouette.type_silhouettes`.
    Returns:
        Those that are defined of
        `pair_auc`: probability that a pair of one type lies closer than a pair of two types;
        `positive_distance`, `negative_distance`: mean distance of the pairs of one type, and of two;
        `neighbour_accuracy`: share of the spans whose type is the most frequent one of their k nearest other spans (of
        types equally frequent, the nearer);
        `silhouette`: mean silhouette over the types; `silhouette_TYPE`: that of a type against the rest.
        Nothing is defined where an embedding is not finite.
    """
    values = embeddings if isinstance(embeddings, np.ndarray) else embeddings.data
    defined = defined_span_metrics(types, identity, names)
    if not defined or not np.isfinite(values).all():
        return {}
    membership = types[:, None] == np.arange(len(names))
    columns = membership_columns(membership)
    sums, correct = np.zeros(columns.shape), np.zeros(len(types), dtype=bool)
    pairs = np.zeros((2, DISTANCE_BINS), dtype=np.int64)
    for rows, distances in distance_blocks(embeddings, block_size=block_size, progress=progress):
        sums[rows] = distances @ columns
        pairs += _count_pairs(rows, distances, types, identity)
        distances[identity[rows][:, None] == identity] = np.inf
        correct[rows] = _nearest_type(distances, membership, neighbours) == types[rows]
    found = {"neighbour_accuracy": correct.mean(), "silhouette": mean_silhouette(sums, types)}
    found |= _pair_metrics(pairs, sums, types)
    found |= {f"silhouette_{name}": value for name, value in zip(names, rest_silhouettes(sums, membership), strict=True)}
    return {name: float(found[name]) for name in defined}


def _count_pairs(rows: np.ndarray, distances: np.ndarray, types: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Pairs of two types, and of one, by the bin of their distance `(2, DISTANCE_BINS)`: those of a block of rows with
    later points, so that no pair counts twice."""
    later = np.arange(rows[0], len(types))
    counted = (later > rows[:, None]) & (identity[later] != identity[rows][:, None])
    same = (types[later] == types[rows][:, None])[counted]
    bins = (distances[:, rows[0] :][counted] * (DISTANCE_BINS / 2)).astype(np.int32)
    bins = np.minimum(bins, DISTANCE_BINS - 1) + DISTANCE_BINS * same
    return np.bincount(bins, minlength=2 * DISTANCE_BINS).reshape(2, DISTANCE_BINS)


def _pair_metrics(counts: np.ndarray, sums: np.ndarray, types: np.ndarray) -> dict[str, float]:
    negative, positive = counts
    closer = np.cumsum(positive) - positive / 2
    negatives, positives = (max(int(total), 1) for total in counts.sum(axis=1))
    # Of both orders of each pair; spans of the same words are at no distance and add nothing.
    of_positive = sums[np.arange(len(types)), types].sum() / 2
    return {
        "pair_auc": float(negative @ closer) / negatives / positives,
        "positive_distance": of_positive / positives,
        "negative_distance": (sums[:, -1].sum() / 2 - of_positive) / negatives,
    }


def _nearest_type(distances: np.ndarray, membership: np.ndarray, neighbours: int) -> np.ndarray:
    """Type `(B,)` that is most frequent among the nearest of distances `(B, N)`; infinite ones are no neighbours."""
    number = min(neighbours, distances.shape[1])
    nearest = np.argpartition(distances, number - 1, axis=1)[:, :number]
    near = np.take_along_axis(distances, nearest, axis=1)
    real = np.isfinite(near)
    # Each votes with a bit more than 1 the nearer it is; all bits together stay below 1.
    votes = np.where(real, 1.0 + (2.0 - np.where(real, near, 2.0)) / (2.0 * number + 1.0), 0.0)
    return np.einsum("bk,bkt->bt", votes, membership[nearest]).argmax(axis=1)


def write_projection(path: Path, embeddings: Points, types: np.ndarray, names: Sequence[str], title: str) -> None:
    """Write a picture (PNG) of spans on the first two principal components of their embeddings, in colours of their types.

    The last type, O, is drawn small and grey under the others. Needs matplotlib (`pip install ".[analysis]"`).

    Args:
        path: file to write, whole or not at all.
        embeddings: `(N, D)`, finite, dense or sparse. types: `(N,)` index in `names`.
    """
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA

    points = np.zeros((len(types), 2))
    components = min(2, *embeddings.shape)
    # Fewer than two points, or all the same, span no axis.
    if len(types) > 2 and components == 2 and (embeddings != embeddings[np.zeros(len(types), dtype=int)]).sum():
        points = PCA(2, svd_solver="arpack", random_state=0).fit_transform(embeddings)
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.add_subplot()
    for kind in reversed(range(len(names))):
        outside = kind == len(names) - 1
        style = {"color": "#BBBBBB", "marker": ".", "s": 4, "zorder": 1}
        if not outside:
            mark = MARKS[kind // len(COLOURS) % len(MARKS)]
            style = {"color": COLOURS[kind % len(COLOURS)], "marker": mark, "s": 14, "zorder": 2}
        chosen = types == kind
        label = f"{names[kind]} ({chosen.sum()})".replace("$", r"\$")  # no formula
        axes.scatter(*points[chosen].T, label=label, linewidths=0, **style)
    axes.set(title=title, xlabel="first principal component", ylabel="second principal component")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize="small", markerscale=1.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, binary=True) as file:
        figure.savefig(file, format="png", dpi=120)
