"""Which windows stage 2 trains on, and how often: windows with a rare type more often than once in an epoch."""

import numpy as np
from datasets import Dataset

from .tagging import B, U

MOST_REPEATS = 8
"""No window stands in an epoch more often than this: few mentions seen very often would be learnt by heart."""


def mention_counts(view: Dataset, num_types: int) -> np.ndarray:
    """How many mentions of each type, at all levels, the labels of each window of a BILOU view hold: `(windows, types)`.

    A mention that two overlapping windows hold counts in both.
    """
    counts = np.zeros((len(view), num_types), dtype=np.int64)
    for index, labels in enumerate(view.with_format("numpy")["labels"][:]):
        # Every mention has one B or one U, and head `(level - 1) * num_types + t` tags type `t`.
        first = ((labels == B) | (labels == U)).sum(axis=0)
        counts[index] = first.reshape(-1, num_types).sum(axis=0)
    return counts


def repeat_factors(counts: np.ndarray, share: float, most: int = MOST_REPEATS) -> np.ndarray:
    """How often each window should be seen in an epoch: `sqrt(target / mentions of its rarest type)`, from 1 to `most`.

    The target is `share` times the mean number of mentions of the types that the windows have. So the rule knows neither
    names of types nor the size of the corpus, and repeats nothing where all types are about as frequent. For example, with
    `share=0.3` and 1,000 mentions of a type in the mean, a window with a type of 30 mentions is seen sqrt(10) = 3.16 times,
    one with types of 300 mentions or more, or without any, once. It is the repeat factor of Gupta et al. 2019 (LVIS), whose
    threshold is a share of the images instead.

    Args:
        counts: `(windows, types)` mentions, as `mention_counts` gives them.
        share: of the mean type, from which on a type is not rare, > 0.
    Returns:
        float64 `(windows,)`.
    """
    mentions = counts.sum(axis=0)
    target = share * mentions.sum() / max(np.count_nonzero(mentions), 1)
    rarest = np.where(counts > 0, mentions, np.iinfo(np.int64).max).min(axis=1, initial=np.iinfo(np.int64).max)
    return np.sqrt(target / rarest).clip(1.0, most)


def window_copies(view: Dataset, num_types: int, share: float, seed: int, most: int = MOST_REPEATS) -> np.ndarray:
    """How often each window of a BILOU view stands in an epoch: int64 `(windows,)`, at least 1 (see `repeat_factors`).

    The fractional part of a factor is the chance of one more copy, drawn once with `seed`.
    """
    factors = repeat_factors(mention_counts(view, num_types), share, most)
    return np.floor(factors + np.random.default_rng(seed).random(len(factors))).astype(np.int64)


def repeat_rare_windows(view: Dataset, num_types: int, share: float, seed: int, most: int = MOST_REPEATS) -> Dataset:
    """A BILOU view in which windows with rare types stand several times (see `window_copies`).

    Every process of a run, and a resumed run, has the same rows. Copies stand side by side; samplers that shuffle or group by
    length treat them as rows.

    Args:
        view: from `preprocessing.bilou_view`.
        num_types: entity types of its heads.
        share, most: see `repeat_factors`; `share` 0 gives the view as it is.
    """
    if not share:
        return view
    return view.select(np.repeat(np.arange(len(view)), window_copies(view, num_types, share, seed, most)))
