"""The nested-ner pipeline, on a model whose answers are known."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from rule_model import TYPES, build_rule_model
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

import runne_coner  # noqa: F401 - registers the task
from runne_coner.pipeline import BUFFERED_CHARACTERS, ModelError, load_pipeline
from runne_coner.tagging import spans_from_tags
from runne_coner.viterbi import BilouViterbiProcessor

SENTENCE = "Мэр Казани Ольга Калинина и директор департамент мэрии Ижевска."
EXPECTED = {
    ("PROFESSION", "Мэр Казани", 1),
    ("CITY", "Казани", 1),
    ("PERSON", "Ольга Калинина", 1),
    ("PROFESSION", "директор", 1),
    ("ORGANIZATION", "департамент мэрии Ижевска", 1),
    ("ORGANIZATION", "мэрии Ижевска", 2),
    ("CITY", "Ижевска", 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_rule_model(tmp_path_factory.mktemp("rule"))


@pytest.fixture(scope="module")
def recognize(folder):
    return pipeline("nested-ner", model=str(folder))


def found(entities):
    return {(e["entity_type"], e["text"], e["level"]) for e in entities}


def test_nested_entities_sorted_with_offsets_levels_and_scores(recognize):
    entities = recognize(SENTENCE)
    assert found(entities) == EXPECTED
    assert [(e["start"], -e["end"]) for e in entities] == sorted((e["start"], -e["end"]) for e in entities)
    assert all(SENTENCE[e["start"] : e["end"]] == e["text"] for e in entities)
    assert all(0.9 < e["score"] <= 1.0 for e in entities)
    assert list(entities[0]) == ["entity_type", "start", "end", "text", "score", "level"]


@pytest.mark.parametrize(
    "text",
    [
        "😀 Мэр Казани 😀.",
        "\ufeffМэр\u200b Казани",
        "Мэр\tКазани\r\nсообщил",
        "Мэр Казани".encode().decode(),
        "cafe\u0301 Мэр Казани",
        "  \n\n Мэр Казани",
    ],
)
def test_offsets_are_those_of_the_untouched_text(recognize, text):
    entities = recognize(text)
    assert all(text[e["start"] : e["end"]] == e["text"] for e in entities)
    assert ("CITY", "Казани", 1) in found(entities)


def test_inputs_of_every_kind_agree(recognize):
    texts = [SENTENCE, "", "   ", "Казани", "Директор Ольга Калинина."]
    single = [recognize(text) for text in texts]
    assert single[1] == single[2] == [] and found(single[3]) == {("CITY", "Казани", 1)}
    for many in (recognize(texts), recognize(tuple(texts)), list(recognize(iter(texts)))):
        assert [found(entities) for entities in many] == [found(entities) for entities in single]
    column = Dataset.from_dict({"text": texts})["text"]
    assert [found(entities) for entities in recognize(column)] == [found(entities) for entities in single]
    assert recognize([]) == []


def test_batch_size_changes_nothing_but_speed(recognize):
    texts = [SENTENCE * n for n in (1, 3, 2)] + ["Казани"]
    reference = recognize(texts, batch_size=32)
    for batch_size in (1, 2, 5):
        again = recognize(texts, batch_size=batch_size)
        assert [found(entities) for entities in again] == [found(entities) for entities in reference]
        scores = [[e["score"] for e in entities] for entities in again]
        for ours, theirs in zip(scores, reference, strict=True):
            assert ours == pytest.approx([e["score"] for e in theirs], abs=1e-5)


def test_a_generator_is_read_as_it_goes(recognize):
    drawn = []

    def texts():
        for index in itertools.count():
            drawn.append(index)
            yield "и " * (BUFFERED_CHARACTERS // 8) + "Казани"

    stream = recognize(texts())
    assert found(next(stream)) == {("CITY", "Казани", 1)}
    assert len(drawn) <= 6


def test_options(recognize):
    assert {e["entity_type"] for e in recognize(SENTENCE, entity_types=["CITY"])} == {"CITY"}
    only = recognize(SENTENCE, entity_types=["ORGANIZATION"])
    assert found(only) == {item for item in EXPECTED if item[0] == "ORGANIZATION"}
    flat = recognize(SENTENCE, flat=True)
    assert found(flat) == {item for item in EXPECTED if item[1] not in ("Казани", "мэрии Ижевска", "Ижевска")}
    assert recognize(SENTENCE, threshold=1.01) == []
    with pytest.raises(ValueError, match="WORK_OF_ART"):
        recognize(SENTENCE, entity_types=["WORK_OF_ART"])
    with pytest.raises(TypeError, match="tresh"):
        recognize(SENTENCE, tresh=0.5)


def test_levels_are_merged_by_the_stated_rule(recognize):
    """Equal spans of one type at two levels are one entity; crossing ones both stay; `flat` keeps the longer one."""
    text = "один два три"
    rows = [
        {"entity_type": "CITY", "start": 0, "end": 8, "score": 0.6, "level": 1},
        {"entity_type": "CITY", "start": 0, "end": 8, "score": 0.9, "level": 2},
        {"entity_type": "PERSON", "start": 0, "end": 8, "score": 0.5, "level": 1},
        {"entity_type": "CITY", "start": 5, "end": 12, "score": 0.7, "level": 3},
    ]
    entities = recognize.postprocess((text, rows))
    assert [(e["entity_type"], e["start"], e["end"], e["score"], e["level"]) for e in entities] == [
        ("CITY", 0, 8, 0.9, 2),
        ("PERSON", 0, 8, 0.5, 1),
        ("CITY", 5, 12, 0.7, 3),
    ]
    assert found(recognize.postprocess((text, rows), flat=True)) == {("CITY", "один два", 2)}


@pytest.mark.parametrize("wrong", [b"bytes", None, 7, [1], [None], [SENTENCE, b"x"]])
def test_what_is_no_text_is_refused(recognize, wrong):
    with pytest.raises(TypeError, match="text"):
        recognize(wrong)


def test_a_long_sentence_gives_each_mention_once(recognize):
    # One "sentence" of 400 words and a window of 14 sub-words: the entities stand across all seams.
    text = "и мэр Казани стал Ольга Калинина в департамент мэрии Ижевска " * 40
    entities = recognize(text)
    for kind, mention in (("PROFESSION", "мэр Казани"), ("PERSON", "Ольга Калинина"), ("ORGANIZATION", "мэрии Ижевска")):
        starts = [e["start"] for e in entities if e["entity_type"] == kind and e["text"] == mention]
        assert len(starts) == len(set(starts)) == 40, kind


def test_a_very_long_text_gives_the_entities_of_its_parts(recognize):
    """200,000 characters; a line break always ends a sentence, so with windows of one sentence nothing changes at the seams."""
    parts = [SENTENCE, "и мэр Казани стал Ольга Калинина в департамент мэрии Ижевска " * 3, "директор \t сообщил 😀."]
    texts = [parts[index % 3] for index in range(200_000 // sum(len(part) + 2 for part in parts) * 3 + 3)]
    whole = recognize("\n\n".join(texts))
    assert len("\n\n".join(texts)) >= 200_000
    expected, offset = [], 0
    for text, entities in zip(texts, recognize(texts), strict=True):
        expected += [(e["entity_type"], e["start"] + offset, e["end"] + offset, e["level"]) for e in entities]
        offset += len(text) + 2
    assert [(e["entity_type"], e["start"], e["end"], e["level"]) for e in whole] == expected


def test_span_scores_are_the_share_of_all_legal_paths():
    rng = np.random.default_rng(0)
    viterbi = BilouViterbiProcessor()
    log_priors = viterbi.log_priors.numpy()
    for _ in range(40):
        tokens = int(rng.integers(1, 6))
        cases, logits = rng.integers(0, 5, tokens), rng.normal(size=(tokens, 5)) * 2
        emissions = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        emissions[cases == 4] = 0.0
        total, weights = 0.0, {}
        for path in itertools.product(range(5), repeat=tokens):
            steps = zip(cases, (0, *path[:-1]), path, strict=True)
            weight = np.exp(sum(log_priors[step] for step in steps) + emissions[np.arange(tokens), path].sum())
            if path[-1] in (1, 2) or weight == 0:
                continue
            total += weight
            for _, _, first, end in spans_from_tags(np.array(path)[None, :, None]).tolist():
                weights[first, end] = weights.get((first, end), 0.0) + weight
        if weights:
            spans = torch.tensor([[0, 0, first, end] for first, end in weights])
            scores = viterbi.span_log_probabilities(
                torch.tensor(cases)[None], torch.tensor(logits, dtype=torch.float32)[None, :, None], spans
            ).exp()
            assert scores.tolist() == pytest.approx([weight / total for weight in weights.values()], abs=1e-5)


def test_saved_models_load_with_the_auto_classes(folder):
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert model.config.entity_types == TYPES
    tokenizer = AutoTokenizer.from_pretrained(folder)
    recognizer = pipeline("nested-ner", model=model, tokenizer=tokenizer, threshold=0.5, device="cpu")
    assert found(recognizer(SENTENCE)) == EXPECTED


def test_unusable_folders_are_named(folder, tmp_path):
    def broken(name):
        copy = tmp_path / name.replace(".", "_")
        copy.mkdir()
        for file in folder.iterdir():
            if file.name != name:
                (copy / file.name).write_bytes(file.read_bytes())
        return copy

    with pytest.raises(ModelError, match="there is no such folder"):
        load_pipeline(str(tmp_path / "nowhere" / "model"))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with pytest.raises(ModelError, match=name):
            load_pipeline(str(broken(name)))
    damaged = broken("vocab.txt")
    (damaged / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 no weights at all")
    with pytest.raises(ModelError, match="model.safetensors"):
        load_pipeline(str(damaged))


def test_a_model_loads_in_half_precision(folder):
    """Whatever the encoder was saved in: the whole network is loaded in the type asked for."""
    recognizer = load_pipeline(str(folder), dtype=torch.bfloat16)
    assert {weight.dtype for weight in recognizer.model.parameters()} == {torch.bfloat16}
    assert found(recognizer(SENTENCE)) == EXPECTED
