"""Other losses for stage 1, from `pytorch-metric-learning`, so that the paper's choice of DBL can be tested (section 3.1).

They are called like `losses.DistanceBasedLogisticLoss`: `loss(embeddings, types, groups, weights=None)`. A pair between
spans of one group, or of weight 0, is left out; no other weights than 0 and 1 are possible. As with DBL every type counts
the same: the loss of a type is the mean over its anchors, and the types' losses are averaged.
"""

import torch
from torch import Tensor, nn

from .losses import DistanceBasedLogisticLoss, RowWeights, mean_distances, pair_mask, pairwise_distance

LOSSES = ("dbl", "supcon", "multi_similarity", "n_pairs")
"""Names of the losses of stage 1."""


class MissingLibraryError(ImportError):
    """A loss needs a library that is not installed; the message says how to install it."""


class _MetricLoss(nn.Module):
    """A loss of `pytorch-metric-learning` that gives one value for each anchor span."""

    anchors_need_positives = True
    """False where an anchor without a positive pair has a loss as well."""

    def __init__(self, name: str, **options):
        super().__init__()
        try:
            from pytorch_metric_learning import losses, reducers
        except ImportError as error:
            raise MissingLibraryError(
                f"{type(self).__name__} needs pytorch-metric-learning: pip install 'runne-coner[losses]', or choose loss dbl"
            ) from error
        # The library's own means would let frequent types dominate.
        self.metric = getattr(losses, name)(reducer=reducers.DoNothingReducer(), **options)

    def forward(
        self, embeddings: Tensor, types: Tensor, groups: Tensor, *, weights: RowWeights | None = None
    ) -> dict[str, Tensor]:
        """Loss of a batch; arguments and result as `losses.DistanceBasedLogisticLoss.forward`.

        A batch in which the loss is not defined (no positive pair, say) has loss 0 and gradients of zeros.

        Raises:
            ValueError: a weight is neither 0 nor 1.
        """
        weights = None if weights is None else weights[:]
        if weights is not None and bool(((weights != 0) & (weights != 1)).any()):
            raise ValueError(f"{type(self).__name__} cannot weigh pairs: weights must be 0 or 1; take loss dbl for others")
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            same = types[:, None] == types[None, :]
            allowed = pair_mask(groups, weights) > 0
            loss = self._balanced(*self._anchor_losses(embeddings, types, same, allowed), types)
            loss = loss + 0.0 * embeddings.sum()
            fixed = embeddings.detach()
            distance = pairwise_distance(fixed, fixed)
        return {"loss": loss, **mean_distances(distance, same, allowed)}

    def _pairs(self, types: Tensor, same: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
        """Anchors and partners of the positive pairs, anchors and partners of the negative ones."""
        return (*torch.nonzero(same & allowed, as_tuple=True), *torch.nonzero(~same & allowed, as_tuple=True))

    def _anchor_losses(self, embeddings: Tensor, types: Tensor, same: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Losses `(A,)` and the spans `(A,)` that they are of."""
        pairs = self._pairs(types, same, allowed)
        found = self.metric(embeddings, types, pairs)["loss"] if len(pairs[0]) + len(pairs[2]) else None
        if found is None or found["indices"] is None:
            return embeddings.new_zeros(0), types.new_zeros(0)
        anchors = torch.unique(pairs[0]) if self.anchors_need_positives else torch.unique(torch.cat([pairs[0], pairs[2]]))
        place = torch.full((len(types),), -1, device=types.device)
        place[found["indices"]] = torch.arange(len(found["indices"]), device=types.device)
        anchors = anchors[place[anchors] >= 0]
        return found["losses"].reshape(-1)[place[anchors]], anchors

    def _balanced(self, losses: Tensor, anchors: Tensor, types: Tensor) -> Tensor:
        distinct, index = torch.unique(types[anchors], return_inverse=True)
        sums = losses.new_zeros(len(distinct)).index_add(0, index, losses)
        counts = losses.new_zeros(len(distinct)).index_add(0, index, torch.ones_like(losses))
        return (sums / counts).sum() / max(len(distinct), 1)


class SupConLoss(_MetricLoss):
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2):

        loss(i) = - mean over positives p of i of log(exp(s_ip / T) / sum over pairs (i, a) of exp(s_ia / T)),  s = cosine

    An anchor without a positive pair has no loss, nor has a batch of positive or of negative pairs only.

    Args:
        temperature: T > 0.
    """

    def __init__(self, temperature: float = 0.1):
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        super().__init__("SupConLoss", temperature=temperature)


class MultiSimilarityLoss(_MetricLoss):
    """Multi-similarity loss (Wang et al. 2019, eq. 15, without its own mining):

        loss(i) = log(1 + sum over positives of exp(-alpha (s_ip - base))) / alpha
                + log(1 + sum over negatives of exp(beta (s_in - base))) / beta,  s = cosine

    Args:
        alpha, beta, base: as in the formula; the defaults are the paper's but for `base`, which is the library's.
    """

    anchors_need_positives = False

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5):
        if alpha <= 0 or beta <= 0:
            raise ValueError(f"alpha and beta must be positive, got {alpha} and {beta}")
        super().__init__("MultiSimilarityLoss", alpha=alpha, beta=beta, base=base)


class NPairsLoss(_MetricLoss):
    """N-pairs loss (Sohn 2016, eq. 11, on unit-length embeddings): one positive pair (a_k, p_k) of each type k,

        loss(k) = - log(exp(a_k . p_k) / sum over types l of exp(a_k . p_l))

    The pair of a type is the first of the batch that is allowed. A type whose pair would make a negative pair that is not
    allowed, with the pair of a type before it, sits out.
    """

    def __init__(self):
        super().__init__("NPairsLoss")

    def _pairs(self, types: Tensor, same: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
        anchors, partners, *negatives = super()._pairs(types, same, allowed)
        distinct, kind = torch.unique(types[anchors], return_inverse=True)
        order = torch.arange(len(kind), device=kind.device)
        first = torch.full((len(distinct),), len(kind), device=kind.device)
        first = first.scatter_reduce(0, kind, order, "amin").sort().values
        clash = ~(allowed[anchors[first]][:, partners[first]])
        clash = (clash | clash.T).tolist()
        kept: list[int] = []
        for k in range(len(first)):
            if not any(clash[k][one] for one in kept):
                kept.append(k)
        chosen = first[torch.tensor(kept, dtype=torch.long, device=first.device)]
        return (anchors[chosen], partners[chosen], *negatives)


def make_loss(name: str, *, margin: float, positive_weight: float, label_smoothing: float) -> nn.Module:
    """The loss of stage 1 by its name in `LOSSES`; the options are those of DBL.

    Raises:
        ValueError: there is no such loss.
        MissingLibraryError: it needs `pytorch-metric-learning`, which is not installed.
    """
    if name == "dbl":
        return DistanceBasedLogisticLoss(margin, positive_weight, label_smoothing)
    others = {"supcon": SupConLoss, "multi_similarity": MultiSimilarityLoss, "n_pairs": NPairsLoss}
    if name not in others:
        raise ValueError(f"loss must be one of {LOSSES}, got {name!r}")
    return others[name]()
