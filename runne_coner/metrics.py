"""Entity-level scores: the RuNNE task's, and seqeval's strict reading of every head as a second opinion.

An entity counts when start, end and type are all right; entities of a document are a set. F1 is computed per type; *macro*
is its mean over the known types with at least one gold mention, few-shot types left out; *few_shot* its mean over exactly
the few-shot types, absent ones counting 0; *micro* pools all types. These are the definitions, and the order of the
arithmetic, of the organisers' program (RuNNE-2022, Artemova et al. 2022).

The same entities are also split by their place: an entity is *inner_same* if a longer one of its own type holds it; else
*inner_other* if a longer one of another type does; else *outer*. Entities of equal span do not hold each other, nor do those
that cross. Recall is that of the gold entities with a place among the gold ones, precision that of the predicted entities
with a place among the predicted ones, so neither depends on what the other side found around an entity.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

import datasets
import evaluate
import numpy as np
from seqeval.metrics import f1_score
from seqeval.scheme import BILOU
from transformers import EvalPrediction

from .documents import Document, Entity, from_row
from .tagging import IGNORE_INDEX, TAGS, character_spans, head_names

PLACES = ("outer", "inner_other", "inner_same")
"""Where an entity lies among those of its document; see the module's docstring."""


class ScoreError(ValueError):
    """References and predictions cannot be compared; the message names the document or the type."""


def _by_id(documents: Iterable[Document], side: str) -> dict[str, Document]:
    found: dict[str, Document] = {}
    for document in documents:
        key = str(document.id)
        if key in found:
            raise ScoreError(f"the {side} hold document {document.id!r} twice; give every document once")
        found[key] = document
    return found


def paired_documents(references: Iterable[Document], predictions: Iterable[Document]) -> list[tuple[Document, Document]]:
    """Each reference with the prediction of the same id (compared as text), in the order of the references.

    Raises:
        ScoreError: a document is missing, unexpected or given twice.
    """
    gold, system = _by_id(references, "references"), _by_id(predictions, "predictions")
    for missing in gold.keys() - system.keys():
        raise ScoreError(f"the predictions lack document {gold[missing].id!r}; every reference document needs a line")
    for extra in system.keys() - gold.keys():
        raise ScoreError(f"the predictions hold document {system[extra].id!r}, which is not among the references")
    return [(document, system[key]) for key, document in gold.items()]


def _ratio(correct: int, total: int) -> float:
    return 0.0 if correct == 0 else float(correct) / total


def _f1(precision: float, recall: float) -> float:
    return 0.0 if precision == 0 else 2.0 * recall * precision / (recall + precision)


def _counts(correct: int, gold: int, predicted: int) -> dict[str, float]:
    precision, recall = _ratio(correct, predicted), _ratio(correct, gold)
    return {
        "precision": precision,
        "recall": recall,
        "f1": _f1(precision, recall),
        "support": gold,
        "predicted": predicted,
        "correct": correct,
    }


def _mean(rows: list[dict], key: str) -> float:
    return sum(row[key] for row in rows) / float(len(rows)) if rows else 0.0


def entity_places(entities: Iterable[Entity]) -> dict[Entity, str]:
    """The place (of `PLACES`) of each of the entities of one document, in time O(n log n)."""
    places: dict[Entity, str] = {}
    furthest: dict[str, int] = {}
    # Whatever holds an entity comes before it, and reaches at least as far. What has its very span must not count: types are
    # looked up for a whole group of equal spans before any of the group is noted.
    ordered = sorted(set(entities), key=lambda e: (e.start, -e.end))
    for _, group in groupby(ordered, key=lambda e: (e.start, e.end)):
        group = list(group)
        reach = max(furthest.values(), default=-1)
        for entity in group:
            same = furthest.get(entity.type, -1) >= entity.end
            places[entity] = "inner_same" if same else "inner_other" if reach >= entity.end else "outer"
        for entity in group:
            furthest[entity.type] = max(furthest.get(entity.type, -1), entity.end)
    return places


