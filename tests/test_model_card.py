"""The facts that recipes record, and the card that is made of them."""

import importlib
import json
import re
from collections import Counter
from dataclasses import dataclass, fields

import huggingface_hub
import pytest
from conftest import ROOT, TYPES, make_documents
from hub_server import HubServer, metadata_errors
from huggingface_hub import ModelCard, metadata_load

from runne_coner.arguments import CardArguments, Corpus, DataArguments, EncoderArguments
from runne_coner.configuration import CoNERConfig
from runne_coner.model_card import (
    base_model,
    hardware,
    make_card,
    public_arguments,
    read_facts,
    record_facts,
    stage_facts,
)
from runne_coner.training_args import ContrastiveTrainingArguments, NestedNerTrainingArguments

METRICS = {
    "eval_micro_f1": 0.81234567,
    "eval_micro_precision": 0.83,
    "eval_micro_recall": 0.79,
    "eval_macro_f1": 0.7,
    "eval_few_shot_f1": 0.3,
    "eval_macro_all_f1": 0.65,
    "eval_f1_CITY": 0.9,
    "eval_f1_PERSON": 0.85,
    "eval_loss": 0.01,
    "eval_runtime": 3.0,
}


@dataclass
class Network(EncoderArguments):
    levels: int = 2
    level_order: str = "innermost"
    head_dropout: float = 0.3
    candidate_paths: int = 0


@pytest.fixture
def facts(tmp_path):
    """Facts of both stages on a corpus with the given name, dataset and metrics."""

    def both(card=None, dataset="sample", encoder="e5-small-ru", metrics=METRICS, lost=None, paths=0):
        card, lost = card or CardArguments(), lost or {}
        train, evaluation = make_documents(copies=12), make_documents()
        corpus = Corpus(train, evaluation, [*TYPES, "UNSEEN"], ["DISEASE"])
        data = DataArguments(dataset=dataset, eval_split="test")
        first = ContrastiveTrainingArguments(str(tmp_path / "one"), report_to="none", margin=1.25)
        second = NestedNerTrainingArguments(str(tmp_path / "two"), report_to="none", head_learning_rate=0.004)
        return {
            "stage1": stage_facts(
                corpus, data, Network(encoder), first, card, lost={}, windows=50, seconds=61, metrics={"eval_pair_auc": 0.9}
            ),
            "stage2": stage_facts(
                corpus,
                data,
                Network(encoder, candidate_paths=paths),
                second,
                card,
                lost=lost,
                windows=60,
                seconds=3700.4,
                metrics=metrics,
            ),
        }

    return both


CONFIG = CoNERConfig(entity_types=[*TYPES, "UNSEEN"], levels=2, max_length=48).to_dict()


def section(card: ModelCard, heading: str) -> str:
    return re.search(rf"## {heading}\n\n(.*?)(\n## |\Z)", card.text, re.DOTALL)[1]


# -- metadata -------------------------------------------------------------------------------------------------------------


def test_metadata_of_a_recognizer(facts, tmp_path):
    card = make_card(facts(CardArguments(license="mit")), model_id="org/name", config=CONFIG)
    card.save(tmp_path / "README.md")
    data = metadata_load(tmp_path / "README.md")
    results = data.pop("model-index")
    assert data == {
        "language": "ru",
        "license": "mit",
        "base_model": "intfloat/multilingual-e5-small",
        "library_name": "runne-coner",
        "pipeline_tag": "token-classification",
        "datasets": ["sample"],
        "metrics": ["f1"],
        "tags": ["nested-ner", "named-entity-recognition", "coner"],
    }
    (model,) = results
    (result,) = model["results"]
    assert model["name"] == "name"
    assert result["dataset"] == {
        "name": "runne-coner sample (generated Russian texts)",
        "type": "sample",
        "split": "test",
    }
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "Micro F1": 0.812346,
        "Macro F1 (few-shot types left out)": 0.7,
        "Few-shot macro F1": 0.3,
        "Macro F1 of all types": 0.65,
        "F1 of CITY": 0.9,
        "F1 of PERSON": 0.85,
    }


def test_the_client_reads_the_results_back(facts):
    card = make_card(facts(), model_id="org/name", config=CONFIG)
    again = ModelCard(str(card))
    assert {result.dataset_split for result in again.data.eval_results} == {"test"}
    assert str(again) == str(card)


