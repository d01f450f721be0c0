"""From logits to spans: with and without a scorer, against loops over what was proposed."""

import numpy as np
import pytest
import torch

from runne_coner.configuration import CoNERConfig
from runne_coner.decoding import DOUBT, OddsScores, SpanDecoder
from runne_coner.span_scorer import SpanScorer
from runne_coner.tagging import SPECIAL, WHOLE, nesting_levels, spans_from_tags

TYPES = ["CITY", "EVENT", "PERSON"]
WINDOWS, TOKENS, HIDDEN = 12, 10, 8


def config(**options) -> CoNERConfig:
    return CoNERConfig(entity_types=TYPES, **{"levels": 2, "level_order": "innermost", "candidate_paths": 3, **options})


@pytest.fixture
def batch():
    """Cases, logits of two levels, features and a scorer whose logits lie around 0."""
    torch.manual_seed(3)
    cases = torch.full((WINDOWS, TOKENS), WHOLE)
    cases[:, 0] = cases[:, -1] = SPECIAL
    cases[5, 6:] = SPECIAL
    scorer = SpanScorer(HIDDEN, len(TYPES), 0.5).eval()
    torch.nn.init.normal_(scorer.output.weight, std=2.0)
    torch.nn.init.constant_(scorer.output.bias, 6.0)
    logits = 3 * torch.randn(WINDOWS, TOKENS, 2 * len(TYPES), 5)
    with torch.no_grad():
        return cases, logits, scorer.features(torch.randn(WINDOWS, TOKENS, HIDDEN)), scorer


@torch.no_grad()
def log_odds_of(settings: CoNERConfig, cases, logits, features, scorer) -> dict[tuple[int, int, int, int], float]:
    """Mean log-odds of each proposed (window, type, first, end), one span at a time."""
    viterbi = SpanDecoder(settings).viterbi
    proposed = viterbi.candidate_spans(cases, logits, settings.candidate_paths)
    probabilities: dict[tuple[int, int, int, int], float] = {}
    for span in proposed:
        window, head, first, end = span.tolist()
        key = (window, head % len(TYPES), first, end)
        probability = viterbi.span_log_probabilities(cases, logits, span[None]).exp().item()
        probabilities[key] = probabilities.get(key, 0.0) + probability
    found = {}
    for (window, name, first, end), probability in probabilities.items():
        probability = min(probability, 1 - DOUBT)
        scored = scorer(features, torch.tensor([[window, first, end]]))[0, name].item()
        scored += settings.type_offsets.get(TYPES[name], 0.0)
        found[window, name, first, end] = (np.log(probability / (1 - probability)) + scored) / 2
    return found


def test_without_a_scorer_the_best_paths_are_the_result(batch):
    cases, logits, _, _ = batch
    decoder = SpanDecoder(config(candidate_paths=0))
    spans, scores = decoder.decode(cases, logits)
    assert spans.tolist() == spans_from_tags(decoder.viterbi.decode(cases, logits).numpy()).tolist()
    assert torch.equal(decoder.tags(cases, logits), decoder.viterbi.decode(cases, logits))
    expected = decoder.viterbi.span_log_probabilities(cases, logits, torch.from_numpy(spans)).double()
    torch.testing.assert_close(scores.log_odds(1.0), torch.logit(expected.exp()))
    some = torch.tensor([4, 0, 7])
    torch.testing.assert_close(scores.take(some).cpu().log_odds(2.0), scores.log_odds(2.0)[some])


def test_heads_to_decode_keep_their_numbers(batch):
    cases, logits, features, scorer = batch
    for given in ((None, None), (features, scorer)):
        decoder = SpanDecoder(config(candidate_paths=3 if given[1] else 0))
        everything, scores = decoder.decode(cases, logits, *given)
        wanted = [1, 4]  # both levels of EVENT
        some, some_scores = decoder.decode(cases, logits, *given, heads=wanted)
        kept = np.isin(everything[:, 1], wanted)
        assert some.tolist() == everything[kept].tolist() and 0 < kept.sum() < len(kept)
        torch.testing.assert_close(some_scores.log_odds(1.0), scores.log_odds(1.0)[torch.from_numpy(kept)])


