"""Is one model better than another: signed-rank test, t-test, and bootstrap over documents, all of them paired."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .documents import Document
from .metrics import ScoreError, paired_documents

RESAMPLES = 10_000
CHUNK = 1000
"""Resamples that are worked out at once."""
SIGN_PATTERNS = 2**13
"""Patterns of signs that are tried one by one where values are tied; with more, as many are drawn."""


@dataclass(frozen=True)
class TestResult:
    """Outcome of a test: the statistic, the two-sided p-value, and the number of pairs that decided it."""

    __test__ = False  # for pytest, which would take the class for tests

    statistic: float
    pvalue: float
    pairs: int


def wilcoxon_test(first: Sequence[float], second: Sequence[float]) -> TestResult:
    """Wilcoxon's signed-rank test, two-sided and exact (Wilcoxon 1945; Bondarenko 2022, section 4.1).

    The differences d_i = first_i - second_i that are not 0 are ranked by |d_i|; the statistic is
    min(sum of the ranks of d_i > 0, sum of the ranks of d_i < 0), the p-value the share of all 2^n patterns of signs that
    give a statistic as small. With n pairs it cannot fall below 2^(1 - n). `scipy.stats.wilcoxon` works it out; where
    differences are tied, or equal to 0, over the patterns of signs themselves (over 8192 drawn ones, if there are more).

    Args:
        first, second: paired measurements, such as the F1 of two schemes from the same encoders.
    Returns:
        `pairs` is n. Without any difference the statistic is 0 and the p-value 1.
    Raises:
        ValueError: the two are not of the same length, are empty, or hold a value that is not finite.
    """
    first, second = _paired(first, second, least=1)
    # Differences that are equal but for the last bits of their arithmetic are tied.
    difference = np.round(first - second, 12)
    difference = difference[difference != 0]
    if not len(difference):
        return TestResult(0.0, 1.0, 0)
    tied = len(np.unique(np.abs(difference))) < len(difference)
    method = stats.PermutationMethod(n_resamples=SIGN_PATTERNS, rng=np.random.default_rng(0)) if tied else "exact"
    result = stats.wilcoxon(difference, alternative="two-sided", method=method)
    return TestResult(float(result.statistic), float(result.pvalue), len(difference))


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> TestResult:
    """Student's t-test for paired samples, two-sided (Student 1908; Bondarenko 2022, section 4.2).

    t = mean(d) / (sd(d) / sqrt(n)) with d_i = first_i - second_i, sd with n - 1 in its denominator, and n - 1 degrees of
    freedom (`scipy.stats.ttest_rel`).

    Args:
        first, second: paired measurements, such as the silhouettes of the types in two spaces.
    Returns:
        t is negative where `second` is larger. Without any difference t is 0 and the p-value 1.
    Raises:
        ValueError: the two are not of the same length, have fewer than 2 values, or hold one that is not finite.
    """
    first, second = _paired(first, second, least=2)
    difference = np.round(first - second, 12)
    if (difference == difference[0]).all():
        # No spread: scipy divides by 0.
        same = difference[0] == 0
        return TestResult(0.0 if same else math.copysign(math.inf, difference[0]), 1.0 if same else 0.0, len(first))
    result = stats.ttest_rel(first, second)
    return TestResult(float(result.statistic), float(result.pvalue), len(first))


def _paired(first: Sequence[float], second: Sequence[float], least: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"paired samples must be two lists of one length, got the shapes {first.shape} and {second.shape}")
    if len(first) < least:
        raise ValueError(f"at least {least} pairs are needed, got {len(first)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("paired samples must be finite: leave out the pairs in which a value is missing")
    return first, second


# -- Bootstrap ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A difference with its percentile interval, and the share of the resamples in which it is above 0."""

    difference: float
    low: float
    high: float
    above: float


def document_counts(references: Iterable[Document], predictions: Iterable[Document], entity_types: Sequence[str]) -> np.ndarray:
    """What each document contributes to the scores.

    Args:
        references, predictions: documents with the same ids, in any order.
        entity_types: all types that may occur.
    Returns:
        `(documents, types, 3)` int64, in the order of the references: correct, gold and predicted spans.
    Raises:
        metrics.ScoreError: a document is missing, unexpected or given twice, or an entity has an unknown type.
    """
    index = {name: position for position, name in enumerate(entity_types)}
    pairs = paired_documents(references, predictions)
    counts = np.zeros((len(pairs), len(index), 3), dtype=np.int64)
    for row, (document, prediction) in enumerate(pairs):
        gold, predicted = set(document.entities), set(prediction.entities)
        for column, entities in enumerate((gold & predicted, gold, predicted)):
            for entity in entities:
                if entity.type not in index:
                    raise ScoreError(f"document {document.id!r} has an entity of the unknown type {entity.type!r}")
                counts[row, index[entity.type], column] += 1
    return counts


