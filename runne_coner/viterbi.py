"""Exact Viterbi decoding of BILOU tags under the four sub-word chains (Bondarenko 2022, section 3.3, eq. 7-8, Figure 2)."""

import math

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from .tagging import FIRST, IGNORE_INDEX, LAST, MIDDLE, NUM_CASES, NUM_TAGS, SPECIAL, WHOLE, B, I, L, O, U, spans_from_tags

# Figure 2: for each case the allowed targets after O, L or U and after B or I. Inside a word a path can only be in O, B or
# I, so the rows of L and U of MIDDLE and LAST are never entered.
_AFTER_OUTSIDE = {WHOLE: (O, B, U), FIRST: (O, B), MIDDLE: (O,), LAST: (O,), SPECIAL: (O,)}
_AFTER_INSIDE = {WHOLE: (I, L), FIRST: (I,), MIDDLE: (I,), LAST: (I, L), SPECIAL: ()}


class BrokenLogitsError(ValueError):
    """Logits that are NaN where there are tokens; the message says what that comes from."""


def allowed_transitions() -> np.ndarray:
    """Which tag may follow which: bool `(5 cases, 5 previous tags, 5 tags)`; see `tagging` for the cases."""
    allowed = np.zeros((NUM_CASES, NUM_TAGS, NUM_TAGS), dtype=bool)
    for case in range(NUM_CASES):
        word_continues = case in (MIDDLE, LAST)
        for previous in (O,) if word_continues else (O, L, U):
            allowed[case, previous, list(_AFTER_OUTSIDE[case])] = True
        for previous in (B, I):
            allowed[case, previous, list(_AFTER_INSIDE[case])] = True
    return allowed


def uniform_priors() -> np.ndarray:
    """The chains of Figure 2, each row's allowed targets with equal probability: float64 `(5, 5, 5)`, rows sum to 1 or 0."""
    allowed = allowed_transitions().astype(np.float64)
    return allowed / np.maximum(allowed.sum(-1, keepdims=True), 1.0)


def counted_priors(transition_counts: np.ndarray, smoothing: float = 1.0) -> np.ndarray:
    """Chains with the transition frequencies of a training set in place of equal probabilities.

    Args:
        transition_counts: `(5, 5, 5)` counts of (case, previous tag, tag), from `count_transitions`.
        smoothing: added to the count of every allowed transition, so that none gets probability 0.
    Returns:
        float64 `(5, 5, 5)`; forbidden transitions have probability 0 whatever their count.
    """
    weights = (np.asarray(transition_counts, dtype=np.float64) + smoothing) * allowed_transitions()
    return weights / np.maximum(weights.sum(-1, keepdims=True), np.finfo(np.float64).tiny)


