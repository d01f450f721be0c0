"""Scores against the definitions of the RuNNE task, counted in the plainest way, and against seqeval itself."""

import random

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.scheme import BILOU
from transformers import EvalPrediction

from runne_coner.documents import FEATURES, Document, Entity
from runne_coner.metrics import (
    NestedNerMetric,
    ScoreError,
    entity_places,
    flat_scores,
    make_compute_metrics,
    metric_names,
    predicted_documents,
    score_documents,
    score_table,
    seqeval_scores,
)
from runne_coner.tagging import IGNORE_INDEX, TAGS, B, I, L, O, U, head_names

TYPES = ["AGE", "CITY", "DISEASE", "LAW", "PENALTY", "PERSON", "WORK_OF_ART"]
FEW_SHOT = ["DISEASE", "PENALTY", "WORK_OF_ART"]


def counted_scores(references, predictions, types, few_shot):
    """The task's definition: one mention after the other, one type after the other.

    F1 = 2RP / (R + P), 0 without a hit. Macro: mean over types with gold mentions that are not few-shot; few-shot: mean over
    the few-shot types, whether they occur or not; micro: all mentions together.
    """
    answers = {str(document.id): document for document in predictions}

    def rates(chosen):
        hits = gold = found = 0
        for document in references:
            truth = {entity for entity in document.entities if entity.type in chosen}
            answer = {entity for entity in answers[str(document.id)].entities if entity.type in chosen}
            gold += len(truth)
            found += len(answer)
            for entity in answer:
                hits += entity in truth
        precision = hits / found if hits else 0.0
        recall = hits / gold if hits else 0.0
        return precision, recall, 2.0 * recall * precision / (recall + precision) if hits else 0.0, gold

    per_type = {name: rates({name}) for name in types}
    common = [per_type[name] for name in types if name not in few_shot and per_type[name][3] > 0]
    rare = [per_type[name] for name in types if name in few_shot]
    return {
        "micro": rates(set(types))[:3],
        "macro": tuple(sum(row[i] for row in common) / len(common) if common else 0.0 for i in range(3)),
        "few_shot": tuple(sum(row[i] for row in rare) / len(rare) for i in range(3)) if rare else None,
        "per_type": {name: row[:3] for name, row in per_type.items()},
    }


def three(row):
    return None if row is None else (row["precision"], row["recall"], row["f1"])


entities = st.builds(
    lambda start, length, name: Entity(start, start + length, name),
    st.integers(0, 4),
    st.integers(1, 3),
    st.sampled_from(TYPES[:6]),  # WORK_OF_ART never occurs
)
entity_sets = st.lists(entities, max_size=12, unique=True).map(tuple)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(entity_sets, entity_sets), max_size=5), st.randoms(use_true_random=False))
def test_scores_are_those_of_the_definition_to_the_last_digit(pairs, shuffler):
    references = [Document(f"d{number}", "", gold) for number, (gold, _) in enumerate(pairs)]
    predictions = [Document(f"d{number}", "", found) for number, (_, found) in enumerate(pairs)]
    shuffler.shuffle(predictions)
    for few_shot in (FEW_SHOT, []):
        scores = score_documents(references, predictions, TYPES, few_shot)
        expected = counted_scores(references, predictions, TYPES, few_shot)
        assert three(scores["micro"]) == expected["micro"]
        assert three(scores["macro"]) == expected["macro"]
        assert three(scores["few_shot"]) == expected["few_shot"]
        assert {name: three(row) for name, row in scores["per_type"].items()} == expected["per_type"]


def random_documents(seed, count=60):
    """Gold and predicted documents that agree on most entities."""
    generator = random.Random(seed)
    pairs = []
    for number in range(count):
        pool = {
            Entity(start := generator.randrange(100), start + generator.randint(1, 9), generator.choice(TYPES))
            for _ in range(40)
        }
        gold, found = (tuple(entity for entity in pool if generator.random() < share) for share in (0.8, 0.7))
        pairs.append((Document(number, "", gold), Document(number, "", found)))
    return [gold for gold, _ in pairs], [found for _, found in pairs]


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_many_mentions_are_those_of_the_definition(seed):
    references, predictions = random_documents(seed)
    scores = score_documents(references, predictions, TYPES, FEW_SHOT)
    expected = counted_scores(references, predictions, TYPES, FEW_SHOT)
    assert 0.5 < scores["micro"]["f1"] < 0.95
    assert all(three(scores[name]) == expected[name] for name in ("micro", "macro", "few_shot"))