@pytest.mark.parametrize("stage2", [True, False])
def test_the_client_s_own_validation_accepts_the_card(facts, monkeypatch, stage2):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with HubServer({}) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
        card = make_card(facts(CardArguments(license="apache-2.0")), model_id="org/name", config=CONFIG if stage2 else None)
        card.validate()
        assert server.requests == ["POST /api/validate-yaml"]
        # The stand-in does refuse what the Hub refuses.
        card.data.license = "as you like"
        with pytest.raises(ValueError, match="license"):
            card.validate()


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        ("language: Russian", "language"),
        ("pipeline_tag: nested-ner", "pipeline_tag"),
        ("base_model: /some/folder/encoder", "base_model"),
        ("tags: [1]", "tags"),
        ("model-index: [{name: a, results: [{metrics: []}]}]", "model-index"),
        ("license: [", "YAML"),
    ],
)
def test_the_stand_in_refuses_bad_metadata(metadata, word):
    assert any(word in error for error in metadata_errors(f"---\n{metadata}\n---\n# Title"))
    assert metadata_errors("# no metadata")


def test_a_stage_1_encoder_claims_no_recognition(facts):
    card = make_card({"stage1": facts()["stage1"]}, model_id="org/encoder")
    assert card.data.pipeline_tag == "feature-extraction" and card.data.eval_results is None
    assert "AutoModel.from_pretrained" in card.text and "nested-ner" not in card.text
    assert "| 0.9000 |" in section(card, "Results")


# -- nothing unmeasured ---------------------------------------------------------------------------------------------------


def test_what_is_not_known_is_left_out():
    card = make_card({}, config=CONFIG)
    data = card.data.to_dict()
    assert not {"license", "language", "base_model", "datasets", "model-index", "metrics"} & data.keys()
    for heading in ("Results", "Training", "Versions"):
        assert f"## {heading}" not in card.text
    assert "`PERSON`" in section(card, "Entity types") and "48 sub-words" in section(card, "Nesting and limits")
    assert "None" not in str(card) and "nan" not in str(card).lower().split()
    assert 'model="."' in card.text