def f1_scores(counts: np.ndarray, few_shot: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of `metrics.score_documents` from summed counts.

    F1 = 2 correct / (gold + predicted), 0 without a correct span; micro over the sums of all types, macro over the types
    with gold spans that are not few-shot, few-shot over the few-shot types (absent ones count 0).

    Args:
        counts: `(..., types, 3)`: correct, gold and predicted spans.
        few_shot: `(types,)` bool.
    Returns:
        `micro`, `macro` and, if there are few-shot types, `few_shot`, each `(...)`.
    """
    counts = np.asarray(counts, dtype=np.float64)
    per_type = _f1(counts)
    counted = (counts[..., 1] > 0) & ~few_shot
    scores = {
        "micro": _f1(counts.sum(axis=-2)),
        "macro": (per_type * counted).sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1),
    }
    if few_shot.any():
        scores["few_shot"] = per_type[..., few_shot].mean(axis=-1)
    return scores


def _f1(counts: np.ndarray) -> np.ndarray:
    total = counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], total, out=np.zeros(total.shape), where=total > 0)


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    few_shot: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Interval of the difference of two models' scores, by resampling documents (Efron 1979; Koehn 2004).

    Each resample draws as many documents as there are, with replacement, the same ones for both models, and scores both on
    them. The interval lies between the (1 - level) / 2 and (1 + level) / 2 quantiles of second - first.

    Args:
        first, second: `document_counts` of two models on the same documents, `(documents, types, 3)`; or of several runs
            of each, `(runs, documents, types, 3)`, whose scores are averaged.
        few_shot: `(types,)` bool.
        resamples: how many.
        seed: of the draws.
        level: of the interval.
    Returns:
        An `Interval` for each score of `f1_scores`; `difference` is that of the documents as they are.
    Raises:
        ValueError: the models were not counted on the same documents and types, there is no document, or a setting is out
            of range.
    """
    runs = [_as_runs(first), _as_runs(second)]
    few_shot = np.asarray(few_shot, dtype=bool)
    documents = runs[0].shape[1]
    if runs[0].shape[1:] != runs[1].shape[1:] or runs[0].shape[2] != len(few_shot) or documents == 0:
        raise ValueError(
            "both models must be counted on the same documents and types, of which there must be some; got"
            f" {np.shape(first)}, {np.shape(second)} and {len(few_shot)} types"
        )
    gold = np.concatenate(runs)[..., 1]
    if (gold != gold[0]).any():
        raise ValueError("the gold spans of the two models differ: count both against the same references, in one order")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level in (0, 1), got {resamples} and {level}")
    random = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        weights = random.multinomial(documents, np.full(documents, 1 / documents), size=size)
        drawn.append(_differences(runs, weights, few_shot))
    actual = _differences(runs, np.ones((1, documents)), few_shot)
    intervals = {}
    for name, value in actual.items():
        values = np.concatenate([part[name] for part in drawn])
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        intervals[name] = Interval(float(value[0]), float(low), float(high), float((values > 0).mean()))
    return intervals


def _as_runs(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    counts = counts[None] if counts.ndim == 3 else counts
    if counts.ndim != 4 or counts.shape[-1] != 3:
        raise ValueError(f"expected counts (documents, types, 3) or (runs, documents, types, 3), got {counts.shape}")
    return counts


def _differences(runs: Sequence[np.ndarray], weights: np.ndarray, few_shot: np.ndarray) -> dict[str, np.ndarray]:
    """Second minus first of the mean scores over runs, for each row of `weights` (resamples, documents)."""
    means = []
    for counts in runs:
        size, documents, types, _ = counts.shape
        flat = weights.astype(np.float64) @ counts.transpose(1, 0, 2, 3).reshape(documents, -1)
        scores = f1_scores(flat.reshape(len(weights), size, types, 3), few_shot)
        means.append({name: values.mean(axis=1) for name, values in scores.items()})
    return {name: means[1][name] - means[0][name] for name in means[0]}
