"""From a model's output to spans: those on the best Viterbi paths or, with a scorer, the candidates that it takes."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .configuration import CoNERConfig
from .span_scorer import SpanScorer
from .tagging import head_index, head_levels, spans_from_tags, write_span
from .viterbi import BilouViterbiProcessor

DOUBT = 1e-2
"""No span is taken for more probable than 1 - DOUBT by its paths: a network trained to the end is surer than it is right."""


class SpanScores(Protocol):
    """What the scores of the spans of a batch are made of, at any temperature."""

    def log_odds(self, temperature: float) -> Tensor:
        """Log-odds of the scores `(S,)`; infinite where a score cannot be told from 1."""

    def take(self, chosen: Tensor) -> "SpanScores":
        """Those of some of the spans; `chosen` as an index of a tensor `(S,)`."""

    def cpu(self) -> "SpanScores":
        """The same in the memory of the CPU, without what no span needs."""


@dataclass(frozen=True)
class PathScores:
    """Scores of spans by the paths of their heads: `BilouViterbiProcessor.span_log_probabilities` and its arguments."""

    viterbi: BilouViterbiProcessor
    subword_cases: Tensor
    logits: Tensor
    spans: Tensor

    def log_odds(self, temperature: float) -> Tensor:
        logs = self.viterbi.span_log_probabilities(self.subword_cases, self.logits, self.spans, temperature).double()
        return logs - torch.log(-torch.expm1(logs))

    def take(self, chosen: Tensor) -> "PathScores":
        return replace(self, spans=self.spans[chosen])

    def cpu(self) -> "PathScores":
        # Only the sequences (a window under a head) that hold spans.
        pairs, sequence = torch.unique(self.spans[:, :2], dim=0, return_inverse=True)
        spans = torch.stack([sequence, torch.zeros_like(sequence), self.spans[:, 2], self.spans[:, 3]], dim=1)
        logits = self.logits[pairs[:, 0], :, pairs[:, 1]][:, :, None].float()
        return PathScores(self.viterbi, self.subword_cases[pairs[:, 0]].cpu(), logits.cpu(), spans.cpu())


@dataclass(frozen=True)
class OddsScores:
    """Scores of the spans that a scorer took: `odds` `(S,)` are their log-odds, which the temperature divides."""

    odds: Tensor

    def log_odds(self, temperature: float) -> Tensor:
        return self.odds / temperature

    def take(self, chosen: Tensor) -> "OddsScores":
        return OddsScores(self.odds[chosen])

    def cpu(self) -> "OddsScores":
        return OddsScores(self.odds.cpu())


class SpanDecoder:
    """The spans of a model's output.

    Without a scorer they are those of the best legal path of every head (`BilouViterbiProcessor`).

    With one, the `config.candidate_paths` best paths of every head propose spans. A span of a type has the log-odds of its
    probability under the heads of the type (`span_log_probabilities`, summed over levels), and those that the scorer gives
    it, with `config.type_offsets` added as it is to the heads' logits. It is an entity where the mean of both is above 0.
    Of entities of a type that cross without nesting the one with the higher mean is kept; of those nested deeper than there
    are levels, the ones on the levels (`tagging.head_levels`). So every result can be written as tags of the heads.

    Args:
        config: of the model.
    """

    def __init__(self, config: CoNERConfig):
        self.config = config
        self.viterbi = BilouViterbiProcessor(config.transition_priors)

    @torch.no_grad()
    def decode(
        self,
        subword_cases: Tensor,
        logits: Tensor,
        features: Tensor | None = None,
        scorer: SpanScorer | None = None,
        heads: list[int] | None = None,
    ) -> tuple[np.ndarray, SpanScores]:
        """Spans of a batch of windows.

        Args:
            subword_cases: `(batch, tokens)`. logits: `(batch, tokens, heads, 5)` of all heads.
            features: `(batch, tokens, 3 x span_scorer.SIZE)`, for the scorer.
            heads: those to decode, by default all.
        Returns:
            int64 `(S, 4)`: window, head, first token, end token (exclusive), sorted; and what their scores are made of.
        """
        given = list(range(logits.shape[2])) if heads is None else heads
        if heads is not None:
            logits = logits[:, :, heads]
        if scorer is None:
            spans = spans_from_tags(self.viterbi.decode(subword_cases, logits).cpu().numpy())
            scores = PathScores(self.viterbi, subword_cases, logits, torch.from_numpy(spans).to(logits.device))
            return np.column_stack([spans[:, 0], np.array(given, dtype=np.int64)[spans[:, 1]], spans[:, 2:]]), scores
        candidates, log_odds = self._candidates(subword_cases, logits, features, scorer, given)
        taken = log_odds > 0
        spans, order = self._on_levels(candidates[taken].cpu().numpy(), log_odds[taken].cpu().numpy())
        return spans, OddsScores(log_odds[taken][torch.from_numpy(order).to(log_odds.device)])

    def tags(self, subword_cases: Tensor, logits: Tensor, features: Tensor | None = None, scorer=None) -> Tensor:
        """Arguments as `decode`; the spans as tags, int64 `(batch, tokens, heads)`."""
        if scorer is None:
            return self.viterbi.decode(subword_cases, logits)
        spans, _ = self.decode(subword_cases, logits, features, scorer)
        tags = np.zeros(logits.shape[:3], dtype=np.int64)
        for window, head, first, end in spans.tolist():
            write_span(tags[window], head, first, end)
        return torch.from_numpy(tags).to(logits.device)

    def _candidates(self, subword_cases, logits, features, scorer, heads: list[int]) -> tuple[Tensor, Tensor]:
        """Proposed spans `(S, 4)` of window, type, first, end token, each once, and their mean log-odds `(S,)` float64."""
        types = len(self.config.entity_types)
        found = self.viterbi.candidate_spans(subword_cases, logits, self.config.candidate_paths)
        by_paths = self.viterbi.span_log_probabilities(subword_cases, logits, found).double().exp()
        found[:, 1] = torch.tensor(heads, device=found.device)[found[:, 1]] % types
        spans, place = torch.unique(found, dim=0, return_inverse=True)
        probability = by_paths.new_zeros(len(spans)).index_add(0, place, by_paths).clamp(1e-30, 1.0 - DOUBT)
        scored = scorer(features, spans[:, [0, 2, 3]]).double().gather(1, spans[:, 1:2])[:, 0]
        offsets = scored.new_tensor([self.config.type_offsets.get(name, 0.0) for name in self.config.entity_types])
        return spans, 0.5 * (torch.logit(probability) + scored + offsets[spans[:, 1]])

    def _on_levels(self, spans: np.ndarray, log_odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of spans of window, type, first, end those that the heads can tag, with heads in place of types, sorted; and their
        indices among all."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index in np.argsort(-log_odds, kind="stable").tolist():
            group = groups.setdefault((int(spans[index, 0]), int(spans[index, 1])), [])
            if not any(_cross(spans[index, 2:], spans[other, 2:]) for other in group):
                group.append(index)
        kept = []
        for (window, name), group in groups.items():
            places = [tuple(spans[index, 2:].tolist()) for index in group]
            levels = head_levels(places, self.config.levels, self.config.level_order)
            kept += [
                (window, head_index(name, level, len(self.config.entity_types)), *place, index)
                for index, place, level in zip(group, places, levels, strict=True)
                if level
            ]
        rows = np.array(sorted(kept), dtype=np.int64).reshape(-1, 5)
        return rows[:, :4], rows[:, 4]


def _cross(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two spans `(first, end)` share tokens, and each has some that the other lacks."""
    (a, b), (c, d) = sorted([tuple(one.tolist()), tuple(other.tolist())])
    return a < c < b < d
