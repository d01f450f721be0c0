"""Viterbi decoding against brute force over all paths, and the chains against Figure 2 of the paper."""

import itertools

import numpy as np
import pytest
import torch

from runne_coner.tagging import FIRST, IGNORE_INDEX, LAST, MIDDLE, SPECIAL, WHOLE, B, I, L, O, U, spans_from_tags
from runne_coner.viterbi import (
    BilouViterbiProcessor,
    BrokenLogitsError,
    allowed_transitions,
    count_transitions,
    counted_priors,
    uniform_priors,
)

# Figure 2, written out: (case, previous tag) -> tags with equal probability. Rows that are missing lead nowhere.
FIGURE_2 = {
    **{(WHOLE, previous): {O: 1 / 3, B: 1 / 3, U: 1 / 3} for previous in (O, L, U)},
    **{(WHOLE, previous): {I: 1 / 2, L: 1 / 2} for previous in (B, I)},
    **{(FIRST, previous): {O: 1 / 2, B: 1 / 2} for previous in (O, L, U)},
    **{(FIRST, previous): {I: 1.0} for previous in (B, I)},
    (MIDDLE, O): {O: 1.0},
    **{(MIDDLE, previous): {I: 1.0} for previous in (B, I)},
    (LAST, O): {O: 1.0},
    **{(LAST, previous): {I: 1 / 2, L: 1 / 2} for previous in (B, I)},
    **{(SPECIAL, previous): {O: 1.0} for previous in (O, L, U)},
}


def figure_2():
    table = np.zeros((5, 5, 5))
    for (case, previous), targets in FIGURE_2.items():
        for tag, probability in targets.items():
            table[case, previous, tag] = probability
    return table


def some_counted_priors(seed=0):
    return counted_priors(np.random.default_rng(seed).integers(0, 50, size=(5, 5, 5)))


PRIORS = {"uniform": figure_2(), "counted": some_counted_priors()}
ALL_PATHS = {length: np.array(list(itertools.product(range(5), repeat=length))) for length in range(1, 8)}


def path_scores(paths, cases, logits, priors):
    """log P(W | L) + log P(L) of each path `(paths, tokens)`, in float64, straight from eq. 7-8."""
    logits = np.where((cases == SPECIAL)[:, None], 0.0, logits.astype(np.float64))
    top = logits.max(-1, keepdims=True)
    log_likelihood = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    with np.errstate(divide="ignore"):
        log_prior = np.log(priors)
    total = np.zeros(len(paths))
    for t in range(len(cases)):
        previous = paths[:, t - 1] if t else np.full(len(paths), O)
        total += log_likelihood[t, paths[:, t]] + log_prior[cases[t], previous, paths[:, t]]
    total[np.isin(paths[:, -1], (B, I))] = -np.inf
    return total


def best_path(cases, logits, priors):
    """Best of all 5^T paths, its score, and its lead over the second best."""
    paths = ALL_PATHS[len(cases)]
    scores = path_scores(paths, cases, logits, priors)
    best = scores.argmax()
    others = np.delete(scores, best)
    return paths[best], scores[best], scores[best] - others.max(initial=-np.inf)


def word_cases(generator, tokens):
    """Cases of `tokens` sub-words of words of one to four parts, as tokenizers make them."""
    cases = []
    while len(cases) < tokens:
        parts = generator.integers(1, 5)
        cases += [WHOLE] if parts == 1 else [FIRST, *[MIDDLE] * (parts - 2), LAST]
    return np.array(cases[:tokens])


def test_uniform_priors_are_figure_2():
    np.testing.assert_allclose(uniform_priors(), figure_2(), rtol=1e-15)
    np.testing.assert_array_equal(allowed_transitions(), figure_2() > 0)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("any_order", [True, False], ids=["any-cases", "word-cases"])