def test_scores_worked_by_hand():
    gold = Document(1, "", (Entity(0, 5, "CITY"), Entity(0, 9, "LAW"), Entity(2, 3, "CITY"), Entity(4, 6, "DISEASE")))
    found = Document(1, "", (Entity(0, 5, "CITY"), Entity(0, 8, "LAW"), Entity(4, 6, "DISEASE"), Entity(7, 9, "AGE")))
    scores = score_documents([gold], [found], TYPES, FEW_SHOT)
    assert scores["micro"] == {
        **{"precision": 0.5, "recall": 0.5, "f1": 0.5},
        **{"support": 4, "predicted": 4, "correct": 2},
    }
    assert three(scores["per_type"]["CITY"]) == (1.0, 0.5, pytest.approx(2 / 3))
    assert three(scores["per_type"]["LAW"]) == (0.0, 0.0, 0.0)
    assert three(scores["per_type"]["AGE"]) == (0.0, 0.0, 0.0)
    # CITY and LAW occur, AGE does not: it is no part of the mean, although it was predicted.
    assert scores["macro"]["types"] == 2 and scores["macro"]["f1"] == pytest.approx(1 / 3)
    # PENALTY and WORK_OF_ART are absent, and count 0.
    assert scores["few_shot"]["types"] == 3 and scores["few_shot"]["f1"] == pytest.approx(1 / 3)


def test_one_span_may_have_two_types_and_repeats_count_once():
    gold = Document("a", "", (Entity(0, 3, "CITY"), Entity(0, 3, "PERSON")))
    found = Document("a", "", (Entity(0, 3, "CITY"), Entity(0, 3, "CITY")))
    assert three(score_documents([gold], [found], TYPES)["micro"]) == (1.0, 0.5, pytest.approx(2 / 3))


def test_nothing_at_all_scores_zero():
    for documents in ([], [Document(0, "text")]):
        scores = score_documents(documents, documents, TYPES, FEW_SHOT)
        assert [three(scores[name]) for name in ("micro", "macro", "few_shot")] == [(0.0, 0.0, 0.0)] * 3


def test_ids_are_compared_as_text():
    entity = (Entity(0, 1, "CITY"),)
    scores = score_documents([Document(17, "", entity)], [Document("17", "", entity)], TYPES)
    assert scores["micro"]["f1"] == 1.0
    with pytest.raises(ScoreError, match="17"):
        score_documents([Document(17, ""), Document("17", "")], [Document("17", "")], TYPES)


def documents_of(*ids):
    return [Document(name, "") for name in ids]


@pytest.mark.parametrize(
    ("references", "predictions", "names"),
    [
        (documents_of("news_1", "news_2"), documents_of("news_1"), ["'news_2'", "predictions lack"]),
        (documents_of("news_1"), documents_of("news_1", "news_7"), ["'news_7'", "not among the references"]),
        (documents_of("news_1"), documents_of("news_1", "news_1"), ["'news_1'", "predictions", "twice"]),
        (documents_of("news_3", "news_3"), documents_of("news_3"), ["'news_3'", "references", "twice"]),
        (
            documents_of("news_1"),
            [Document("news_1", "", (Entity(3, 8, "PLANET"),))],
            ["'news_1'", "predictions", "'PLANET'", "[3, 8)"],
        ),
        ([Document("news_1", "", (Entity(3, 8, "PLANET"),))], documents_of("news_1"), ["'news_1'", "references", "'PLANET'"]),
    ],
    ids=["missing", "extra", "doubled", "doubled-reference", "unknown-type", "unknown-type-in-references"],
)
def test_what_cannot_be_compared_is_named(references, predictions, names):
    with pytest.raises(ScoreError) as caught:
        score_documents(references, predictions, TYPES)
    assert all(name in str(caught.value) for name in names)


def test_unknown_few_shot_types_are_named():
    with pytest.raises(ScoreError, match="PLANET"):
        score_documents([], [], TYPES, ["PLANET"])