def count_transitions(subword_cases: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts of (case, previous tag, tag) in one window, over all heads.

    Args:
        subword_cases: `(tokens,)`. labels: `(tokens, heads)`; `IGNORE_INDEX` counts as O.
    """
    tags = np.where(labels == IGNORE_INDEX, O, labels).astype(np.int64)
    previous = np.vstack([np.zeros((1, tags.shape[1]), dtype=np.int64), tags[:-1]])
    flat = (np.asarray(subword_cases, dtype=np.int64)[:, None] * NUM_TAGS + previous) * NUM_TAGS + tags
    return np.bincount(flat.ravel(), minlength=NUM_CASES * NUM_TAGS**2).reshape(NUM_CASES, NUM_TAGS, NUM_TAGS)


class BilouViterbiProcessor(LogitsProcessor):
    """Turns the logits of all heads into the most probable legal BILOU paths.

    Max-product over `log P(W | L) + log P(L)` (eq. 8): `P(W | L)` is the softmax of a head's logits, `P(L)` a Markov chain
    whose transition matrix depends on the sub-word case of the token it leads to. A path starts as if after O and may not
    end in B or I; special tokens and padding are O. All windows and heads are decoded together, exactly.

    Args:
        priors: `(5 cases, 5 previous tags, 5 tags)` transition probabilities; None means Figure 2 (`uniform_priors`).
    Raises:
        ValueError: `priors` has another shape, is negative, or allows a transition that Figure 2 forbids.
    """

    def __init__(self, priors: np.ndarray | list | None = None):
        priors = uniform_priors() if priors is None else np.asarray(priors, dtype=np.float64)
        if priors.shape != (NUM_CASES, NUM_TAGS, NUM_TAGS):
            raise ValueError(f"priors must have the shape {(NUM_CASES, NUM_TAGS, NUM_TAGS)}, got {priors.shape}")
        if (priors < 0).any() or (priors[~allowed_transitions()] > 0).any():
            raise ValueError("priors must be probabilities, 0 wherever Figure 2 forbids the transition")
        if (priors[:, O, O] <= 0).any():
            raise ValueError("priors must let O follow O in every case: a window without entities needs a path")
        with np.errstate(divide="ignore"):
            self.log_priors = torch.from_numpy(np.log(priors))
        # How much better than O after O any transition can be. A step into a tag other than O pays for itself and for the
        # step back to O that may follow it. The slack covers the rounding of differences of bfloat16 logits.
        gain = np.log(np.maximum(priors, np.finfo(np.float64).tiny)) - np.log(priors[:, O, O])[:, None, None]
        self.outside_margin = float(max(gain[:, :, 1:].max(), 0.0) + max(gain[:, :, O].max(), 0.0)) + 0.02

    def __call__(self, subword_cases: Tensor, logits: Tensor) -> Tensor:
        """Logits in which only the tag on the best path is left.

        Args:
            subword_cases: `(batch, tokens)` case of each token; padding must be `SPECIAL`.
            logits: `(batch, tokens, heads, 5)`.
        Returns:
            Scores of the shape of `logits`: the logit on the best path, -inf elsewhere, so that argmax is the path.
        """
        best = torch.nn.functional.one_hot(self.decode(subword_cases, logits), NUM_TAGS).bool()
        return torch.nan_to_num(logits).masked_fill(~best, -torch.inf)

    @torch.no_grad()
    def decode(self, subword_cases: Tensor, logits: Tensor) -> Tensor:
        """Best path of every window and head.

        Args, raises: as `__call__`; NaN among the logits of real tokens is a ValueError.
        Returns:
            int64 tags `(batch, tokens, heads)`.
        """
        batch, tokens, heads, _ = logits.shape
        # A row for each sequence, so that its path is written in one piece.
        tags = torch.zeros((batch, heads, tokens), dtype=torch.long, device=logits.device)
        if logits.numel() == 0:
            return tags.transpose(1, 2)
        # Where O leads every other tag by more than the priors can make up for, the best path is O throughout. That holds
        # for most heads of most windows, and spares them the recursion.
        window, head = self._in_doubt(subword_cases, logits, self.outside_margin)
        if len(window):
            tags[window, head] = self._best_paths(subword_cases[window], logits[window, :, head], 1)[:, 0]
        return tags.transpose(1, 2)

    @staticmethod
    def _in_doubt(subword_cases: Tensor, logits: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """Window and head of the sequences in which O does not lead every other tag by `margin` at all tokens."""
        lead = logits[..., O] - logits[..., 1:].amax(dim=-1)
        least = lead.masked_fill_((subword_cases == SPECIAL)[:, :, None], torch.inf).amin(dim=1)
        # NaN compares false, and is complained of where emissions are made.
        return (~(least > margin)).nonzero(as_tuple=True)

    @torch.no_grad()
    def candidate_spans(self, subword_cases: Tensor, logits: Tensor, paths: int) -> Tensor:
        """The spans on the `paths` best paths of every window and head, each once.

        The paths are exact. Sequences in which every tag but O is 100 times less likely than O at all tokens, beyond what
        the priors make up for, are passed over: hardly any of their spans is an entity.

        Args:
            subword_cases, logits: as `__call__`.
            paths: how many of each window and head, at least 1.
        Returns:
            int64 `(S, 4)`: window, head, first token, end token (exclusive), sorted.
        Raises:
            BrokenLogitsError: as `decode`.
        """
        if logits.numel() == 0:
            return torch.zeros((0, 4), dtype=torch.long, device=logits.device)
        window, head = self._in_doubt(subword_cases, logits, self.outside_margin + math.log(100.0))
        found = self._best_paths(subword_cases[window], logits[window, :, head], paths)
        # (K, paths, tokens) to K windows of so many heads.
        spans = torch.from_numpy(spans_from_tags(found.transpose(1, 2).cpu().numpy())).to(logits.device)
        sequence = spans[:, 0]
        return torch.unique(torch.stack([window[sequence], head[sequence], spans[:, 2], spans[:, 3]], dim=1), dim=0)

    def _best_paths(self, subword_cases: Tensor, logits: Tensor, paths: int) -> Tensor:
        """Viterbi over K sequences: cases `(K, tokens)` and logits `(K, tokens, 5)` to tags `(K, paths, tokens)`.

        From the best path on; O throughout where there are fewer.
        """
        emissions = self._log_emissions(subword_cases, logits)
        transitions = self.log_priors.to(device=logits.device, dtype=emissions.dtype)[subword_cases]
        # What a step (K, 5 previous tags, 5 tags) adds, for all tokens at once: the loop below is all overhead of calls.
        first, *steps = transitions.add_(emissions[:, :, None]).unbind(dim=1)
        # Score of the best paths that end in each tag, (K, 5 tags, paths), and where they come from: tag * paths + rank.
        score = first.new_full((len(first), NUM_TAGS, paths), -torch.inf)
        score[:, :, 0] = first[:, O]
        origins = []
        for step in steps:
            extended = (score[:, None] + step.transpose(1, 2)[..., None]).flatten(2)
            # The same for one path, in three quarters of the time.
            score, origin = extended.max(dim=2, keepdim=True) if paths == 1 else extended.topk(paths, dim=2)
            origins.append(origin)
        score[:, [B, I]] = -torch.inf
        total, place = score.flatten(1).topk(paths, dim=1)
        tags = [place // paths]
        for origin in reversed(origins):
            place = origin.flatten(1).gather(1, place)
            tags.append(place // paths)
        return torch.stack(tags[::-1], dim=2).masked_fill((total == -torch.inf)[:, :, None], O)

    @torch.no_grad()
    def span_log_probabilities(self, subword_cases: Tensor, logits: Tensor, spans: Tensor, temperature: float = 1.0) -> Tensor:
        """Log of the probability that a head's path holds exactly this span, summed over all legal paths.

        Forward-backward over the same chains as `decode`: the weight of the paths that read U, or B I ... I L, on the span's
        tokens, over the weight of all legal paths.

        Args:
            subword_cases, logits: as `__call__`.
            spans: `(S, 4)` window, head, first token, end token (exclusive), as `tagging.spans_from_tags` gives them.
            temperature: what the logits are divided by (Guo et al. 2017): above 1 the probabilities are less extreme.
        Returns:
            `(S,)` float32, at most 0.
        """
        pairs, row = torch.unique(spans[:, :2], dim=0, return_inverse=True)
        # Only the (window, head) pairs that hold a span are summed over.
        cases = subword_cases[pairs[:, 0]]
        emissions = self._log_emissions(cases, logits[pairs[:, 0], :, pairs[:, 1]].float() / temperature)
        transitions = self.log_priors.to(device=logits.device, dtype=emissions.dtype)[cases]
        forward, backward, total = _forward_backward(transitions, emissions)
        first, last = spans[:, 2], spans[:, 3] - 1
        unit = forward[row, first, U] + backward[row, first, U]
        # Steps inside a span: into I, summed by differences of a running sum; where I cannot follow I no span passes.
        inside = transitions[:, :, I, I] + emissions[:, :, I]
        running = torch.nan_to_num(inside, neginf=0.0).double().cumsum(dim=1)
        second = torch.minimum(first + 1, last)
        long = running[row, (last - 1).clamp(min=0)] - running[row, second]
        enter = transitions[row, second, B, I] + emissions[row, second, I]
        leave_from = torch.where(last - first > 1, I, B)
        leave = transitions[row, last, leave_from, L] + emissions[row, last, L]
        middle = torch.where(last - first > 1, enter + long.float(), torch.zeros_like(enter))
        chunk = forward[row, first, B] + middle + leave + backward[row, last, L]
        return (torch.where(first == last, unit, chunk) - total[row]).clamp(max=0.0)

    @staticmethod
    def _log_emissions(subword_cases: Tensor, logits: Tensor) -> Tensor:
        """`log P(W | L)` of K sequences: cases `(K, tokens)`, logits `(K, tokens, 5)`; float32."""
        special = (subword_cases == SPECIAL)[:, :, None]
        # Padding may hold anything, also NaN; its path is O whatever it holds.
        logits = logits.float().masked_fill(special, 0.0)
        if torch.isnan(logits).any():
            raise BrokenLogitsError(
                "the logits hold NaN: the model's weights or inputs are broken. If they are so after training, it diverged:"
                " lower learning_rate and head_learning_rate"
            )
        # Infinite logits would make the softmax NaN, and sums of the largest finite ones overflow; 1e30 decides just the same.
        return torch.log_softmax(logits.clamp(-1e30, 1e30), dim=-1)


def _forward_backward(transitions: Tensor, emissions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Forward and backward log-weights `(K, tokens, 5)` and the log-weight of all paths `(K,)`.

    Args:
        transitions: `(K, tokens, 5, 5)` log-priors of the step into each token. emissions: `(K, tokens, 5)`.
    """
    tokens = emissions.shape[1]
    score = transitions[:, 0, O] + emissions[:, 0]
    forward = [score]
    for t in range(1, tokens):
        score = torch.logsumexp(score[:, :, None] + transitions[:, t], dim=1) + emissions[:, t]
        forward.append(score)
    final = torch.zeros_like(score)
    final[:, [B, I]] = -torch.inf
    backward = [final]
    for t in range(tokens - 1, 0, -1):
        step = emissions[:, t] + backward[-1]
        backward.append(torch.logsumexp(transitions[:, t] + step[:, None], dim=2))
    return torch.stack(forward, 1), torch.stack(backward[::-1], 1), torch.logsumexp(forward[-1] + final, dim=1)


def count_view_transitions(view) -> np.ndarray:
    """`count_transitions` summed over all windows of a BILOU view."""
    rows = view.with_format("numpy")
    windows = zip(rows["subword_cases"][:], rows["labels"][:], strict=True)
    return sum((count_transitions(cases, labels) for cases, labels in windows), np.zeros((NUM_CASES, NUM_TAGS, NUM_TAGS)))