def test_decoding_equals_brute_force(name, any_order):
    generator = np.random.default_rng(1)
    processor = BilouViterbiProcessor(None if name == "uniform" else PRIORS[name])
    lengths, heads = [7, 6, 5, 4, 3, 2, 1, 7, 5], 3
    cases = np.full((len(lengths), 8), SPECIAL)
    for window, length in enumerate(lengths):
        cases[window, :length] = generator.integers(0, 5, length) if any_order else word_cases(generator, length)
    logits = generator.normal(scale=3.0, size=(len(lengths), 8, heads, 5)).astype(np.float32)
    logits[cases == SPECIAL] = np.nan  # whatever padding holds
    tags = processor.decode(torch.from_numpy(cases), torch.from_numpy(logits)).numpy()
    assert tags.shape == (len(lengths), 8, heads) and tags.dtype == np.int64
    for window, length in enumerate(lengths):
        assert (tags[window, length:] == O).all()
        for head in range(heads):
            real = cases[window, :length], logits[window, :length, head], PRIORS[name]
            path, score, lead = best_path(*real)
            found = tags[window, :length, head]
            assert path_scores(found[None], *real)[0] == pytest.approx(score, abs=1e-4)
            if lead > 1e-4:
                assert found.tolist() == path.tolist()


@pytest.mark.parametrize("name", PRIORS)
def test_every_short_case_sequence_equals_brute_force(name):
    generator = np.random.default_rng(2)
    cases = np.array(list(itertools.product(range(5), repeat=4)))  # 625 sequences
    logits = generator.normal(scale=2.0, size=(len(cases), 4, 1, 5)).astype(np.float32)
    tags = BilouViterbiProcessor(PRIORS[name]).decode(torch.from_numpy(cases), torch.from_numpy(logits)).numpy()
    for window, sequence in enumerate(cases):
        path, _, lead = best_path(sequence, logits[window, :, 0], PRIORS[name])
        assert lead < 1e-4 or tags[window, :, 0].tolist() == path.tolist()


def test_paths_start_after_outside_and_end_outside():
    generator = np.random.default_rng(3)
    cases = torch.from_numpy(np.stack([word_cases(generator, 12) for _ in range(50)]))
    logits = torch.from_numpy(generator.normal(scale=4.0, size=(50, 12, 4, 5)))
    logits[:, 0, :, L] += 20.0  # a window that seems to start inside an entity ...
    logits[:, -1, :, I] += 20.0  # ... and to end inside one
    tags = BilouViterbiProcessor().decode(cases, logits).numpy()
    assert np.isin(tags[:, 0], (O, B, U)).all()
    assert np.isin(tags[:, -1], (O, L, U)).all()
    # Every tag that is not O belongs to a whole entity.
    spans = spans_from_tags(tags)
    assert (spans[:, 3] - spans[:, 2]).sum() == (tags != O).sum() > 100
    # And entities begin and end with words.
    for window, _, first, end in spans.tolist():
        assert cases[window, first] in (WHOLE, FIRST) and cases[window, end - 1] in (WHOLE, LAST)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_argmax_of_the_scores_is_the_path(dtype):
    generator = torch.Generator().manual_seed(4)
    cases = torch.randint(0, 5, (6, 10), generator=generator)
    logits = (3 * torch.randn(6, 10, 2, 5, generator=generator)).to(dtype)
    logits[0] = -torch.inf  # the tag on the path may have the logit -inf
    logits[0, 0, :, B] = 9.0
    logits[1, 3, :, U] = torch.inf
    processor = BilouViterbiProcessor()
    scores, tags = processor(cases, logits), processor.decode(cases, logits)
    assert scores.dtype == dtype and scores.shape == logits.shape
    assert torch.equal(scores.argmax(-1), tags)
    on_path = scores.gather(-1, tags[..., None])[..., 0]
    assert torch.isfinite(on_path).all()
    assert (scores > -torch.inf).sum() == tags.numel()
    untouched = logits.gather(-1, tags[..., None])[..., 0]
    finite = torch.isfinite(untouched)
    assert torch.equal(on_path[finite], untouched[finite])


@pytest.mark.parametrize("scale", [1e4, 1e30, 3e38, float("inf")])
def test_saturated_logits_are_decoded(scale):
    cases = torch.tensor([[SPECIAL, WHOLE, FIRST, MIDDLE, LAST, WHOLE, WHOLE, WHOLE, SPECIAL]])
    path = torch.tensor([O, U, B, I, L, B, L, U, O])
    logits = torch.full((1, 9, 1, 5), -scale)
    logits[0, torch.arange(9), 0, path] = scale
    assert BilouViterbiProcessor().decode(cases, logits)[0, :, 0].tolist() == path.tolist()


