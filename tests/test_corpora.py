"""Several corpora in one run: names of types, who annotates what, and the mapping."""

import json

import numpy as np
import pytest
import torch
from conftest import make_documents

from runne_coner.arguments import DataArguments, UsageError, load_corpora
from runne_coner.collators import EntityCollator
from runne_coner.corpora import Part, merge_corpora, read_type_mapping
from runne_coner.documents import CorpusError, from_row, write_runne
from runne_coner.pair_weights import PairWeighting
from runne_coner.preprocessing import entity_view, load_tokenizer

MAIN = make_documents([("Анна едет в Томск", [("Анна", "PERSON"), ("Томск", "CITY")])])
OTHER = make_documents([("Иван и Заря", [("Иван", "PER"), ("Заря", "ORG")])])
EVALUATION = make_documents([("Пермь", [("Пермь", "CITY")])])
PARTS = [Part("main", MAIN, ["PERSON", "CITY"]), Part("some/other.conll", OTHER, ["PER", "ORG"])]


def types_of(documents):
    return [[entity["type"] for entity in entities] for entities in documents["entities"][:]]


def test_without_a_mapping_types_are_apart():
    merged = merge_corpora(PARTS, EVALUATION)
    assert merged.entity_types == ["PERSON", "CITY", "other/PER", "other/ORG"]
    assert types_of(merged.documents) == [["PERSON", "CITY"], ["other/PER", "other/ORG"]]
    assert merged.documents["corpus"][:] == [0, 1] and merged.evaluation["corpus"][:] == [0]
    assert merged.annotated.tolist() == [[True, True, False, False, False], [False, False, True, True, False]]
    # Equal names of different corpora are different types.
    twins = [PARTS[0], Part("twin", MAIN, ["PERSON", "CITY"])]
    assert merge_corpora(twins, EVALUATION).entity_types == ["PERSON", "CITY", "twin/PERSON", "twin/CITY"]


@pytest.mark.parametrize("name", ["other", "some/other.conll"])
def test_a_mapping_joins_types(name):
    merged = merge_corpora(PARTS, EVALUATION, {name: {"PER": "PERSON"}, "main": {"CITY": "PLACE"}})
    assert merged.entity_types == ["PERSON", "PLACE", "other/ORG"]
    assert types_of(merged.documents) == [["PERSON", "PLACE"], ["PERSON", "other/ORG"]]
    assert types_of(merged.evaluation) == [["PLACE"]]
    assert merged.annotated.tolist() == [[True, True, False, False], [True, False, True, False]]


def test_pairs_across_corpora(wordpiece_encoder):
    """PERSON and PER are compared; CITY, which the other corpus does not know, meets none of its spans; nor does O."""
    merged = merge_corpora(PARTS, EVALUATION, {"other": {"PER": "PERSON"}})
    tokenizer = load_tokenizer(wordpiece_encoder)
    view = entity_view(merged.documents, tokenizer, merged.entity_types)
    batch = EntityCollator(tokenizer)([view[index] for index in range(len(view))])
    names = [[*merged.entity_types, "O"][kind] for kind in batch["types"]]
    spans, corpora = batch["spans"], batch["corpora"]
    assert list(zip(corpora.tolist(), names, strict=True)) == [
        *[(0, "PERSON"), (0, "CITY"), (0, "O")],
        *[(1, "PERSON"), (1, "other/ORG"), (1, "O")],
    ]
    weighting = PairWeighting(annotated=torch.from_numpy(merged.annotated))
    weights = weighting(torch.zeros(6, 2), spans, batch["types"], torch.arange(6), batch["surfaces"], corpora)
    expected = np.kron(np.eye(2), np.ones((3, 3))) - np.eye(6)
    expected[0, 3] = expected[3, 0] = 1
    assert weights[:].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("parts", "mapping", "message"),
    [
        (PARTS, {"third": {"PER": "PERSON"}}, "no corpus 'third'. There are main, other"),
        (PARTS, {"other": {"GPE": "CITY"}}, "other has no type GPE. It has PER, ORG"),
        ([PARTS[0], PARTS[0]], {}, "main: given twice"),
        ([PARTS[0], Part("other", OTHER, ["PER"])], {}, "other, document 'd0': type ORG is not one of PER"),
    ],
)
def test_errors_name_what_is_wrong(parts, mapping, message):
    with pytest.raises(CorpusError, match=message):
        merge_corpora(parts, EVALUATION, mapping)