def as_rows(documents):
    return [
        {"id": str(d.id), "entities": [{"start": e.start, "end": e.end, "type": e.type} for e in d.entities]} for d in documents
    ]


def test_the_evaluate_metric_gives_the_same_scores_without_the_hub():
    references, predictions = random_documents(9, count=20)
    predictions[3] = Document(3, "")
    metric = NestedNerMetric()
    expected = score_documents(references, predictions, TYPES, FEW_SHOT)
    options = {"entity_types": TYPES, "few_shot_types": FEW_SHOT}
    assert metric.compute(predictions=as_rows(predictions), references=as_rows(references), **options) == expected
    # In batches, as evaluate's users do it.
    metric = NestedNerMetric()
    for first in range(0, 20, 7):
        batch = slice(first, first + 7)
        metric.add_batch(predictions=as_rows(predictions[batch]), references=as_rows(references[batch]))
    assert metric.compute(**options) == expected


def test_the_table_shows_every_type():
    references, predictions = random_documents(1)
    scores = score_documents(references, predictions, [*TYPES, "AWARD"], FEW_SHOT)
    lines = {line.split()[0]: line for line in score_table(scores, FEW_SHOT).splitlines()}
    for name in [*TYPES, "AWARD"]:
        row = scores["per_type"][name]
        line = lines[name + "*" if name in FEW_SHOT else name]
        assert line.split()[1:] == [
            *(f"{100 * row[key]:.2f}" for key in ("precision", "recall", "f1")),
            str(row["support"]),
            str(row["predicted"]),
        ]
    assert f"{100 * scores['micro']['f1']:.2f}" in lines["micro"]
    assert f"{100 * scores['macro']['f1']:.2f}" in lines["macro"] and "4 types" in lines["macro"]
    assert f"{100 * scores['few_shot']['f1']:.2f}" in lines["few-shot*"]
    for place, row in scores["nested"].items():
        shares = [f"{100 * row[key]:.2f}" for key in ("precision", "recall", "f1")]
        assert lines[place].split()[1:] == [*shares, str(row["support"]), str(row["predicted"])]
    assert "few-shot" not in score_table(score_documents(references, predictions, TYPES))


def test_flat_scores_are_the_nested_ones():
    references, predictions = random_documents(2)
    scores = score_documents(references, predictions, [*TYPES, "AWARD"], FEW_SHOT)
    flat = flat_scores(scores)
    assert flat["micro_f1"] == scores["micro"]["f1"] and flat["micro_recall"] == scores["micro"]["recall"]
    assert flat["macro_f1"] == scores["macro"]["f1"] and flat["few_shot_f1"] == scores["few_shot"]["f1"]
    assert flat["f1_LAW"] == scores["per_type"]["LAW"]["f1"] and "f1_AWARD" not in flat
    present = [scores["per_type"][name]["f1"] for name in TYPES]
    assert flat["macro_all_f1"] == pytest.approx(np.mean(present))
    assert flat["inner_same_recall"] == scores["nested"]["inner_same"]["recall"]
    assert flat["outer_precision"] == scores["nested"]["outer"]["precision"] and "inner_other_f1" in flat
    assert "few_shot_f1" not in flat_scores(score_documents(references, predictions, TYPES))


# -- outer and inner entities -------------------------------------------------------------------------------------------


def place_by_definition(entity, entities):
    longer = [other for other in entities if other.start <= entity.start and entity.end <= other.end]
    longer = [other for other in longer if other.end - other.start > entity.end - entity.start]
    if any(other.type == entity.type for other in longer):
        return "inner_same"
    return "inner_other" if longer else "outer"


@settings(max_examples=300, deadline=None)
@given(entity_sets)
def test_places_are_those_of_the_definition(found):
    assert entity_places(found) == {entity: place_by_definition(entity, found) for entity in found}


def test_places_worked_by_hand():
    whole, part, city = Entity(0, 9, "LAW"), Entity(2, 9, "LAW"), Entity(2, 9, "CITY")
    crossing, alone = Entity(7, 12, "LAW"), Entity(9, 10, "AGE")
    assert entity_places([city, part, crossing, alone, whole]) == {
        whole: "outer",
        part: "inner_same",
        city: "inner_other",  # of LAW [0, 9), not of its equal LAW [2, 9)
        crossing: "outer",
        alone: "inner_other",
    }
    assert set(entity_places([part, city]).values()) == {"outer"}


