"""Which pairs count how much: each option against a plain double loop over spans."""

import math

import pytest
import torch
from torch.nn import functional as F

from runne_coner.pair_weights import PairWeighting

O_TYPE = 3


def some_spans(seed, count=24):
    """Spans of three windows with nested and overlapping ones, repeated words, two corpora, and one span under two types."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return torch.randint(low, high, (count,), generator=generator)

    window, first = draw(0, 3), draw(1, 8)
    spans = torch.stack([window, first, first + draw(1, 4)], dim=1)
    spans[1] = spans[0]
    _, groups = torch.unique(spans, dim=0, return_inverse=True)
    types = draw(0, O_TYPE + 1)
    types[:2] = torch.tensor([0, 1])
    raw = torch.randn(count, 4, generator=generator)
    return F.normalize(raw, dim=-1), spans, types, groups, draw(0, 5), (window == 2).long()


def reference(embeddings, spans, types, groups, surfaces, corpora, options, annotated):
    count = len(types)
    weights = [[0.0] * count for _ in range(count)]
    for i in range(count):
        for j in range(count):
            same = types[i] == types[j]
            weight = float(groups[i] != groups[j])
            if options.get("negatives_only") is not None and same and types[i] == options["negatives_only"]:
                weight = 0.0
            if same and surfaces[i] == surfaces[j]:
                weight *= options.get("same_surface_weight", 1.0)
            overlap = spans[i, 0] == spans[j, 0] and max(spans[i, 1], spans[j, 1]) < min(spans[i, 2], spans[j, 2])
            if not same and overlap:
                weight *= options.get("overlap_weight", 1.0)
            if annotated is not None and corpora[i] != corpora[j]:
                known = annotated[corpora[i], types[j]] and annotated[corpora[j], types[i]]
                weight *= float(known)
            weights[i][j] = weight
    if options.get("mining") == "semi_hard":
        distance = torch.cdist(embeddings.double(), embeddings.double())
        margin = options.get("mining_margin", 0.2)
        for i in range(count):
            positives = [j for j in range(count) if types[i] == types[j] and weights[i][j] > 0]
            negatives = [j for j in range(count) if types[i] != types[j] and weights[i][j] > 0]
            kept = [n for n in negatives if any(distance[i, p] < distance[i, n] < distance[i, p] + margin for p in positives)]
            for n in negatives:
                weights[i][n] *= float(n in kept or not kept)
    return torch.tensor(weights)


OPTIONS = [
    {"overlap_weight": 4.0},
    {"overlap_weight": 0.0},
    {"same_surface_weight": 0.1},
    {"same_surface_weight": 0.0},
    {"negatives_only": O_TYPE},
    {"mining": "semi_hard"},
    {"mining": "semi_hard", "mining_margin": 0.05},
    {"overlap_weight": 3.0, "same_surface_weight": 0.5, "mining": "semi_hard", "negatives_only": O_TYPE},
]


@pytest.mark.parametrize("corpora", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weights_equal_a_double_loop(options, corpora):
    annotated = torch.tensor([[True, True, False, False], [True, False, True, False]]) if corpora else None
    weighting = PairWeighting(**options, annotated=annotated)
    for seed in range(3):
        batch = some_spans(seed)
        weights = weighting(*batch)
        found = weights[:]
        # A loss may read them some rows at a time.
        assert torch.equal(torch.cat([weights[:7], weights[7:8], weights[8:]]), found)
        expected = reference(*batch, options, annotated)
        torch.testing.assert_close(found, expected)
        # The option does something, and leaves something.
        plain = (batch[3][:, None] != batch[3][None, :]).float()
        assert not torch.equal(found, plain) and (found > 0).any()


def test_no_option_no_weights():
    assert PairWeighting()(*some_spans(0)) is None


def test_pairs_across_corpora_without_a_mapping():
    """No type is annotated by both: only pairs within a corpus are left."""
    annotated = torch.tensor([[True, True, False, False], [False, False, True, True]])
    embeddings, spans, types, groups, surfaces, corpora = some_spans(1)
    types = 2 * corpora + types % 2
    weights = PairWeighting(annotated=annotated)(embeddings, spans, types, groups, surfaces, corpora)[:]
    across = corpora[:, None] != corpora[None, :]
    assert (weights[across] == 0).all()
    assert torch.equal(weights[~across], (groups[:, None] != groups[None, :]).float()[~across])


def test_windows_gathered_from_two_processes():
    """Spans of two processes, windows numbered apart, weigh as each process weighs its own; their words are compared."""
    weighting = PairWeighting(overlap_weight=5.0, same_surface_weight=0.1)
    one, other = some_spans(0), some_spans(1)
    other[1][:, 0] += 3
    other[3].add_(1000)
    gathered = [torch.cat(parts) for parts in zip(one, other, strict=True)]
    weights = weighting(*gathered)[:]
    torch.testing.assert_close(weights[:24, :24], weighting(*one)[:])
    torch.testing.assert_close(weights[24:, 24:], weighting(*other)[:])
    same = one[2][:, None] == other[2][None, :]
    repeated = same & (one[4][:, None] == other[4][None, :])
    torch.testing.assert_close(weights[:24, 24:], torch.where(repeated, 0.1, 1.0))


def test_semi_hard_negatives_by_hand():
    """Anchor at 0 degrees, a positive at 40; negatives nearer, a little farther and much farther than it."""
    angle = torch.tensor([0.0, 40.0, 20.0, 45.0, 120.0]) * math.pi / 180
    embeddings = torch.stack([angle.cos(), angle.sin()], dim=1)
    spans = torch.stack([torch.arange(5), torch.ones(5), torch.full((5,), 2)], dim=1).long()
    weights = PairWeighting(mining="semi_hard")(embeddings, spans, torch.tensor([0, 0, 1, 2, 3]), torch.arange(5))[:]
    assert weights[0].tolist() == [0, 1, 0, 1, 0]
    # Spans without a positive of their own keep all negatives.
    assert weights[2:].sum(1).tolist() == [4, 4, 4]


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batches_of_no_or_one_span(options, count):
    batch = [part[:count] for part in some_spans(0)]
    weights = PairWeighting(**options, annotated=torch.ones(2, 4, dtype=torch.bool))(*batch)[:]
    assert weights.shape == (count, count) and (weights == 0).all()


def test_no_gradient_runs_through_the_weights():
    embeddings, *batch = some_spans(0)
    assert not PairWeighting(mining="semi_hard")(embeddings.requires_grad_(), *batch)[:].requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap_weight": -1.0}, "overlap_weight.*-1"),
        ({"overlap_weight": math.nan}, "overlap_weight.*nan"),
        ({"same_surface_weight": math.inf}, "same_surface_weight.*inf"),
        ({"mining": "hard"}, "mining.*'hard'"),
        ({"mining_margin": 0.0}, "mining_margin.*0"),
    ],
)
def test_options_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        PairWeighting(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"same_surface_weight": 0.5}, "surfaces"), ({"annotated": torch.ones(1, 4, dtype=torch.bool)}, "corpora")],
)
def test_missing_columns_are_errors(options, message):
    embeddings, spans, types, groups, *_ = some_spans(0)
    with pytest.raises(ValueError, match=f"{message}.*EntityCollator"):
        PairWeighting(**options)(embeddings, spans, types, groups)