def _nested_scores(pairs: Iterable[tuple[set[Entity], set[Entity]]]) -> dict[str, dict[str, float]]:
    """The `nested` block of `score_documents`, from gold and predicted entities of each document."""
    support, found, predicted, correct = (Counter() for _ in range(4))
    for truth, guess in pairs:
        for entities, others, total, hits in ((truth, guess, support, found), (guess, truth, predicted, correct)):
            for entity, place in entity_places(entities).items():
                total[place] += 1
                hits[place] += entity in others
    rows = {}
    for place in PLACES:
        precision, recall = _ratio(correct[place], predicted[place]), _ratio(found[place], support[place])
        rows[place] = {"precision": precision, "recall": recall, "f1": _f1(precision, recall)}
        rows[place] |= {"support": support[place], "predicted": predicted[place]}
        rows[place] |= {"found": found[place], "correct": correct[place]}
    return rows


def score_documents(
    references: Iterable[Document],
    predictions: Iterable[Document],
    entity_types: Sequence[str],
    few_shot_types: Sequence[str] = (),
) -> dict:
    """Scores of predicted against gold entities (see the module's docstring).

    Args:
        references, predictions: documents with the same ids (compared as text), in any order; `text` is not looked at.
        entity_types: all types that may occur.
        few_shot_types: the types of the few-shot score, left out of the macro score.
    Returns:
        `micro` (precision, recall, f1, support, predicted, correct), `macro` (precision, recall, f1, types: how many),
        `few_shot` (the same, or None without few-shot types), `per_type`: for every type the fields of `micro`, and
        `nested`: for each of `PLACES` precision, recall, f1, `support` (gold entities there) and how many of them were
        `found`, `predicted` (predictions there) and how many of them are `correct`.
    Raises:
        ScoreError: a document is missing, unexpected or given twice, or an entity has an unknown type.
    """
    known = set(entity_types)
    strange = [name for name in few_shot_types if name not in known]
    if strange:
        raise ScoreError(f"the few-shot types {strange} are not among the entity types {list(entity_types)}")
    correct, support, predicted = Counter(), Counter(), Counter()
    pairs = []
    for document, prediction in paired_documents(references, predictions):
        truth, guess = set(document.entities), set(prediction.entities)
        pairs.append((truth, guess))
        for side, entities in (("references", truth), ("predictions", guess)):
            for entity in entities:
                if entity.type not in known:
                    raise ScoreError(
                        f"document {document.id!r} of the {side} has an entity of the unknown type {entity.type!r}"
                        f" at [{entity.start}, {entity.end}); the known types are {list(entity_types)}"
                    )
        correct.update(entity.type for entity in truth & guess)
        support.update(entity.type for entity in truth)
        predicted.update(entity.type for entity in guess)
    per_type = {name: _counts(correct[name], support[name], predicted[name]) for name in entity_types}
    common = [row for name, row in per_type.items() if name not in few_shot_types and row["support"] > 0]
    rare = [row for name, row in per_type.items() if name in few_shot_types]
    averages = [
        {key: _mean(rows, key) for key in ("precision", "recall", "f1")} | {"types": len(rows)} for rows in (common, rare)
    ]
    return {
        "micro": _counts(correct.total(), support.total(), predicted.total()),
        "macro": averages[0],
        "few_shot": averages[1] if rare else None,
        "per_type": per_type,
        "nested": _nested_scores(pairs),
    }


_DESCRIPTION = """\
Scores of nested named entities as in the RuNNE shared task: exact matches of (start, end, type) per document; F1 per type,
its mean over the known types that occur (macro) and over the few-shot types (few_shot), and over all mentions (micro)."""

_INPUTS = """\
Args:
    predictions, references: lists of documents `{"id", "entities": [{"start", "end", "type"}, ...]}`, `end` exclusive.
    entity_types: all types that may occur.
    few_shot_types: those scored apart, default none.
Returns:
    `micro`, `macro`, `few_shot`, `per_type` and `nested` (outer entities, inner ones of another type, inner ones of the same
    type), each with precision, recall and f1 in [0, 1].
Limits: a span that is off by one character counts as one miss and one spurious entity."""

