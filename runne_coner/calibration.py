"""Calibrated scores: the temperature and the bias that make span scores probabilities, and how far they still are from it.

A network trained to the end is too sure of itself. Dividing all logits by one number T before the forward-backward sums
(with a scorer of spans: the log-odds by which a span was taken) makes scores less (T > 1) or more extreme (Guo et al. 2017).
A number b is then added to the log-odds of each score (Platt 1999), as T alone leaves every span that a scorer took above one
half, where fewer may be right. The decoded spans stay as they are. T and b are fitted on documents that the model was not
trained on, by the likelihood of which predicted spans are right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from tqdm.auto import tqdm

from .decoding import SpanScores
from .documents import Document
from .pipeline import NestedNerPipeline
from .preprocessing import window_rows

TEMPERATURES = (0.1, 10.0)
"""Where temperatures are looked for."""
BIASES = (-10.0, 10.0)
"""Where biases are looked for."""
_LARGEST_LOG_ODDS = -math.log(1e-6)
"""Float32 sums cannot tell a probability closer to 1 from 1, and a wrong span of probability 1 would cost infinitely much."""


@dataclass(frozen=True)
class Calibration:
    """What calibration found; the field names are those of the metrics.

    Attributes:
        score_temperature, score_bias: fitted on all documents; for the settings of `CoNERConfig` of these names.
        ece_before: expected calibration error of the scores with temperature 1 and bias 0.
        ece_after: that of calibrated scores, cross-fitted: each half of the documents under what was fitted on the other.
    """

    score_temperature: float
    score_bias: float
    ece_before: float
    ece_after: float


@dataclass(frozen=True)
class PredictedSpans:
    """Predicted entities of documents, and what their scores at any temperature are made of.

    Attributes:
        batches: per batch how many spans there are, and what their scores are made of.
        right: bool `(spans,)`: whether the gold has an entity of this start, end and type.
        document: int `(spans,)`: index of the document.
    """

    batches: Sequence[tuple[int, SpanScores]]
    right: np.ndarray
    document: np.ndarray

    def log_odds(self, temperature: float, chosen: np.ndarray | None = None) -> np.ndarray:
        """Log-odds of the scores at a temperature, float64 `(spans,)`, of all spans or of those `chosen` (bool `(spans,)`)."""
        chosen = torch.ones(len(self.right), dtype=torch.bool) if chosen is None else torch.from_numpy(chosen)
        parts = chosen.split([number for number, _ in self.batches]) if self.batches else []
        found = [
            scores.take(part).log_odds(temperature) for (_, scores), part in zip(self.batches, parts, strict=True) if part.any()
        ]
        return torch.cat(found).double().numpy() if found else np.zeros(0)


def calibrate(
    recognizer: NestedNerPipeline, documents: Sequence[Document], batch_size: int = 32, progress: bool = True
) -> Calibration:
    """Fit temperature and bias of a model's scores on documents, and measure what they do; the model stays as it is.

    One forward pass over the documents; then scores alone are computed anew, for spans that were found.

    Args:
        recognizer: the model, of any backend.
        documents: with gold entities, none of them trained on.
        batch_size: windows in a forward pass.
        progress: whether to show a bar.
    """
    spans = predicted_spans(recognizer, documents, batch_size, progress)
    temperature, bias = fit_scores(spans.log_odds, spans.right)
    return Calibration(
        score_temperature=temperature,
        score_bias=bias,
        ece_before=calibration_error(expit(spans.log_odds(1.0)), spans.right),
        ece_after=calibration_error(cross_fitted_scores(spans), spans.right),
    )


def predicted_spans(
    recognizer: NestedNerPipeline, documents: Sequence[Document], batch_size: int = 32, progress: bool = True
) -> PredictedSpans:
    """What a model finds in documents; arguments as `calibrate`. Each span and type is there once, as in the pipeline."""
    truth = [{(entity.start, entity.end, entity.type) for entity in document.entities} for document in documents]
    rows = window_rows([document.text for document in documents], recognizer.tokenizer, recognizer.windows)
    rows.sort(key=lambda row: -row["length"])  # if a batch does not fit into memory, it is the first one
    batches, right, places = [], [], []
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, desc="predictions for calibration", unit="batch", disable=not progress):
        batch = rows[start : start + batch_size]
        with recognizer.device_placement(), torch.inference_mode():
            entities, windows, scores = recognizer.decode(batch)
            if not entities:
                continue
            keys = [
                (batch[window]["document"], (entity["start"], entity["end"], entity["entity_type"]))
                for window, entity in zip(windows, entities, strict=True)
            ]
            # Of a span that several levels find, the better score's; the last of equal keys stays.
            best = sorted({keys[index]: index for index in scores.log_odds(1.0).argsort().tolist()}.values())
            batches.append((len(best), scores.take(torch.tensor(best, device=recognizer.device)).cpu()))
        right += [keys[index][1] in truth[keys[index][0]] for index in best]
        places += [keys[index][0] for index in best]
    return PredictedSpans(batches, np.array(right, dtype=bool), np.array(places, dtype=np.int64))


def fit_scores(log_odds: Callable[[float], np.ndarray], right: np.ndarray) -> tuple[float, float]:
    """The temperature and the bias under which it is most likely that just these spans are right.

    Normal priors of standard deviation 1, of the logarithm of the temperature around 0 and of the bias around 0, decide where
    spans are few or all alike: without spans the temperature is 1 and the bias 0, and a few that are all right do not drive
    them to an end of `TEMPERATURES` or `BIASES`. They weigh as much as a span or two, nothing among hundreds.

    Args:
        log_odds: from a temperature to the log-odds of the scores `(spans,)`.
        right: bool `(spans,)`.
    Returns:
        Numbers within `TEMPERATURES` and `BIASES`.
    """
    if len(right) == 0:
        return 1.0, 0.0
    sign = np.where(right, 1.0, -1.0)

    def best_bias(log_temperature: float) -> tuple[float, float]:
        # For each temperature, so that the sums over paths are made once.
        odds = np.minimum(log_odds(math.exp(log_temperature)), _LARGEST_LOG_ODDS)

        def cost(bias: float) -> float:
            return float(bias**2 / 2 - log_expit(sign * (odds + bias)).sum())

        found = minimize_scalar(cost, bounds=BIASES, method="bounded", options={"xatol": 1e-3})
        return float(found.x), log_temperature**2 / 2 + float(found.fun)

    bounds = tuple(math.log(temperature) for temperature in TEMPERATURES)
    found = minimize_scalar(lambda at: best_bias(at)[1], bounds=bounds, method="bounded", options={"xatol": 0.005}).x
    return math.exp(found), best_bias(found)[0]


def cross_fitted_scores(spans: PredictedSpans) -> np.ndarray:
    """Scores `(spans,)` of each half of the documents (even and odd ones) under what was fitted on the other half."""
    scores = np.zeros(len(spans.right))
    for half in (spans.document % 2 == 0, spans.document % 2 == 1):
        other = ~half
        temperature, bias = fit_scores(lambda t, other=other: spans.log_odds(t, other), spans.right[other])
        scores[half] = expit(spans.log_odds(temperature, half) + bias)
    return scores


def reliability(scores: np.ndarray, right: np.ndarray, bins: int = 10) -> list[tuple[float, float, int, float, float]]:
    """Spans in bins of equal width by score: lower and upper end, spans, mean score, precision; without empty bins."""
    places = np.minimum((scores * bins).astype(int), bins - 1)
    return [
        (index / bins, (index + 1) / bins, int(inside.sum()), float(scores[inside].mean()), float(right[inside].mean()))
        for index in range(bins)
        if (inside := places == index).any()
    ]


def calibration_error(scores: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017): the mean over spans of |mean score - precision| of their bin.

    Args:
        scores: `(spans,)` in [0, 1]. right: bool `(spans,)`. bins: of equal width.
    Returns:
        A number in [0, 1]; 0 without spans.
    """
    rows = reliability(scores, right, bins)
    return sum(number * abs(mean - precision) for _, _, number, mean, precision in rows) / max(len(right), 1)
