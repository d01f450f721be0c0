"""Settings of the recipes, and the recipes themselves, run as programs on a tiny corpus and a tiny encoder."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import ROOT, TYPES, make_documents
from rule_model import TYPES as RULE_TYPES
from rule_model import build_rule_model
from transformers import AutoModel, AutoModelForTokenClassification

from runne_coner.arguments import (
    DataArguments,
    EncoderArguments,
    UsageError,
    checkpoint_to_resume,
    load_corpus,
    parse_settings,
    warn_of_unlearnable_types,
)
from runne_coner.calibration import calibrate
from runne_coner.cli import INPUT_ERRORS
from runne_coner.collators import BilouCollator
from runne_coner.documents import CorpusError, Document, Entity, from_row, write_runne
from runne_coner.metrics import make_compute_metrics
from runne_coner.nerel import FEW_SHOT_TYPES, NEREL_TYPES
from runne_coner.pipeline import load_pipeline
from runne_coner.preprocessing import bilou_view, load_tokenizer
from runne_coner.tagging import B, L, O, U
from runne_coner.trainers import NestedNerTrainer
from runne_coner.training_args import NestedNerTrainingArguments
from runne_coner.viterbi import allowed_transitions, uniform_priors
from runne_coner.windows import WindowSettings

ARGUMENTS = [DataArguments, EncoderArguments, NestedNerTrainingArguments]


@pytest.fixture(autouse=True)
def own_cache_and_threads(tmp_path, monkeypatch):
    """Recipes run within this process set the number of threads for all that follows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory) -> Path:
    """A folder with train.jsonl (30 documents), dev.jsonl (5 documents, 7 windows) and ners.txt."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, copies in (("train", 6), ("dev", 1)):
        write_runne([from_row(row) for row in make_documents(copies=copies)], folder / f"{split}.jsonl")
    (folder / "ners.txt").write_text("\n".join(TYPES), encoding="utf-8")
    return folder


# -- Settings -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def parse(tmp_path):
    """Parses a YAML text (None: no such file) and a command line into (data, encoder, training)."""
    config = tmp_path / "settings.yaml"

    def parse(text, *argv):
        if text is not None:
            config.write_text(f"output_dir: {tmp_path / 'run'}\n{text}" if text.endswith("\n") else text, encoding="utf-8")
        return parse_settings(argv, ARGUMENTS, config, "A recipe.")

    return parse


def test_yaml_and_overrides(parse, tmp_path):
    data, encoder, training = parse(
        "learning_rate: 5e-5\nmax_length: 64\nentity_types: [PERSON, CITY]\nbf16: true\nwarmup_steps: 0.1\n"
        "eval_strategy: 'no'\nreport_to: none\nmax_documents: null\nmodel_name_or_path: some/encoder\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\n",
        *("--max_length", "70", "--head-learning-rate=1e-3", "--num_train_epochs", "0.5", "--few_shot_types", "CITY"),
    )
    assert training.learning_rate == 5e-5 and isinstance(training.learning_rate, float)
    assert training.warmup_steps == 0.1 and training.bf16 is True and training.num_train_epochs == 0.5
    assert training.head_learning_rate == 1e-3 and training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert data.windows == WindowSettings(70, 1, 32) and data.max_documents is None
    assert data.entity_types == ["PERSON", "CITY"] and data.few_shot_types == ["CITY"]
    assert encoder.model_name_or_path == "some/encoder" and training.output_dir == str(tmp_path / "run")


def test_config_option(parse, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(f"output_dir: {tmp_path}\nstride: 5\n", encoding="utf-8")
    data, *_ = parse("stride: 7\n", "--config", str(other))
    assert data.stride == 5


def test_yaml_scalars_take_the_type_of_the_setting(parse):
    """YAML reads these as numbers and text."""
    data, _, training = parse("dataset: 2024\nentity_types: [1, 'NO']\nfp16: 'no'\nbf16: 1\nstrict: 'true'\n")
    assert data.dataset == "2024" and data.entity_types == ["1", "NO"]
    assert training.fp16 is False and training.bf16 is True and data.strict is True


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("lerning_rate: 1\n", [], "settings.yaml: unknown key 'lerning_rate'; did you mean learning_rate?"),
        ("1: 2\n", [], "unknown key 1"),
        ("\n", ["--lerning_rate", "1"], "unknown option --lerning_rate; did you mean learning_rate?"),
        ("\n", ["--max-lenght=5"], "did you mean max_length?"),
        ("\n", ["--confg", "x"], "did you mean config?"),
        ("\n", ["--learning_rat", "1"], "did you mean learning_rate?"),
        ("\n", ["--qqq"], "--help"),
        ("\n", ["stray"], "unknown option stray"),
        ("\n", ["--learning_rate"], "expected one argument"),
        ("\n", ["--learning_rate", "fast"], "invalid float value: 'fast'"),
        ("\n", ["--config", "/nowhere/x.yaml"], "/nowhere/x.yaml.*cannot be read"),
        (None, [], "settings.yaml.*cannot be read"),
        ("- a\n- b", [], "found list"),
        ("just text", [], "found str"),
        ("", [], "found NoneType"),
        ("a: [b", [], "not a YAML file"),
        ("learning_rate: fast\n", [], "learning_rate.*invalid float value: 'fast'"),
        ("learning_rate: [1]\n", [], r"learning_rate.*\[1\]"),
        ("learning_rate: null\n", [], "learning_rate.*None"),
        ("max_length: 12.5\n", [], "max_length.*12.5"),
        ("max_length: true\n", [], "max_length.*True"),
        ("entity_types: PERSON\n", [], "entity_types must be a list"),
        ("entity_types: [[A]]\n", [], "entity_types must be a list"),
        ("entity_types: [CITY, NO]\n", [], "entity_types must be a list.*quotes.*False"),
        ("few_shot_types: {A: 1}\n", [], "few_shot_types must be a list"),
        ("dataset: [a]\n", [], "dataset"),
        ("run_name: 2020-01-01\n", [], "run_name.*date"),
        ("bf16: maybe\n", [], "bf16.*maybe"),
        ("eval_strategy: often\n", [], "often is not a valid IntervalStrategy"),
        ("max_documents: 0\n", [], "max_documents must be at least 1"),
        ("stride: 128\n", [], "stride.*128"),
        ("max_sentences: -1\n", [], "max_sentences"),
        ("dice_reduction: mean\n", [], "dice_reduction.*'mean'"),
        ("ce_weight: 0\ndice_weight: 0\n", [], "not both 0"),
        ("dice_smoothing: 0\n", [], "dice_smoothing"),
        ("remove_unused_columns: true\n", [], "remove_unused_columns"),
    ],
)
def test_settings_that_cannot_be_meant(parse, text, argv, message):
    with pytest.raises(UsageError, match=message) as error:
        parse(text, *argv)
    assert "\n" not in " ".join(str(error.value).split())


def test_checkpoint_to_resume(tmp_path):
    assert checkpoint_to_resume(None, str(tmp_path)) is None and checkpoint_to_resume("false", str(tmp_path)) is None
    with pytest.raises(UsageError, match="holds no checkpoint"):
        checkpoint_to_resume("last", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="is not a checkpoint"):
        checkpoint_to_resume(str(tmp_path), str(tmp_path))
    for step in (9, 10, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        (tmp_path / f"checkpoint-{step}" / "rng_state.pth").touch()
    (tmp_path / "checkpoint-best").mkdir()  # somebody's own copy
    (tmp_path / "checkpoint-best" / "trainer_state.json").write_text("{}")
    for word in ("last", "True", True, "yes"):
        assert checkpoint_to_resume(word, str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(str(tmp_path / "checkpoint-2"), "") == str(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("")
    with pytest.raises(UsageError, match="checkpoint-2/trainer_state.json is damaged"):
        checkpoint_to_resume(str(tmp_path / "checkpoint-2"), "")
    (tmp_path / "checkpoint-10" / "trainer_state.json").unlink()  # what a run leaves that is killed while it writes
    assert checkpoint_to_resume("last", str(tmp_path)) == str(tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-9" / "rng_state.pth").rename(tmp_path / "checkpoint-9" / "rng_state_1.pth")  # of two processes
    assert checkpoint_to_resume("last", str(tmp_path)) == str(tmp_path / "checkpoint-9")
    for folder in tmp_path.glob("checkpoint-*"):
        for path in folder.glob("rng_state*"):
            path.unlink()
    with pytest.raises(UsageError, match="no checkpoint to resume from .those of save_only_model are none"):
        checkpoint_to_resume("last", str(tmp_path))


# -- Corpora ------------------------------------------------------------------------------------------------------------


def test_corpus_with_a_split_for_evaluation(corpus_folder):
    corpus = load_corpus(DataArguments(str(corpus_folder), eval_split="dev"), seed=1)
    assert (len(corpus.train), len(corpus.evaluation)) == (30, 5)
    assert sorted(corpus.entity_types) == sorted(TYPES) and corpus.few_shot_types == []


def test_corpus_with_held_out_documents(corpus_folder):
    arguments = DataArguments(str(corpus_folder), eval_fraction=0.2, max_documents=20, few_shot_types=["DISEASE"])
    corpus, again, other = (load_corpus(arguments, seed) for seed in (1, 1, 2))
    assert len(corpus.train) == 20 and len(corpus.evaluation) == 6
    held_out = set(corpus.evaluation["id"])
    assert not held_out & set(corpus.train["id"])
    assert held_out == set(again.evaluation["id"]) != set(other.evaluation["id"])
    assert corpus.few_shot_types == ["DISEASE"]


def test_other_types_are_left_out_and_counted(corpus_folder, capsys):
    whole = load_corpus(DataArguments(str(corpus_folder), eval_split="dev"), seed=1)
    capsys.readouterr()
    wanted = ["CITY", "PERSON", "CITY"]
    corpus = load_corpus(DataArguments(str(corpus_folder), eval_split="dev", entity_types=wanted), seed=1)
    assert corpus.entity_types == ["CITY", "PERSON"]
    printed = capsys.readouterr().out
    for role, part, before in (("training", corpus.train, whole.train), ("evaluation", corpus.evaluation, whole.evaluation)):
        assert part["text"][:] == before["text"][:]
        kept = [[entity for entity in row if entity["type"] in wanted] for row in before["entities"]]
        assert part["entities"][:] == kept
        left_out = sum(len(row) for row in before["entities"]) - sum(map(len, kept))
        assert f"{role} documents: left out {left_out} entities" in printed and "ORGANIZATION" in printed


def test_the_sample_has_the_few_shot_types_of_the_task():
    corpus = load_corpus(DataArguments("sample", eval_split="test", max_documents=3), seed=1)
    assert len(corpus.train) == len(corpus.evaluation) == 3
    assert corpus.entity_types == list(NEREL_TYPES) and corpus.few_shot_types == list(FEW_SHOT_TYPES)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eval_fraction": 0.0}, UsageError, "eval_fraction 0.0 of 30"),
        ({"eval_fraction": 1.0}, UsageError, "eval_fraction 1.0 of 30"),
        ({"eval_fraction": float("nan")}, UsageError, "eval_fraction nan of 30"),
        (
            {"eval_fraction": 0.2, "eval_split": "dev"},
            UsageError,
            "^eval_fraction 0.2 changes nothing with eval_split dev; leave one",
        ),
        ({"eval_dataset": "sample"}, UsageError, "needs eval_split"),
        ({"eval_split": "dev", "few_shot_types": ["DRAGON"]}, UsageError, "DRAGON"),
        ({"eval_split": "dev", "entity_types": ["CITY", "DRAGON"]}, UsageError, "no type DRAGON; they have .*CITY"),
        ({"eval_split": "test"}, CorpusError, "no split 'test'"),
        ({"train_split": "dreams"}, CorpusError, "no split 'dreams'"),
    ],
)
def test_corpora_that_cannot_be_meant(corpus_folder, settings, error, message):
    with pytest.raises(error, match=message):
        load_corpus(DataArguments(str(corpus_folder), **settings), seed=1)


def test_radam_is_an_option(parse):
    for text, argv in (("", ["--optim", "radam"]), ("optim: radam\n", []), ("optim: sgd\n", ["--optim", "radam"])):
        assert parse(text or "max_length: 64\n", *argv)[2].optim == "radam"
    assert parse("max_length: 64\n", "--optim", "sgd")[2].optim == "sgd"


# -- The recipes as programs --------------------------------------------------------------------------------------------

COMMON = """
eval_split: dev
per_device_train_batch_size: 4
per_device_eval_batch_size: 2
learning_rate: 5e-3
logging_steps: 5
eval_strategy: "no"
save_strategy: "no"
report_to: none
disable_tqdm: true
seed: 3
"""
# `accelerate launch --cpu --num_processes 2` starts one process: without MPI, several on the CPU need torchrun.
# The address is given, as torchrun would otherwise look up this machine's name, and wait for name servers that do not answer.
TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc_per_node", "2"]


@pytest.fixture
def run(tmp_path, corpus_folder, quiet_environment):
    """Runs a recipe as a program: `run(recipe, *argv, processes=1)`."""
    config = tmp_path / "config.yaml"
    config.write_text(f"dataset: {corpus_folder}\n{COMMON}", encoding="utf-8")

    def run(recipe, *argv, processes=1, expected=0):
        launcher = TWO_PROCESSES if processes == 2 else []
        command = [sys.executable, *launcher, str(ROOT / "recipes" / recipe), "--config", str(config), *map(str, argv)]
        done = subprocess.run(command, env=quiet_environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == expected, done.stdout + done.stderr
        return done

    return run


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_both_stages_and_resuming(run, tmp_path, wordpiece_encoder):
    """Stage 1 (two processes) leaves an encoder, stage 2 takes it; two levels, counted transitions; `last` goes on."""
    first, second = tmp_path / "first", tmp_path / "second"
    stage1 = ["--model_name_or_path", wordpiece_encoder, "--output_dir", first, "--max_documents", 10]
    done = run("stage1.py", *stage1, "--max_steps", 3, "--cpu_threads", 1, processes=2)
    assert done.stdout.count("stage 1 left its encoder") == 1
    assert read(first / "train_results.json")["epoch"] > 0
    assert 0 <= read(first / "eval_results.json")["eval_pair_auc"] <= 1
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (wordpiece_encoder, first))
    assert not torch.equal(*(state["embeddings.word_embeddings.weight"] for state in (before, after)))

    stage2 = ["--model_name_or_path", first, "--output_dir", second, "--levels", 2, "--transitions", "counted"]
    stage2 += ["--few_shot_types", "DISEASE", "--save_strategy", "steps", "--save_steps", 2, "--eval_strategy", "epoch"]
    done = run("stage2.py", *stage2, "--max_steps", 4)
    assert "not representable: 6" in done.stdout and "nested deeper than levels" in done.stdout
    metrics = read(second / "eval_results.json")
    assert {"eval_micro_f1", "eval_macro_f1", "eval_few_shot_f1", "eval_f1_CITY", "eval_loss"} <= metrics.keys()
    assert read(second / "all_results.json").keys() >= metrics.keys() | {"train_loss"}
    config = read(second / "config.json")
    assert config["levels"] == 2 and sorted(config["entity_types"]) == sorted(TYPES) and config["few_shot_types"] == ["DISEASE"]
    priors = np.array(config["transition_priors"])
    assert (priors[~allowed_transitions()] == 0).all()
    rows = priors.sum(-1)
    assert (np.isclose(rows, 1) | (rows == 0)).all() and not np.allclose(priors, uniform_priors())
    assert priors[0, O, O] > 0.9 > priors[0, O, B] + priors[0, O, U] and priors[0, L, O] > 0
    model = AutoModelForTokenClassification.from_pretrained(second)
    assert model.classifier.out_features == 2 * len(TYPES) * 5

    passed = (second / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns
    assert config["score_temperature"] == metrics["eval_score_temperature"]
    assert config["score_bias"] == metrics["eval_score_bias"]
    run("stage2.py", *stage2, "--max_steps", 6, "--resume_from_checkpoint", "last", "--calibrate_scores", "false")
    assert (read(second / "config.json")["score_temperature"], read(second / "config.json")["score_bias"]) == (1.0, 0.0)
    assert not {"eval_score_temperature", "eval_ece_after"} & read(second / "eval_results.json").keys()
    assert (second / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns == passed  # it did not start anew
    state = read(second / "trainer_state.json")
    assert state["global_step"] == 6
    assert (second / "checkpoint-6").is_dir()


def test_two_processes_score_as_one(run, tmp_path, wordpiece_encoder, corpus_folder):
    """An odd number of evaluation windows of unequal length; training runs and saves."""
    folder = tmp_path / "model"
    argv = ["--model_name_or_path", wordpiece_encoder, "--output_dir", folder, "--cpu_threads", 1]
    argv += ["--few_shot_types", "DISEASE", "--levels", 3, "--head_dropout", 0, "--max_steps", 60, "--learning_rate", 1e-2]
    # What changes the training windows, a step or the weights must do the same in every process.
    argv += ["--rare_type_share", 4, "--swap_share", 4, "--swap_agreement", "pymorphy3"]
    argv += ["--ema_decay", 0.5]
    done = run("stage2.py", *argv, processes=2)
    assert done.stdout.count("stage 2 left its model") == 1
    made = re.findall(r"swap_share: (\d+) copies", done.stdout)
    assert len(made) == 2 and made[0] == made[1] != "0"
    model = AutoModelForTokenClassification.from_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    documents = load_corpus(DataArguments(str(corpus_folder), eval_split="dev"), seed=1).evaluation
    view = bilou_view(documents, tokenizer, model.config.entity_types, 3, training=False, level_order="innermost")
    assert len(view) == 7 and len(set(view["length"][:].tolist())) > 3
    trainer = NestedNerTrainer(
        model,
        NestedNerTrainingArguments(str(tmp_path / "alone"), report_to="none", disable_tqdm=True, per_device_eval_batch_size=2),
        eval_dataset=view,
        data_collator=BilouCollator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=make_compute_metrics(view, documents, model.config.entity_types, ["DISEASE"]),
    )
    alone, together = trainer.evaluate(), read(folder / "eval_results.json")
    scores = [name for name in alone if "f1" in name or "precision" in name or "recall" in name]
    assert len(scores) > 8
    assert {name: together[name] for name in scores} == {name: alone[name] for name in scores}
    assert 0.2 < alone["eval_micro_f1"]  # or equal scores would mean little

    # One process has calibrated the scores of what was saved; the card says how well.
    temperature = together["eval_score_temperature"]
    assert model.config.score_temperature == temperature and abs(temperature - 1.0) > 0.02
    found = calibrate(load_pipeline(str(folder)), [from_row(row) for row in documents])
    assert found.score_temperature == pytest.approx(temperature, rel=0.05)
    assert model.config.score_bias == together["eval_score_bias"] == pytest.approx(found.score_bias, abs=0.05)
    assert abs(model.config.score_bias) > 0.02
    assert found.ece_before == pytest.approx(together["eval_ece_before"], abs=0.02)
    assert found.ece_after == pytest.approx(together["eval_ece_after"], abs=0.02)
    assert f"| {100 * together['eval_ece_after']:.2f} |" in (folder / "README.md").read_text(encoding="utf-8")


def test_types_without_a_training_mention(tmp_path, caplog):
    """Types of the evaluation documents alone get heads and count as missed; a warning names all that cannot be learnt."""
    write_runne([Document(1, "Казань", (Entity(0, 6, "CITY"),))], tmp_path / "train.jsonl")
    write_runne([Document(2, "Анна в Перми", (Entity(0, 4, "PERSON"), Entity(7, 12, "CITY")))], tmp_path / "dev.jsonl")
    corpus = load_corpus(DataArguments(str(tmp_path), eval_split="dev"), seed=1)
    assert corpus.entity_types == ["CITY", "PERSON"]
    warn_of_unlearnable_types(corpus)
    assert "find nothing: PERSON (1 in the evaluation documents)" in caplog.text
    chosen = load_corpus(DataArguments(str(tmp_path), eval_split="dev", entity_types=["PERSON"]), seed=1)
    assert chosen.entity_types == ["PERSON"]
    caplog.clear()
    warn_of_unlearnable_types(load_corpus(DataArguments(str(tmp_path), eval_split="dev", entity_types=["CITY"]), seed=1))
    assert not caplog.text


QUICK = "--max_steps 2 --bf16 false --report_to none --disable_tqdm true --cpu_threads 1 --eval_strategy no --save_strategy no"
QUICK += " --load_best_model_at_end false --eval_split dev --max_length 48"


def run_stage2(*argv):
    load_recipe("stage2").main([*QUICK.split(), *map(str, argv)])


def test_heads_start_at_the_words_given(tmp_path, wordpiece_encoder):
    """Nothing is learnt here, so the heads are where they started: other words make others, and bad ones are refused."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "dev"):
        write_runne([Document(1, "Закон о мэре", (Entity(0, 12, "LAW"), Entity(8, 12, "PERSON")))], corpus / f"{split}.jsonl")
    argv = ["--dataset", corpus, "--model_name_or_path", wordpiece_encoder, "--learning_rate", 0, "--head_learning_rate", 0]
    argv += ["--head_init", "label_names"]
    words = tmp_path / "words.json"
    words.write_text('{"LAW": "закон", "PERSON": "мэр"}', encoding="utf-8")
    weights = {}
    for name, more in (
        ("own", []),
        ("json", ["--label_words", '{"LAW": "закон", "PERSON": "мэр"}']),
        ("file", ["--label_words", words]),
    ):
        run_stage2(*argv, "--output_dir", tmp_path / name, *more)
        model = AutoModelForTokenClassification.from_pretrained(tmp_path / name)
        weights[name] = model.classifier.weight
    assert torch.equal(weights["json"], weights["file"]) and not torch.allclose(weights["own"], weights["json"], atol=1e-3)
    for bad, message in (('{"CITY": "город"}', "CITY"), ("[1]", "label_words"), ("{", "neither JSON")):
        with pytest.raises(INPUT_ERRORS, match=message):
            run_stage2(*argv, "--output_dir", tmp_path / "bad", "--label_words", bad)
    with pytest.raises(INPUT_ERRORS, match="head_init label_names"):
        run_stage2(*argv[:-2], "--output_dir", tmp_path / "bad", "--label_words", words)


