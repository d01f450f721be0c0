"""The command `runne-coner analyze`: the report on a system's errors."""

import argparse

from .answers import check_same_texts, counted_types, few_shot_types, read_answers, read_texts
from .arguments import UsageError
from .documents import Document
from .errors import error_data, error_sections
from .metrics import score_documents
from .model_spaces import model_sections
from .report import check_report_folder, write_report


def add_analyze(commands) -> None:
    """Add the command to the subparsers of `runne-coner`."""
    analyze = commands.add_parser("analyze", help="report on the errors of predictions, as HTML, Markdown and JSON")
    analyze.add_argument("--references", required=True, help="RuNNE JSONL file or brat folder with texts and right answers")
    analyze.add_argument("--predictions", required=True, help="RuNNE JSONL file or brat folder of any system")
    analyze.add_argument("--output", required=True, metavar="DIR", help="folder of the report; an earlier one is replaced")
    analyze.add_argument("--training", metavar="PATH", help="training documents, to count each type's support in")
    analyze.add_argument(
        "--few-shot", metavar="A,B,C", help="types looked at apart (default DISEASE,PENALTY,WORK_OF_ART if they occur)"
    )
    analyze.add_argument(
        "--types", metavar="FILE", help="ners.txt or annotation.conf with all types (default: that of the corpus)"
    )
    analyze.add_argument(
        "--model",
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="models or encoders in whose embeddings the types are compared: folders, Hub ids or e5-small-ru",
    )
    analyze.add_argument("--figure-type", metavar="TYPE", help="type of the figure (default MONEY, or the most frequent)")
    analyze.set_defaults(run=_analyze)


def _analyze(arguments: argparse.Namespace) -> None:
    check_report_folder(arguments.output)
    references, predictions = read_texts(arguments.references), read_answers(arguments.predictions)
    training = None if arguments.training is None else read_texts(arguments.training)
    check_same_texts(references, predictions)
    types = _types(arguments, references, predictions)
    few_shot = few_shot_types(arguments.few_shot, types, [*references, *predictions])
    scores = score_documents(references, predictions, types, few_shot)
    _check_figure_type(arguments, references)
    sections = error_sections(references, predictions, types, few_shot, training)
    if arguments.model:
        sections += model_sections(arguments.model, references, types, figure_type=arguments.figure_type, training=training)
    data = {
        "references": arguments.references,
        "predictions": arguments.predictions,
        "training": arguments.training,
        "models": arguments.model,
        "entity_types": types,
        "few_shot_types": few_shot,
        "scores": scores,
        **error_data(references, predictions),
    }
    page = write_report(arguments.output, "Error analysis", sections, data)
    print(f"wrote {page}")


def _check_figure_type(arguments: argparse.Namespace, references: list[Document]) -> None:
    """Before any model is loaded."""
    if arguments.figure_type is None:
        return
    if not arguments.model:
        raise UsageError(f"--figure-type {arguments.figure_type}: the figure needs a model; give one with --model DIR")
    found = sorted({entity.type for document in references for entity in document.entities})
    if arguments.figure_type not in found:
        raise UsageError(f"--figure-type {arguments.figure_type}: the references have no such entity; they have {found}")


def _types(arguments: argparse.Namespace, references: list[Document], predictions: list[Document]) -> list[str]:
    """The types of `score`, and those that only the system knows: its mentions of them are spurious, not a mistake here."""
    types = counted_types(arguments.types, arguments.references, references)
    if arguments.types is not None:
        return types
    return types + sorted({entity.type for document in predictions for entity in document.entities} - set(types))
