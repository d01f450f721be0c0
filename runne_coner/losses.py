"""The losses of both stages as `nn.Module`s: pure tensor code, computed in float32 also inside autocast.

Stage 1: distance-based logistic (DBL) loss, Bondarenko 2022, eq. 2-3; Vo and Hays 2016 (others: `metric_losses`).
Stage 2: named-entity loss (NEL), Bondarenko 2022, eq. 6; its dice part after Li et al. 2020. R-Drop after Liang et al. 2021.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .tagging import IGNORE_INDEX, NUM_TAGS, O

MIN_DISTANCE = 1e-3
"""Distances are held at this floor, where the gradient is 0: float32 cannot tell nearer unit vectors apart, and both
sqrt and log(1 - p) have an infinite slope at 0."""


PAIRS_AT_A_TIME = 2**22
"""Pairs of spans that are looked at together: 16 MiB in float32, of which DBL needs about ten at the same time."""


def floored_sqrt(squared: Tensor) -> Tensor:
    """Square root of squared distances, at least `MIN_DISTANCE`, with gradient 0 on the floor."""
    return squared.clamp(min=MIN_DISTANCE**2).sqrt()


def dbl_log_probability(distance: Tensor, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities that two spans have the same type, and that they have not (Bondarenko 2022, eq. 3).

    `p(D) = (1 + e^-m) / (1 + e^(D - m))`, so `1 - p = e^-m (e^D - 1) / (1 + e^(D - m))`; both are evaluated in log space.

    Args:
        distance: Euclidean distances of unit-length embeddings, > 0 and at most 2, any shape.
        margin: the m of eq. 3.
    Returns:
        `(log p, log(1 - p))`, each of the shape of `distance`.
    """
    log_denominator = F.softplus(distance - margin)
    log_same = math.log1p(math.exp(-margin)) - log_denominator
    log_different = -margin + torch.log(torch.expm1(distance)) - log_denominator
    return log_same, log_different


def dbl_pair_loss(distance: Tensor, same: Tensor, margin: float = 1.0, label_smoothing: float = 0.0) -> Tensor:
    """Log-loss of pairs: `-(y log p + (1 - y) log(1 - p))` with y moved from {0, 1} to {s / 2, 1 - s / 2}.

    Args:
        distance: distances of the pairs, any shape.
        same: bool, same shape; True where both spans have one type.
        label_smoothing: s in [0, 1).
    Returns:
        Loss of each pair, the shape of `distance`.
    """
    log_same, log_different = dbl_log_probability(distance, margin)
    target = same.to(distance.dtype) * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return -(target * log_same + (1.0 - target) * log_different)


class RowWeights(Protocol):
    """Weights `(S, S)` of ordered pairs, read as slices of rows, `(R, S)`: a tensor, or `pair_weights.PairWeights`."""

    def __getitem__(self, rows: slice) -> Tensor: ...