def test_the_level_order_is_that_of_the_heads(tmp_path, wordpiece_encoder):
    """Heads start at the frequencies of their tags, and learn nothing here: the two orders have changed places."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "dev"):
        nested = Document(1, "Закон о мэре", (Entity(0, 12, "LAW"), Entity(0, 5, "LAW")))
        write_runne([nested, Document(2, "Закон", (Entity(0, 5, "LAW"),))], corpus / f"{split}.jsonl")
    argv = ["--dataset", corpus, "--model_name_or_path", wordpiece_encoder, "--learning_rate", 0, "--head_learning_rate", 0]
    starts = {}
    for name, more in (
        ("default", []),
        ("innermost", ["--level_order", "innermost"]),
        ("outermost", ["--level_order", "outermost"]),
    ):
        run_stage2(*argv, "--output_dir", tmp_path / name, *more)
        model = AutoModelForTokenClassification.from_pretrained(tmp_path / name)
        assert model.config.heads == ["LAW", "LAW@2"]
        assert model.config.level_order == ("outermost" if name == "outermost" else "innermost")
        starts[name] = model.classifier.bias.exp().unflatten(0, (2, -1))
    assert torch.equal(starts["default"], starts["innermost"])
    # U never occurs. Both documents are LAW from end to end, so where the outermost entities have the first head it has no
    # token that is O either; where the innermost ones have it, "о мэре" is O.
    assert starts["outermost"][0][O] == starts["outermost"][0][U] and starts["innermost"][0][O] > starts["innermost"][0][U]
    assert starts["outermost"][1][O] > starts["innermost"][1][O]


def test_going_on_in_another_level_order_is_said(tmp_path, wordpiece_encoder, capsys):
    """Heads of the same name then learn other entities; with one level they are those of the outermost, whatever is asked."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "dev"):
        write_runne([Document(1, "Закон о мэре", (Entity(0, 12, "LAW"), Entity(0, 5, "LAW")))], corpus / f"{split}.jsonl")
    for name, start, order, levels, said in (
        ("a", wordpiece_encoder, "innermost", 2, None),
        ("b", tmp_path / "a", "innermost", 2, None),
        ("c", tmp_path / "b", "outermost", 2, "learned the innermost .* learn the outermost"),
        ("d", tmp_path / "c", "innermost", 1, None),
        ("e", tmp_path / "d", "innermost", 2, "learned the outermost .* learn the innermost"),
    ):
        argv = ["--dataset", corpus, "--model_name_or_path", start, "--level_order", order, "--levels", levels]
        run_stage2(*argv, "--output_dir", tmp_path / name, "--calibrate_scores", "false")
        printed = capsys.readouterr().out
        assert ("of nested entities of a type as level 1" in printed) == (said is not None), name
        assert said is None or re.search(said, printed)