@pytest.mark.parametrize("scale", [1e4, 3e38, float("inf")])
def test_saturated_logits_of_illegal_paths_still_give_a_legal_one(scale):
    generator = torch.Generator().manual_seed(5)
    cases = torch.randint(0, 5, (40, 30), generator=generator)
    signs = torch.randint(0, 2, (40, 30, 3, 5), generator=generator) * 2.0 - 1.0
    tags = BilouViterbiProcessor().decode(cases, signs * scale).numpy()
    previous = np.concatenate([np.full_like(tags[:, :1], O), tags[:, :-1]], axis=1)
    assert (figure_2()[cases.numpy()[..., None], previous, tags] > 0).all()
    assert not np.isin(tags[:, -1], (B, I)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*PRIORS, "entities-first"])
def test_decoding_is_exact_where_outside_barely_leads(name, dtype):
    # Most heads of most windows are O by far; here O leads by about as much as the priors can turn around.
    generator = np.random.default_rng(8)
    counts = np.ones((5, 5, 5))
    counts[WHOLE, O, U] = counts[FIRST, O, B] = counts[WHOLE, U, O] = counts[WHOLE, L, O] = 150
    priors = {**PRIORS, "entities-first": counted_priors(counts)}[name]
    largest = np.log(priors[priors > 0].max() / priors[priors > 0].min())
    cases = np.stack([word_cases(generator, 4) for _ in range(400)])
    logits = generator.normal(scale=0.01, size=(400, 4, 1, 5))
    logits[..., O] += generator.uniform(0, 2 * largest + 1, size=(400, 1, 1))
    logits = torch.from_numpy(logits).to(dtype)
    tags = BilouViterbiProcessor(priors).decode(torch.from_numpy(cases), logits).numpy()
    outside = 0
    for window in range(400):
        path, _, lead = best_path(cases[window], logits[window, :, 0].double().numpy(), priors)
        assert lead < 1e-4 or tags[window, :, 0].tolist() == path.tolist()
        outside += (path == O).all()
    assert 20 < outside < 400


def test_adjacent_entities_stay_apart():
    cases = torch.full((1, 7), WHOLE)
    path = [B, L, B, L, U, U, O]
    logits = 8.0 * torch.nn.functional.one_hot(torch.tensor(path), 5).float()[None, :, None]
    tags = BilouViterbiProcessor().decode(cases, logits)
    assert tags[0, :, 0].tolist() == path
    assert spans_from_tags(tags.numpy())[:, 2:].tolist() == [[0, 2], [2, 4], [4, 5], [5, 6]]


def test_nan_is_an_error_for_real_tokens_only():
    cases = torch.tensor([[WHOLE, SPECIAL]])
    logits = torch.zeros(1, 2, 1, 5)
    logits[0, 1] = torch.nan
    assert BilouViterbiProcessor().decode(cases, logits).shape == (1, 2, 1)
    logits[0, 0, 0, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        BilouViterbiProcessor().decode(cases, logits)
    with pytest.raises(ValueError, match="NaN"):
        BilouViterbiProcessor()(cases, logits)


@pytest.mark.parametrize("shape", [(2, 0, 3, 5), (0, 4, 3, 5)])
def test_nothing_to_decode(shape):
    cases = torch.zeros(shape[:2], dtype=torch.long)
    assert BilouViterbiProcessor().decode(cases, torch.zeros(shape)).shape == shape[:3]


def test_decoding_needs_no_gradient():
    logits = torch.randn(1, 4, 2, 5, requires_grad=True)
    assert not BilouViterbiProcessor().decode(torch.zeros(1, 4, dtype=torch.long), logits).requires_grad


def test_priors_decide_where_logits_do_not():
    # With no evidence at all, three whole words: the most probable path under counts that favour U after O.
    counts = np.zeros((5, 5, 5))
    counts[WHOLE, O, U] = counts[WHOLE, U, U] = 98
    tags = BilouViterbiProcessor(counted_priors(counts)).decode(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, 1, 5))
    assert tags.flatten().tolist() == [U, U, U]