def test_nested_scores_worked_by_hand():
    gold = [Entity(0, 9, "LAW"), Entity(2, 5, "LAW"), Entity(6, 9, "LAW"), Entity(6, 7, "CITY"), Entity(20, 25, "AGE")]
    # The outermost LAW was not found, so what is found of its inside is outer among the predictions.
    found = [Entity(2, 5, "LAW"), Entity(2, 3, "LAW"), Entity(6, 7, "CITY"), Entity(20, 25, "AGE"), Entity(20, 22, "CITY")]
    nested = score_documents([Document(1, "", tuple(gold))], [Document(1, "", tuple(found))], TYPES)["nested"]
    assert list(nested) == ["outer", "inner_other", "inner_same"]
    # Gold: outer LAW and AGE (1 found), inner_same 2 (1 found), inner_other CITY (found).
    assert [(row["support"], row["found"], row["recall"]) for row in nested.values()] == [(2, 1, 0.5), (1, 1, 1.0), (2, 1, 0.5)]
    # Predicted: outer LAW, CITY [6, 7), AGE (all right), inner_same LAW [2, 3) and inner_other CITY [20, 22) (both wrong).
    assert [(row["predicted"], row["correct"]) for row in nested.values()] == [(3, 3), (1, 0), (1, 0)]
    assert [row["precision"] for row in nested.values()] == [1.0, 0.0, 0.0]
    assert nested["outer"]["f1"] == pytest.approx(2 / 3) and nested["inner_same"]["f1"] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_places_share_all_entities_out(seed):
    references, predictions = random_documents(seed)
    scores = score_documents(references, predictions, TYPES)
    for total, part in (("support", "support"), ("predicted", "predicted"), ("correct", "found"), ("correct", "correct")):
        assert sum(row[part] for row in scores["nested"].values()) == scores["micro"][total]


# -- seqeval ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(3))
def test_seqeval_scores_are_those_of_seqeval_over_all_heads(seed):
    generator = np.random.default_rng(seed)
    heads = head_names(["CITY", "LAW", "AGE"], 2)
    labels = np.zeros((20, 12, 6), dtype=np.int64)
    for window in range(20):
        for head in range(5):  # the last head never has gold mentions
            position = generator.integers(1, 4)
            while position < 9:
                length = generator.integers(1, 4)
                labels[window, position : position + length, head] = [U] if length == 1 else [B, *[I] * (length - 2), L]
                position += length + generator.integers(0, 6)
    tags = np.where(generator.random(labels.shape) < 0.85, labels, generator.integers(0, 5, labels.shape))
    labels[:, 0] = labels[:, -1] = IGNORE_INDEX
    labels[5, 6:] = IGNORE_INDEX
    labels[7, 1:-1], tags[7, 1:-1] = O, O  # nothing but O
    truth, guess = [], []
    for window in range(20):
        for head, name in enumerate(heads):
            real = [t for t in range(12) if labels[window, t, head] != IGNORE_INDEX]
            for array, target in ((labels, truth), (tags, guess)):
                names = [TAGS[array[window, t, head]] for t in real]
                target.append(["O" if tag == "O" else f"{tag}-{name}" for tag in names])
    found = seqeval_scores(labels, tags, heads)
    for average in ("micro", "macro"):
        expected = f1_score(truth, guess, mode="strict", scheme=BILOU, average=average, zero_division=0)
        assert 0 < expected < 1
        assert found[f"seqeval_{average}_f1"] == expected


def test_seqeval_scores_of_nothing_are_zero():
    labels = np.zeros((2, 3, 4), dtype=np.int64)
    labels[:, 0] = IGNORE_INDEX
    tags = np.zeros_like(labels)
    tags[:, 0] = U  # on special tokens, which are left out
    assert seqeval_scores(labels, tags, list("abcd")) == {"seqeval_micro_f1": 0.0, "seqeval_macro_f1": 0.0}


# -- from tags to documents ---------------------------------------------------------------------------------------------