def test_rare_types_are_favoured_in_decoding(tmp_path, wordpiece_encoder):
    """40 persons and 1 law: 0.1 * 20.5 / 1 of the mean type; the model says so, and its logits follow."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    persons = [Document(number, "мэр Анна", (Entity(4, 8, "PERSON"),)) for number in range(40)]
    law = Document(40, "Закон", (Entity(0, 5, "LAW"),))
    write_runne([*persons, law], corpus / "train.jsonl")
    write_runne([law], corpus / "dev.jsonl")
    argv = ["--dataset", corpus, "--model_name_or_path", wordpiece_encoder, "--calibrate_scores", "false"]
    found = {}
    for name, more in (("default", []), ("twice", ["--logit_adjustment", 3]), ("off", ["--logit_adjustment", 0])):
        run_stage2(*argv, "--output_dir", tmp_path / name, *more)
        model = AutoModelForTokenClassification.from_pretrained(tmp_path / name)
        with torch.inference_mode():
            logits = model(torch.tensor([[2, 5, 3]])).logits.unflatten(2, (-1, 2))
        found[name] = model.config.type_offsets, logits
    strength = np.log(0.1 * 20.5)
    assert found["default"][0] == {"LAW": pytest.approx(1.5 * strength)} and found["twice"][0] == {
        "LAW": pytest.approx(3 * strength)
    }
    assert found["off"][0] == {}
    difference = found["default"][1] - found["off"][1]
    assert difference[..., 0, 1:].numpy() == pytest.approx(1.5 * strength, abs=1e-4)
    assert difference[..., 1, :].abs().max() < 1e-4 and difference[..., 0, 0].abs().max() < 1e-4


def test_a_corpus_without_anything_to_swap_is_trained_on_without_copies(tmp_path, wordpiece_encoder, capsys):
    for split in ("train", "dev"):
        write_runne([Document(1, "Закон о мэре", (Entity(8, 12, "PERSON"),))], tmp_path / f"{split}.jsonl")
    run_stage2(
        *("--dataset", tmp_path, "--model_name_or_path", wordpiece_encoder, "--output_dir", tmp_path / "run"),
        *("--swap_share", 0.3, "--max_steps", 1),
    )
    assert "swap_share: 0 copies" in capsys.readouterr().out and (tmp_path / "run" / "model.safetensors").is_file()


def test_a_saved_model_goes_on_with_other_types(tmp_path, wordpiece_encoder, capsys):
    """One document to train on; a second run knows LAW no more and adds CITY, with all that heads can start from."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text = "Закон о мэре мэрии Перми"
    law, person, city = Entity(0, 24, "LAW"), Entity(8, 12, "PERSON"), Entity(19, 24, "CITY")
    for split in ("train", "dev"):
        write_runne([Document(1, text, (law, Entity(0, 5, "LAW"), person)), Document(2, "", ())], corpus / f"{split}.jsonl")
    first, second = tmp_path / "first", tmp_path / "second"
    run_stage2("--dataset", corpus, "--model_name_or_path", wordpiece_encoder, "--output_dir", first, "--levels", 1)
    assert "not representable: 1" in capsys.readouterr().out  # LAW in LAW, with one level
    for split in ("train", "dev"):
        write_runne([Document(1, text, (person, city))], corpus / f"{split}.jsonl")
    argv = ["--dataset", corpus, "--model_name_or_path", first, "--output_dir", second, "--levels", 2, "--learning_rate", 0]
    run_stage2(*argv, "--head_learning_rate", 0, "--head_init", "centroids", "--ema_decay", 0.9)
    printed = capsys.readouterr().out
    assert "scorer of spans: kept\n" in printed and "changes nothing" not in printed
    assert "heads kept (1): PERSON\n" in printed and "heads left out (1): LAW\n" in printed
    assert "heads new (3): CITY, CITY@2, PERSON@2\n" in printed
    before, after = (AutoModelForTokenClassification.from_pretrained(folder) for folder in (first, second))
    heads = before.config.heads.index("PERSON"), after.config.heads.index("PERSON")
    kept = [x.classifier.weight.unflatten(0, (-1, 5))[head] for x, head in zip((before, after), heads, strict=True)]
    assert torch.equal(*kept)
    assert torch.equal(*(x.encoder.embeddings.word_embeddings.weight for x in (before, after)))
    third = ["--dataset", corpus, "--model_name_or_path", second, "--output_dir", tmp_path / "third", "--max_steps", 1]
    run_stage2(*third, "--levels", 2, "--head_init", "centroids", "--candidate_paths", 0)
    printed = capsys.readouterr().out
    assert "scorer of spans: left out\n" in printed and "head_init centroids changes nothing" in printed
    # Random rows have a length of about 0.02 x sqrt(32); a head that starts at a centroid points somewhere.
    city_rows = after.classifier.weight.unflatten(0, (-1, 5))[after.config.heads.index("CITY")]
    assert city_rows[1:].norm(dim=1).min() > 3 * city_rows[0].norm()


