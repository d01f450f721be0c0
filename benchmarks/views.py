"""How long a corpus takes to become documents and both views.

    python benchmarks/views.py --dataset FOLDER_OR_FILE [--split train] [--model e5-small-ru] [--levels 1]

Prints seconds for loading, the BILOU view and the entity view, each without any cache. (Target for the 746 documents of NEREL
train: both views in under 15 s on 2 cores.)
"""

import argparse
import tempfile
import time

import datasets

from runne_coner.encoders import resolve_encoder
from runne_coner.nerel import load_documents, load_entity_types
from runne_coner.preprocessing import bilou_view, entity_view, load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="local corpus")
    parser.add_argument("--split", default="train", help="split of the corpus")
    parser.add_argument("--model", default="e5-small-ru", help="encoder whose tokenizer is used")
    parser.add_argument("--levels", type=int, default=1, help="nesting levels of the BILOU view")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(resolve_encoder(arguments.model))
    datasets.disable_caching()
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = cache
        marks = [time.perf_counter()]
        corpus = load_documents(arguments.dataset, split=arguments.split)
        documents, types = corpus[arguments.split], load_entity_types(arguments.dataset, corpus)
        marks.append(time.perf_counter())
        tagged = bilou_view(documents, tokenizer, types, arguments.levels)
        marks.append(time.perf_counter())
        spans = entity_view(documents, tokenizer, types)
        marks.append(time.perf_counter())
    loading, bilou, entity = (after - before for before, after in zip(marks, marks[1:], strict=False))
    print(f"{len(documents)} documents, {len(tagged)} and {len(spans)} windows, {sum(tagged['length'][:])} sub-words")
    print(f"loading {loading:.1f} s, BILOU view {bilou:.1f} s, entity view {entity:.1f} s, both views {bilou + entity:.1f} s")


if __name__ == "__main__":
    main()
