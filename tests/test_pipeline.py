"""The nested-ner pipeline, on a model whose answers are known."""

import itertools
import json
import shutil
from collections import UserDict

import numpy as np
import pytest
import torch
from datasets import Dataset
from rule_model import TYPES, build_rule_model
from safetensors.torch import load_file, save
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import runne_coner  # noqa: F401 - registers the task
from runne_coner.configuration import CoNERConfig, ModelError
from runne_coner.modeling import CoNERForTokenClassification
from runne_coner.pipeline import BUFFERED_CHARACTERS, load_pipeline
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
    scores = sorted(e["score"] for e in recognize(SENTENCE))
    assert sorted(e["score"] for e in recognize(SENTENCE, threshold=scores[3])) == [s for s in scores if s >= scores[3]]
    assert len(recognize(SENTENCE, threshold=0)) == len(scores)
    with pytest.raises(ValueError, match="WORK_OF_ART"):
        recognize(SENTENCE, entity_types=["WORK_OF_ART"])
    with pytest.raises(TypeError, match="tresh"):
        recognize(SENTENCE, tresh=0.5)


def test_a_text_that_is_no_unicode_is_named(recognize):
    with pytest.raises(ValueError, match="^text 1 is no valid Unicode: .*; replace it"):
        recognize([SENTENCE, "Мэр \ud800"])
    assert found(recognize("😀 " + SENTENCE)) == EXPECTED


def test_levels_are_merged_by_the_stated_rule(recognize):
    """Equal spans of one type at two levels are one entity; crossing ones both stay, the shorter one a level further in;
    `flat` keeps the longer one. Levels are those of what is given: not of the heads, and not of what `threshold` left out."""
    text = "один два три"
    rows = [
        {"entity_type": "CITY", "start": 0, "end": 8, "score": 0.6},
        {"entity_type": "CITY", "start": 0, "end": 8, "score": 0.9},
        {"entity_type": "PERSON", "start": 0, "end": 8, "score": 0.5},
        {"entity_type": "CITY", "start": 5, "end": 12, "score": 0.7},
        {"entity_type": "CITY", "start": 5, "end": 8, "score": 0.8},
    ]
    entities = recognize.postprocess((text, rows))
    assert [(e["entity_type"], e["start"], e["end"], e["score"], e["level"]) for e in entities] == [
        ("CITY", 0, 8, 0.9, 1),
        ("PERSON", 0, 8, 0.5, 1),
        ("CITY", 5, 12, 0.7, 2),
        ("CITY", 5, 8, 0.8, 3),
    ]
    assert found(recognize.postprocess((text, rows), threshold=0.75)) == {("CITY", "один два", 1), ("CITY", "два", 2)}
    assert found(recognize.postprocess((text, rows), flat=True)) == {("CITY", "один два", 1)}


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": -3}, ValueError, "batch_size must be at least 1, got -3"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number, got 2.5"),
        ({"batch_size": "8"}, TypeError, "batch_size must be a whole number, got '8'"),
        ({"context": -1}, ValueError, "context must be 0 or more windows, got -1"),
        ({"context": 1.0}, TypeError, "context must be a whole number of windows, got 1.0"),
        ({"context": True}, TypeError, "context must be a whole number of windows, got True"),
        ({"threshold": 1.01}, ValueError, "threshold must lie in"),
        ({"threshold": -0.1}, ValueError, "threshold must lie in"),
        ({"threshold": float("nan")}, ValueError, "threshold must lie in"),
        ({"threshold": "0.5"}, TypeError, "threshold must be a number, got '0.5'"),
        ({"threshold": None}, TypeError, "threshold must be a number, got None"),
        ({"flat": "yes"}, TypeError, "flat must be true or false"),
        ({"entity_types": 7}, TypeError, "entity_types must be a list"),
        ({"entity_types": []}, ValueError, "the model tags"),
    ],
)
def test_options_out_of_range_are_refused_in_the_call_and_at_construction(recognize, folder, options, kind, message):
    with pytest.raises(kind, match=message):
        recognize(SENTENCE, **options)
    with pytest.raises(kind, match=message):
        pipeline("nested-ner", model=recognize.model, tokenizer=recognize.tokenizer, device="cpu", **options)


@pytest.mark.parametrize("wrong", [b"bytes", None, 7, {"text": SENTENCE}, UserDict(a=SENTENCE), [1], [None], [SENTENCE, b"x"]])
def test_what_is_no_text_is_refused(recognize, wrong):
    with pytest.raises(TypeError, match="text"):
        recognize(wrong)