def test_corpora_of_one_folder_name_keep_their_paths():
    parts = [Part("a/x.conll", MAIN, ["PERSON", "CITY"]), Part("b/x.conll", OTHER, ["PER", "ORG"])]
    assert merge_corpora(parts, EVALUATION).entity_types == ["PERSON", "CITY", "b/x.conll/PER", "b/x.conll/ORG"]


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["/data/a/x.conll", "/data/b/x.conll"], "b/x.conll"),
        (["/data/a/sub/x.conll", "/data/b/sub/x.conll"], "b/sub/x.conll"),
        (["/b/x.conll", "/x.conll"], "/x.conll"),  # nothing but the whole tells it apart
        (["x", "/data/x.conll"], "x.conll"),
    ],
)
def test_names_of_types_hold_no_more_of_a_path_than_tells_corpora_apart(names, label):
    parts = [Part(names[0], MAIN, ["PERSON", "CITY"]), Part(names[1], OTHER, ["PER", "ORG"])]
    assert merge_corpora(parts, EVALUATION).entity_types == ["PERSON", "CITY", f"{label}/PER", f"{label}/ORG"]
    for key in (label, names[1]):
        assert merge_corpora(parts, EVALUATION, {key: {"PER": "PERSON"}}).entity_types == ["PERSON", "CITY", f"{label}/ORG"]


def test_mappings_are_read_from_everywhere(tmp_path):
    mapping = {"other": {"PER": "PERSON"}}
    (tmp_path / "types.json").write_text(json.dumps(mapping), encoding="utf-8")
    (tmp_path / "types.yaml").write_text("other:\n  PER: PERSON\n", encoding="utf-8")
    for setting in (mapping, json.dumps(mapping), str(tmp_path / "types.json"), tmp_path / "types.yaml"):
        assert read_type_mapping(setting) == mapping
    assert read_type_mapping(None) == {}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nowhere.yaml", "type_mapping nowhere.yaml: cannot be read"),
        ("{broken", "neither JSON nor"),
        ("[1]", "expected {corpus: {type: new name}}"),
        ({"other": "PERSON"}, "expected {corpus: {type: new name}}"),
        ({"other": {"PER": 1}}, "expected {corpus: {type: new name}}"),
    ],
)
def test_mappings_that_cannot_be_meant_are_errors(setting, message):
    with pytest.raises(CorpusError, match=message):
        read_type_mapping(setting)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    write_runne([from_row(row) for row in make_documents(copies=2)], tmp_path / "main.jsonl")
    (tmp_path / "flat").mkdir()
    for split in ("train", "extra"):
        (tmp_path / "flat" / f"{split}.bio").write_text(f"Иван B-PER\n{split} O\n\nПермь B-LOC\n", encoding="utf-8")
    return tmp_path


def test_settings_of_a_run(folders):
    data = DataArguments(dataset=str(folders / "main.jsonl"), eval_fraction=0.2, max_documents=5)
    alone = load_corpora(data, [], None, 1)
    assert alone.annotated is None and alone.train.column_names == ["id", "text", "entities"]
    corpus = load_corpora(data, [f"{folders / 'flat'}@extra"], {"flat": {"PER": "PERSON"}}, 1)
    assert corpus.train["text"][:] == [*alone.train["text"][:], "Иван extra", "Пермь"]
    assert corpus.train["corpus"][:] == [0] * 5 + [1] * 2
    assert corpus.evaluation["text"][:] == alone.evaluation["text"][:]
    assert corpus.entity_types == [*alone.entity_types, "flat/LOC"]
    assert corpus.annotated.shape == (2, len(corpus.entity_types) + 1)
    # Without @SPLIT the one of the training corpus.
    assert "Иван train" in load_corpora(data, [str(folders / "flat")], None, 1).train["text"][:]
    with pytest.raises(UsageError, match="no split 'dev'; write .*@SPLIT with one of train, extra"):
        load_corpora(data, [f"{folders / 'flat'}@dev"], None, 1)
