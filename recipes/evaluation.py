"""Score a trained model on one split of a corpus and show what it finds.

    python recipes/evaluation.py                                                  # the sample's model on its held-out part
    python recipes/evaluation.py --model runs/runne/e5-small-ru/stage2 --dataset FOLDER --split dev

Beside the model it leaves `predictions-SPLIT.jsonl` (RuNNE JSONL) and `scores-SPLIT.json`.
"""

import argparse
import json
from pathlib import Path

from runne_coner.arguments import of_types
from runne_coner.cli import exit_on_input_error, positive_number, predict_documents, whole_number
from runne_coner.documents import from_row, marked_text, write_runne
from runne_coner.files import write_text
from runne_coner.metrics import score_documents, score_table
from runne_coner.nerel import load_documents
from runne_coner.pipeline import load_pipeline
from runne_coner.preprocessing import split_sentences

NEXT_STEPS = """\
The model lies in {model}; its predictions and scores beside it. What next:
  source .venv/bin/activate                                       # the environment that `make demo` has made
  runne-coner predict --model {model} --input FILE_OR_FOLDER --output predictions.jsonl
  runne-coner score --references FILE --predictions predictions.jsonl
and with a corpus of your own (README.md, "Train on your own brat folder"):
  accelerate launch recipes/stage1.py --config recipes/own/e5-small-ru/stage1.yaml --dataset FOLDER
  accelerate launch recipes/stage2.py --config recipes/own/e5-small-ru/stage2.yaml --dataset FOLDER"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/sample/e5-small-ru/stage2", help="folder that stage 2 wrote")
    parser.add_argument("--dataset", default="sample", help="sample, nerel, runne, or a local corpus")
    parser.add_argument("--split", default="test", help="split to score")
    parser.add_argument("--batch_size", type=positive_number, default=32, help="windows in a forward pass")
    parser.add_argument(
        "--context", type=whole_number, default=0, help="read each window once more with so many on either side (slower)"
    )
    parser.add_argument("--examples", type=whole_number, default=5, help="sentences to show with their entities")
    arguments = parser.parse_args()

    recognizer = load_pipeline(arguments.model)
    config = recognizer.model.config
    rows = load_documents(arguments.dataset, split=arguments.split)[arguments.split]
    # A model that learned some of the corpus's types is scored on these.
    rows = of_types(rows, config.entity_types, f"split {arguments.split}", f"those of {arguments.model}")
    references = [from_row(row) for row in rows]
    options = {"batch_size": arguments.batch_size, "context": arguments.context}
    predictions = predict_documents(recognizer, references, **options)
    scores = score_documents(references, predictions, config.entity_types, config.few_shot_types)

    write_runne(predictions, Path(arguments.model) / f"predictions-{arguments.split}.jsonl")
    write_text(Path(arguments.model) / f"scores-{arguments.split}.json", json.dumps(scores, indent=2, ensure_ascii=False))
    print(f"\n{arguments.model} on {arguments.dataset}, split {arguments.split}: {len(references)} documents\n")
    print(score_table(scores, config.few_shot_types))
    print("\nWhat it finds (nested entities in nested brackets):")
    for document in predictions[: arguments.examples]:
        print("  " + marked_text(document, 0, _end_of_sentences(document.text, 2)).replace("\n", " "))
    print("\n" + NEXT_STEPS.format(model=arguments.model))


def _end_of_sentences(text: str, number: int) -> int:
    starts = [*split_sentences(text), len(text)]
    return starts[min(number, len(starts) - 1)]


if __name__ == "__main__":
    with exit_on_input_error():
        main()
