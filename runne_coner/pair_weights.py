"""Which pairs of spans of a batch stage 1 compares, and how much each counts: the weights that its losses take."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .losses import pairwise_distance

MININGS = ("none", "semi_hard")
"""Ways to choose negative pairs by distance."""


class PairWeighting(nn.Module):
    """Weighs the ordered pairs of spans of a batch; a pair of weight 0 is left out.

    Everything is read from tensors with one row a span, so that spans gathered from several processes are weighed like
    those of one, provided that the gatherer numbers the windows of all processes apart.

    Args:
        overlap_weight: weight of a negative pair of nested or overlapping spans of one window, the hard negatives of
            nested entities.
        same_surface_weight: weight of a positive pair of the same words (up to case), which a model could tell by string
            identity; 0 leaves such pairs out.
        mining: `none`, or `semi_hard`: of the negatives of an anchor only those remain that lie farther away than some
            positive of it, by less than `mining_margin` (Schroff et al. 2015, section 3.2). An anchor without a positive,
            or without any such negative, keeps all its negatives.
        mining_margin: the margin of `semi_hard`, > 0, a distance on the unit sphere.
        negatives_only: a type (O) whose spans are no positives of each other; None for no such type.
        annotated: `(corpora, types)` bool, which types each corpus annotates. A pair across corpora is compared only if
            both corpora annotate the types of both spans; None if all spans are of one corpus.
    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        *,
        overlap_weight: float = 1.0,
        same_surface_weight: float = 1.0,
        mining: str = "none",
        mining_margin: float = 0.2,
        negatives_only: int | None = None,
        annotated: Tensor | None = None,
    ):
        super().__init__()
        for name, weight in (("overlap_weight", overlap_weight), ("same_surface_weight", same_surface_weight)):
            if not 0.0 <= weight < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {weight}")
        if mining not in MININGS:
            raise ValueError(f"mining must be one of {MININGS}, got {mining!r}")
        if not mining_margin > 0.0:
            raise ValueError(f"mining_margin must be positive, got {mining_margin}")
        self.overlap_weight = overlap_weight
        self.same_surface_weight = same_surface_weight
        self.mining = mining
        self.mining_margin = mining_margin
        self.negatives_only = negatives_only
        self.register_buffer("annotated", annotated, persistent=False)

    @classmethod
    def of(cls, arguments, *, negatives_only: int | None = None, annotated: Tensor | None = None) -> "PairWeighting":
        """The weighting that a `ContrastiveTrainingArguments` describes; what it cannot know is said beside it."""
        return cls(
            overlap_weight=arguments.overlap_weight,
            same_surface_weight=arguments.same_surface_weight,
            mining=arguments.mining,
            mining_margin=arguments.mining_margin,
            negatives_only=negatives_only,
            annotated=annotated,
        )

    def forward(
        self,
        embeddings: Tensor,
        spans: Tensor,
        types: Tensor,
        groups: Tensor,
        surfaces: Tensor | None = None,
        corpora: Tensor | None = None,
    ) -> "PairWeights | None":
        """Weights of all ordered pairs.

        Args:
            embeddings: `(S, D)` unit-length embeddings, read by `semi_hard` only.
            spans: `(S, 3)` window, first token, end token; equal window numbers mean one window.
            types: `(S,)` type index.
            groups: `(S,)` identity of each span; pairs within one are never compared.
            surfaces: `(S,)` number of the words of each span (`preprocessing.surface_id`).
            corpora: `(S,)` corpus of each span, a row of `annotated`.
        Returns:
            `(S, S)` float32 that are calculated as they are read, a slice of rows at a time; None where all pairs count
            the same.
        Raises:
            ValueError: an option needs `surfaces` or `corpora`, and there are none.
        """
        if not self._needed():
            return None
        if self.same_surface_weight != 1.0 and surfaces is None:
            raise _missing("surfaces", "same_surface_weight")
        if self.annotated is not None and corpora is None:
            raise _missing("corpora", "training on several corpora")
        return PairWeights(self, embeddings.detach(), spans, types, groups, surfaces, corpora)

    def _needed(self) -> bool:
        neutral = self.overlap_weight == self.same_surface_weight == 1.0 and self.mining == "none"
        return not neutral or self.negatives_only is not None or self.annotated is not None

    def _semi_hard(self, distance: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The negative pairs that stay, bool; all are `(R, S)`, anchors by spans."""
        # For each negative, the farthest positive of its anchor that is nearer than it.
        near = distance.masked_fill(~positive, float("inf")).sort(dim=1).values
        place = torch.searchsorted(near, distance)
        nearer = near.gather(1, (place - 1).clamp(min=0)).masked_fill(place == 0, float("-inf"))
        kept = negative & (distance - nearer < self.mining_margin)
        return torch.where(kept.any(dim=1, keepdim=True), kept, negative)


@dataclass(frozen=True)
class PairWeights:
    """Weights of the ordered pairs of one batch of S spans; `weights[rows]` calculates those of a slice of anchors.

    So a loss that goes through the pairs a few rows at a time never holds all S x S of them. Fields are the arguments of
    `PairWeighting.forward`.
    """

    weighting: PairWeighting
    embeddings: Tensor
    spans: Tensor
    types: Tensor
    groups: Tensor
    surfaces: Tensor | None
    corpora: Tensor | None

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> Tensor:
        """float32 `(R, S)`: anchors `rows` by all spans."""
        options, types = self.weighting, self.types
        same = types[rows, None] == types[None, :]
        weights = (self.groups[rows, None] != self.groups[None, :]).float()
        if options.negatives_only is not None:
            weights.masked_fill_(same & (types == options.negatives_only)[None, :], 0.0)
        if options.same_surface_weight != 1.0:
            weights[same & (self.surfaces[rows, None] == self.surfaces[None, :])] *= options.same_surface_weight
        if options.overlap_weight != 1.0:
            weights[~same & _overlapping(self.spans[rows], self.spans)] *= options.overlap_weight
        if options.annotated is not None:
            annotated = options.annotated.to(types.device)
            # Does the corpus of the anchor annotate the type of the other span, and the other way round?
            both = annotated[self.corpora[rows]][:, types] & annotated[self.corpora][:, types[rows]].T
            weights *= (self.corpora[rows, None] == self.corpora[None, :]) | both
        if options.mining == "semi_hard" and len(types):
            with torch.autocast(device_type=self.embeddings.device.type, enabled=False):
                embeddings = self.embeddings.float()
                distance = pairwise_distance(embeddings[rows], embeddings)
            weights *= same | options._semi_hard(distance, same & (weights > 0), ~same & (weights > 0))
        return weights


def _missing(name: str, option: str) -> ValueError:
    return ValueError(f"{option} needs the column {name!r}: make batches with EntityCollator from an entity_view")


def _overlapping(anchors: Tensor, spans: Tensor) -> Tensor:
    """bool `(R, S)`: the spans `(R, 3)` and `(S, 3)` are of one window and share a sub-word."""
    window, first, end = anchors[:, None].unbind(-1)
    other_window, other_first, other_end = spans[None, :].unbind(-1)
    return (window == other_window) & (first < other_end) & (other_first < end)