def test_a_model_of_some_types_is_scored_on_these(tmp_path, monkeypatch, capsys):
    """The lexicon model finds all it knows; entities of types that it does not know are counted and left out."""
    model, corpus = build_rule_model(tmp_path / "model"), tmp_path / "corpus"
    corpus.mkdir()
    known = [Entity(0, 10, "PROFESSION"), Entity(4, 10, "CITY")]
    others = [Entity(0, 3, "LAW"), Entity(20, 26, "AGE"), Entity(20, 26, "LAW")]
    write_runne([Document(1, "Мэр Казани сообщил. Казани", (*known, *others))], corpus / "test.jsonl")
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "--model", str(model), "--dataset", str(corpus)])
    load_recipe("evaluation").main()
    printed = capsys.readouterr().out
    assert f"split test: left out 3 entities of types that are not among those of {model}: LAW 2, AGE 1\n" in printed
    scores = read(model / "scores-test.json")
    assert (scores["micro"]["support"], scores["micro"]["recall"]) == (2, 1.0)
    assert sorted(scores["per_type"]) == sorted(RULE_TYPES)


def test_an_evaluation_knows_where_to_write_before_it_predicts(tmp_path, monkeypatch, capsys):
    """A model of the Hub has no folder, and one of which the folder cannot be written to needs another one as well."""
    model, evaluation = build_rule_model(tmp_path / "model"), load_recipe("evaluation")
    argv = ["evaluation.py", "--dataset", "sample", "--examples", "0"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", [*argv, *map(str, more)])
        evaluation.main()

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "load_pipeline", None)
        with pytest.raises(UsageError, match="org/name: there is no such folder; if it is a Hub id, say with --output"):
            run("--model", "org/name")
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="cannot be written"):
            run("--model", model, "--output", tmp_path / "file" / "results")
        with pytest.raises(UsageError, match="--batch_size"):
            run("--batch_size", "0")
    run("--model", model, "--output", tmp_path / "new" / "results")
    assert sorted(path.name for path in (tmp_path / "new" / "results").iterdir()) == [
        "predictions-test.jsonl",
        "scores-test.json",
    ]
    assert not list(model.glob("*-test.json*"))
    # What cannot be saved in the end has been printed at least.
    capsys.readouterr()
    (model / "scores-test.json").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        run("--model", model)
    assert "macro" in capsys.readouterr().out