_CITATION = """\
@inproceedings{artemova2022runne, title={RuNNE-2022 Shared Task: Recognizing Nested Named Entities}, author={Artemova,
Ekaterina and Zmeev, Maksim and Loukachevitch, Natalia and Rozhkov, Igor and Batura, Tatiana and Braslavski, Pavel and
Ivanov, Vladimir and Tutubalina, Elena}, booktitle={Dialogue}, year={2022}}"""


class NestedNerMetric(evaluate.Metric):
    """`score_documents` as an `evaluate.Metric`; instantiate it (`NestedNerMetric()`), nothing is fetched from the Hub."""

    def __init__(self, **kwargs):
        # Entities of a whole corpus are small: no cache file is needed.
        super().__init__(config_name="default", keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        entity = {"start": datasets.Value("int64"), "end": datasets.Value("int64"), "type": datasets.Value("string")}
        document = {"id": datasets.Value("string"), "entities": [entity]}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": document, "references": document}),
        )

    def _compute(self, predictions, references, entity_types, few_shot_types=()) -> dict:
        sides = [[from_row({"text": "", **row}) for row in rows] for rows in (references, predictions)]
        return score_documents(*sides, entity_types, few_shot_types)


def seqeval_scores(labels: np.ndarray, tags: np.ndarray, heads: Sequence[str]) -> dict[str, float]:
    """seqeval's strict BILOU reading, where every head of every window is one sequence of its own.

    It scores sub-words within windows, against labels: what the windows or levels cannot represent is not counted.

    Args:
        labels, tags: `(windows, tokens, heads)`; tokens labelled `IGNORE_INDEX` are left out.
        heads: name of each head.
    Returns:
        `seqeval_micro_f1` and `seqeval_macro_f1` (over the heads that occur).
    """
    truth, guess = [], []
    # Sequences of nothing but O on both sides score nothing, and there are very many.
    for window, head in np.argwhere(((labels > 0) | ((tags > 0) & (labels != IGNORE_INDEX))).any(axis=1)):
        real = labels[window, :, head] != IGNORE_INDEX
        for sequence, target in ((labels, truth), (tags, guess)):
            names = [TAGS[tag] for tag in sequence[window, real, head]]
            target.append([tag if tag == "O" else f"{tag}-{heads[head]}" for tag in names])
    if not truth:
        return {"seqeval_micro_f1": 0.0, "seqeval_macro_f1": 0.0}
    scores = {
        average: f1_score(truth, guess, mode="strict", scheme=BILOU, average=average, zero_division=0)
        for average in ("micro", "macro")
    }
    return {f"seqeval_{average}_f1": float(value) for average, value in scores.items()}


def predicted_documents(
    tags: np.ndarray, view: datasets.Dataset, documents: datasets.Dataset, entity_types: Sequence[str]
) -> list[Document]:
    """Documents with the entities that tags over a BILOU view stand for.

    Args:
        tags: `(windows, tokens, heads)`, one row for each row of `view`.
        view: from `preprocessing.bilou_view(documents, ..., training=False)`.
    Raises:
        ScoreError: the tags are of another number of windows.
    """
    if len(tags) != len(view):
        raise ScoreError(
            f"tags of {len(tags)} windows for a view of {len(view)}: evaluate on the view that the metrics were made for"
        )
    rows = view.with_format("numpy")
    windows = {name: rows[name][:] for name in ("document", "word_starts", "word_ends", "core")}
    entities: list[set[Entity]] = [set() for _ in range(len(documents))]
    spans = character_spans(tags, windows["word_starts"], windows["word_ends"], windows["core"])
    for window, head, start, end in spans.tolist():
        entities[windows["document"][window]].add(Entity(start, end, entity_types[head % len(entity_types)]))
    return [
        Document(row["id"], row["text"], tuple(sorted(found, key=lambda e: (e.start, -e.end, e.type))))
        for row, found in zip(documents, entities, strict=True)
    ]


