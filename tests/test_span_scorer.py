"""The scorer of candidate spans: which spans it is trained on, what they are, and its logits against a plain loop."""

import torch

from runne_coner.span_scorer import DRAWN, LONGEST, PRIOR, SIZE, SpanScorer, drawn_spans, span_targets, word_spans
from runne_coner.tagging import FIRST, IGNORE_INDEX, LAST, MIDDLE, SPECIAL, WHOLE, bilou_labels


def test_word_spans_are_all_spans_of_whole_words():
    cases = torch.tensor(
        [[SPECIAL, WHOLE, FIRST, MIDDLE, LAST, WHOLE, SPECIAL], [SPECIAL, FIRST, LAST, SPECIAL, SPECIAL, SPECIAL, SPECIAL]]
    )
    expected = [[0, 1, 2], [0, 1, 5], [0, 1, 6], [0, 2, 5], [0, 2, 6], [0, 5, 6], [1, 1, 3]]
    assert word_spans(cases).tolist() == expected


def test_word_spans_are_no_wider_than_the_longest():
    spans = word_spans(torch.full((1, LONGEST + 5), WHOLE))
    assert (spans[:, 2] - spans[:, 1]).max() == LONGEST
    assert [0, 5, LONGEST + 5] in spans.tolist()


def test_a_window_without_words_has_no_spans():
    spans = word_spans(torch.full((2, 3), SPECIAL))
    assert spans.shape == (0, 3)
    assert SpanScorer(4, 2, 0.0)(torch.zeros(2, 3, 3 * SIZE), spans).shape == (0, 2)


def test_targets_are_the_labelled_spans_of_every_level():
    # Two types, two levels: heads A, B, A@2, B@2.
    first = bilou_labels([(0, 1, 4), (1, 2, 3), (2, 2, 3)], 6, 4)
    second = bilou_labels([(1, 1, 3), (1, 3, 4), (3, 1, 5)], 6, 4)
    labels = torch.tensor([first.tolist(), second.tolist()])
    labels[:, [0, 5]] = IGNORE_INDEX
    spans = torch.tensor([(w, f, e) for w in range(2) for f in range(1, 5) for e in range(f + 1, 6)])
    found = {
        (*span, type_)
        for span, row in zip(spans.tolist(), span_targets(spans, labels, 2).tolist(), strict=True)
        for type_ in range(2)
        if row[type_]
    }
    assert found == {(0, 1, 4, 0), (0, 2, 3, 1), (0, 2, 3, 0), (1, 1, 3, 1), (1, 3, 4, 1), (1, 1, 5, 1)}


def test_neighbouring_entities_of_a_head_are_two_spans_and_not_one():
    labels = torch.tensor(bilou_labels([(0, 0, 2), (0, 2, 4)], 4, 1).tolist())[None]
    spans = word_spans(torch.full((1, 4), WHOLE))
    assert spans[span_targets(spans, labels, 1)[:, 0]].tolist() == [[0, 0, 2], [0, 2, 4]]


def test_training_sees_all_spans_between_entities_and_some_of_the_others():
    torch.manual_seed(0)
    # Entities 0-2 and 4-5 under two heads: spans from their first to their last tokens are (0, 2), (4, 5) and (0, 5).
    labels = torch.tensor(bilou_labels([(0, 0, 2), (1, 4, 5)], 8, 2).tolist())[None]
    cases = torch.full((1, 8), WHOLE)
    everything, draws = word_spans(cases).tolist(), 3000
    seen = dict.fromkeys(map(tuple, everything), 0.0)
    for _ in range(draws):
        spans, weights = drawn_spans(cases, labels)
        assert len(spans) < len(everything)
        for span, weight in zip(spans.tolist(), weights.tolist(), strict=True):
            seen[tuple(span)] += weight
    near = {(0, 0, 2), (0, 4, 5), (0, 0, 5)}
    assert {seen.pop(span) for span in near} == {draws}
    # In the mean over draws the others count as much; 5 deviations of the mean of a draw.
    assert all(abs(total / draws - 1.0) < 5 * ((1 / DRAWN - 1) / draws) ** 0.5 for total in seen.values())


def test_nothing_is_drawn_from_a_window_without_words():
    spans, weights = drawn_spans(torch.full((1, 3), SPECIAL), torch.full((1, 3, 2), IGNORE_INDEX))
    assert spans.shape == (0, 3) and weights.shape == (0,)


def test_logits_are_those_of_a_loop_over_spans():
    torch.manual_seed(0)
    scorer = SpanScorer(8, 3, 0.5).eval()
    hidden = torch.randn(2, LONGEST + 8, 8)
    spans = torch.tensor([[0, 0, 1], [0, 3, 7], [1, 2, 4], [1, 0, LONGEST + 8]])
    features = scorer.features(hidden)
    for span, row in zip(spans.tolist(), scorer(features, spans), strict=True):
        window, first, end = span
        a, b, c = (hidden[window] @ scorer.project.weight.T + scorer.project.bias).chunk(3, dim=-1)
        added = a[first] + b[end - 1] + c[first:end].mean(0) + scorer.widths.weight[min(end - first, LONGEST)]
        expected = scorer.output(torch.nn.functional.gelu(added)) - PRIOR
        assert torch.allclose(row, expected, atol=1e-5)


def test_a_new_scorer_takes_any_span_for_none():
    scorer = SpanScorer(8, 3, 0.0)
    torch.nn.init.zeros_(scorer.output.weight), torch.nn.init.zeros_(scorer.output.bias)
    logits = scorer(scorer.features(torch.randn(1, 4, 8)), torch.tensor([[0, 1, 3]]))
    assert logits.sigmoid().max() < 1 / 400
