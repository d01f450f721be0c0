"""The scorer of candidate spans: a second opinion on what the heads' best paths propose (docs/stage2.md).

A head decides token by token, so the first and the last token of a mention hardly know of each other. The scorer sees a span
as a whole: the sum of what its first token, its last token and the mean of its tokens are worth for each type, and its width.
It is trained on the word spans of a window up to a width, of which `drawn_spans` leaves some out, and decides at inference on
the spans that the heads propose. Spans seen by their ends and their width: Lee et al. 2017 (eq. 4), Zhong and Chen 2021
(section 3.1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .tagging import FIRST, LAST, WHOLE, B, I, L, U

LONGEST = 32
"""Sub-words of the widest span that the scorer is trained on; wider ones are scored as if they were so wide."""
SIZE = 256
"""Of the hidden layer: with one of 128 rare types are learned later, one of 384 takes longer (docs/stage2.md)."""
DRAWN = 1 / 3
"""Share of the spans that a step of training looks at: a window has hundreds, hardly any of which is near an entity."""
PRIOR = 6.0
"""What is taken off every logit, so that a new scorer takes any span for none: one in 400 is an entity of a type or fewer."""


@dataclass
class CoNEROutput(ModelOutput):
    """Output of `CoNERForTokenClassification`: `logits` `(batch, tokens, heads, 5)`; with a scorer `span_features`
    `(batch, tokens, 3 x SIZE)`, and `span_logits` `(S, types)` where spans were given."""

    logits: Tensor | None = None
    span_features: Tensor | None = None
    span_logits: Tensor | None = None


class SpanScorer(nn.Module):
    """One logit for each span and entity type: is the span an entity of it?

    Args:
        hidden_size: of the encoder.
        num_types: entity types; nesting levels make no difference here.
        dropout: on the encoder's output and on the hidden layer.
    """

    def __init__(self, hidden_size: int, num_types: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(hidden_size, 3 * SIZE)
        self.widths = nn.Embedding(LONGEST + 1, SIZE)
        self.output = nn.Linear(SIZE, num_types)

    def features(self, hidden: Tensor) -> Tensor:
        """What tokens are worth as the first, the last and any of a span: `(batch, tokens, 3 x SIZE)` of `(..., hidden)`."""
        return self.project(self.dropout(hidden))

    def forward(self, features: Tensor, spans: Tensor) -> Tensor:
        """Logits `(S, types)` float32.

        Args:
            features: from `features`.
            spans: `(S, 3)` int64: window, first token, end token (exclusive).
        """
        window, first, end = spans.unbind(-1)
        with torch.autocast(device_type=features.device.type, enabled=False):
            as_first, as_last, as_any = features.float().chunk(3, dim=-1)
            running = F.pad(as_any.cumsum(dim=1), (0, 0, 1, 0))
            width = end - first
            # By rows of all windows: the backward pass of an index of two dimensions takes longer.
            row, sums = window * features.shape[1], window * running.shape[1]
            as_first, as_last, running = as_first.flatten(0, 1), as_last.flatten(0, 1), running.flatten(0, 1)
            mean = (running.index_select(0, sums + end) - running.index_select(0, sums + first)) / width[:, None]
            ends = as_first.index_select(0, row + first) + as_last.index_select(0, row + end - 1)
            added = ends + mean + self.widths(width.clamp(max=LONGEST)).float()
            return F.linear(self.dropout(F.gelu(added)), self.output.weight.float(), self.output.bias.float()) - PRIOR


def word_spans(subword_cases: Tensor) -> Tensor:
    """All spans of whole words of up to `LONGEST` sub-words, `(S, 3)`: window, first token, end token (exclusive).

    Args:
        subword_cases: `(batch, tokens)`, see `tagging`.
    """
    whole = subword_cases == WHOLE
    starts, ends = whole | (subword_cases == FIRST), whole | (subword_cases == LAST)
    place = torch.arange(subword_cases.shape[1], device=subword_cases.device)
    width = place[None, :] - place[:, None] + 1
    window, first, last = (starts[:, :, None] & ends[:, None, :] & (width > 0) & (width <= LONGEST)).nonzero(as_tuple=True)
    return torch.stack([window, first, last + 1], dim=-1)


def drawn_spans(subword_cases: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Spans for a step of training, as `word_spans`, and what each counts for, `(S,)`.

    Those from the first token of some entity to the last token of some entity are all there and count 1. Of the others a
    share of `DRAWN` is drawn anew in every call, and they count 1 / `DRAWN`, so that a sum over all is the same in the mean.

    Args:
        subword_cases: `(batch, tokens)`. labels: `(batch, tokens, heads)`.
    """
    spans = word_spans(subword_cases)
    window, first, end = spans.unbind(-1)
    starts = ((labels == B) | (labels == U)).any(dim=-1)
    ends = ((labels == L) | (labels == U)).any(dim=-1)
    near = starts[window, first] & ends[window, end - 1]
    kept = near | (torch.rand(len(spans), device=spans.device) < DRAWN)
    return spans[kept], torch.where(near[kept], 1.0, 1.0 / DRAWN)


def span_targets(spans: Tensor, labels: Tensor, num_types: int) -> Tensor:
    """Whether each span is an entity of each type, at whatever level: bool `(S, types)`.

    Args:
        spans: `(S, 3)` window, first token, end token (exclusive).
        labels: `(batch, tokens, heads)` tags, heads ordered by level, then type; anything that is no tag counts as O.
    """
    window, first, end = spans.unbind(-1)
    inside = F.pad((labels == I).long().cumsum(dim=1), (0, 0, 1, 0))
    single = (labels[window, first] == U) & (end - first == 1)[:, None]
    # B and L with nothing but I between them.
    between = inside[window, end - 1] - inside[window, torch.minimum(first + 1, end - 1)]
    longer = (labels[window, first] == B) & (labels[window, end - 1] == L) & (between == (end - first - 2)[:, None])
    return (single | longer).unflatten(-1, (-1, num_types)).any(dim=1)