def test_a_dataset_of_transformers_is_read(recognize):
    """It has a length and items, and no iterator."""
    texts = KeyDataset([{"text": SENTENCE}, {"text": ""}], "text")
    assert list(recognize(texts)) == recognize([SENTENCE, ""])


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


@pytest.fixture
def changed(folder, tmp_path):
    """Makes copies of the model in which files are left out (None) or hold something else."""

    def make(**files):
        copy = tmp_path / "changed"
        shutil.copytree(folder, copy)
        for name, content in files.items():
            path = copy / name.replace("__", ".")
            path.unlink()
            if content is not None:
                path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(copy)

    return make


def edited(folder, **settings):
    return json.loads((folder / "config.json").read_text()) | settings


@pytest.mark.parametrize("name", ["config__json", "tokenizer__json", "model__safetensors"])
def test_a_missing_file_is_named(changed, name):
    with pytest.raises(ModelError, match=name.replace("__", ".")):
        load_pipeline(changed(**{name: None}))


@pytest.mark.parametrize("load", [load_pipeline, lambda name: pipeline("nested-ner", model=name)])
def test_broken_models_are_refused_in_clear_words(folder, changed, load, tmp_path):
    """Also by transformers' own `pipeline`, which makes one long ValueError of the errors that it expects."""
    weights = load_file(folder / "model.safetensors")
    headless = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
    wider = weights | {"classifier.bias": torch.zeros(5), "classifier.weight": torch.zeros(5, 64)}
    more = weights | {"conditioning.weight": torch.zeros(1, 2, 5, 5)}
    cases = [
        (dict(model__safetensors=b"\x10\x00\x00\x00\x00\x00\x00\x00 no weights at all"), r"model\.safetensors\) are damaged"),
        (dict(model__safetensors=(folder / "model.safetensors").read_bytes()[:-100]), r"model\.safetensors\) are damaged"),
        (dict(model__safetensors=save(headless, {"format": "pt"})), r"model\.safetensors lacks 2 weights .*classifier\.bias"),
        (dict(model__safetensors=save(more, {"format": "pt"})), r"1 weights .* no place .conditioning\.weight.; install"),
        (dict(model__safetensors=save(wider, {"format": "pt"})), r"do not fit config\.json"),
        (dict(config__json=edited(folder, format_version=99)), "format_version 99 is unknown"),
    ]
    for files, message in cases:
        name = changed(**files)
        with pytest.raises(ModelError, match=message):
            load(name)
        shutil.rmtree(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "conerx"}, "config.json is no configuration of a CoNER model"),
        ({"model_type": "bert"}, "a 'bert' model, not a CoNER one"),
        ({"levels": "two"}, "config.json is no configuration of a CoNER model"),
        ({"levels": 0}, "levels must be at least 1"),
        ({"entity_types": []}, "names no entity_types"),
        ({"encoder": {"model_type": "unheard-of"}}, "unheard-of"),
        ({"transition_priors": [[0.5]]}, "priors must have the shape"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(folder, changed, settings, message):
    with pytest.raises(ModelError, match=message):
        load_pipeline(changed(config__json=edited(folder, **settings)))


def test_a_configuration_that_is_no_json_and_a_missing_folder_are_named(changed, tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        load_pipeline(changed(config__json=b"{broken"))
    with pytest.raises(ModelError, match="there is no such folder"):
        load_pipeline(str(tmp_path / "nowhere" / "model"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer__json": b"{}"}, "no tokenizer can be loaded; see its tokenizer.json"),
        ({"tokenizer__json": b"garbage"}, "no tokenizer can be loaded; see its tokenizer.json"),
        ({"tokenizer_config__json": b"garbage"}, "no tokenizer can be loaded"),
        ({"tokenizer_config__json": None}, "no pad_token .tokenizer_config.json.; get the file again"),
    ],
)
def test_a_broken_tokenizer_is_named(changed, files, message):
    name = changed(**files)
    with pytest.raises(ModelError, match=f"^{name}: .*{message}"):
        load_pipeline(name)


def test_models_say_the_version_of_their_format(folder):
    assert edited(folder)["format_version"] == CoNERConfig().format_version == 1
    with pytest.raises(ModelError, match="format_version 'new' is unknown"):
        CoNERConfig(format_version="new")
    model, found = CoNERForTokenClassification.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, CoNERForTokenClassification) and not found["missing_keys"]


def test_a_model_loads_in_half_precision(folder):
    """Whatever the encoder was saved in: the whole network is loaded in the type asked for."""
    recognizer = load_pipeline(str(folder), dtype=torch.bfloat16)
    assert {weight.dtype for weight in recognizer.model.parameters()} == {torch.bfloat16}
    assert found(recognizer(SENTENCE)) == EXPECTED


# -- Context ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(wordpiece_encoder):
    """A pipeline of a network with layers, so that what it says to a sentence depends on those around it."""
    config = CoNERConfig(entity_types=TYPES, levels=2, max_length=48, candidate_paths=2)
    torch.manual_seed(0)
    model = CoNERForTokenClassification.from_encoder(wordpiece_encoder, config)
    return pipeline("nested-ner", model=model, tokenizer=AutoTokenizer.from_pretrained(wordpiece_encoder))


def test_context_changes_nothing_where_the_model_does_not_look_at_it(recognize):
    text = " ".join([SENTENCE] * 3)
    alone, twice = recognize(text), recognize(text, context=1)
    assert len(alone) == 3 * len(EXPECTED)
    for one, other in zip(alone, twice, strict=True):
        assert one | {"score": 0} == other | {"score": 0} and one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_window_without_neighbours_is_read_once(untrained, monkeypatch):
    # So that it finds something.
    monkeypatch.setattr(untrained.model.span_scorer.output.bias, "data", torch.full((len(TYPES),), 20.0))
    # The long sentence fills windows, beside which nothing fits.
    texts = ["Мэр Казани.", "Закон о мэре. Ольга в Перми.", "Закон " * 60 + "о мэре."]
    alone = untrained(texts)
    rows = [untrained.preprocess(text, context=1) for text in texts]
    joined = [sum("in_context" in row for row in windows) for windows in rows]
    assert len(rows[0]) == 1 and len(rows[1]) == 2 < len(rows[2]) and joined == [0, 2, 0]
    sizes = []
    read = untrained._read
    monkeypatch.setattr(untrained, "_read", lambda rows: sizes.append(len(rows)) or read(rows))
    twice = untrained(texts, context=1)
    assert sizes == [sum(map(len, rows)), 2]

    def same(found: list[dict], wanted: list[dict]) -> bool:
        scores = [entity["score"] for entity in wanted]
        alike = [entity | {"score": 0} for entity in found] == [entity | {"score": 0} for entity in wanted]
        return alike and [entity["score"] for entity in found] == pytest.approx(scores, abs=1e-6)

    assert alone[2] and same(twice[0], alone[0]) and same(twice[2], alone[2])
    assert not same(twice[1], alone[1])
    for text, together in zip(texts, twice, strict=True):
        assert same(untrained(text, context=1), together)


def test_context_takes_the_mean_of_a_window_alone_and_among_its_neighbours(untrained, monkeypatch):
    text = "Мэр Казани. Закон о мэре. Ольга в Перми."
    given = []
    decode = untrained.decoder.decode
    monkeypatch.setattr(untrained.decoder, "decode", lambda *args: given.append(args) or decode(*args))
    untrained(text, context=1)
    (cases, logits, features, *_), *more = given
    assert not more and cases.shape[0] == 3
    rows = {tuple(row["core"]): row for row in untrained.preprocess(text, context=1)}
    assert [row["shift"] > 0 for row in rows.values()] == [False, True, True]
    ordered = sorted(rows.values(), key=lambda row: row["in_context"]["length"])
    for index, row in enumerate(ordered):
        inside = slice(1, row["length"] - 1)
        shifted = slice(1 + row["shift"], row["length"] - 1 + row["shift"])
        wide = row["in_context"]
        assert list(row["input_ids"][inside]) == list(wide["input_ids"][shifted])
        outputs = [untrained.model(input_ids=torch.tensor(one["input_ids"])[None].long()) for one in (row, wide)]
        logs = [out.logits[0].log_softmax(-1)[part] for out, part in zip(outputs, (inside, shifted), strict=True)]
        assert not torch.allclose(*logs, atol=1e-4)
        assert torch.allclose(logits[index, inside], sum(logs) / 2, atol=1e-5)
        seen = [out.span_features[0, part] for out, part in zip(outputs, (inside, shifted), strict=True)]
        assert torch.allclose(features[index, inside], sum(seen) / 2, atol=1e-5)
