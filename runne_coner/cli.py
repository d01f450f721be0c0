"""The `runne-coner` command: build the offline encoder, predict, score, analyze, export, push."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from tqdm import tqdm

from .analyze import add_analyze
from .answers import counted_types, few_shot_types, read_answers
from .arguments import UsageError
from .configuration import ModelError, TrainingError
from .documents import CorpusError, Document, Entity, check_for_brat, read_documents, write_brat, write_runne
from .encoders import EncoderError, build_offline_encoder
from .export import ExportError, export_onnx
from .files import check_writable
from .hub import HubError, push_model
from .metric_losses import MissingLibraryError
from .metrics import ScoreError, score_documents, score_table
from .outputs import write_bilou, write_html
from .pipeline import NestedNerPipeline, load_pipeline
from .preprocessing import ViewError, lost_entities
from .report import ReportError
from .search_space import SpaceError
from .span_metrics import SpanMetricError
from .viterbi import BrokenLogitsError

INPUT_ERRORS = (
    *(UsageError, CorpusError, EncoderError, ExportError, HubError, MissingLibraryError, ModelError, ReportError, ScoreError),
    *(BrokenLogitsError, SpaceError, SpanMetricError, TrainingError, ViewError),
)

WRITERS = {"runne": write_runne, "brat": write_brat, "bilou": write_bilou, "html": write_html}
"""The formats of `predict`; each appears under its name only when complete."""


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn errors of the input into one line on standard error and exit code 2; others keep their traceback."""
    try:
        yield
    except INPUT_ERRORS as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def report_lost_entities(view: Dataset, documents: Dataset, role: str) -> None:
    """Print per type how many entities of the documents a view cannot hold, and why."""
    lost = lost_entities(view)
    total = sum(len(entities) for entities in documents["entities"][:])
    count = sum(counter.total() for counter in lost.values())
    print(f"{role} documents: {len(documents)}, windows: {len(view)}, entities: {total}, not representable: {count}")
    for name, reasons in lost.items():
        print(f"  {name}: " + ", ".join(f"{number} {reason}" for reason, number in reasons.most_common()))


def predict_documents(recognizer: NestedNerPipeline, documents: list[Document], **options) -> list[Document]:
    """The documents with the entities that the pipeline finds in them, in the same order, with a progress bar."""
    found = recognizer((document.text for document in documents), **options)
    found = tqdm(found, total=len(documents), unit="documents", desc="predicting")
    return [
        Document(document.id, document.text, tuple(Entity(e["start"], e["end"], e["entity_type"]) for e in entities))
        for document, entities in zip(documents, found, strict=True)
    ]


def _predict(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    folder = arguments.format == "brat"
    taken = folder and output.exists() and (not output.is_dir() or any(output.iterdir()))
    if taken or (output.is_dir() and not folder) or not output.absolute().parent.is_dir():
        wanted = "new or empty folder" if folder else "file name"
        raise UsageError(f"{output}: cannot be written: give a {wanted} in an existing folder")
    if not folder and _is_of_input(output, Path(arguments.input)):
        raise UsageError(f"{output}: is the input too, whose annotations would be lost; give another file name")
    check_output(output)
    documents = read_documents(arguments.input, strict=False if arguments.lenient else None)
    recognizer = load_pipeline(arguments.model, device=_usable_device(arguments.device))
    if folder:
        check_for_brat(documents, recognizer.model.config.entity_types)
    options = {"batch_size": arguments.batch_size, "threshold": arguments.threshold, "context": arguments.context}
    WRITERS[arguments.format](predict_documents(recognizer, documents, **options), output)


def _is_of_input(output: Path, given: Path) -> bool:
    """Whether a file is what is read: the input, or one of the `.txt` and `.ann` files of brat."""
    target, source = Path(os.path.realpath(output)), Path(os.path.realpath(given))
    if given.is_dir():
        return target.parent == source and target.suffix in (".txt", ".ann")
    return target == source or (source.suffix == ".txt" and target == source.with_suffix(".ann"))


def check_output(path: Path) -> None:
    """Make sure, before long work, that a file or folder can be written.

    Raises:
        UsageError: it cannot.
    """
    try:
        check_writable(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}); give another place") from error


def _usable_device(name: str | None) -> str | None:
    try:
        torch.zeros(1, device=name).tolist()  # on "meta" there is nothing to read
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def _score(arguments: argparse.Namespace) -> None:
    references = read_answers(arguments.references)
    predictions = read_answers(arguments.predictions)
    types = counted_types(arguments.types, arguments.references, references)
    few_shot = few_shot_types(arguments.few_shot, types, [*references, *predictions])
    scores = score_documents(references, predictions, types, few_shot)
    print(json.dumps(scores, ensure_ascii=False) if arguments.json else score_table(scores, few_shot))


