"""The tests against scipy, brute force, and the paper; the bootstrap against the scores and plain loops."""

import itertools
import math

import numpy as np
import pytest
from conftest import TYPES, make_documents
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from runne_coner.documents import Document, Entity, from_row
from runne_coner.metrics import ScoreError, score_documents
from runne_coner.significance import document_counts, f1_scores, paired_bootstrap, paired_t_test, wilcoxon_test

# Bondarenko 2022, tables 1 (main) and 2 (few-shot): standard NER and CoNER from three encoders.
TABLES_1_AND_2 = (
    (0.7202, 0.6931, 0.7089, 0.3231, 0.3320, 0.4372),
    (0.7425, 0.7233, 0.7113, 0.4037, 0.5099, 0.5256),
)
# Table 3: silhouettes of the 29 types in the space of the standard NER, and in that of CoNER.
TABLE_3 = (
    (0.4363, 0.4959, 0.4678, 0.4847, 0.4064, 0.4042, 0.3022, 0.5490, 0.3102, 0.5049, 0.3242, 0.4638, 0.3438, 0.4601, 0.5308)
    + (0.4982, 0.4716, 0.4745, 0.5275, 0.4638, 0.4538, 0.5028, 0.3553, 0.3594, 0.4314, 0.5377, 0.5562, 0.4993, 0.4396),
    (0.4507, 0.5014, 0.4639, 0.4788, 0.4443, 0.3886, 0.4220, 0.5297, 0.3123, 0.5196, 0.4240, 0.4510, 0.4014, 0.4750, 0.5331)
    + (0.5240, 0.4271, 0.4597, 0.5456, 0.4588, 0.5251, 0.5166, 0.3439, 0.3636, 0.4259, 0.5609, 0.5741, 0.4914, 0.4796),
)


# -- Wilcoxon -----------------------------------------------------------------------------------------------------------


def test_wilcoxon_of_the_paper():
    result = wilcoxon_test(*TABLES_1_AND_2)
    assert (result.statistic, result.pvalue, result.pairs) == (0.0, 0.03125, 6)


def test_the_t_test_of_the_paper():
    """The printed columns give t = -2.2873 and p = 0.02994; the paper has -2.2866 and 0.029985.

    The columns are rounded to four decimals: some unrounded ones that print the same give the paper's figures.
    """
    result = paired_t_test(*TABLE_3)
    assert result.pairs == 29
    assert result.statistic == pytest.approx(-2.28727, abs=1e-5) and result.pvalue == pytest.approx(0.029941, abs=1e-6)
    assert result.statistic == pytest.approx(-2.2866, abs=1e-3) and result.pvalue == pytest.approx(0.029985, abs=1e-4)
    standard, coner = map(np.array, TABLE_3)
    shifted = [paired_t_test(standard, coner - shift) for shift in np.linspace(0, 4e-5, 401)]
    assert all((np.round(coner - shift, 4) == coner).all() for shift in (0, 4e-5))
    assert any(abs(result.statistic + 2.2866) < 5e-5 and abs(result.pvalue - 0.029985) < 5e-6 for result in shifted)


def by_all_signs(difference):
    """Two-sided p-value from all patterns of signs, ties with mean ranks."""
    ranks = stats.rankdata(np.abs(difference))
    actual = min(ranks[difference > 0].sum(), ranks[difference < 0].sum())
    as_small = [
        min((ranks * signs).sum(), (ranks * (1 - np.array(signs))).sum()) <= actual + 1e-9
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    return actual, np.mean(as_small)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=9))
def test_wilcoxon_against_all_patterns_of_signs(pairs):
    first, second = np.array(pairs, dtype=float).T / 10
    result = wilcoxon_test(first, second)
    difference = np.round(first - second, 9)
    difference = difference[difference != 0]
    assert result.pairs == len(difference)
    statistic, pvalue = by_all_signs(difference) if len(difference) else (0.0, 1.0)
    assert result.statistic == pytest.approx(statistic) and result.pvalue == pytest.approx(min(pvalue, 1.0))


@given(st.integers(2, 30), st.integers(0, 1000))
def test_without_ties_as_scipy(size, seed):
    first, second = np.random.default_rng(seed).normal(size=(2, size))
    expected = stats.wilcoxon(first, second, method="exact")
    result = wilcoxon_test(first, second)
    assert (result.statistic, result.pvalue) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    expected = stats.ttest_rel(first, second)
    result = paired_t_test(first, second)
    assert (result.statistic, result.pvalue) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))


def test_many_ties_are_drawn_alike_every_time():
    first, second = np.round(np.random.default_rng(1).normal(size=(2, 40)), 1)
    result = wilcoxon_test(first, second)
    assert result == wilcoxon_test(first, second)
    assert result.pvalue == pytest.approx(stats.wilcoxon(first - second, method="asymptotic").pvalue, abs=0.03)


def test_samples_without_spread():
    assert wilcoxon_test([0.5, 0.5], [0.5, 0.5]).pvalue == 1.0
    assert (paired_t_test([1, 2], [1, 2]).statistic, paired_t_test([1, 2], [1, 2]).pvalue) == (0.0, 1.0)
    assert (paired_t_test([1, 2], [2, 3]).statistic, paired_t_test([1, 2], [2, 3]).pvalue) == (-math.inf, 0.0)