@pytest.mark.parametrize("offsets", [{}, {"EVENT": 3.0}])
@pytest.mark.parametrize("order", ["innermost", "outermost"])
def test_a_scorer_takes_the_candidates_with_a_mean_above_zero(batch, offsets, order):
    cases, logits, features, scorer = batch
    settings = config(type_offsets=offsets, level_order=order, levels=2)
    odds = log_odds_of(settings, *batch)
    taken = {key: value for key, value in odds.items() if value > 1e-4}
    assert 20 < len(taken) < len(odds) - 20
    with torch.no_grad():
        spans, scores = SpanDecoder(settings).decode(cases, logits, features, scorer)
    assert spans.tolist() == sorted(spans.tolist()) and isinstance(scores, OddsScores)
    found = {
        (window, head % len(TYPES), first, end): value
        for (window, head, first, end), value in zip(spans.tolist(), scores.odds.tolist(), strict=True)
    }
    assert len(found) == len(spans) and found.keys() <= taken.keys()
    assert found == pytest.approx({key: odds[key] for key in found}, abs=1e-4)
    # Whatever is left out crosses a better one, or lies too deep.
    for key in taken.keys() - found.keys():
        window, name, first, end = key
        others = [other for other in taken if other[:2] == (window, name) and other != key]
        crossed = [o for o in others if (o[2] < first < o[3] < end or first < o[2] < end < o[3]) and taken[o] > taken[key]]
        nested = [o for o in others if (o[2] <= first and end <= o[3]) or (first <= o[2] and o[3] <= end)]
        assert crossed or len(nested) >= 2
    # What is found nests at most two deep, and crosses nothing.
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for window, name, first, end in found:
        groups.setdefault((window, name), []).append((first, end))
    assert max(max(nesting_levels(group)) for group in groups.values()) == 2
    for group in groups.values():
        assert not any(a < c < b < d for a, b in group for c, d in group)


def test_the_spans_of_a_scorer_are_written_as_tags(batch):
    cases, logits, features, scorer = batch
    decoder = SpanDecoder(config())
    with torch.no_grad():
        spans, _ = decoder.decode(cases, logits, features, scorer)
        tags = decoder.tags(cases, logits, features, scorer)
    assert tags.shape == logits.shape[:3] and spans_from_tags(tags.numpy()).tolist() == spans.tolist()


def decided(levels: int, order: str, *spans) -> list[tuple[int, int, int]]:
    """Level, first and end of the spans `(first, end, log-odds)` of one type that are kept."""
    decoder = SpanDecoder(config(levels=levels, level_order=order))
    rows = np.array([(0, 1, first, end) for first, end, _ in spans])
    kept, order = decoder._on_levels(rows, np.array([odds for _, _, odds in spans]))
    assert [rows[index, 2:].tolist() for index in order] == kept[:, 2:].tolist()
    return [(1 + head // len(TYPES), first, end) for _, head, first, end in kept.tolist()]


def test_of_crossing_spans_the_better_one_stays():
    assert decided(2, "innermost", (1, 4, 0.5), (3, 6, 0.7), (6, 8, 0.1)) == [(1, 3, 6), (1, 6, 8)]
    assert decided(2, "innermost", (1, 4, 0.8), (3, 6, 0.7), (5, 8, 0.1)) == [(1, 1, 4), (1, 5, 8)]


@pytest.mark.parametrize(
    ("levels", "order", "expected"),
    [
        (1, "innermost", [(1, 1, 6)]),
        (2, "innermost", [(1, 2, 3), (2, 2, 5)]),
        (2, "outermost", [(1, 1, 6), (2, 2, 5)]),
        (3, "innermost", [(1, 2, 3), (2, 2, 5), (3, 1, 6)]),
    ],
)
def test_spans_beyond_the_levels_are_left_out(levels, order, expected):
    assert sorted(decided(levels, order, (1, 6, 0.1), (2, 5, 0.9), (2, 3, 0.5))) == expected


def test_windows_without_words_hold_nothing(batch):
    cases, logits, features, scorer = batch
    spans, scores = SpanDecoder(config()).decode(torch.full_like(cases, SPECIAL), logits, features, scorer)
    assert spans.shape == (0, 4) and scores.log_odds(2.0).shape == (0,)