def _build_encoder(arguments: argparse.Namespace) -> None:
    print(f"the encoder lies in {build_offline_encoder(arguments.folder)}")


def _push(arguments: argparse.Namespace) -> None:
    print(f"pushed to {push_model(arguments.folder, arguments.repository, private=arguments.private or None)}")


def _export(arguments: argparse.Namespace) -> None:
    kind, folder = arguments.to
    if kind != "onnx":
        raise UsageError(f"--to {kind}: the format must be onnx")
    model, target = arguments.model, Path(folder)
    if model is None:
        if not (target / "config.json").is_file():
            raise UsageError(f"{folder} holds no model to export; say which one with --model MODEL")
        model, target = folder, target / "onnx"
    texts = None if arguments.texts is None else [document.text for document in read_documents(arguments.texts)]
    report = export_onnx(model, target, int8=arguments.int8, tolerance=arguments.tolerance, sample_texts=texts)
    print(f"wrote {target / report.file} ({report.bytes / 1e6:.0f} MB)\ncompared with torch {report}")


class Parser(argparse.ArgumentParser):
    """One whose errors are UsageErrors."""

    def error(self, message: str):
        raise UsageError(f"{message}; see {self.prog} --help")


def positive_number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def whole_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="runne-coner", description="Nested named-entity recognition in two stages.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    encoder = commands.add_parser("encoder", help="the encoder that needs no Hub")
    actions = encoder.add_subparsers(dest="action", required=True, parser_class=Parser)
    build = actions.add_parser("build", help="write e5-small-ru as an ordinary checkpoint")
    build.add_argument("folder", metavar="DIR", help="folder to write")
    build.set_defaults(run=_build_encoder)

    predict = commands.add_parser("predict", help="find the entities of documents")
    predict.add_argument("--model", required=True, help="folder or Hub id of a model that stage 2 trained")
    predict.add_argument("--input", required=True, help="RuNNE JSONL file, brat folder, .txt file or BIO columns (.conll)")
    predict.add_argument("--output", required=True, help="file to write; with --format brat a new folder")
    predict.add_argument(
        "--format",
        choices=list(WRITERS),
        default="runne",
        help="RuNNE JSONL (default), a brat folder, words with BILOU tags in columns, or an HTML page",
    )
    predict.add_argument("--batch-size", type=positive_number, default=32, help="windows in a forward pass (default 32)")
    predict.add_argument("--threshold", type=_probability, default=0.0, help="leave out entities scored lower (default 0)")
    predict.add_argument(
        "--context",
        type=whole_number,
        default=0,
        metavar="N",
        help="read each window once more with N windows on either side, and decide by the mean; slower (default 0)",
    )
    predict.add_argument("--lenient", action="store_true", help="skip and count defects of a JSONL input (brat: always)")
    predict.add_argument("--device", default=None, help="cpu, cuda:0, ... (default: the first accelerator)")
    predict.set_defaults(run=_predict)

    score = commands.add_parser("score", help="compare predictions with references")
    score.add_argument("--references", required=True, help="RuNNE JSONL file or brat folder with the right answers")
    score.add_argument("--predictions", required=True, help="RuNNE JSONL file or brat folder of a system")
    score.add_argument(
        "--few-shot", metavar="A,B,C", help="types scored apart (default DISEASE,PENALTY,WORK_OF_ART if they occur)"
    )
    score.add_argument(
        "--types", metavar="FILE", help="ners.txt or annotation.conf with all types (default: that of the corpus)"
    )
    score.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    score.set_defaults(run=_score)

    add_analyze(commands)

    export = commands.add_parser("export", help="write a model for ONNX Runtime, and compare it with torch")
    export.add_argument("--to", nargs=2, required=True, metavar=("onnx", "DIR"), help="format and folder to write")
    export.add_argument("--model", help="folder or Hub id (default: the model in DIR itself, exported to DIR/onnx)")
    export.add_argument("--int8", action="store_true", help="8-bit weights: smaller, and faster on most CPUs")
    export.add_argument("--texts", metavar="PATH", help="texts to compare on: JSONL file, brat folder or .txt file")
    export.add_argument(
        "--tolerance",
        type=float,
        help="most by which a logit may differ (default 0.001); with --int8, share of entities that may (default 0.03)",
    )
    export.set_defaults(run=_export)

    push = commands.add_parser("push", help="upload a model to the Hub (token: `hf auth login` or HF_TOKEN)")
    push.add_argument("folder", metavar="DIR", help="folder that stage 1 or stage 2 wrote")
    push.add_argument("repository", metavar="ORG/NAME", help="repository to create or update")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.set_defaults(run=_push)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `runne-coner` command: exit code 0 on success, 2 on a usage or input error."""
    with exit_on_input_error():
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)


if __name__ == "__main__":
    main()