@pytest.mark.parametrize("test", [wilcoxon_test, paired_t_test])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [([1, 2], [1], "one length"), ([], [], "at least"), ([1.0, math.nan], [1, 2], "finite"), ([[1, 2]], [[1, 2]], "two lists")],
)
def test_samples_that_are_not_paired(test, first, second, message):
    with pytest.raises(ValueError, match=message):
        test(first, second)


# -- Bootstrap ----------------------------------------------------------------------------------------------------------

REFERENCES = [from_row(row) for row in make_documents()]


def spoiled(share, seed):
    """The references with a share of their entities lost and as many of another type added."""
    random = np.random.default_rng(seed)
    spoilt = []
    for document in REFERENCES:
        kept = {entity for entity in document.entities if random.random() > share}
        added = {Entity(e.start, e.end, str(random.choice(TYPES))) for e in document.entities if random.random() < share}
        spoilt.append(Document(document.id, document.text, tuple(sorted(kept | added))))
    return spoilt


FEW_SHOT = np.array([name in ("DISEASE", "CITY") for name in TYPES])


@pytest.mark.parametrize("seed", range(5))
def test_scores_from_counts_are_the_scores(seed):
    predictions = spoiled(0.5, seed)
    scores = f1_scores(document_counts(REFERENCES, predictions[::-1], TYPES).sum(axis=0), FEW_SHOT)
    expected = score_documents(REFERENCES, predictions, TYPES, ["DISEASE", "CITY"])
    assert {name: pytest.approx(float(value)) for name, value in scores.items()} == {
        name: expected[name]["f1"] for name in ("micro", "macro", "few_shot")
    }
    assert "few_shot" not in f1_scores(np.zeros((5, 3)), np.zeros(5, dtype=bool))


def test_the_bootstrap_against_a_loop_over_resamples():
    first, second = spoiled(0.6, 1), spoiled(0.3, 2)
    counts = [document_counts(REFERENCES, predictions, TYPES) for predictions in (first, second)]
    intervals = paired_bootstrap(*counts, FEW_SHOT, resamples=50, seed=3)
    weights = np.random.default_rng(3).multinomial(5, [0.2] * 5, size=50)
    drawn = {"micro": [], "macro": [], "few_shot": []}
    for row in weights:
        # As many copies of a document as were drawn, under names of their own.
        sides = [
            [Document(f"{index}-{copy}", d.text, d.entities) for index, d in enumerate(side) for copy in range(row[index])]
            for side in (REFERENCES, first, second)
        ]
        scores = [score_documents(sides[0], side, TYPES, ["DISEASE", "CITY"]) for side in sides[1:]]
        for name, values in drawn.items():
            values.append(scores[1][name]["f1"] - scores[0][name]["f1"])
    for name, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert (intervals[name].low, intervals[name].high) == (pytest.approx(low), pytest.approx(high))
        assert intervals[name].above == np.mean(np.array(values) > 1e-15)
    assert intervals["micro"].low <= intervals["micro"].difference <= intervals["micro"].high


def test_properties_of_the_bootstrap():
    first, second = (document_counts(REFERENCES, spoiled(share, 4), TYPES) for share in (0.2, 0.7))
    forth, back = paired_bootstrap(first, second, FEW_SHOT), paired_bootstrap(second, first, FEW_SHOT)
    assert forth == paired_bootstrap(first, second, FEW_SHOT)  # seeded
    assert forth != paired_bootstrap(first, second, FEW_SHOT, seed=1)
    for name, interval in forth.items():
        assert (interval.low, interval.high) == (pytest.approx(-back[name].high), pytest.approx(-back[name].low))
    same = paired_bootstrap(first, first, FEW_SHOT)
    assert all((i.difference, i.low, i.high, i.above) == (0, 0, 0, 0) for i in same.values())
    narrow = paired_bootstrap(first, second, FEW_SHOT, level=0.5)["micro"]
    assert forth["micro"].low < narrow.low < narrow.high < forth["micro"].high
    # Several runs count as their mean.
    runs = paired_bootstrap(np.stack([first, second]), np.stack([second, second]), FEW_SHOT)
    assert runs["micro"].difference == pytest.approx(forth["micro"].difference / 2)


def test_counts_that_cannot_be_compared():
    counts = document_counts(REFERENCES, REFERENCES, TYPES)
    with pytest.raises(ValueError, match="same documents"):
        paired_bootstrap(counts, counts[:3], FEW_SHOT)
    with pytest.raises(ValueError, match="same references"):
        paired_bootstrap(counts, counts[::-1], FEW_SHOT)
    with pytest.raises(ValueError, match="same documents"):
        paired_bootstrap(counts[:0], counts[:0], FEW_SHOT)
    with pytest.raises(ValueError, match="resamples"):
        paired_bootstrap(counts, counts, FEW_SHOT, resamples=0)
    with pytest.raises(ValueError, match="expected counts"):
        paired_bootstrap(counts[0], counts[0], FEW_SHOT)
    with pytest.raises(ScoreError, match="unknown type 'CITY'"):
        document_counts(REFERENCES, REFERENCES, ["PERSON", "PROFESSION", "ORGANIZATION"])
    with pytest.raises(ScoreError, match="lack document"):
        document_counts(REFERENCES, REFERENCES[1:], TYPES)