def test_counted_priors_are_smoothed_frequencies_of_allowed_transitions():
    counts = np.full((5, 5, 5), 1000.0)  # also on forbidden transitions
    counts[WHOLE, O, [O, B, U]] = 7, 2, 0
    priors = counted_priors(counts)
    np.testing.assert_allclose(priors[WHOLE, O], [8 / 12, 3 / 12, 0, 0, 1 / 12])
    assert (priors[figure_2() == 0] == 0).all()
    assert (priors[figure_2() > 0] > 0).all()
    np.testing.assert_allclose(priors.sum(-1), (figure_2().sum(-1) > 0).astype(float))
    np.testing.assert_allclose(counted_priors(np.zeros((5, 5, 5))), figure_2())
    BilouViterbiProcessor(priors.tolist())


def test_transitions_are_counted_per_head_from_outside():
    cases = np.array([SPECIAL, WHOLE, FIRST, LAST])
    labels = np.array([[IGNORE_INDEX, IGNORE_INDEX], [U, O], [B, O], [L, O]])
    expected = np.zeros((5, 5, 5))
    for case, previous, tag in [(SPECIAL, O, O), (WHOLE, O, U), (FIRST, U, B), (LAST, B, L)]:
        expected[case, previous, tag] += 1
    for case in cases:
        expected[case, O, O] += 1
    np.testing.assert_array_equal(count_transitions(cases, labels), expected)


@pytest.mark.parametrize(
    "priors",
    [np.zeros((5, 5)), -figure_2(), np.full((5, 5, 5), 0.2), np.full((4, 5, 5), 0.2), np.zeros((5, 5, 5))],
    ids=["shape", "negative", "forbidden", "four-cases", "no-way-to-stay-outside"],
)
def test_priors_that_cannot_be_meant_are_errors(priors):
    with pytest.raises(ValueError, match="priors"):
        BilouViterbiProcessor(priors)


def test_looking_back_one_tag_is_not_viterbi():
    """The trap of ARCHITECTURE: choosing tag by tag given the one before misses the best path on most inputs."""
    generator = np.random.default_rng(6)
    priors, inputs, different = figure_2(), 60, 0
    with np.errstate(divide="ignore"):
        log_priors = np.log(priors)
    for _ in range(inputs):
        cases = word_cases(generator, 6)
        logits = generator.normal(scale=2.0, size=(6, 5)).astype(np.float32)
        log_likelihood = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
        greedy, previous = [], O
        for case, row in zip(cases, log_likelihood, strict=True):
            previous = int((row + log_priors[case, previous]).argmax())
            greedy.append(previous)
        exact = BilouViterbiProcessor().decode(torch.from_numpy(cases)[None], torch.from_numpy(logits)[None, :, None])
        exact = exact[0, :, 0].numpy()
        scores = path_scores(np.array([greedy, exact]), cases, logits, priors)
        assert scores[1] >= scores[0] - 1e-4
        different += greedy != exact.tolist()
    assert different > inputs / 2


@pytest.mark.parametrize("name", PRIORS)
def test_span_probabilities_equal_sums_over_all_paths(name):
    generator = np.random.default_rng(7)
    lengths, heads = [7, 6, 5, 4, 3, 2, 1], 2
    cases = np.full((len(lengths), 7), SPECIAL)  # the first window has no padding
    for window, length in enumerate(lengths):
        cases[window, :length] = word_cases(generator, length)
    logits = generator.normal(scale=2.0, size=(len(lengths), 7, heads, 5)).astype(np.float32)
    logits[cases == SPECIAL] = np.nan
    spans, expected = [], []
    for window, length in enumerate(lengths):
        for head in range(heads):
            paths = ALL_PATHS[length]
            weights = np.exp(path_scores(paths, cases[window, :length], logits[window, :length, head], PRIORS[name]))
            for first in range(length):
                for end in range(first + 1, length + 1):
                    inside = [U] if end - first == 1 else [B, *[I] * (end - first - 2), L]
                    share = weights[(paths[:, first:end] == inside).all(axis=1)].sum() / weights.sum()
                    spans.append((window, head, first, end))
                    expected.append(share)
    order = generator.permutation(len(spans))
    found = BilouViterbiProcessor(PRIORS[name]).span_log_probabilities(
        torch.from_numpy(cases), torch.from_numpy(logits), torch.tensor(spans)[order]
    )
    assert found.shape == (len(spans),) and (found <= 0).all()
    np.testing.assert_allclose(found.exp().numpy(), np.array(expected)[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e4, 1e30, float("inf")])
