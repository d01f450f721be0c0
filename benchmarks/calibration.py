"""How far the scores of the pipeline can be believed: a reliability table and the expected calibration error.

    python benchmarks/calibration.py --model DIR --documents FILE_OR_FOLDER [--bins 10]

Entities are put into bins by their score; a bin's precision is the share of its entities that the gold has (start, end, type).
ECE = sum over bins of (entities in the bin / all) * |mean score - precision| (Guo et al. 2017).
"""

import argparse

import numpy as np
from tqdm import tqdm

from runne_coner.documents import read_documents
from runne_coner.pipeline import load_pipeline


def scored_entities(model: str, documents: str) -> tuple[np.ndarray, np.ndarray]:
    """Score of every predicted entity, and whether it is right."""
    recognizer = load_pipeline(model)
    gold = read_documents(documents)
    scores, right = [], []
    for document, entities in zip(gold, tqdm(recognizer(document.text for document in gold), total=len(gold)), strict=True):
        truth = {(entity.start, entity.end, entity.type) for entity in document.entities}
        scores.extend(entity["score"] for entity in entities)
        right.extend((entity["start"], entity["end"], entity["entity_type"]) in truth for entity in entities)
    return np.array(scores), np.array(right, dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--documents", required=True)
    parser.add_argument("--bins", type=int, default=10)
    arguments = parser.parse_args()
    scores, right = scored_entities(arguments.model, arguments.documents)
    bins = np.minimum((scores * arguments.bins).astype(int), arguments.bins - 1)
    error = 0.0
    print(f"{'score':>12}{'entities':>10}{'mean score':>12}{'precision':>11}")
    for index in range(arguments.bins):
        inside = bins == index
        if inside.any():
            low, high = index / arguments.bins, (index + 1) / arguments.bins
            print(f"{low:.2f} - {high:.2f}{inside.sum():>10}{scores[inside].mean():>12.3f}{right[inside].mean():>11.3f}")
            error += inside.mean() * abs(scores[inside].mean() - right[inside].mean())
    print(f"expected calibration error: {error:.4f} over {len(scores)} entities")


if __name__ == "__main__":
    main()
