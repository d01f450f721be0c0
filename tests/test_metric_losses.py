"""The losses of pytorch-metric-learning against their formulas in plain float64 loops, and on batches with few spans."""

import sys

import pytest
import torch
from torch.nn import functional as F

from runne_coner.cli import exit_on_input_error
from runne_coner.losses import DistanceBasedLogisticLoss
from runne_coner.metric_losses import LOSSES, MultiSimilarityLoss, NPairsLoss, SupConLoss, make_loss


@pytest.fixture(autouse=True)
def _anomalies_are_errors():
    with torch.autograd.set_detect_anomaly(True):
        yield


def some_batch(seed, count=14):
    """Raw embeddings (float64), types of uneven frequency, groups with spans under several types, and 0 / 1 weights."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    types = (torch.randint(0, 25, (count,), generator=generator) ** 0.5).long() * 7 + 3
    groups = torch.randint(0, count - 3, (count,), generator=generator)
    weights = (torch.rand(count, count, generator=generator) > 0.25).float()
    return raw, types, groups, weights * weights.T


def partners(types, groups, weights):
    """Per span the positives and the negatives that it may be compared with."""
    for i in range(len(types)):
        allowed = [j for j in range(len(types)) if groups[i] != groups[j] and weights[i, j] > 0]
        yield i, [j for j in allowed if types[i] == types[j]], [j for j in allowed if types[i] != types[j]]


def mean_over_types(losses):
    """Mean over types of the mean over their anchors; `losses` is a list of (type, loss)."""
    of_type = {}
    for kind, loss in losses:
        of_type.setdefault(int(kind), []).append(loss)
    return torch.stack([torch.stack(values).mean() for values in of_type.values()]).mean()


def reference_supcon(embeddings, types, groups, weights, temperature=0.1):
    losses = []
    for i, positives, negatives in partners(types, groups, weights):
        if positives:
            scores = {j: (embeddings[i] @ embeddings[j] / temperature).exp() for j in positives + negatives}
            terms = [-(scores[p] / sum(scores.values())).log() for p in positives]
            losses.append((types[i], sum(terms) / len(terms)))
    return mean_over_types(losses)


def reference_multi_similarity(embeddings, types, groups, weights, alpha=2.0, beta=50.0, base=0.5):
    losses = []
    for i, positives, negatives in partners(types, groups, weights):
        near = sum(((embeddings[i] @ embeddings[p] - base) * -alpha).exp() for p in positives)
        far = sum(((embeddings[i] @ embeddings[n] - base) * beta).exp() for n in negatives)
        if positives or negatives:
            losses.append((types[i], torch.log(1 + near + embeddings[i, 0] * 0) / alpha + torch.log(1 + far) / beta))
    return mean_over_types(losses)


def reference_n_pairs(embeddings, types, groups, weights):
    chosen = []
    for i, positives, _ in partners(types, groups, weights):
        if positives and int(types[i]) not in [int(types[a]) for a, _ in chosen]:
            # The first pair of its type; it joins if it may be compared with all that are in.
            chosen.append((i, positives[0]))
    kept = []
    for a, p in chosen:
        pairs = [(a, q) for _, q in kept] + [(b, p) for b, _ in kept]
        if all(groups[i] != groups[j] and weights[i, j] > 0 for i, j in pairs):
            kept.append((a, p))
    losses = []
    for a, p in kept:
        scores = [(embeddings[a] @ embeddings[q]).exp() for _, q in kept]
        losses.append(-((embeddings[a] @ embeddings[p]).exp() / sum(scores)).log())
    return torch.stack(losses).mean()


REFERENCES = {
    "supcon": (SupConLoss, reference_supcon),
    "multi_similarity": (MultiSimilarityLoss, reference_multi_similarity),
    "n_pairs": (NPairsLoss, reference_n_pairs),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", REFERENCES)
def test_losses_equal_their_formula(name, seed, weighted):
    loss, reference = REFERENCES[name]
    raw, types, groups, weights = some_batch(seed)
    weights = weights if weighted else torch.ones_like(weights)
    exact_raw, found_raw = raw.clone().requires_grad_(), raw.float().requires_grad_()
    exact = reference(F.normalize(exact_raw, dim=-1), types, groups, weights)
    exact.backward()
    parts = loss()(F.normalize(found_raw, dim=-1), types, groups, weights=weights if weighted else None)
    parts["loss"].backward()
    assert exact_raw.grad.abs().max() > 1e-3
    assert parts["loss"].item() == pytest.approx(exact.item(), rel=1e-5)
    torch.testing.assert_close(found_raw.grad.double(), exact_raw.grad, rtol=1e-4, atol=1e-5)
    # The logged distances are those of the pairs that are compared.
    compared = (groups[:, None] != groups[None, :]) & (weights > 0)
    distance = torch.cdist(F.normalize(raw, dim=-1), F.normalize(raw, dim=-1))
    same = types[:, None] == types[None, :]
    assert parts["positive_distance"].item() == pytest.approx(distance[same & compared].mean().item(), rel=1e-4)
    assert parts["negative_distance"].item() == pytest.approx(distance[~same & compared].mean().item(), rel=1e-4)


def test_options_of_the_formulas():
    raw, types, groups, weights = some_batch(5)
    embeddings = F.normalize(raw, dim=-1)
    exact = reference_supcon(embeddings, types, groups, weights, 0.5)
    assert SupConLoss(0.5)(embeddings, types, groups, weights=weights)["loss"].item() == pytest.approx(exact.item(), rel=1e-5)
    exact = reference_multi_similarity(embeddings, types, groups, weights, 3.0, 10.0, 0.25)
    loss = MultiSimilarityLoss(3.0, 10.0, 0.25)
    assert loss(embeddings, types, groups, weights=weights)["loss"].item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_frequent_types_do_not_dominate(name):
    """A type's loss is a mean over its anchors: eight copies of each anchor count as much as one."""
    points = F.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(2)), dim=-1)
    loss = make_loss(name, margin=1.0, positive_weight=0.3, label_smoothing=0.0)
    found = []
    for copies in (1, 8):
        original = torch.tensor([0] * copies + [1] * copies + [2, 3, 4])
        # Copies are of one group, so they are no pairs of each other, and only one of them is seen by the others.
        weights = torch.zeros(len(original), len(original))
        weights[:, [0, copies, -3, -2, -1]] = 1
        types = torch.tensor([0, 0, 1, 1, 2])[original]
        found.append(loss(points[original], types, original, weights=weights)["loss"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


DEGENERATE = {
    "no span": ([], []),
    "one span": ([4], [0]),
    "one type": ([2, 2, 2], [0, 1, 2]),
    "one span of each type": ([0, 1, 2], [0, 1, 2]),
    "one positive pair": ([1, 1], [0, 1]),
    "one negative pair": ([0, 1], [0, 1]),
    "one span under three types": ([0, 1, 2], [5, 5, 5]),
    "a span twice under one type": ([0, 0, 1], [5, 5, 6]),
    "a type of one span": ([0, 0, 0, 1], [0, 1, 2, 3]),
}


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "one point"])
@pytest.mark.parametrize("weights", ["none", "zeros"])
@pytest.mark.parametrize("batch", DEGENERATE.values(), ids=DEGENERATE.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_batches_train_on(name, dtype, batch, weights, apart):
    types, groups = (torch.tensor(values, dtype=torch.long) for values in batch)
    count = len(types)
    raw = torch.randn(count, 8, generator=torch.Generator().manual_seed(1)) if apart else torch.ones(count, 8)
    raw = raw.to(dtype).requires_grad_()
    given = None if weights == "none" else torch.zeros(count, count)
    loss = make_loss(name, margin=1.0, positive_weight=0.3, label_smoothing=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        parts = loss(F.normalize(raw, dim=-1), types, groups, weights=given)
    assert parts["loss"].dtype == torch.float32 and parts["loss"].requires_grad
    parts["loss"].backward()
    assert torch.isfinite(parts["loss"]) and torch.isfinite(raw.grad).all()
    if weights == "zeros" or len(set(batch[1])) < 2:
        assert parts["loss"].item() == 0 and (raw.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_reach_into_the_losses(name):
    raw, types, groups, _ = some_batch(3)
    embeddings = F.normalize(raw, dim=-1).float()
    loss = make_loss(name, margin=1.0, positive_weight=0.3, label_smoothing=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(embeddings, types, groups)["loss"]
    assert inside.dtype == torch.float32 and torch.equal(inside, loss(embeddings, types, groups)["loss"])


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_left_out_have_no_gradient(name):
    """The spans of two corpora, all pairs across left out: moving one corpus does not change the other's gradient."""
    raw, types, _, _ = some_batch(4, 12)
    corpus = torch.arange(12) % 2
    weights = (corpus[:, None] == corpus[None, :]).float()
    types = types * 2 + corpus  # no type in common
    loss = make_loss(name, margin=1.0, positive_weight=0.3, label_smoothing=0.0)
    found = []
    for shift in (0.0, 1.0):
        moved = (raw + shift * corpus[:, None]).float().requires_grad_()
        loss(F.normalize(moved, dim=-1), types, torch.arange(12), weights=weights)["loss"].backward()
        found.append(moved.grad[corpus == 0])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", REFERENCES)
def test_weights_that_a_loss_cannot_honour_are_refused(name):
    raw, types, groups, weights = some_batch(0)
    with pytest.raises(ValueError, match="weights must be 0 or 1"):
        REFERENCES[name][0]()(F.normalize(raw, dim=-1), types, groups, weights=weights * 0.5)


def test_losses_by_name():
    loss = make_loss("dbl", margin=0.5, positive_weight=0.4, label_smoothing=0.1)
    assert type(loss) is DistanceBasedLogisticLoss
    assert (loss.margin, loss.positive_weight, loss.label_smoothing) == (0.5, 0.4, 0.1)
    for name, (kind, _) in REFERENCES.items():
        assert type(make_loss(name, margin=1.0, positive_weight=0.3, label_smoothing=0.0)) is kind
    with pytest.raises(ValueError, match="loss must be one of.*'triplet'"):
        make_loss("triplet", margin=1.0, positive_weight=0.3, label_smoothing=0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SupConLoss(0.0), "temperature"),
        (lambda: MultiSimilarityLoss(alpha=0.0), "alpha"),
        (lambda: MultiSimilarityLoss(beta=-1.0), "beta"),
    ],
)
def test_options_out_of_range_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_the_library_the_error_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    make_loss("dbl", margin=1.0, positive_weight=0.3, label_smoothing=0.0)
    with pytest.raises(SystemExit) as stopped, exit_on_input_error():
        make_loss("supcon", margin=1.0, positive_weight=0.3, label_smoothing=0.0)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: SupConLoss needs pytorch-metric-learning: pip install 'runne-coner[losses]'")