class DistanceBasedLogisticLoss(nn.Module):
    """DBL loss over all pairs of spans of a batch, or over pairs drawn in advance.

    `forward` (all pairs, pair mode `in_batch`) compares every span with every other one. The loss of an ordered pair of
    types is the mean over its pairs of spans; every ordered pair of different types counts the same, and so does every
    type's pair with itself:

        loss = w * mean over types t of L(t, t) + (1 - w) * mean over t != u of L(t, u),   w = `positive_weight`

    so frequent types and the many negative pairs do not drown the rest. Weights of pairs, where given, act within each
    L(t, u), which is then a weighted mean: `sum w l / sum w`; a weight of 0 leaves a pair out. If a batch has only positive
    or only negative pairs, the other term is 0; if it has no pair at all the loss is 0 and still has a gradient (of zeros).

    `forward_pairs` (pair mode `sampled`) is the paper's log-loss, the mean over the given pairs, as the share of positives
    was fixed when they were drawn.

    Args:
        margin: m of eq. 3.
        positive_weight: weight of the positive pairs in [0, 1].
        label_smoothing: s in [0, 1): targets become s / 2 and 1 - s / 2.
    """

    def __init__(self, margin: float = 1.0, positive_weight: float = 0.3, label_smoothing: float = 0.0):
        super().__init__()
        if not 0.0 <= positive_weight <= 1.0:
            raise ValueError(f"positive_weight must lie in [0, 1], got {positive_weight}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        self.margin = margin
        self.positive_weight = positive_weight
        self.label_smoothing = label_smoothing

    def forward(
        self, embeddings: Tensor, types: Tensor, groups: Tensor, *, weights: RowWeights | None = None
    ) -> dict[str, Tensor]:
        """Loss of all pairs of distinct spans.

        What is calculated of the S x S pairs is not kept for the backward pass, but calculated there again, some rows at a
        time, so that the memory does not grow with the square of S.

        Args:
            embeddings: `(S, D)` unit-length span embeddings (eq. 2).
            types: `(S,)` type index of each.
            groups: `(S,)` identity of each span: the same words under two types share one number and are no pair.
            weights: `(S, S)` weight >= 0 of each ordered pair; None for 1 each.
        Returns:
            `loss` (scalar with gradient), and detached means over pairs for logging: `positive_distance`,
            `negative_distance` (NaN where there is no such pair).
        """
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            distinct, type_index = torch.unique(types, return_inverse=True)
            # `one_hot` cannot count the classes of no spans by itself.
            membership = F.one_hot(type_index, max(len(distinct), 1)).to(embeddings.dtype)
            found = [
                checkpoint(self._rows, rows, embeddings, types, groups, membership, weights, use_reentrant=False)
                for rows in row_blocks(len(types))
            ]
            losses, totals, distances, counts = (torch.stack(parts).sum(dim=0) for parts in zip(*found, strict=True))
            loss = self._balanced_mean(losses, totals) + 0.0 * embeddings.sum()
        positive_distance, negative_distance = distances / counts
        return {"loss": loss, "positive_distance": positive_distance, "negative_distance": negative_distance}

    def _rows(
        self,
        rows: slice,
        embeddings: Tensor,
        types: Tensor,
        groups: Tensor,
        membership: Tensor,
        weights: RowWeights | None,
    ) -> tuple[Tensor, ...]:
        """Sums over the pairs of some anchors with all spans, whose types `membership` `(S, T)` holds as 0 and 1.

        Returns:
            Weighted losses and weights, `(T, T)` by the types of both spans; sum of the distances, and number, of the
            positive and of the negative pairs of weight > 0, `(2,)`, detached.
        """
        weights = pair_mask(groups, weights, rows)
        distance = pairwise_distance(embeddings[rows], embeddings)
        same = types[rows, None] == types[None, :]
        pair_loss = dbl_pair_loss(distance, same, self.margin, self.label_smoothing)
        losses = membership[rows].T @ (pair_loss * weights) @ membership
        totals = membership[rows].T @ weights @ membership
        with torch.no_grad():
            compared = weights > 0
            kinds = torch.stack([same & compared, ~same & compared])
            distances = (distance * kinds).sum(dim=(1, 2))
            counts = kinds.sum(dim=(1, 2))
        return losses, totals, distances, counts

    def forward_pairs(self, first: Tensor, second: Tensor, same: Tensor) -> dict[str, Tensor]:
        """Loss of given pairs.

        Args:
            first, second: `(P, D)` unit-length embeddings of both sides.
            same: `(P,)` bool.
        Returns:
            As `forward`.
        """
        with torch.autocast(device_type=first.device.type, enabled=False):
            distance = floored_sqrt((first.float() - second.float()).square().sum(dim=-1))
            loss = dbl_pair_loss(distance, same, self.margin, self.label_smoothing).mean()
        return {"loss": loss, **mean_distances(distance, same, torch.ones_like(distance))}

    def _balanced_mean(self, sums: Tensor, totals: Tensor) -> Tensor:
        """The loss from the weighted losses and weights `(T, T)` of all pairs of types."""
        present = totals > 0
        means = sums / totals.masked_fill(~present, 1.0)
        positive = torch.eye(len(totals), dtype=torch.bool, device=totals.device) & present
        negative = ~torch.eye(len(totals), dtype=torch.bool, device=totals.device) & present
        positive_mean = (means * positive).sum() / positive.sum().clamp(min=1)
        negative_mean = (means * negative).sum() / negative.sum().clamp(min=1)
        return self.positive_weight * positive_mean + (1.0 - self.positive_weight) * negative_mean


def row_blocks(spans: int) -> list[slice]:
    """Rows of the S x S pairs in blocks of at most `PAIRS_AT_A_TIME` pairs, or of one row; one block if there is no span."""
    size = max(PAIRS_AT_A_TIME // max(spans, 1), 1)
    return [slice(start, min(start + size, spans)) for start in range(0, max(spans, 1), size)]


def pair_mask(groups: Tensor, weights: RowWeights | None, rows: slice = slice(None)) -> Tensor:
    """Weights `(R, S)` float32 of the pairs of anchors `rows` with all spans, 0 within a group, whatever `weights` says.

    Args:
        groups: `(S,)` identity of each span.
        weights: of all pairs; None for 1 each.
    """
    allowed = groups[rows, None] != groups[None, :]
    return allowed.float() if weights is None else weights[rows].float() * allowed


@torch.no_grad()
def mean_distances(distance: Tensor, same: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Detached means for logging over the pairs of weight > 0: `positive_distance`, `negative_distance` (NaN for none)."""
    compared = weights > 0
    return {
        "positive_distance": distance[same & compared].mean(),
        "negative_distance": distance[~same & compared].mean(),
    }


def pairwise_distance(anchors: Tensor, embeddings: Tensor) -> Tensor:
    """Euclidean distances between rows of unit length: `D^2 = 2 - 2 cos`, floored at `MIN_DISTANCE`.

    Args:
        anchors: `(R, D)` float32 of unit length.
        embeddings: `(S, D)`, likewise.
    Returns:
        `(R, S)`.
    """
    return floored_sqrt(2.0 - 2.0 * (anchors @ embeddings.T))


class DiceLoss(nn.Module):
    """Dice loss of "some entity tag" against O, the second part of eq. 6 (Bondarenko 2022; Li et al. 2020).

    With `p` = the sum of the probabilities of B, I, L, U and `y` = 1 on a token inside an entity, else 0, per head:

    * `token`: mean over the real tokens of `1 - (2 p y + g) / (p^2 + y^2 + g)`. A token outside every entity costs
      `p^2 / (p^2 + g)`; so a type absent from the batch costs the mean of that, little where its head is sure.
    * `batch`: `1 - (2 sum(p y) + g) / (sum(p^2) + sum(y^2) + g)`, sums over the real tokens of the batch: a dot product over
      tokens, as the product of sums would not see positions. A type absent from the batch costs
      `sum(p^2) / (sum(p^2) + g)`, which pulls its probabilities to 0: with many tokens it is near 1 until the head is very
      sure, and most types are absent from most small batches. A larger g weakens it.

    Heads are summed. For example, with g = 1, a head and two tokens of a mention with p = 0.5 and 1, and one outside with
    p = 0.2:

    * `token`: 1 - 2 / 2.25 = 0.111, 1 - 3 / 3 = 0 and 0.04 / 1.04 = 0.038, so 0.050 in the mean;
    * `batch`: 1 - (2 * 1.5 + 1) / (0.25 + 1 + 0.04 + 2 + 1) = 1 - 4 / 4.29 = 0.068;
    * an absent type with p = 0.5 on four tokens: 0.25 / 1.25 = 0.2 (`token`), 1 / (1 + 1) = 0.5 (`batch`).

    Args:
        smoothing: g (gamma of eq. 6), > 0.
        reduction: `token` or `batch`.
    """

    def __init__(self, smoothing: float = 1.0, reduction: str = "token"):
        super().__init__()
        if reduction not in ("token", "batch"):
            raise ValueError(f"dice_reduction must be 'token' or 'batch', got {reduction!r}")
        if smoothing <= 0.0:
            raise ValueError(f"dice_smoothing must be positive, got {smoothing}")
        self.smoothing = smoothing
        self.reduction = reduction

    def forward(self, log_probabilities: Tensor, labels: Tensor, real: Tensor) -> Tensor:
        """Args: `log_probabilities` (N, heads, 5), `labels` (N, heads), `real` (N, heads) bool. Returns a scalar."""
        weight = real.to(log_probabilities.dtype)
        entity = -torch.expm1(log_probabilities[..., O]) * weight
        truth = (labels > O).to(log_probabilities.dtype) * weight
        overlap, squares = 2.0 * entity * truth, entity.square() + truth.square()
        if self.reduction == "batch":
            overlap, squares = overlap.sum(0), squares.sum(0)
            return (1.0 - (overlap + self.smoothing) / (squares + self.smoothing)).sum()
        per_token = 1.0 - (overlap + self.smoothing) / (squares + self.smoothing)
        return ((per_token * weight).sum(0) / weight.sum(0).clamp(min=1.0)).sum()


CE_FORMS = ("plain", "focal", "asymmetric")


def _tag_log_softmax(logits: Tensor) -> Tensor:
    """Log-softmax over the tags, `(N, heads, 5)`, laid out tag by tag in memory: over rows of five it takes 4 times as long."""
    by_tag = F.log_softmax(logits.reshape(-1, NUM_TAGS).T.contiguous(), dim=0)
    return by_tag.T.unflatten(0, logits.shape[:2])


class NamedEntityLoss(nn.Module):
    """NEL, the weighted sum of cross-entropy and dice loss over all heads (Bondarenko 2022, eq. 6).

    `NEL = ce_weight * CE + dice_weight * dice`; CE is averaged over the real tokens of the batch and summed over heads.
    Labels of `IGNORE_INDEX` (special tokens, padding) take no part in either.

    Forms of the cross-entropy of a token whose right tag has the probability p; for example p = 0.9 and gamma = 2:

    * `plain`: `-log p`, 0.105;
    * `focal`: `-(1 - p)^gamma log p`, 0.00105: what is known already counts little (Lin et al. 2017);
    * `asymmetric`: as `focal` where the right tag is O, 0.00105, and as `plain` inside mentions, 0.105: only the many easy O
      are turned down (after Ridnik et al. 2021).

    Args:
        ce_weight: alpha of eq. 6.
        dice_weight: weight of the dice term (1 in the paper); 0 leaves it out.
        dice_smoothing: gamma of eq. 6.
        dice_reduction: `token` or `batch`, see `DiceLoss`.
        label_smoothing: s of the cross-entropy: targets become 1 - s + s / 5 and s / 5 (the second part is not focal).
        ce_form: `plain`, `focal` or `asymmetric`.
        focal_gamma: gamma of the latter two, >= 0; 0 is `plain`.
    """

    def __init__(
        self,
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
        dice_smoothing: float = 1.0,
        dice_reduction: str = "token",
        label_smoothing: float = 0.0,
        *,
        ce_form: str = "plain",
        focal_gamma: float = 2.0,
    ):
        super().__init__()
        if ce_weight < 0 or dice_weight < 0 or ce_weight + dice_weight == 0:
            raise ValueError(f"ce_weight {ce_weight} and dice_weight {dice_weight} must be >= 0 and not both 0")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        if ce_form not in CE_FORMS:
            raise ValueError(f"ce_form must be one of {CE_FORMS}, got {ce_form!r}")
        if not 0.0 <= focal_gamma < math.inf:
            raise ValueError(f"focal_gamma must be 0 or positive, got {focal_gamma}")
        self.ce_weight = ce_weight
        self.dice_weight = dice_weight
        self.dice = DiceLoss(dice_smoothing, dice_reduction)
        self.label_smoothing = label_smoothing
        self.ce_form = ce_form
        self.focal_gamma = focal_gamma

    def forward(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Args: `logits` (batch, tokens, heads, 5); `labels` (batch, tokens, heads) tag indices or `IGNORE_INDEX`.

        Returns:
            `loss` with gradient, and detached `ce_loss` and `dice_loss` (0 when its weight is 0) for logging.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            # Padding is a third of a batch: drop it before the softmax. All heads of a token are ignored together.
            real = (labels != IGNORE_INDEX).any(dim=-1).flatten().nonzero()[:, 0]
            logits = logits.flatten(0, 1).index_select(0, real).float()
            labels = labels.flatten(0, 1).index_select(0, real).long()
            scored = labels != IGNORE_INDEX
            dice = logits.new_zeros(())
            log_probabilities = _tag_log_softmax(logits)
            cross_entropy = self._cross_entropy(log_probabilities, labels, scored) / max(labels.shape[0], 1)
            if self.dice_weight:
                dice = self.dice(log_probabilities, labels, scored)
            loss = self.ce_weight * cross_entropy + self.dice_weight * dice
        return {"loss": loss, "ce_loss": cross_entropy.detach(), "dice_loss": dice.detach()}

    def _cross_entropy(self, log_probabilities: Tensor, labels: Tensor, scored: Tensor) -> Tensor:
        """Sum over tokens and heads; `log_probabilities` (N, heads, 5), `labels` and `scored` (N, heads)."""
        simple = self.ce_form == "plain" and not self.label_smoothing
        flat = log_probabilities.flatten(0, 1).T[None], labels.reshape(1, -1)
        losses = F.nll_loss(*flat, ignore_index=IGNORE_INDEX, reduction="sum" if simple else "none")
        if simple:
            return losses
        losses = losses.view_as(labels)
        if self.ce_form != "plain":
            # 1 - p, from log p = -losses; where p is 1 its power has no slope to divide by.
            modulation = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny) ** self.focal_gamma
            focal = losses * modulation
            losses = focal if self.ce_form == "focal" else torch.where(labels == O, focal, losses)
        if self.label_smoothing:
            uniform = -log_probabilities.mean(-1) * scored
            losses = (1.0 - self.label_smoothing) * losses + self.label_smoothing * uniform
        return losses.sum()


def rdrop_divergence(logits: Tensor, labels: Tensor) -> Tensor:
    """How far two forward passes of a batch with different dropout masks differ (R-Drop; Liang et al. 2021, eq. 2).

    `(KL(p || q) + KL(q || p)) / 2` of the tag distributions, averaged over real tokens and summed over heads, as the
    cross-entropy is.

    Args:
        logits: `(2 x batch, tokens, heads, 5)`, the second pass below the first.
        labels: `(2 x batch, tokens, heads)`; `IGNORE_INDEX` marks what takes no part.
    Returns:
        A scalar, >= 0.
    """
    real = (labels.chunk(2)[0] != IGNORE_INDEX).any(dim=-1)
    with torch.autocast(device_type=logits.device.type, enabled=False):
        first, second = (F.log_softmax(half[real].float(), dim=-1) for half in logits.chunk(2))
        divergence = ((first.exp() - second.exp()) * (first - second)).sum()
    return 0.5 * divergence / real.sum().clamp(min=1)


def span_loss(logits: Tensor, targets: Tensor, tokens: int, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of the span scorer, summed over spans and types, for each real token of the batch, as eq. 6 is.

    Args:
        logits: `(S, types)`. targets: bool, same shape. tokens: real tokens of the batch.
        weights: `(S,)` what each span counts for; None for 1 each.
    Returns:
        A scalar; 0 with a gradient of zeros where there are no spans.
    """
    with torch.autocast(device_type=logits.device.type, enabled=False):
        loss = F.binary_cross_entropy_with_logits(
            logits.float(), targets.float(), None if weights is None else weights[:, None], reduction="sum"
        )
    return loss / max(tokens, 1)