def test_a_local_corpus_and_encoder_are_not_named_by_their_path(facts, tmp_path):
    card = make_card(facts(dataset=str(tmp_path), encoder=str(tmp_path)), config=CONFIG)
    assert str(tmp_path) not in str(card) and str(tmp_path) not in json.dumps(facts(dataset=str(tmp_path)))
    assert not {"language", "datasets", "base_model"} & card.data.to_dict().keys()
    assert "local corpus" in section(card, "Training")
    given = CardArguments(dataset_name="NEREL", language=["ru", "en"])
    card = make_card(facts(given, dataset=str(tmp_path)), config=CONFIG)
    assert card.data.datasets == ["nerel"] and card.data.language == ["ru", "en"]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_no_setting_of_the_network_brings_a_path_into_the_facts(stage, tmp_path, monkeypatch):
    """Every setting that may be text of any kind holds one here."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module(stage)
    network = {"stage1": "Stage1Arguments", "stage2": "Stage2Arguments"}[stage]
    network = getattr(recipe, network)(str(tmp_path))
    free = [item for item in fields(network) if "str" in str(item.type) and item.default is None]
    assert {"encoder_cache", "type_mapping" if stage == "stage1" else "label_words"} <= {item.name for item in free}
    for item in free:
        path = str(tmp_path / f"{item.name}.json")
        setattr(network, item.name, [path] if "list" in str(item.type) else path)
    corpus = Corpus(make_documents(), make_documents(), TYPES, [])
    training = (ContrastiveTrainingArguments if stage == "stage1" else NestedNerTrainingArguments)("out", report_to="none")
    data = DataArguments(dataset=str(tmp_path), eval_dataset=str(tmp_path / "dev"), eval_split="dev")
    options = {"lost": {}, "windows": 1, "seconds": 1, "metrics": METRICS}
    found = stage_facts(corpus, data, network, training, CardArguments(), **options)
    assert str(tmp_path) not in json.dumps(found)
    assert str(tmp_path) not in str(make_card({stage: found}, config=CONFIG if stage == "stage2" else None))


def test_facts_of_earlier_versions_may_hold_the_path_of_a_file_of_words(facts, tmp_path):
    found = facts()
    found["stage2"]["hyperparameters"]["label_words"] = str(tmp_path / "words.json")
    assert str(tmp_path) not in str(make_card(found, config=CONFIG))


def test_a_corpus_whose_name_cannot_be_an_id_is_named_in_the_text_only(facts, tmp_path):
    card = make_card(facts(CardArguments(dataset_name="Наши письма, 2026"), dataset=str(tmp_path)), config=CONFIG)
    assert "Наши письма, 2026" in section(card, "Training") and "datasets" not in card.data.to_dict()
    assert metadata_errors(str(card)) == []
    card = make_card(facts(CardArguments(dataset_name="org/letters"), dataset=str(tmp_path)), config=CONFIG)
    assert card.data.datasets == ["org/letters"] and metadata_errors(str(card)) == []
    assert metadata_errors(str(card).replace("- org/letters", "- our letters")) != []


def test_the_introduction_names_a_scorer_of_spans(facts):
    assert "then BILOU heads)" in make_card(facts(), config=CONFIG).text
    with_scorer = make_card(facts(), config={**CONFIG, "candidate_paths": 2}).text
    assert "then BILOU heads and a scorer of whole spans)" in with_scorer


def test_only_measured_scores_are_given(facts):
    card = make_card(facts(metrics={"eval_micro_f1": 0.5, "eval_loss": 0.1}), config=CONFIG)
    assert [result.metric_name for result in card.data.eval_results] == ["Micro F1"]
    assert "Few-shot macro" not in card.text and "loss" not in section(card, "Results")
    without = make_card(facts(metrics={"eval_loss": 0.1}), config=CONFIG)
    assert "## Results" not in without.text and "model-index" not in without.data.to_dict()


def test_a_held_out_part_is_no_split_of_its_own(facts):
    corpus = Corpus(make_documents(), make_documents(), TYPES, [])
    data = DataArguments(eval_fraction=0.2)
    training = NestedNerTrainingArguments("out", report_to="none")
    options = {"lost": {}, "windows": 1, "seconds": 1, "metrics": METRICS}
    found = stage_facts(corpus, data, Network(), training, CardArguments(), **options)
    assert found["evaluation"]["split"] == "0.2 of train, held out"


# -- the text -------------------------------------------------------------------------------------------------------------


def test_every_type_has_its_counts_and_the_commonest_example(facts):
    table = section(make_card(facts(), config=CONFIG), "Entity types")
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in table.splitlines() if row.startswith("| ")}
    # Томск stands in three of the five documents, Париж in two, two more in one; every document is there twelve times.
    assert rows["CITY"][1:] == ["Томск", "96", "8", "90.00 |"]
    assert rows["DISEASE *"][1:] == ["Болезнь", "12", "1", " |"]
    assert rows["UNSEEN"][1:] == ["", "0", "0", " |"]


def test_examples_cannot_break_the_table(facts):
    text = "Банк <b>|`х`\n у реки"
    marked = [(text, ((text, "BANK"),)), ("Томск", (("Томск", "A|b <i>"),))]
    corpus = Corpus(make_documents(marked), make_documents(), ["BANK", "A|b <i>", *TYPES], ["A|b <i>"])
    training = NestedNerTrainingArguments("out", report_to="none")
    options = {"lost": {}, "windows": 1, "seconds": 1, "metrics": {}}
    own = stage_facts(corpus, DataArguments(eval_split="test"), Network(), training, CardArguments(), **options)
    table = section(make_card({"stage2": own}, config=CONFIG), "Entity types")
    assert r"| BANK | Банк \<b\>\|\`х\` у реки | 1 | 0 |" in table
    assert r"| A\|b \<i\> * | Томск | 1 | 0 |" in table


def test_limits_name_rare_types_and_lost_entities(facts):
    lost = {"CITY": Counter({"nested deeper than levels": 3}), "PERSON": Counter({"nested deeper than levels": 1})}
    limits = section(make_card(facts(lost=lost), config=CONFIG), "Nesting and limits")
    assert "DISEASE (12)" in limits and "UNSEEN (0)" in limits and "CITY (" not in limits
    assert "could not be represented (nested deeper than levels): 3 CITY, 1 PERSON" in limits
    assert "2 levels deep" in limits
    flat = make_card(facts(), config=CONFIG | {"levels": 1})
    assert "none is found inside another" in section(flat, "Nesting and limits")


def test_both_stages_tell_their_hyperparameters_time_and_hardware(facts):
    training = section(make_card(facts(), config=CONFIG), "Training")
    first, second = training.split("### Stage 2")
    assert "| `margin` | 1.25 |" in first and "| `pair_mode` | in_batch |" in first and "1 min 1 s" in first
    assert "| `head_learning_rate` | 0.004 |" in second and "1 h 1 min" in second and "| `levels` | 2 |" in second
    assert "60 documents, 60 windows" in second and "60 documents, 50 windows" in first
    assert hardware() in first and hardware() in second
    # What does not apply is not mentioned: training went by epochs, and there is no dice term and no scorer.
    for name in ("max_steps", "num_pairs", "mining_margin", "dice_smoothing", "scorer_weight", "scorer_learning_rate"):
        assert f"`{name}`" not in training, name


def test_the_scorers_settings_are_told_where_there_is_one(facts):
    second = section(make_card(facts(paths=2), config=CONFIG), "Training").split("### Stage 2")[1]
    assert "| `scorer_weight` | 1.0 |" in second and "| `scorer_learning_rate` | 0.001 |" in second


@pytest.mark.parametrize("levels", [1, 2])
def test_an_order_of_levels_is_told_where_there_are_several(levels):
    corpus = Corpus(make_documents(), make_documents(), TYPES, [])
    training = NestedNerTrainingArguments("out", report_to="none")
    options = {"lost": {}, "windows": 1, "seconds": 1, "metrics": METRICS}
    found = stage_facts(corpus, DataArguments(), Network(levels=levels), training, CardArguments(), **options)
    assert ("level_order" in found["hyperparameters"]) == (levels == 2)


def test_usage_with_and_without_the_package():
    card = make_card({}, model_id="org/name", config=CONFIG, requirements=["torch", "razdel"])
    ours, theirs = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert "import runne_coner" in ours and "trust_remote_code" not in ours
    assert "runne_coner" not in theirs and "trust_remote_code=True" in theirs
    assert "pip install torch razdel" in card.text
    for block in (ours, theirs):
        compile(block, "card", "exec")


# -- facts and arguments --------------------------------------------------------------------------------------------------


def test_stage_2_takes_over_the_facts_of_its_encoder(facts, tmp_path):
    both = facts()
    for name in ("encoder", "model"):
        (tmp_path / name).mkdir()
    record_facts(tmp_path / "encoder", "stage1", both["stage1"])
    record_facts(tmp_path / "model", "stage2", both["stage2"], str(tmp_path / "encoder"))
    assert list(read_facts(tmp_path / "model")) == ["stage1", "stage2"]
    assert read_facts(tmp_path / "model") == json.loads(json.dumps(both))
    # A second training into the same folder, this time without stage 1, leaves nothing of the first.
    record_facts(tmp_path / "model", "stage2", both["stage2"], "owner/encoder")
    assert list(read_facts(tmp_path / "model")) == ["stage2"]
    assert base_model(str(tmp_path / "encoder")) == "intfloat/multilingual-e5-small"
    assert base_model("owner/encoder") == "owner/encoder" and base_model(str(tmp_path)) is None


def test_public_arguments_hold_no_place(tmp_path):
    arguments = NestedNerTrainingArguments(
        str(tmp_path), report_to="none", run_name="me at home", hub_model_id="org/x", optim_args=str(tmp_path / "x")
    )
    public = public_arguments(arguments)
    text = json.dumps(public)
    assert str(tmp_path) not in text and "me at home" not in text and "org/x" not in text
    assert public["optim_args"] is None and public["learning_rate"] == 5e-5
    others = {"seed": 1, "a": {"b": ["C:\\Users\\me", "~/x", "linear", 0.5]}, "hub_token": "hf_x", "output_dir": "runs/x"}
    assert public_arguments(others) == {"seed": 1, "a": {"b": [None, None, "linear", 0.5]}}