def test_span_probabilities_of_saturated_logits(scale):
    cases = torch.tensor([[SPECIAL, WHOLE, FIRST, MIDDLE, LAST, WHOLE, WHOLE, SPECIAL]])
    path = torch.tensor([O, U, B, I, L, B, L, O])
    logits = torch.full((1, 8, 1, 5), -scale)
    logits[0, torch.arange(8), 0, path] = scale
    spans = torch.tensor([[0, 0, 1, 2], [0, 0, 2, 5], [0, 0, 5, 7], [0, 0, 1, 5], [0, 0, 5, 6]])
    found = BilouViterbiProcessor().span_log_probabilities(cases, logits, spans)
    assert found.exp().tolist() == pytest.approx([1, 1, 1, 0, 0], abs=1e-6)


def test_no_spans_have_no_probabilities():
    found = BilouViterbiProcessor().span_log_probabilities(
        torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, 4, 5), torch.zeros(0, 4, dtype=torch.long)
    )
    assert found.shape == (0,)


def spans_of_best_paths(cases, logits, priors, paths):
    """Spans `(first, end)` on the best of all 5^T paths, by brute force, and the lead of the last of them over the next."""
    everything = ALL_PATHS[len(cases)]
    scores = path_scores(everything, cases, logits, priors)
    order = np.argsort(-scores)
    kept = [index for index in order[:paths] if scores[index] > -np.inf]
    lead = np.inf
    if len(kept) == paths and len(order) > paths:
        lead = scores[order[paths - 1]] - scores[order[paths]]
    spans = spans_from_tags(everything[kept][:, :, None])
    return {(first, end) for _, _, first, end in spans.tolist()}, lead


@pytest.mark.parametrize("paths", [1, 2, 5, 40])
@pytest.mark.parametrize("name", PRIORS)
def test_candidates_are_the_spans_of_the_best_paths(name, paths):
    generator = np.random.default_rng(11)
    lengths, heads = [6, 5, 4, 3, 2, 1, 6, 6], 3
    cases = np.full((len(lengths), 7), SPECIAL)
    for window, length in enumerate(lengths):
        cases[window, :length] = word_cases(generator, length)
    logits = generator.normal(scale=2.0, size=(len(lengths), 7, heads, 5)).astype(np.float32)
    logits[cases == SPECIAL] = np.nan  # whatever padding holds
    found = BilouViterbiProcessor(PRIORS[name]).candidate_spans(torch.from_numpy(cases), torch.from_numpy(logits), paths)
    found = set(map(tuple, found.tolist()))
    compared = 0
    for window, length in enumerate(lengths):
        for head in range(heads):
            expected, lead = spans_of_best_paths(cases[window, :length], logits[window, :length, head], PRIORS[name], paths)
            if lead > 1e-4:
                assert {span[2:] for span in found if span[:2] == (window, head)} == expected
                compared += 1
    assert compared > 15


def test_one_path_proposes_what_is_decoded():
    generator = np.random.default_rng(12)
    cases = torch.from_numpy(np.stack([word_cases(generator, 20) for _ in range(30)]))
    logits = torch.from_numpy(generator.normal(scale=3.0, size=(30, 20, 4, 5)).astype(np.float32))
    processor = BilouViterbiProcessor()
    decoded = spans_from_tags(processor.decode(cases, logits).numpy())
    assert processor.candidate_spans(cases, logits, 1).tolist() == decoded.tolist()


def test_sequences_that_are_surely_outside_propose_nothing():
    cases = torch.tensor([[WHOLE, WHOLE, WHOLE]])
    logits = torch.zeros(1, 3, 2, 5)
    logits[:, :, 0, O] = 20.0
    logits[:, :, 1, O] = 2.0
    assert {head for _, head, _, _ in BilouViterbiProcessor().candidate_spans(cases, logits, 3).tolist()} == {1}
    assert BilouViterbiProcessor().candidate_spans(cases[:0], logits[:0], 3).shape == (0, 4)


def test_candidates_of_broken_logits_are_refused():
    with pytest.raises(BrokenLogitsError, match="NaN"):
        BilouViterbiProcessor().candidate_spans(torch.tensor([[WHOLE]]), torch.full((1, 1, 1, 5), torch.nan), 2)
