"""Score a trained model on one split of a corpus and show what it finds.

    python recipes/evaluation.py                                                  # the sample's model on its held-out part
    python recipes/evaluation.py --model runs/runne/e5-small-ru/stage2 --dataset FOLDER --split dev

In the model's folder, or in --output, it leaves `predictions-SPLIT.jsonl` (RuNNE JSONL) and `scores-SPLIT.json`.
"""

import argparse
import json
from pathlib import Path

from transformers.hf_argparser import string_to_bool

from runne_coner.arguments import UsageError, of_types
from runne_coner.cli import Parser, check_output, exit_on_input_error, positive_number, predict_documents, whole_number
from runne_coner.documents import Document, from_row, marked_text, write_runne
from runne_coner.files import write_text
from runne_coner.metrics import score_documents, score_table
from runne_coner.nerel import load_documents
from runne_coner.pipeline import load_pipeline
from runne_coner.preprocessing import split_sentences

NEXT_STEPS = """\
The model lies in {model}; its predictions and scores in {output}. What next:
  source .venv/bin/activate                                       # the environment that `make demo` has made
  runne-coner predict --model {model} --input FILE_OR_FOLDER --output predictions.jsonl
  runne-coner score --references FILE --predictions predictions.jsonl
and with a corpus of your own (README.md, "Train on your own brat folder"):
  accelerate launch recipes/stage1.py --config recipes/own/e5-small-ru/stage1.yaml --dataset FOLDER
  accelerate launch recipes/stage2.py --config recipes/own/e5-small-ru/stage2.yaml --dataset FOLDER"""


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/sample/e5-small-ru/stage2", help="folder that stage 2 wrote, or Hub id")
    parser.add_argument("--output", help="folder for predictions and scores (default: the model's)")
    parser.add_argument("--dataset", default="sample", help="sample, nerel, runne, or a local corpus")
    parser.add_argument("--split", default="test", help="split to score")
    parser.add_argument(
        "--strict", type=string_to_bool, help="stop at the first defect of the corpus (true), or repair and report (false)"
    )
    parser.add_argument("--batch_size", type=positive_number, default=32, help="windows in a forward pass")
    parser.add_argument(
        "--context", type=whole_number, default=0, help="read each window once more with so many on either side (slower)"
    )
    parser.add_argument("--examples", type=whole_number, default=5, help="sentences to show with their entities")
    arguments = parser.parse_args()

    output = _output_folder(arguments)
    recognizer = load_pipeline(arguments.model)
    config = recognizer.model.config
    rows = load_documents(arguments.dataset, split=arguments.split, strict=arguments.strict)[arguments.split]
    # A model that learned some of the corpus's types is scored on these.
    rows = of_types(rows, config.entity_types, f"split {arguments.split}", f"those of {arguments.model}")
    references = [from_row(row) for row in rows]
    options = {"batch_size": arguments.batch_size, "context": arguments.context}
    predictions = predict_documents(recognizer, references, **options)
    scores = score_documents(references, predictions, config.entity_types, config.few_shot_types)

    print(f"\n{arguments.model} on {arguments.dataset}, split {arguments.split}: {len(references)} documents\n")
    print(score_table(scores, config.few_shot_types))
    print("\nWhat it finds (nested entities in nested brackets):")
    for document in predictions[: arguments.examples]:
        print("  " + marked_text(document, 0, _end_of_sentences(document.text, 2)).replace("\n", " "))
    _save(predictions, scores, output, arguments.split)
    print("\n" + NEXT_STEPS.format(model=arguments.model, output=output))


def _output_folder(arguments: argparse.Namespace) -> Path:
    """The folder of predictions and scores, which can be written to."""
    if arguments.output is None and not Path(arguments.model).is_dir():
        raise UsageError(
            f"{arguments.model}: there is no such folder; if it is a Hub id, say with --output FOLDER where predictions and"
            " scores shall lie"
        )
    folder = Path(arguments.output or arguments.model)
    check_output(folder / "scores.json")
    return folder


def _save(predictions: list[Document], scores: dict, folder: Path, split: str) -> None:
    try:
        write_text(folder / f"scores-{split}.json", json.dumps(scores, indent=2, ensure_ascii=False))
    except OSError as error:
        raise UsageError(f"--output {folder}: cannot be written ({error.strerror or error}); give another folder") from error
    write_runne(predictions, folder / f"predictions-{split}.jsonl")


def _end_of_sentences(text: str, number: int) -> int:
    starts = [*split_sentences(text), len(text)]
    return starts[min(number, len(starts) - 1)]


if __name__ == "__main__":
    with exit_on_input_error():
        main()