def test_an_evaluation_can_be_lenient(tmp_path, monkeypatch, capsys):
    model, evaluation = build_rule_model(tmp_path / "model"), load_recipe("evaluation")
    line = '{"id": 1, "sentences": "Мэр Казани", "ners": [[4, 9, "CITY"], [4, 99, "CITY"]]}\n'
    (tmp_path / "test.jsonl").write_text(line, encoding="utf-8")
    argv = ["evaluation.py", "--dataset", str(tmp_path / "test.jsonl"), "--model", str(model)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(CorpusError, match="recipes: --strict false"):
        evaluation.main()
    monkeypatch.setattr(sys, "argv", [*argv, "--strict", "false"])
    evaluation.main()
    assert read(model / "scores-test.json")["micro"]["support"] == 1


def test_words_for_unknown_types_are_refused_before_the_work(tmp_path, wordpiece_encoder, corpus_folder, monkeypatch):
    stage2 = load_recipe("stage2")
    monkeypatch.setattr(stage2, "bilou_view", None)
    argv = ["--dataset", corpus_folder, "--eval_split", "dev", "--model_name_or_path", wordpiece_encoder]
    argv += ["--output_dir", tmp_path / "run", "--head_init", "label_names", "--label_words", '{"DRAGON": "змей"}']
    with pytest.raises(INPUT_ERRORS, match="label_words.*DRAGON"):
        stage2.main([*map(str, argv)])


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(tmp_path, wordpiece_encoder, corpus_folder):
    argv = ["--dataset", corpus_folder, "--eval_split", "dev", "--model_name_or_path", wordpiece_encoder]
    argv += ["--output_dir", tmp_path / "run", "--save_strategy", "steps", "--save_steps", 1]
    run_stage2(*argv)
    for name, known, now in (
        ("levels", 2, 3),
        ("level_order", "innermost", "outermost"),
        ("candidate_paths", 2, 0),
        ("layer_decay", 1.0, 0.5),
    ):
        with pytest.raises(INPUT_ERRORS, match=f"checkpoint-2 was written with {name} {known}, not {now}: resume with"):
            run_stage2(*argv, f"--{name}", now, "--resume_from_checkpoint", "last")
    card = tmp_path / "run" / "README.md"
    assert "entities. Time: " in card.read_text(encoding="utf-8")
    run_stage2(*argv, "--resume_from_checkpoint", "last", "--max_steps", 3)
    assert read(tmp_path / "run" / "trainer_state.json")["global_step"] == 3
    # The time is that of the third step alone, and the card says so.
    assert "entities. Time since the run was last resumed: " in card.read_text(encoding="utf-8")


def test_the_card_of_a_resumed_stage_1_says_of_what_its_time_is(tmp_path, wordpiece_encoder, corpus_folder):
    argv = [*QUICK.split(), "--dataset", str(corpus_folder), "--model_name_or_path", wordpiece_encoder]
    argv += ["--output_dir", str(tmp_path), "--save_strategy", "steps", "--save_steps", "1"]
    load_recipe("stage1").main(argv)
    assert read(tmp_path / "training_facts.json")["stage1"]["resumed"] is False
    load_recipe("stage1").main([*argv, "--resume_from_checkpoint", "last", "--max_steps", "3"])
    assert read(tmp_path / "training_facts.json")["stage1"]["resumed"] is True
    assert "entities. Time since the run was last resumed: " in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_what_swapped_copies_lose_is_counted(tmp_path, wordpiece_encoder, corpus_folder, capsys):
    argv = ["--dataset", corpus_folder, "--eval_split", "dev", "--model_name_or_path", wordpiece_encoder]
    run_stage2(*argv, "--output_dir", tmp_path / "run", "--levels", 1, "--swap_share", 5)
    found = re.search(r"swapped documents: (\d+), .* not representable: (\d+)\n", capsys.readouterr().out)
    assert int(found[1]) > 0 and int(found[2]) > 0  # "завод Перми" in "школы при заводе Перми"


def test_documents_without_words(tmp_path, wordpiece_encoder):
    (tmp_path / "ners.txt").write_text("CITY\n", encoding="utf-8")
    write_runne([Document(1, " \n"), Document(2, "")], tmp_path / "train.jsonl")
    write_runne([Document(1, "Пермь", (Entity(0, 5, "CITY"),))], tmp_path / "dev.jsonl")
    with pytest.raises(UsageError, match="training documents hold no word"):
        run_stage2("--dataset", tmp_path, "--model_name_or_path", wordpiece_encoder, "--output_dir", tmp_path / "run")


def load_recipe(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_sampled_pairs_of_the_sample(tmp_path, wordpiece_encoder):
    argv = ["--model_name_or_path", wordpiece_encoder, "--output_dir", str(tmp_path), "--pair_mode", "sampled"]
    argv += ["--num_pairs", "24", "--max_documents", "3", "--per_device_train_batch_size", "8", "--bf16", "false"]
    load_recipe("stage1").main([*argv, "--disable_tqdm", "true", "--cpu_threads", "1"])
    assert read(tmp_path / "trainer_state.json")["global_step"] == 3
    assert "eval_pair_auc" in read(tmp_path / "eval_results.json")


def test_flat_corpora_beside_nested_ones(tmp_path, wordpiece_encoder, corpus_folder):
    """Stage 1 on the sample's kind of corpus and a file of columns with a label set of its own, every option at work."""
    flat = tmp_path / "flat.conll"
    flat.write_text(
        "\n\n".join(f"{name} B-PER\nедет O\nв O\nТомск B-GPE" for name in ("Анна", "Иван", "Ольга")), encoding="utf-8"
    )
    argv = ["--dataset", str(corpus_folder), "--eval_split", "dev", "--model_name_or_path", wordpiece_encoder]
    argv += ["--extra_datasets", str(flat), "--type_mapping", '{"flat": {"PER": "PERSON"}}', "--max_steps", "3"]
    argv += ["--outside", "negative", "--outside_per_window", "2", "--outside_lengths", "entities", "--projection_size", "8"]
    argv += ["--overlap_weight", "3", "--same_surface_weight", "0.1", "--mining", "semi_hard", "--mining_margin", "0.3"]
    argv += ["--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true", "--cpu_threads", "1", "--bf16", "false"]
    load_recipe("stage1").main(argv)
    facts = read(tmp_path / "run" / "trainer_state.json")
    assert facts["global_step"] == 3 and all(np.isfinite(entry["loss"]) for entry in facts["log_history"] if "loss" in entry)
    # No path of the machine goes into what is published.
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card and "overlap_weight" in card


DIVERGING = ["--learning_rate", "1e30", "--max_steps", "4", "--disable_tqdm", "true"]


def test_wrong_option_is_one_line(run):
    done = run("stage2.py", "--learning_rte", "1", expected=2)
    assert done.stderr == "error: unknown option --learning_rte; did you mean learning_rate?\n" and done.stdout == ""


@pytest.mark.parametrize(
    ("recipe", "argv", "message"),
    [
        ("stage1", ["--span_pooling", "last"], "span_pooling.*'last'"),
        ("stage1", ["--pair_mode", "all"], "pair_mode.*'all'"),
        ("stage1", ["--projection_size", "8", "--span_pooling", "masked_matrix"], "masked_matrix has no fixed width"),
        ("stage1", ["--outside", "all"], "outside must be one of.*'all'"),
        ("stage1", ["--outside_per_window", "-1"], "outside_per_window"),
        ("stage1", ["--outside", "negative", "--pair_mode", "sampled"], "outside must be class or none"),
        ("stage1", ["--outside", "negative", "--loss", "n_pairs"], "outside must be class or none"),
        ("stage1", ["--extra_datasets", "sample", "--pair_mode", "sampled"], "leave out extra_datasets"),
        ("stage1", ["--extra_datasets", "sample", "--loss", "n_pairs"], "leave out extra_datasets"),
        ("stage1", ["--extra_datasets", "/nowhere"], "/nowhere"),
        ("stage1", ["--type_mapping", "{"], "type_mapping"),
        ("stage1", ["--loss", "supcon", "--overlap_weight", "2"], "supcon cannot honour overlap_weight"),
        ("stage1", ["--positive_weight", "2"], "positive_weight"),
        ("stage1", ["--seed", "-1"], "seed must lie between 0 and"),
        ("stage2", ["--seed", "-1"], "seed must lie between 0 and"),
        ("stage2", ["--report_to", "foo"], "report_to foo: not installed, or unknown"),
        ("stage2", ["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be at least 1"),
        ("stage2", ["--per_device_eval_batch_size", "0"], "per_device_eval_batch_size must be at least 1"),
        ("stage2", ["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be at least 1"),
        ("stage2", ["--num_train_epochs", "nan"], "num_train_epochs must be a finite number"),
        ("stage2", ["--num_train_epochs", "-2"], "num_train_epochs must not be negative"),
        ("stage2", ["--adam_beta1", "1.5"], "adam_beta1 must lie in"),
        ("stage2", ["--adam_epsilon", "-1"], "adam_epsilon must be 0 or more"),
        ("stage2", ["--eval_do_concat_batches", "false"], "leave out batch_eval_metrics and eval"),
        ("stage2", ["--batch_eval_metrics", "true"], "leave out batch_eval_metrics and eval"),
        ("stage2", ["--prediction_loss_only", "true", "--metric_for_best_model", "macro_f1"], "macro_f1"),
        (
            "stage2",
            ["--ce_weight", "0", "--dice_weight", "1", "--label_smoothing_factor", "0.1"],
            "label_smoothing_factor 0.1 .*",
        ),
        ("stage2", ["--levels", "0"], "levels must be at least 1"),
        ("stage2", ["--level_order", "outer"], "level_order must be one of.*'outer'"),
        ("stage2", ["--head_init", "zero"], "head_init.*'zero'"),
        ("stage2", ["--ema_decay", "nan"], "ema_decay must be a finite number"),
        ("stage2", ["--rare_type_share", "inf"], "rare_type_share must be a finite number"),
        ("stage2", ["--swap_share", "nan"], "swap_share must be a finite number"),
        ("stage2", ["--swap_probability", "2"], "swap_probability must lie in"),
        ("stage2", ["--swap_agreement", "pymorphy3"], "give a swap_share"),
        ("stage2", ["--swap_probability", "0.9"], "swap_probability .*give a swap_share"),
        ("stage2", ["--optim", "madam"], "madam is not a valid OptimizerNames"),
        ("stage2", ["--output_dir", __file__], "output_dir .*test_recipes.py is a file"),
        (
            "stage2",
            [*DIVERGING, "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"],
            "training diverged .*lower learning_rate",
        ),
        (
            "stage2",
            [*DIVERGING, "--eval_strategy", "epoch"],
            "logits hold NaN.*lower learning_rate",
        ),
        ("stage2", ["--logit_adjustment", "-1"], "logit_adjustment must be 0 \\(off\\) or a positive number, got -1"),
        ("stage2", ["--transitions", "guessed"], "transitions.*'guessed'"),
        ("stage2", ["--head_dropout", "1"], "head_dropout"),
        ("stage2", ["--candidate_paths", "-1"], "candidate_paths"),
        ("stage2", ["--scorer_weight", "0"], "scorer_weight"),
        ("stage2", ["--candidate_paths", "0", "--scorer_weight", "2"], "scorer_weight 2.0 .* candidate_paths"),
        ("stage2", ["--candidate_paths", "0", "--scorer_learning_rate", "1e-2"], "candidate_paths"),
        ("stage2", ["--scorer_learning_rate", "-1"], "scorer_learning_rate"),
        ("stage2", ["--levels", "1", "--level_order", "outermost"], "level_order outermost changes nothing with levels 1"),
        ("stage2", ["--focal_gamma", "1"], "focal_gamma 1.0 changes nothing with ce_form plain; give ce_form as well"),
        ("stage2", ["--dice_smoothing", "2"], "dice_smoothing 2.0 changes nothing with dice_weight 0"),
        ("stage2", ["--dice_reduction", "batch"], "dice_reduction batch changes nothing with dice_weight 0"),
        ("stage2", ["--ce_weight", "0", "--dice_weight", "1", "--ce_form", "focal"], "ce_form focal .* ce_weight 0"),
        ("stage2", ["--lookahead_alpha", "0.8"], "lookahead_alpha 0.8 changes nothing with lookahead 0"),
        ("stage1", ["--lookahead_alpha", "0.8"], "lookahead_alpha 0.8 changes nothing with lookahead 0"),
        ("stage1", ["--mining_margin", "0.5"], "mining_margin 0.5 changes nothing with mining none"),
        ("stage1", ["--num_pairs", "500"], "num_pairs 500 changes nothing with pair_mode in_batch"),
        ("stage1", ["--outside", "none", "--outside_per_window", "3"], "outside_per_window 3 .* outside none"),
        ("stage1", ["--outside", "none", "--outside_lengths", "entities"], "outside_lengths entities .* outside none"),
        ("stage2", ["--max_length", "161"], "max_length 161"),
        ("stage1", ["--margin", "nan"], "margin must be a finite number, got nan"),
        ("stage1", ["--margin", "inf"], "margin must be a finite number, got inf"),
        ("stage1", ["--learning_rate", "nan"], "learning_rate must be a finite number"),
        ("stage1", ["--label_smoothing_factor", "1"], "label_smoothing_factor must lie in"),
        ("stage1", ["--metric_for_best_model", "micro_f1"], "metric_for_best_model 'micro_f1' .*pair_auc"),
        ("stage2", ["--ce_weight", "inf"], "ce_weight must be a finite number"),
        ("stage2", ["--dice_smoothing", "nan"], "dice_smoothing must be a finite number"),
        ("stage2", ["--head_learning_rate", "nan"], "head_learning_rate must be a finite number"),
        ("stage2", ["--head_learning_rate", "-1"], "head_learning_rate must not be negative"),
        ("stage2", ["--head_dropout", "nan"], "head_dropout"),
        ("stage2", ["--metric_for_best_model", "macro"], "metric_for_best_model macro .*macro_f1.*f1_CITY"),
        ("stage2", ["--entity_types", "DRAGON"], "no type DRAGON"),
        ("stage2", ["--few_shot_types", "DRAGON"], "DRAGON"),
        ("stage2", ["--dataset", "/nowhere"], "/nowhere"),
        ("stage2", ["--model_name_or_path", "/nowhere"], "/nowhere"),
        ("stage2", ["--resume_from_checkpoint", "last"], "no checkpoint"),
    ],
)
def test_input_errors_of_the_recipes(recipe, argv, message, tmp_path, wordpiece_encoder, corpus_folder, capsys):
    """They are of the kinds that the recipes turn into one line and exit code 2."""
    module = load_recipe(recipe)
    common = ["--dataset", str(corpus_folder), "--eval_split", "dev", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped, module.exit_on_input_error():
        module.main([*common, "--model_name_or_path", wordpiece_encoder, *argv])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and re.search(message, last), last
    assert not list((tmp_path / "run").glob("**/*.safetensors"))
