"""How far the scores of the pipeline can be believed: a reliability table and the expected calibration error.

    python benchmarks/calibration.py --model DIR --documents FILE_OR_FOLDER [--bins 10] [--cross_fit]

Entities are put into bins by their score; a bin's precision is the share of its entities that the gold has (start, end, type).
ECE = sum over bins of (entities in the bin / all) * |mean score - precision| (Guo et al. 2017).
The scores are those of the model's own `score_temperature` and `score_bias`, and of temperature 1 and bias 0. `--cross_fit`
adds what both give when fitted on such documents: one half of the documents is scored under what was fitted on the other half,
and the other way round, so that no document is scored under numbers that have seen it.
"""

import argparse

import numpy as np
from scipy.special import expit

from runne_coner.calibration import calibration_error, cross_fitted_scores, fit_scores, predicted_spans, reliability
from runne_coner.documents import read_documents
from runne_coner.pipeline import load_pipeline


def print_table(title: str, scores: np.ndarray, right: np.ndarray, bins: int) -> None:
    print(f"\n{title}\n{'score':>12}{'entities':>10}{'mean score':>12}{'precision':>11}")
    for low, high, number, mean, precision in reliability(scores, right, bins):
        print(f"{low:.2f} - {high:.2f}{number:>10}{mean:>12.3f}{precision:>11.3f}")
    print(f"expected calibration error: {calibration_error(scores, right, bins):.4f} over {len(scores)} entities")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--documents", required=True)
    parser.add_argument("--bins", type=int, default=10)
    parser.add_argument("--cross_fit", action="store_true", help="fit temperature and bias on halves of the documents")
    arguments = parser.parse_args()
    recognizer = load_pipeline(arguments.model)
    spans = predicted_spans(recognizer, read_documents(arguments.documents))
    config = recognizer.model.config
    for temperature, bias in sorted({(1.0, 0.0), (config.score_temperature, config.score_bias)}):
        scores = expit(spans.log_odds(temperature) + bias)
        print_table(f"temperature {temperature:.3f}, bias {bias:.3f}", scores, spans.right, arguments.bins)
    if arguments.cross_fit:
        print_table("cross-fitted temperature and bias", cross_fitted_scores(spans), spans.right, arguments.bins)
        temperature, bias = fit_scores(spans.log_odds, spans.right)
        print(f"fitted on all documents: temperature {temperature:.3f}, bias {bias:.3f}")


if __name__ == "__main__":
    main()
