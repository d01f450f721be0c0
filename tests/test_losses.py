"""The losses against the formulas of the paper, worked by hand or in plain float64 loops."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from runne_coner import losses
from runne_coner.losses import (
    MIN_DISTANCE,
    DiceLoss,
    DistanceBasedLogisticLoss,
    NamedEntityLoss,
    dbl_log_probability,
    dbl_pair_loss,
    pairwise_distance,
    rdrop_divergence,
    span_loss,
)
from runne_coner.tagging import IGNORE_INDEX, B, I, L, O, U, tag_log_frequencies


@pytest.fixture(autouse=True)
def _anomalies_are_errors():
    with torch.autograd.set_detect_anomaly(True):
        yield


def unit_vectors(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


# -- Stage 1: distance-based logistic loss ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distance", "margin", "probability"),
    [
        (0.0, 1.0, 1.0),
        (1.0, 1.0, (1 + math.exp(-1)) / 2),  # at the margin
        (2.0, 1.0, math.exp(-1)),  # (1 + 1/e) / (1 + e) = 1/e
        (0.5, 0.5, (1 + math.exp(-0.5)) / 2),
        (1.5, 0.0, 2 / (1 + math.exp(1.5))),
    ],
)
def test_probability_of_the_same_type_is_eq_3(distance, margin, probability):
    log_same, log_different = dbl_log_probability(torch.tensor(distance), margin)
    assert log_same.exp().item() == pytest.approx(probability, rel=1e-6)
    assert log_different.exp().item() == pytest.approx(1 - probability, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("margin", [0.25, 1.0, 2.0])
def test_log_probabilities_agree_with_float64(margin):
    distance = torch.cat([torch.logspace(-3, 0, 50), torch.linspace(1, 2, 20)])
    exact = (1 + math.exp(-margin)) / (1 + (distance.double() - margin).exp())
    log_same, log_different = dbl_log_probability(distance, margin)
    torch.testing.assert_close(log_same.double(), exact.log(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(log_different.double(), (1 - exact).log(), rtol=2e-6, atol=2e-6)


def test_probability_falls_with_the_distance():
    log_same, log_different = dbl_log_probability(torch.linspace(0.001, 2, 200))
    assert (log_same.diff() < 0).all() and (log_different.diff() > 0).all()


def test_label_smoothing_moves_the_targets():
    distance = torch.tensor([0.4, 1.3])
    log_same, log_different = dbl_log_probability(distance)
    loss = dbl_pair_loss(distance, torch.tensor([True, False]), label_smoothing=0.2)
    assert loss[0].item() == pytest.approx(-(0.9 * log_same[0] + 0.1 * log_different[0]).item(), rel=1e-6)
    assert loss[1].item() == pytest.approx(-(0.1 * log_same[1] + 0.9 * log_different[1]).item(), rel=1e-6)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equal_embeddings_have_a_finite_loss_and_gradient(same, smoothing):
    raw = torch.tensor([[3.0, 4.0], [3.0, 4.0]], requires_grad=True)
    embeddings = F.normalize(raw, dim=-1)
    module = DistanceBasedLogisticLoss(label_smoothing=smoothing)
    types = torch.tensor([0, 0 if same else 1])
    for loss in (
        module(embeddings, types, torch.arange(2))["loss"],
        module.forward_pairs(embeddings[:1], embeddings[1:], torch.tensor([same]))["loss"],
    ):
        (gradient,) = torch.autograd.grad(loss, raw, retain_graph=True)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
        if same and not smoothing:
            assert loss.item() < 1e-3


def test_a_gradient_step_moves_pairs_the_right_way():
    # Also for pairs that are almost one point.
    for gap in (0.01, 0.5, 1.5):
        for same in (True, False):
            raw = torch.tensor([[1.0, 0.0], [math.cos(gap), math.sin(gap)]], requires_grad=True)
            embeddings = F.normalize(raw, dim=-1)
            loss = DistanceBasedLogisticLoss()(embeddings, torch.tensor([0, 0 if same else 1]), torch.arange(2))["loss"]
            (gradient,) = torch.autograd.grad(loss, raw)
            moved = F.normalize(raw.detach() - 1e-4 * gradient, dim=-1)
            before, after = pairwise_distance(*embeddings.detach().chunk(2)), pairwise_distance(*moved.chunk(2))
            assert (after < before) if same else (after > before)


def reference_in_batch(embeddings, types, spans, margin, weight, smoothing, pair_weights=None):
    """The documented loss by two plain loops over spans, in float64."""
    losses, totals = {}, {}
    for i in range(len(types)):
        for j in range(len(types)):
            pair_weight = 1.0 if pair_weights is None else pair_weights[i, j].item()
            if spans[i] == spans[j] or pair_weight == 0:
                continue
            distance = (embeddings[i] - embeddings[j]).norm()
            probability = (1 + math.exp(-margin)) / (1 + (distance - margin).exp())
            target = 1 - smoothing / 2 if types[i] == types[j] else smoothing / 2
            loss = -(target * probability.log() + (1 - target) * (1 - probability).log())
            losses.setdefault((types[i], types[j]), []).append(pair_weight * loss)
            totals[types[i], types[j]] = totals.get((types[i], types[j]), 0.0) + pair_weight
    means = {pair: torch.stack(values).sum() / totals[pair] for pair, values in losses.items()}
    positive = [mean for (one, other), mean in means.items() if one == other]
    negative = [mean for (one, other), mean in means.items() if one != other]
    total = torch.zeros((), dtype=torch.float64)
    if positive:
        total = total + weight * torch.stack(positive).mean()
    if negative:
        total = total + (1 - weight) * torch.stack(negative).mean()
    return total


@pytest.mark.parametrize("pairs_at_a_time", [2**22, 60, 1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("margin", "weight", "smoothing"), [(1.0, 0.3, 0.0), (0.5, 0.8, 0.1)])
def test_in_batch_loss_equals_a_double_loop(seed, margin, weight, smoothing, weighted, pairs_at_a_time, monkeypatch):
    """All pairs in one block, in blocks of 4 rows and a rest of 2, or row by row."""
    monkeypatch.setattr(losses, "PAIRS_AT_A_TIME", pairs_at_a_time)
    generator = torch.Generator().manual_seed(seed)
    raw = unit_vectors(14, 6, seed)
    types = (torch.randint(0, 25, (14,), generator=generator) ** 0.5).long() * 7 + 3  # uneven, with gaps in the numbering
    spans = torch.randint(0, 11, (14,), generator=generator)
    weights = None
    if weighted:  # of ordered pairs, not symmetric, a third of them 0, others tiny or large
        weights = torch.randint(0, 3, (14, 14), generator=generator) * 10 ** torch.randn(14, 14, generator=generator)
    exact_raw = raw.clone().requires_grad_()
    options = (margin, weight, smoothing, weights)
    exact = reference_in_batch(F.normalize(exact_raw, dim=-1), types.tolist(), spans.tolist(), *options)
    exact.backward()
    found_raw = raw.float().requires_grad_()
    module = DistanceBasedLogisticLoss(margin, weight, smoothing)
    embeddings = F.normalize(found_raw, dim=-1)
    parts = module(embeddings, types, spans, weights=weights)
    parts["loss"].backward()
    assert parts["loss"].item() == pytest.approx(exact.item(), abs=1e-6)
    torch.testing.assert_close(found_raw.grad.double(), exact_raw.grad, rtol=0, atol=1e-6)
    distance, compared = pairwise_distance(embeddings, embeddings), spans[:, None] != spans[None, :]
    compared &= torch.ones(14, 14, dtype=torch.bool) if weights is None else weights > 0
    for name, kind in (("positive", types[:, None] == types), ("negative", types[:, None] != types)):
        assert parts[f"{name}_distance"].item() == pytest.approx(distance[kind & compared].mean().item(), rel=1e-5)
        assert not parts[f"{name}_distance"].requires_grad


def test_the_pairs_are_not_kept_for_the_backward_pass(monkeypatch):
    """Nor are all of them in memory at a time: no tensor of the forward or backward pass has as many elements as pairs."""
    monkeypatch.setattr(losses, "PAIRS_AT_A_TIME", 2000)
    embeddings = F.normalize(unit_vectors(200, 6).float(), dim=-1).requires_grad_()
    kept, largest = {}, 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for value in found if isinstance(found, tuple | list) else [found]:
                largest = max(largest, value.numel() if isinstance(value, torch.Tensor) else 0)
            return found

    def keep(value):
        kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), Sizes():
        loss = DistanceBasedLogisticLoss()(embeddings, torch.arange(200) % 7, torch.arange(200))["loss"]
        assert sum(kept.values()) < 10 * embeddings.numel()
        loss.backward()
    assert 2000 <= largest <= 4000 and embeddings.grad.abs().sum() > 0


def test_every_ordered_pair_of_types_counts_the_same():
    # Many spans of type 0 at one point, one of type 1 and two of type 2 at others: means, not sums, are averaged.
    points = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    types = torch.tensor([0] * 20 + [1, 2, 2])
    embeddings = points[torch.tensor([0] * 20 + [1, 2, 3])]
    right, opposite, same_point = 2**0.5, 2.0, MIN_DISTANCE

    def p(distance):
        return (1 + math.exp(-1)) / (1 + math.exp(distance - 1))

    def negative(distance):
        return -math.log(1 - p(distance))

    positives = (-math.log(p(same_point)) - math.log(p(right))) / 2  # type 1 has no pair of its own
    type_0_and_2 = (negative(right) + negative(opposite)) / 2
    type_1_and_2 = negative(right)
    negatives = (negative(right) + type_0_and_2 + type_1_and_2) / 3
    loss = DistanceBasedLogisticLoss()(embeddings, types, torch.arange(23))["loss"]
    assert loss.item() == pytest.approx(0.3 * positives + 0.7 * negatives, abs=1e-6)


def test_a_span_is_never_its_own_pair():
    embeddings = F.normalize(unit_vectors(3, 4).float(), dim=-1).requires_grad_()
    module = DistanceBasedLogisticLoss()
    # One span under three types: no pair at all.
    parts = module(embeddings, torch.tensor([0, 1, 2]), torch.tensor([5, 5, 5]))
    parts["loss"].backward()
    assert parts["loss"].item() == 0 and (embeddings.grad == 0).all()
    assert math.isnan(parts["positive_distance"]) and math.isnan(parts["negative_distance"])
    # Two types on one span, and another span: the two are no negatives of each other.
    parts = module(embeddings, torch.tensor([0, 1, 0]), torch.tensor([5, 5, 6]))
    distance = pairwise_distance(embeddings.detach(), embeddings.detach())
    assert parts["positive_distance"].item() == pytest.approx(distance[0, 2].item())
    assert parts["negative_distance"].item() == pytest.approx(distance[1, 2].item())


DEGENERATE = {
    "no span": [],
    "one span": [4],
    "one type": [2, 2, 2],
    "one span of each type": [0, 1, 2],
    "one pair": [1, 1],
}


@pytest.mark.parametrize("types", DEGENERATE.values(), ids=DEGENERATE.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_with_few_spans_train_on(types, dtype):
    raw = unit_vectors(len(types), 8).to(dtype).requires_grad_()
    module = DistanceBasedLogisticLoss()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        parts = module(F.normalize(raw, dim=-1), torch.tensor(types, dtype=torch.long), torch.arange(len(types)))
    assert parts["loss"].dtype == torch.float32
    parts["loss"].backward()
    assert torch.isfinite(parts["loss"]) and torch.isfinite(raw.grad).all()
    assert (parts["loss"].item() == 0) == (len(types) < 2)


def test_bf16_embeddings_give_nearly_the_same_loss():
    embeddings = F.normalize(unit_vectors(30, 64), dim=-1)
    types, spans = torch.arange(30) % 4, torch.arange(30)
    module = DistanceBasedLogisticLoss()
    exact = module(embeddings.float(), types, spans)["loss"]
    assert module(embeddings.bfloat16(), types, spans)["loss"].item() == pytest.approx(exact.item(), rel=5e-3)


def test_autocast_does_not_reach_into_the_losses():
    embeddings = F.normalize(unit_vectors(20, 16).float(), dim=-1)
    types = torch.arange(20) % 3
    stage_1, stage_2 = DistanceBasedLogisticLoss(), NamedEntityLoss()
    logits = unit_vectors(24, 5).float().reshape(2, 4, 3, 5)
    labels = torch.arange(24).reshape(2, 4, 3) % 5
    calls = [
        lambda: stage_1(embeddings, types, torch.arange(20))["loss"],
        lambda: stage_1.forward_pairs(embeddings[:10], embeddings[10:], types[:10] == types[10:])["loss"],
        lambda: stage_2(logits, labels)["loss"],
    ]
    for call in calls:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = call()
        assert inside.dtype == torch.float32 and torch.equal(inside, call())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_given_pairs_cost_the_mean_log_loss(smoothing):
    first, second = (F.normalize(unit_vectors(9, 5, seed), dim=-1) for seed in (1, 2))
    same = torch.arange(9) % 3 == 0
    probability = (1 + math.exp(-1)) / (1 + ((first - second).norm(dim=-1) - 1).exp())
    target = torch.where(same, 1 - smoothing / 2, smoothing / 2)
    expected = F.binary_cross_entropy(probability, target.double())
    parts = DistanceBasedLogisticLoss(label_smoothing=smoothing).forward_pairs(first.float(), second.float(), same)
    assert parts["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    distance = (first - second).norm(dim=-1)
    assert parts["positive_distance"].item() == pytest.approx(distance[same].mean().item(), abs=1e-6)
    assert parts["negative_distance"].item() == pytest.approx(distance[~same].mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"positive_weight": -0.1}, {"positive_weight": 1.1}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}]
)
def test_dbl_options_out_of_range_are_errors(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DistanceBasedLogisticLoss(**options)


# -- Stage 2: named-entity loss -----------------------------------------------------------------------------------------


def reference_nel(logits, labels, alpha, dice_weight, gamma, reduction, smoothing=0.0):
    """Eq. 6 per head by plain loops over (window, token); heads are summed."""
    windows, tokens, heads, _ = logits.shape
    total = 0.0
    for head in range(heads):
        cross_entropy, terms, overlap, squares, count = 0.0, 0.0, 0.0, 0.0, 0
        for window in range(windows):
            for token in range(tokens):
                label = int(labels[window, token, head])
                if label == IGNORE_INDEX:
                    continue
                scores = [math.exp(value) for value in logits[window, token, head].tolist()]
                probabilities = [score / sum(scores) for score in scores]
                targets = [(1 - smoothing) * (tag == label) + smoothing / 5 for tag in range(5)]
                cross_entropy -= sum(y * math.log(p) for y, p in zip(targets, probabilities, strict=True))
                p, y = sum(probabilities[1:]), float(label != 0)
                terms += 1 - (2 * p * y + gamma) / (p * p + y * y + gamma)
                overlap += 2 * p * y
                squares += p * p + y * y
                count += 1
        dice = terms / count if reduction == "token" else 1 - (overlap + gamma) / (squares + gamma)
        total += alpha * cross_entropy / count + dice_weight * dice
    return total


def some_batch(seed=0, windows=2, tokens=4, heads=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(windows, tokens, heads, 5, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, 5, (windows, tokens, heads), generator=generator)
    labels[0, 0] = IGNORE_INDEX  # a special token
    labels[1, -2:] = IGNORE_INDEX  # padding
    labels[:, :, -1] = torch.where(labels[:, :, -1] > 0, O, labels[:, :, -1])  # a type that does not occur
    return logits, labels


@pytest.mark.parametrize("reduction", ["token", "batch"])
@pytest.mark.parametrize(
    ("alpha", "dice_weight", "gamma", "smoothing"), [(1, 1, 1, 0), (5, 1, 0.1, 0.1), (0, 1, 1, 0), (2, 0, 1, 0.2)]
)
def test_nel_is_eq_6(reduction, alpha, dice_weight, gamma, smoothing):
    for seed in range(3):
        logits, labels = some_batch(seed)
        parts = NamedEntityLoss(alpha, dice_weight, gamma, reduction, smoothing)(logits.float(), labels)
        expected = reference_nel(logits, labels, alpha, dice_weight, gamma, reduction, smoothing)
        assert parts["loss"].item() == pytest.approx(expected, rel=1e-5)
        assert parts["loss"].item() == pytest.approx(
            alpha * parts["ce_loss"].item() + dice_weight * parts["dice_loss"].item(), rel=1e-5
        )
        if dice_weight == 0:
            assert parts["dice_loss"].item() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_torch_summed_over_heads(smoothing):
    logits, labels = some_batch(3, windows=3, tokens=7, heads=4)
    single = torch.nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX, label_smoothing=smoothing)
    exact_logits = logits.clone().requires_grad_()
    exact = sum(single(exact_logits[:, :, head].reshape(-1, 5), labels[:, :, head].reshape(-1)) for head in range(4))
    exact.backward()
    found_logits = logits.float().requires_grad_()
    found = NamedEntityLoss(1.0, 0.0, label_smoothing=smoothing)(found_logits, labels)["loss"]
    found.backward()
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)
    torch.testing.assert_close(found_logits.grad.double(), exact_logits.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reduction", ["token", "batch"])
def test_dice_gradient_is_that_of_float64_differences(reduction):
    logits, labels = some_batch(5)
    found = logits.float().requires_grad_()
    NamedEntityLoss(0.0, 1.0, 0.5, reduction)(found, labels)["loss"].backward()
    step = 1e-5
    for index in [(0, 1, 0, 0), (0, 3, 1, 2), (1, 0, 2, 0), (1, 1, 0, 4), (0, 2, 2, 1)]:
        high, low = logits.clone(), logits.clone()
        high[index] += step
        low[index] -= step
        slope = reference_nel(high, labels, 0, 1, 0.5, reduction) - reference_nel(low, labels, 0, 1, 0.5, reduction)
        assert found.grad[index].item() == pytest.approx(slope / (2 * step), abs=1e-6)


@pytest.mark.parametrize("reduction", ["token", "batch"])
@pytest.mark.parametrize("content", [0.0, 1e4, float("inf"), float("nan")])
def test_padding_and_special_tokens_take_no_part(reduction, content):
    logits, labels = some_batch(1)
    logits = logits.float()
    padded = torch.full((3, 6, 3, 5), content)
    padded[:2, :4] = logits
    padded_labels = torch.full((3, 6, 3), IGNORE_INDEX)
    padded_labels[:2, :4] = labels
    padded[padded_labels == IGNORE_INDEX] = content
    padded.requires_grad_()
    module = NamedEntityLoss(dice_reduction=reduction, label_smoothing=0.1)
    loss = module(padded, padded_labels)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(module(logits, labels)["loss"].item(), rel=1e-6)
    assert (padded.grad[padded_labels == IGNORE_INDEX] == 0).all()
    assert (padded.grad[padded_labels != IGNORE_INDEX] != 0).any(-1).all()


@pytest.mark.parametrize("reduction", ["token", "batch"])
def test_a_batch_of_padding_costs_nothing(reduction):
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = NamedEntityLoss(dice_reduction=reduction, label_smoothing=0.1)(logits, torch.full((2, 3, 4), -100))["loss"]
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def log_probabilities_of(entity_probability):
    """`(tokens, 1, 5)` log-probabilities with the given P(not O), spread evenly over B, I, L, U."""
    entity = torch.tensor(entity_probability, dtype=torch.float64)
    rest = (entity / 4)[:, None].expand(-1, 4)
    return torch.cat([(1 - entity)[:, None], rest], dim=-1).log()[:, None, :]


def test_what_an_absent_type_contributes():
    # Four tokens outside every entity with P(not O) = 1/2, gamma = 1: 0.25 / 1.25 each, or 1 / 2 over the batch.
    log_probabilities = log_probabilities_of([0.5] * 4)
    labels, real = torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1, dtype=torch.bool)
    assert DiceLoss(1.0, "token")(log_probabilities, labels, real).item() == pytest.approx(0.2)
    assert DiceLoss(1.0, "batch")(log_probabilities, labels, real).item() == pytest.approx(0.5)
    sure = log_probabilities_of([0.0] * 4)
    for reduction in ("token", "batch"):
        assert DiceLoss(1.0, reduction)(sure, labels, real).item() == 0


def test_dice_worked_by_hand():
    # P(not O) = 0.5, 1, 0.2 on an entity token, an entity token, and one outside; gamma = 1.
    log_probabilities = log_probabilities_of([0.5, 1 - 1e-15, 0.2])
    labels, real = torch.tensor([[B], [L], [O]]), torch.ones(3, 1, dtype=torch.bool)
    per_token = (1 - (1 + 1) / (0.25 + 1 + 1), 0.0, 1 - 1 / 1.04)
    assert DiceLoss(1.0, "token")(log_probabilities, labels, real).item() == pytest.approx(sum(per_token) / 3)
    per_batch = 1 - (2 * 1.5 + 1) / (0.25 + 1 + 0.04 + 2 + 1)
    assert DiceLoss(1.0, "batch")(log_probabilities, labels, real).item() == pytest.approx(per_batch)


@pytest.mark.parametrize("reduction", ["token", "batch"])
def test_dice_leaves_out_tokens_that_are_not_real(reduction):
    log_probabilities = log_probabilities_of([0.5, 0.9, 0.2])
    labels, real = torch.tensor([[B], [IGNORE_INDEX], [O]]), torch.tensor([[True], [False], [True]])
    dice = DiceLoss(1.0, reduction)
    kept = [0, 2]
    assert dice(log_probabilities, labels, real) == dice(log_probabilities[kept], labels[kept], real[kept])


@pytest.mark.parametrize("label", [B, I, L, U])
def test_dice_tells_only_entity_from_outside(label):
    log_probabilities, real = log_probabilities_of([0.3, 0.7]), torch.ones(2, 1, dtype=torch.bool)
    for reduction in ("token", "batch"):
        dice = DiceLoss(1.0, reduction)
        expected = dice(log_probabilities, torch.tensor([[B], [O]]), real)
        assert dice(log_probabilities, torch.tensor([[label], [O]]), real) == expected


@pytest.mark.parametrize("reduction", ["token", "batch"])
def test_dice_sees_positions(reduction):
    """The trap of ARCHITECTURE: as a product of sums, eq. 6 is near 0 although every token is wrong."""
    tokens, gamma = 200, 0.01
    truth = torch.arange(tokens) % 2 == 0
    labels = torch.where(truth, U, O)[None, :, None]
    logits = torch.zeros(1, tokens, 1, 5)
    logits[0, ~truth, 0, U] = 50.0
    logits[0, truth, 0, O] = 50.0
    entity, inside = float((~truth).sum()), float(truth.sum())
    assert 1 - (2 * entity * inside + gamma) / (entity**2 + inside**2 + gamma) < 1e-6
    found = NamedEntityLoss(0.0, 1.0, gamma, reduction)(logits, labels)["dice_loss"]
    assert found.item() > 0.98
    assert NamedEntityLoss(0.0, 1.0, gamma, reduction)(-logits, labels)["dice_loss"].item() < found.item()


@pytest.mark.parametrize("reduction", ["token", "batch"])
@pytest.mark.parametrize("gap", [17.0, 100.0, 1e4])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sure_probabilities_are_finite(reduction, gap, right, dtype):
    labels = torch.tensor([O, B, I, L, U])[None, :, None]
    predicted = labels if right else (labels + 2) % 5
    logits = (gap * F.one_hot(predicted, 5)).to(dtype).requires_grad_()
    loss = NamedEntityLoss(dice_reduction=reduction, label_smoothing=0.1)(logits, labels)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    "options",
    [
        {"ce_weight": -1.0},
        {"dice_weight": -1.0},
        {"ce_weight": 0.0, "dice_weight": 0.0},
        {"dice_smoothing": 0.0},
        {"dice_smoothing": -1.0},
        {"dice_reduction": "sum"},
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
        {"ce_form": "sharp"},
        {"focal_gamma": -1.0},
    ],
)
def test_nel_options_out_of_range_are_errors(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        NamedEntityLoss(**options)


# -- forms of the cross-entropy --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "gamma"), [("plain", 2.0), ("focal", 2.0), ("focal", 0.5), ("asymmetric", 3.0), ("focal", 0.0)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_a_loop_over_tokens_and_heads(form, gamma, smoothing):
    logits, labels = some_batch(2)
    loss = NamedEntityLoss(1.0, 0.0, label_smoothing=smoothing, ce_form=form, focal_gamma=gamma)
    found = loss(logits.float(), labels)["loss"].item()
    total, tokens = 0.0, 0
    for window, token in (labels[..., 0] != IGNORE_INDEX).nonzero().tolist():
        tokens += 1
        for head in range(3):
            label = int(labels[window, token, head])
            logs = torch.log_softmax(logits[window, token, head], dim=-1)
            focused = form == "focal" or (form == "asymmetric" and label == O)
            factor = (1 - logs[label].exp().item()) ** gamma if focused else 1.0
            total += (1 - smoothing) * -factor * logs[label].item() - smoothing * logs.mean().item()
    assert found == pytest.approx(total / tokens, rel=1e-5)


def test_forms_worked_by_hand():
    # P(O) = P(B) = 0.9 on a token that is O and one that is B: the values of the docstring.
    logits = torch.full((1, 2, 1, 5), 0.025).log()
    logits[0, 0, 0, O] = logits[0, 1, 0, B] = math.log(0.9)
    labels = torch.tensor([O, B])[None, :, None]
    plain, focal = 0.10536, 0.0010536
    for form, costs in {"plain": (plain, plain), "focal": (focal, focal), "asymmetric": (focal, plain)}.items():
        found = NamedEntityLoss(1.0, 0.0, ce_form=form)(logits, labels)["loss"].item()
        assert found == pytest.approx(sum(costs) / 2, rel=1e-3)


@pytest.mark.parametrize("form", ["focal", "asymmetric"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("gap", [17.0, 1e4])
def test_forms_are_finite_where_probabilities_are_0_or_1(form, gamma, gap):
    labels = torch.tensor([O, B, I, L, U, O])[None, :, None]
    predicted = torch.tensor([O, B, I, O, O, U])[None, :, None]
    logits = (gap * F.one_hot(predicted, 5)).float().requires_grad_()
    loss = NamedEntityLoss(ce_form=form, focal_gamma=gamma)(logits, labels)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_log_frequencies_worked_by_hand():
    logs = tag_log_frequencies(np.array([[94, 0, 0, 0, 1], [0, 0, 0, 0, 0]]))
    assert np.exp(logs) == pytest.approx(np.array([[0.95, 0.01, 0.01, 0.01, 0.02], [0.2] * 5]))


def test_rdrop_is_the_symmetric_divergence_of_torch():
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 2, 5)
    labels = torch.zeros(2, 3, 2, dtype=torch.long)
    labels[0, 0] = labels[1, 2] = IGNORE_INDEX
    divergence = rdrop_divergence(logits, torch.cat([labels, labels]))
    p, q = (half[labels[..., 0] != IGNORE_INDEX].log_softmax(-1) for half in logits.chunk(2))
    both = [F.kl_div(x, y, log_target=True, reduction="sum") for x, y in ((p, q), (q, p))]
    assert divergence.item() == pytest.approx(sum(both).item() / 2 / 4, rel=1e-5)
    assert rdrop_divergence(torch.cat([logits[:2]] * 2), torch.cat([labels, labels])).item() == 0.0
    nothing = rdrop_divergence(logits.requires_grad_(), torch.full((4, 3, 2), IGNORE_INDEX))
    nothing.backward()
    assert nothing.item() == 0.0


# -- The scorer of spans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5]])
def test_span_loss_is_the_weighted_sum_over_spans_for_each_token(weights):
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0], [-3.0, 1.0]], dtype=torch.float64)
    targets = torch.tensor([[True, False], [False, False], [True, True]])
    expected = 0.0
    for span, weight in enumerate(weights or [1.0] * 3):
        for logit, target in zip(logits[span].tolist(), targets[span].tolist(), strict=True):
            probability = 1.0 / (1.0 + math.exp(-logit))
            expected -= weight * math.log(probability if target else 1.0 - probability)
    given = None if weights is None else torch.tensor(weights)
    assert span_loss(logits, targets, 7, given).item() == pytest.approx(expected / 7, rel=1e-6)


def test_span_loss_of_no_spans_has_a_gradient_of_zeros():
    logits = torch.zeros(0, 2, requires_grad=True)
    loss = span_loss(logits, torch.zeros(0, 2, dtype=torch.bool), 0, torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.shape == (0, 2)