VIEW_FEATURES = Features(
    {
        "document": Value("int32"),
        "word_starts": List(Value("int32")),
        "word_ends": List(Value("int32")),
        "core": List(Value("int32")),
        "labels": Array2D(shape=(None, 4), dtype="int8"),
    }
)


def overlapping_view():
    """Words of two letters at 0, 3, 6, 9, 12; the first document in two windows that share the words at 6 and 9.

    Heads: A, B, A@2, B@2. Gold: A on [0, 2), A on [6, 11) around A@2 on [9, 11), B on [9, 14), and in document 1 B on [0, 2).
    """
    windows = [(0, [0, 3, 6, 9], [0, 8]), (0, [6, 9, 12], [8, 14]), (1, [0], [0, 2]), (2, [0], [0, 2])]
    labels = [np.zeros((len(starts), 4), dtype=np.int8) for _, starts, _ in windows]
    labels[0][0, 0] = U
    labels[0][2:4, 0] = labels[1][0:2, 0] = [B, L]  # both windows see it
    labels[0][3, 2] = labels[1][1, 2] = U
    labels[1][1:3, 1] = [B, L]
    labels[2][0, 1] = U
    view = Dataset.from_dict(
        {
            "document": [document for document, _, _ in windows],
            "word_starts": [starts for _, starts, _ in windows],
            "word_ends": [[start + 2 for start in starts] for _, starts, _ in windows],
            "core": [core for _, _, core in windows],
            "labels": labels,
        },
        features=VIEW_FEATURES,
    )
    gold = [
        {"id": "x", "text": "aa bb cc dd ee", "entities": [(0, 2, "A"), (6, 11, "A"), (9, 11, "A"), (9, 14, "B")]},
        {"id": "y", "text": "aa", "entities": [(0, 2, "B")]},
        {"id": "z", "text": "aa", "entities": []},
    ]
    for row in gold:
        row["entities"] = [dict(zip(("start", "end", "type"), entity, strict=True)) for entity in row["entities"]]
    tags = np.full((4, 5, 4), IGNORE_INDEX, dtype=np.int8)
    for row, own in zip(tags, labels, strict=True):
        row[: len(own)] = own
    return view, Dataset.from_list(gold, features=FEATURES), tags


def test_overlapping_windows_give_each_mention_once():
    view, documents, tags = overlapping_view()
    found = predicted_documents(np.maximum(tags, O), view, documents, ["A", "B"])
    assert [document.id for document in found] == ["x", "y", "z"]
    assert found[0].entities == (Entity(0, 2, "A"), Entity(6, 11, "A"), Entity(9, 14, "B"), Entity(9, 11, "A"))
    assert found[1].entities == (Entity(0, 2, "B"),)
    assert found[2].entities == ()


def test_of_two_opinions_the_window_that_answers_counts():
    view, documents, tags = overlapping_view()
    tags[1, 0:2, 0] = O  # the second window misses a mention that starts in the core of the first ...
    tags[0, 3, 2] = O  # ... and the first one a mention that starts in the core of the second
    tags[0, 3, 3] = U  # where it sees another that is not there
    found = predicted_documents(np.maximum(tags, O), view, documents, ["A", "B"])
    assert found[0].entities == (Entity(0, 2, "A"), Entity(6, 11, "A"), Entity(9, 14, "B"), Entity(9, 11, "A"))


def test_compute_metrics_scores_whole_documents():
    view, documents, labels = overlapping_view()
    compute = make_compute_metrics(view, documents, ["A", "B"], ["B"])
    perfect = compute(EvalPrediction(predictions=np.maximum(labels, O), label_ids=labels))
    for name in ("micro_f1", "macro_f1", "few_shot_f1", "macro_all_f1", "f1_A", "f1_B", "seqeval_micro_f1"):
        assert perfect[name] == 1.0
    assert list(perfect) == metric_names(documents, ["A", "B"], ["B"])
    tags = np.maximum(labels, O)
    tags[2] = O  # the mention of document y is missed: B has recall 1/2
    worse = compute(EvalPrediction(predictions=tags, label_ids=labels))
    assert worse["f1_A"] == worse["macro_f1"] == 1.0
    assert worse["f1_B"] == worse["few_shot_f1"] == pytest.approx(2 / 3)
    assert worse["micro_recall"] == pytest.approx(4 / 5)