def make_compute_metrics(
    view: datasets.Dataset, documents: datasets.Dataset, entity_types: Sequence[str], few_shot_types: Sequence[str]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` of the stage 2 Trainer: from decoded tags and labels to the scores, flat and by name.

    Returns:
        A function that gives `micro_f1`, `micro_precision`, `micro_recall`, `macro_f1`, `few_shot_f1` (with few-shot types),
        `macro_all_f1` (over all types with gold mentions), `outer_recall`, `inner_other_recall`, `inner_same_recall` and
        the same with precision and f1, `f1_TYPE` per type, and seqeval's scores.
    """
    references = [from_row(row) for row in documents]

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        tags, labels = prediction.predictions, prediction.label_ids
        scores = score_documents(
            references, predicted_documents(tags, view, documents, entity_types), entity_types, few_shot_types
        )
        levels = labels.shape[-1] // len(entity_types)
        return flat_scores(scores) | seqeval_scores(labels, tags, head_names(entity_types, levels))

    return compute_metrics


def metric_names(documents: datasets.Dataset, entity_types: Sequence[str], few_shot_types: Sequence[str]) -> list[str]:
    """The names of all scores that `make_compute_metrics` gives for these documents; arguments as there."""
    empty = [Document(row["id"], "") for row in documents]
    scores = score_documents([from_row(row) for row in documents], empty, entity_types, few_shot_types)
    return [*flat_scores(scores), "seqeval_micro_f1", "seqeval_macro_f1"]


def flat_scores(scores: Mapping) -> dict[str, float]:
    """The figures of `score_documents` under one-word names, for logs and model selection."""
    flat = {f"micro_{key}": scores["micro"][key] for key in ("precision", "recall", "f1")}
    flat["macro_f1"] = scores["macro"]["f1"]
    if scores["few_shot"] is not None:
        flat["few_shot_f1"] = scores["few_shot"]["f1"]
    present = {name: row["f1"] for name, row in scores["per_type"].items() if row["support"]}
    flat["macro_all_f1"] = sum(present.values()) / max(len(present), 1)
    for place, row in scores["nested"].items():
        flat |= {f"{place}_{key}": row[key] for key in ("precision", "recall", "f1")}
    return flat | {f"f1_{name}": value for name, value in present.items()}


def score_table(scores: Mapping, few_shot_types: Sequence[str] = ()) -> str:
    """The scores as a table in plain text, one line a type; few-shot types carry a `*`. The last lines are the places."""
    width = max([len(name) for name in scores["per_type"]] + [len("inner_other")]) + 2
    lines = [f"{'type':<{width}}{'P':>8}{'R':>8}{'F1':>8}{'gold':>8}{'found':>8}"]

    def line(name: str, row: Mapping, counts: str) -> str:
        return f"{name:<{width}}" + "".join(f"{100 * row[key]:8.2f}" for key in ("precision", "recall", "f1")) + counts

    for name, row in scores["per_type"].items():
        mark = "*" if name in few_shot_types else ""
        lines.append(line(name + mark, row, f"{row['support']:8d}{row['predicted']:8d}"))
    lines.append("-" * len(lines[0]))
    micro = scores["micro"]
    lines.append(line("micro", micro, f"{micro['support']:8d}{micro['predicted']:8d}"))
    lines.append(line("macro", scores["macro"], f"   ({scores['macro']['types']} types with gold mentions)"))
    if scores["few_shot"] is not None:
        lines.append(line("few-shot*", scores["few_shot"], f"   ({scores['few_shot']['types']} types)"))
    lines.append("-" * len(lines[0]))
    for place, row in scores["nested"].items():
        lines.append(line(place, row, f"{row['support']:8d}{row['predicted']:8d}"))
    return "\n".join(lines)
