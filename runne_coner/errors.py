"""The error analysis as sections of a report: what goes wrong, with which spans, and where the gold itself is in doubt.

The counting is in `taxonomy` and `consistency`, the errors one by one in `examples`; the tables are made here.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .consistency import Labellings, Words, inconsistent_surfaces, words_of
from .documents import Document
from .examples import ShownErrors, example_section, labels_line, one_line, places_line, sides_of
from .metrics import paired_documents, score_documents
from .report import Cell, Section, Table
from .taxonomy import (
    FLAT,
    KINDS,
    NESTINGS,
    OUTER,
    Mention,
    Outcome,
    Tally,
    binned,
    confusion_matrix,
    error_taxonomy,
    instructive_errors,
    split_outcomes,
    type_support,
)

SHOWN_ERRORS = 50
SHOWN_SURFACES = 50
SUPPORT_BORDERS = (0, 1, 10, 50, 200, 1000)
LENGTH_BORDERS = (0, 1, 2, 3, 4, 5, 7, 10)
_MEANINGS = {
    "correct": "start, end and type are right",
    "confusion": "start and end are right, the type is wrong",
    "too long": "the type is right, the span contains the gold one",
    "too short": "the type is right, the span lies inside the gold one",
    "shifted": "the type is right, the spans cross",
    "missed": "a gold span that nothing stands for",
    "spurious": "a predicted span that stands for nothing",
}


def error_sections(
    references: Sequence[Document],
    predictions: Sequence[Document],
    entity_types: Sequence[str],
    few_shot_types: Sequence[str] = (),
    training: Sequence[Document] | None = None,
    *,
    label: str = "",
) -> list[Section]:
    """The error analysis of one system as sections for `report.write_report`.

    Args:
        references: gold documents with their texts.
        predictions: documents with the same ids; their texts are not looked at.
        entity_types: all types that may occur.
        few_shot_types: those among them that are looked at apart.
        training: the documents the system was trained on: support is counted in them, and they show how the gold labels
            the same words elsewhere. None: the references stand in for them.
        label: name of the system, where a report holds several: it stands in titles, anchors and keys.
    Raises:
        ScoreError: the documents do not fit each other, an entity has an unknown type, or lies outside its text.
    """
    scores = score_documents(references, predictions, entity_types, few_shot_types)
    pairs = paired_documents(references, predictions)
    outcomes = error_taxonomy(references, predictions)
    # A corpus that is given for both would count twice.
    seen = {(document.id, document.text) for document in references}
    others = [document for document in training or () if (document.id, document.text) not in seen]
    surfaces = inconsistent_surfaces([*references, *others])
    shown = ShownErrors(instructive_errors(outcomes, SHOWN_ERRORS), label)
    support = type_support(references if training is None else training)
    return [
        _overview(scores, outcomes, shown),
        _splits(outcomes, entity_types, set(few_shot_types), support, training is not None, shown),
        _confusions(outcomes, entity_types, shown),
        _inconsistencies(outcomes, surfaces, shown),
        example_section(pairs, surfaces, shown),
    ]


# -- tables -------------------------------------------------------------------------------------------------------------


def _overview(scores: Mapping[str, Any], outcomes: Sequence[Outcome], shown: ShownErrors) -> Section:
    counts = Counter(outcome.kind for outcome in outcomes)
    gold, predicted = (sum(getattr(outcome, side) is not None for outcome in outcomes) for side in ("gold", "predicted"))
    rows = [
        [
            kind,
            shown.linked(counts[kind], lambda outcome, kind=kind: outcome.kind == kind),
            counts[kind] / gold if gold and kind != "spurious" else None,
            counts[kind] / predicted if predicted and kind != "missed" else None,
            _MEANINGS[kind],
        ]
        for kind in KINDS
    ]
    errors = len(outcomes) - counts["correct"]
    averages = [("micro", scores["micro"]), ("macro", scores["macro"]), ("few-shot macro", scores["few_shot"])]
    nested = split_outcomes(outcomes, _depth, ("outer", "inner"))
    score_rows = [[name, row["precision"], row["recall"], row["f1"], None, None] for name, row in averages if row]
    score_rows[0][4:] = gold, predicted
    score_rows += [_score_row(name, tally) for name, tally in nested.items()]
    return shown.section(
        "Errors",
        [
            f"{gold} gold and {predicted} predicted spans: {counts['correct']} agree, {errors} outcomes are errors."
            if errors
            else f"{gold} gold and {predicted} predicted spans: there is no error.",
            Table(
                "What became of the spans",
                ["outcome", "spans", "of gold", "of predicted", "meaning"],
                rows,
                "Every gold and every predicted span is counted exactly once: alone (missed, spurious) or in a pair. Pairs are"
                " one to one: equal spans of equal type first; then as many pairs as possible of equal spans, or of overlapping"
                " spans of one type, with the largest summed overlap.",
                shown.key("outcomes"),
            ),
            Table(
                "Scores",
                ["entities", "precision", "recall", "F1", "gold", "predicted"],
                score_rows,
                "Outer: inside no other entity (flat ones included); inner: inside another one. Recall is over the gold"
                " spans that are so nested in the gold, precision over the predicted spans that are so nested among the"
                " predictions.",
                shown.key("scores"),
            ),
        ],
        "errors",
    )


def _depth(mention: Mention) -> str:
    return "outer" if mention.nesting in (FLAT, OUTER) else "inner"


def _score_row(name: str, tally: Tally) -> list[Cell]:
    return [name, tally.precision, tally.recall, tally.f1, tally.gold, tally.predicted]


def _splits(
    outcomes: Sequence[Outcome],
    entity_types: Sequence[str],
    few_shot: set[str],
    support: Counter,
    trained: bool,
    shown: ShownErrors,
) -> Section:
    where = "training texts" if trained else "references"

    def table(title: str, name: str, group_of: Callable[[Mention], str], groups: Iterable[str], key: str, note: str = ""):
        return _split_table(outcomes, title, name, group_of, groups, shown, key, note)

    by_type = table(
        "By type", "type", lambda mention: mention.type, entity_types, "by_type", f"Support: mentions in the {where}."
    )
    by_type = replace(
        by_type,
        columns=["type", "few-shot", "support", *by_type.columns[1:]],
        rows=[[name, "*" if name in few_shot else "", support[name], *row] for name, *row in by_type.rows],
    )
    bins = [binned(border, SUPPORT_BORDERS) for border in SUPPORT_BORDERS]
    lengths = [binned(border, LENGTH_BORDERS) for border in LENGTH_BORDERS]
    parts = [
        "An outcome counts under its gold span, a spurious one under its predicted span. A number that is a link leads to"
        " the first such error among those shown. Groups without any span are left out.",
        by_type,
        table(
            f"By support: mentions of the type in the {where}",
            "support",
            lambda mention: binned(support[mention.type], SUPPORT_BORDERS),
            bins,
            "by_support",
        ),
        table("By length in words", "words", lambda mention: binned(mention.words, LENGTH_BORDERS), lengths, "by_length"),
        table("By nesting", "nesting", lambda mention: mention.nesting, NESTINGS, "by_nesting", _NESTING_NOTE),
        table(
            "Few-shot and known types",
            "types",
            lambda mention: "few-shot" if mention.type in few_shot else "known",
            ["known", "few-shot"] if few_shot else ["known"],
            "by_few_shot",
            "" if few_shot else "No few-shot types are named.",
        ),
    ]
    return shown.section("Errors by kind of span", parts, "error-tables")


_NESTING_NOTE = (
    "Inner: inside another entity, of the same type if any around it has its type; outer: around others and inside none."
    " Spans that coincide or cross are not nested."
)


def _split_table(outcomes, title, name, group_of, groups, shown, key, note) -> Table:
    tallies = split_outcomes(outcomes, group_of, groups)
    rows = []
    for group, tally in tallies.items():
        if not tally.gold and not tally.predicted:
            continue
        counts = [
            shown.linked(
                tally.kinds[kind],
                lambda outcome, kind=kind, group=group: outcome.kind == kind and group_of(outcome.mention) == group,
            )
            for kind in KINDS
        ]
        rows.append([group, tally.gold, tally.predicted, *counts, tally.precision, tally.recall, tally.f1])
    return Table(title, [name, "gold", "predicted", *KINDS, "precision", "recall", "F1"], rows, note, shown.key(key))


def _confusions(outcomes: Sequence[Outcome], entity_types: Sequence[str], shown: ShownErrors) -> Section:
    matrix = confusion_matrix(outcomes)
    pairs = sorted((pair for pair in matrix if pair[0] != pair[1]), key=lambda pair: (-matrix[pair], pair))
    if not pairs:
        return shown.section("Confusion of types", ["No gold span was found under another type."], "confusions")
    confused = {name for pair in pairs for name in pair}
    names = [name for name in entity_types if name in confused]

    def row(gold: str, guess: str) -> list[Cell]:
        def fits(outcome: Outcome) -> bool:
            return outcome.kind == "confusion" and (outcome.gold.type, outcome.predicted.type) == (gold, guess)

        example = next(outcome for outcome in outcomes if fits(outcome))
        return [gold, guess, shown.linked(matrix[gold, guess], fits), one_line(example.gold.text)]

    return shown.section(
        "Confusion of types",
        [
            Table(
                "Types of equal spans",
                ["gold \\ predicted", *names],
                [[gold, *(matrix[gold, guess] for guess in names)] for gold in names],
                "Spans found with the right start and end; the diagonal is correct. Types without confusion are left out.",
                shown.key("confusion_matrix"),
            ),
            Table(
                "Confused pairs",
                ["gold", "predicted", "spans", "for example"],
                [row(*pair) for pair in pairs],
                key=shown.key("confusions"),
            ),
        ],
        "confusions",
    )


def _inconsistencies(outcomes: Sequence[Outcome], surfaces: Mapping[Words, Labellings], shown: ShownErrors) -> Section:
    errors = Counter(
        words
        for outcome in outcomes
        if outcome.kind != "correct"
        for words in {words_of(mention.text) for mention in (outcome.gold, outcome.predicted) if mention}
    )
    order = sorted(surfaces, key=lambda words: (-errors[words], -sum(map(len, surfaces[words].values())), words))
    rows = [
        [
            " ".join(words),
            labels_line(surfaces[words]),
            places_line(surfaces[words]),
            shown.linked(
                errors[words],
                lambda outcome, words=words: words in {words_of(m.text) for m in (outcome.gold, outcome.predicted) if m},
            ),
        ]
        for words in order[:SHOWN_SURFACES]
    ]
    touched = sum(1 for words in surfaces if errors[words])
    parts: list = [
        f"{len(surfaces)} strings are labelled differently, or left without a label outside any entity, elsewhere in the gold"
        f" (training texts included where they are given); errors touch {touched} of them. Some are right: a name may well"
        " mean different things."
    ]
    if rows:
        parts.append(
            Table(
                "Strings whose labels differ",
                ["words", "labels", "for example (document, characters)", "errors"],
                rows,
                f"The {len(rows)} with most errors.",
                shown.key("gold_inconsistencies"),
            )
        )
    return shown.section("Where the gold looks inconsistent", parts, "gold-inconsistencies")


def error_data(references: Sequence[Document], predictions: Sequence[Document]) -> dict[str, Any]:
    """Every error for the JSON of a report.

    Returns:
        `outcomes`: how many of each kind; `errors`: for each its `document`, `kind`, and `gold` and `predicted` as
        `[start, end, type]` (end exclusive) or None.
    """
    outcomes = error_taxonomy(references, predictions)
    counts = Counter(outcome.kind for outcome in outcomes)
    errors = [
        {"document": outcome.document, "kind": outcome.kind}
        | {
            side: mention and [mention.start, mention.end, mention.type]
            for side, mention in zip(("gold", "predicted"), sides_of(outcome), strict=True)
        }
        for outcome in outcomes
        if outcome.kind != "correct"
    ]
    return {"outcomes": {kind: counts[kind] for kind in KINDS}, "errors": errors}
