"""Search of hyperparameters: the space, trials of both Trainers, and the recipe with its study on disk."""

import json
import math
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from conftest import ROOT, TYPES, make_documents
from transformers import TrainerCallback

from runne_coner.arguments import EncoderArguments, parse_settings
from runne_coner.cli import INPUT_ERRORS, exit_on_input_error
from runne_coner.collators import BilouCollator, EntityCollator
from runne_coner.configuration import CoNERConfig
from runne_coner.contrastive import ContrastiveTrainer
from runne_coner.documents import from_row, write_runne
from runne_coner.metrics import make_compute_metrics
from runne_coner.modeling import CoNERForTokenClassification, EntityEncoder
from runne_coner.preprocessing import bilou_view, entity_view, load_tokenizer
from runne_coner.search_space import TUNABLE, Choice, Range, SpaceError, default_objective, draw, parse_space
from runne_coner.tagging import WHOLE, O, U
from runne_coner.trainers import NestedNerTrainer
from runne_coner.training_args import ContrastiveTrainingArguments, NestedNerTrainingArguments
from runne_coner.viterbi import uniform_priors

QUICK = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "max_steps": 3,
    "seed": 1,
}

# -- The space ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def owners(tmp_path):
    return [EncoderArguments(), NestedNerTrainingArguments(str(tmp_path), **QUICK)]


def test_values_take_the_type_of_their_setting(owners):
    # YAML reads 5e-5 as text.
    content = yaml.safe_load(
        "learning_rate: {low: 5e-5, high: 1, log: true}\nmax_steps: {low: 1, high: 5.0}\n"
        "ema_decay: {choices: [0, 0.9]}\noptim: {choices: [radam, adamw_torch]}\n"
    )
    space = parse_space(content, "stage2", owners)
    assert space == {
        "learning_rate": Range(5e-5, 1.0, log=True),
        "max_steps": Range(1, 5, whole=True),
        "ema_decay": Choice((0.0, 0.9)),
        "optim": Choice(("radam", "adamw_torch")),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(30):
        trial = study.ask()
        drawn.append(draw(space, trial))
        assert draw(space, trial) == drawn[-1]  # a trial does not change its mind
    assert {type(values["max_steps"]) for values in drawn} == {int}
    assert {values["max_steps"] for values in drawn} == {1, 2, 3, 4, 5}
    below = sum(values["learning_rate"] < (5e-5) ** 0.5 for values in drawn)
    assert 5 < below < 25  # half of a logarithmic range lies below the geometric mean, 0.7% of a linear one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "nothing to search"),
        ("learning_rte: {low: 1, high: 2}", "learning_rte is unknown; what stage2 can search: .*learning_rate"),
        ("seed: {low: 1, high: 2}", "seed is fixed"),
        ("margin: {low: 1, high: 2}", "margin is unknown"),
        ("learning_rate: 1e-4", "learning_rate: expected .*low"),
        ("learning_rate: {low: 1e-4}", "learning_rate: expected .*low"),
        ("learning_rate: {low: 1e-4, high: 1e-3, lag: true}", "learning_rate: expected .*low"),
        ("learning_rate: {low: 1e-3, high: 1e-4}", "learning_rate: low must be less than high"),
        ("learning_rate: {low: 0, high: 1e-4, log: true}", "learning_rate: with log, low must be above 0"),
        ("learning_rate: {low: 0, high: 1e-4, log: 1}", "learning_rate: log must be true or false"),
        ("learning_rate: {low: a, high: 1e-4}", "learning_rate: 'a' is no finite number"),
        ("learning_rate: {low: 0, high: .inf}", "learning_rate: inf is no finite number"),
        ("learning_rate: {low: -1e-4, high: 1e-3}", "learning_rate: -0.0001: learning_rate must not be negative"),
        ("max_steps: {low: 1, high: 2.5}", "max_steps: 2.5 is no whole number"),
        ("layer_decay: {low: 0.5, high: 1.5}", "layer_decay: 1.5: layer_decay must lie in"),
        ("ema_decay: {choices: [0.5]}", "ema_decay: choices must be a list of at least two"),
        ("ema_decay: {choices: [0.5, 0.5]}", "ema_decay: choices must be a list of at least two different"),
        ("ema_decay: {choices: [0.5, 1.0]}", "ema_decay: 1.0: ema_decay must lie in"),
        ("optim: {low: 1, high: 2}", "optim is no number"),
        ("optim: {choices: [radam, no]}", "optim: False should be of the type str"),
        ("optim: {choices: [radam, madam]}", "optim: 'madam': .*madam"),
    ],
)
def test_spaces_that_cannot_be_meant(owners, text, message):
    with pytest.raises(SpaceError, match=f"space: {message}"):
        parse_space(yaml.safe_load(text), "stage2", owners)


# -- The Trainers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    return make_documents(copies=2)


@pytest.fixture
def make_stage2(wordpiece_encoder, corpus, tmp_path):
    tokenizer = load_tokenizer(wordpiece_encoder)
    train, evaluation = (bilou_view(corpus, tokenizer, TYPES, 2, training=flag) for flag in (True, False))

    def model_init(transitions=None):
        config = CoNERConfig(entity_types=TYPES, levels=2, head_dropout=0.0, transition_priors=transitions)
        return CoNERForTokenClassification.from_encoder(wordpiece_encoder, config)

    def make(init=None, **settings):
        return NestedNerTrainer(
            None,
            NestedNerTrainingArguments(str(tmp_path / "stage2"), **QUICK | settings),
            model_init=init or (lambda: model_init()),
            train_dataset=train,
            eval_dataset=evaluation,
            data_collator=BilouCollator(tokenizer),
            processing_class=tokenizer,
            compute_metrics=make_compute_metrics(evaluation, corpus, TYPES, ["DISEASE"]),
        )

    make.model_init = model_init
    return make


@pytest.fixture
def make_stage1(wordpiece_encoder, corpus, tmp_path):
    tokenizer = load_tokenizer(wordpiece_encoder)
    view = entity_view(corpus, tokenizer, TYPES)

    def make(**settings):
        return ContrastiveTrainer(
            None,
            ContrastiveTrainingArguments(str(tmp_path / "stage1"), **QUICK | settings),
            model_init=lambda: EntityEncoder.from_encoder(wordpiece_encoder, CoNERConfig()),
            train_dataset=view,
            eval_dataset=view,
            data_collator=EntityCollator(tokenizer),
            processing_class=tokenizer,
        )

    return make


def searched(trainer, trials, metric="eval_loss", **options):
    """The trials of a search over exactly these settings, with the value of each."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="study")
    for settings in trials:
        study.enqueue_trial(settings)
    values = {name: sorted({settings[name] for settings in trials}, key=str) for name in trials[0]}
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {name: trial.suggest_categorical(name, options) for name, options in values.items()},
        compute_objective=lambda metrics: metrics[metric],
        n_trials=len(trials),
        backend="optuna",
        storage=storage,
        study_name="study",
        load_if_exists=True,
        **options,
    )
    found = optuna.load_study(study_name="study", storage=storage).trials
    assert best.objective == min(trial.value for trial in found if trial.value is not None)
    return found


STAGE2_TRIALS = [
    dict(learning_rate=1e-2, head_learning_rate=1e-2, layer_decay=1.0, ema_decay=0.9, ce_weight=5.0, dice_weight=0.0, seed=1),
    dict(learning_rate=1e-3, head_learning_rate=3e-3, layer_decay=0.5, ema_decay=0.0, ce_weight=1.0, dice_weight=1.0, seed=2),
    dict(learning_rate=1e-2, head_learning_rate=3e-3, layer_decay=0.5, ema_decay=0.5, ce_weight=1.0, dice_weight=0.0, seed=1),
]
STAGE2_TRIALS = [
    trial | dict(zip(("optim", "lookahead", "lr_scheduler_type", "ce_form", "max_steps"), more, strict=True))
    for trial, more in zip(
        STAGE2_TRIALS,
        [("adamw_torch", 0, "linear", "plain", 3), ("radam", 2, "cosine", "focal", 4), ("radam", 0, "linear", "plain", 2)],
        strict=True,
    )
]


def test_a_trial_of_stage2_is_a_training_with_its_settings(make_stage2, tmp_path):
    trials = searched(make_stage2(), STAGE2_TRIALS)
    for trial, settings in zip(trials, STAGE2_TRIALS, strict=True):
        assert trial.params == settings
        alone = make_stage2(**settings)
        alone.train()
        assert alone.evaluate()["eval_loss"] == pytest.approx(trial.value, rel=1e-6)
    assert len({trial.value for trial in trials}) == len(trials)
    assert not list(tmp_path.glob("stage2/**/*checkpoint*"))


STAGE1_TRIALS = [
    dict(learning_rate=1e-2, margin=1.0, positive_weight=0.3, overlap_weight=1.0, mining="none", lookahead=0, seed=1),
    dict(learning_rate=1e-3, margin=0.5, positive_weight=0.5, overlap_weight=3.0, mining="semi_hard", lookahead=2, seed=2),
    dict(learning_rate=1e-2, margin=0.5, positive_weight=0.3, overlap_weight=1.0, mining="none", lookahead=0, seed=1),
]


def test_a_trial_of_stage1_is_a_training_with_its_settings(make_stage1):
    trials = searched(make_stage1(), STAGE1_TRIALS)
    for trial, settings in zip(trials, STAGE1_TRIALS, strict=True):
        alone = make_stage1(**settings)
        alone.train()
        assert alone.evaluate()["eval_loss"] == pytest.approx(trial.value, rel=1e-6)
    assert len({trial.value for trial in trials}) == len(trials)


def test_the_network_of_a_trial_decodes_with_its_own_priors(make_stage2):
    """`model_init` sees the trial, and the settings of its training; with the first one's priors no entity can begin."""
    only_outside = torch.as_tensor(uniform_priors()).clone()
    only_outside[only_outside[..., O] > 0] = torch.eye(5, dtype=only_outside.dtype)[O]
    seen = []

    def init(trial):
        closed = trial is not None and trial.suggest_categorical("closed", [True, False])
        if trial is not None:
            seen.append((closed, trainer.args.max_steps))
        return make_stage2.model_init(transitions=only_outside.tolist() if closed else None)

    trainer = make_stage2(init)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="study")
    for settings in ({"closed": True, "max_steps": 1}, {"closed": False, "max_steps": 2}):
        study.enqueue_trial(settings)
    certain = torch.zeros(1, 1, 1, 5)
    certain[..., U] = 9.0

    def found(metrics):
        return float(trainer.decoder.viterbi.decode(torch.tensor([[WHOLE]]), certain).item() == U)

    trainer.hyperparameter_search(
        hp_space=lambda trial: {"max_steps": trial.suggest_int("max_steps", 1, 2)},
        compute_objective=found,
        n_trials=2,
        direction="maximize",
        backend="optuna",
        storage=storage,
        study_name="study",
        load_if_exists=True,
    )
    assert seen == [(True, 1), (False, 2)]
    trials = optuna.load_study(study_name="study", storage=storage).trials
    assert [trial.value for trial in trials] == [0.0, 1.0]


def test_a_pruned_trial_leaves_nothing_to_the_next(make_stage2):
    class PruneFirst(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 0

    settings = [STAGE2_TRIALS[0] | {"max_steps": 30}, STAGE2_TRIALS[1]]
    trainer = make_stage2(eval_strategy="steps", eval_steps=2, logging_steps=100)
    first, second = searched(trainer, settings, pruner=PruneFirst())
    assert first.state.name == "PRUNED" and list(first.intermediate_values) == [2]
    alone = make_stage2(**STAGE2_TRIALS[1])
    alone.train()
    assert second.value == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-6)


def test_settings_that_no_trainer_has(make_stage2):
    for name, value, message in (
        ("head_dropout", 0.1, "head_dropout: no such training argument"),
        ("layer_decay", 2.0, "layer_decay must lie in"),
        ("swap_share", 1.0, "swap_share: all trials train on the same swapped_windows"),
    ):
        with pytest.raises(ValueError, match=message):
            searched(make_stage2(), [{name: value}])


def searched_by_default(trainer, rates):
    """The study of a search without `compute_objective` over these learning rates, and the metrics of each trial."""
    storage = optuna.storages.InMemoryStorage()
    evaluate, measured = trainer.evaluate, []
    trainer.evaluate = lambda *args, **kwargs: measured.append(evaluate(*args, **kwargs)) or measured[-1]
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        n_trials=len(rates),
        backend="optuna",
        storage=storage,
        study_name="study",
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}, seed=0),
    )
    return optuna.load_study(study_name="study", storage=storage), measured


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage2 without few-shot types"])
def test_by_default_a_search_maximises_what_the_recipe_does(make_stage1, make_stage2, stage):
    trainer = (make_stage1 if stage == "stage1" else make_stage2)(max_grad_norm=0.0)
    if stage != "stage1":
        # After so few steps all scores are 0.
        scores = {"micro_f1": 0.9, "macro_f1": 0.5, "few_shot_f1": 0.25, "f1_DISEASE": 0.25}
        if "without" in stage:
            del scores["few_shot_f1"]
        trainer.compute_metrics = lambda prediction: dict(scores)
    study, measured = searched_by_default(trainer, [1e-2, 1e30, 3e-2])
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    # A diverged trial measures nothing, and fails alone.
    states = {trial.params["learning_rate"]: trial.state.name for trial in study.trials}
    assert states == {1e-2: "COMPLETE", 1e30: "FAIL", 3e-2: "COMPLETE"}
    for trial, metrics in zip(study.trials, measured, strict=True):
        if trial.state.name == "COMPLETE":
            assert trial.value == {"stage1": metrics.get("eval_neighbour_accuracy"), "stage2": 0.75}.get(stage, 0.5) > 0


def test_the_direction_of_the_default_objective_can_be_given(make_stage2):
    storage = optuna.storages.InMemoryStorage()
    make_stage2(max_steps=1).hyperparameter_search(
        lambda trial: {}, None, 1, "minimize", "optuna", storage=storage, study_name="a"
    )
    assert optuna.load_study(study_name="a", storage=storage).direction == optuna.study.StudyDirection.MINIMIZE


def test_the_default_objective_counts_no_loss():
    metrics = {"eval_loss": 3.0, "eval_ce_loss": 2.0, "eval_f1_DISEASE": 1.0, "eval_micro_f1": 0.9, "eval_runtime": 7.0}
    assert default_objective(metrics | {"eval_macro_f1": 0.5, "eval_few_shot_f1": 0.25, "epoch": 4.0}) == 0.75
    assert default_objective(metrics | {"eval_macro_f1": 0.5}) == 0.5
    assert default_objective({"eval_loss": 3.0, "eval_pair_auc": 0.9, "eval_neighbour_accuracy": 0.125}) == 0.125
    assert math.isnan(default_objective({"eval_loss": math.nan}))


def test_a_trainer_that_measures_no_score_needs_an_objective(make_stage2):
    trainer = make_stage2(max_steps=1)
    trainer.compute_metrics = None
    with pytest.raises(SpaceError, match="none of macro_f1, .* only loss, .*compute_objective"):
        searched_by_default(trainer, [1e-2, 1e-3])


# -- The recipe ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def search(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    threads = torch.get_num_threads()
    import search

    yield search
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, wordpiece_encoder):
    """A folder with a corpus, both stages' settings, and a search of two settings of stage 2 in three trials."""
    for split, copies in (("train", 2), ("dev", 1)):
        write_runne([from_row(row) for row in make_documents(copies=copies)], tmp_path / f"{split}.jsonl")
    (tmp_path / "ners.txt").write_text("\n".join(TYPES), encoding="utf-8")
    common = {
        "dataset": str(tmp_path),
        "eval_split": "dev",
        "model_name_or_path": wordpiece_encoder,
        "report_to": "none",
        "few_shot_types": ["DISEASE"],
    }
    common |= {
        "num_train_epochs": 2,
        "disable_tqdm": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "cpu_threads": 1,
    }
    common |= {"load_best_model_at_end": True, "save_total_limit": 1}
    for stage, metric in (("stage1", "pair_auc"), ("stage2", "macro_f1")):
        content = common | {"output_dir": str(tmp_path / stage), "metric_for_best_model": metric}
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    content = {
        "stage": "stage2",
        "output_dir": str(tmp_path / "search"),
        "trials": 3,
        "trial_settings": {"num_train_epochs": 1},
    }
    content["space"] = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "head_dropout": {"low": 0.0, "high": 0.5}}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path


def run(search, folder, *argv):
    search.main(["--config", str(folder / "search.yaml"), *map(str, argv)])
    return json.loads((folder / "search" / "search.json").read_text(encoding="utf-8"))


class Stop(TrainerCallback):
    """Ends the program in the middle of a training."""

    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_stopped_search_goes_on_to_its_number_of_trials(search, folder, monkeypatch, capsys):
    first = run(search, folder, "--trials", 1)
    assert [trial["state"] for trial in first["trials"]] == ["complete"]
    with monkeypatch.context() as patch:
        patch.setattr(search.stage2, "make_trainer", stopping(search.stage2.make_trainer))
        with pytest.raises(KeyboardInterrupt):
            run(search, folder)
    # A program that is killed cannot say that its trial has failed.
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'search' / 'search.db'}")
    killed = study.ask({"learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)})
    result = run(search, folder)
    states = [trial["state"] for trial in result["trials"]]
    assert states == ["complete", "fail", "fail", "complete", "complete"] and killed.number == 2
    assert result["trials"][0] == first["trials"][0]
    drawn = [trial["settings"]["learning_rate"] for trial in result["trials"]]
    assert len(set(drawn)) == 5 and all(1e-4 <= rate <= 1e-2 for rate in drawn)
    complete = [trial for trial in result["trials"] if trial["state"] == "complete"]
    for trial in complete:
        assert set(trial["metrics"]) == {"macro_f1", "few_shot_f1"}
        assert trial["value"] == pytest.approx(sum(trial["metrics"].values()))
    assert result["best"]["value"] == max(trial["value"] for trial in complete)
    # No trial leaves a checkpoint or a model.
    assert not [path for path in (folder / "search").rglob("*") if "checkpoint" in path.name or path.suffix == ".safetensors"]
    # Once finished, the command trains nothing more.
    with monkeypatch.context() as patch:
        patch.setattr(search.stage2, "load_views", None)
        assert run(search, folder) == result

    best = yaml.safe_load((folder / "search" / "best.yaml").read_text(encoding="utf-8"))
    stage = yaml.safe_load((folder / "stage2.yaml").read_text(encoding="utf-8"))
    assert best == stage | result["best"]["settings"]  # with the epochs of the stage, not those of the trials
    command = re.search(r"next: accelerate launch recipes/(\S+) --config (\S+)", capsys.readouterr().out)
    assert command[1] == "stage2.py"
    search.stage2.main(["--config", command[2], "--max_steps", "2"])
    assert (folder / "stage2" / "config.json").is_file()


def test_the_result_is_without_what_its_values_make_idle(search, folder):
    """Be it drawn by the trial or given to all."""
    space = {"ce_form": {"choices": ["plain", "focal"]}, "dice_weight": {"low": 0.0, "high": 1.0}}
    options = ["--focal_gamma", "1.5", "--dice_reduction", "batch"]
    run(search, folder, "--trials", 1, "--space", json.dumps(space), *options)
    argv = ["--config", str(folder / "search.yaml"), "--space", json.dumps(space)]
    (settings, _) = parse_settings(argv, [search.SearchArguments], folder / "search.yaml", "", others=True)
    stage = search.stage_settings(settings, folder / "search.yaml", options)
    names = {"focal_gamma", "dice_reduction", "ce_form", "dice_weight"}
    for drawn, kept in (
        ({"ce_form": "plain", "dice_weight": 0.0}, {"ce_form", "dice_weight"}),
        ({"ce_form": "focal", "dice_weight": 0.0}, {"ce_form", "dice_weight", "focal_gamma"}),
        ({"ce_form": "plain", "dice_weight": 0.5}, {"ce_form", "dice_weight", "dice_reduction"}),
    ):
        assert names & search.result_settings(stage, drawn).keys() == kept
    # The stage takes the result of the search itself.
    search.stage2.main(["--config", str(folder / "search" / "best.yaml"), "--max_steps", "1"])


def test_options_of_the_stage_in_every_spelling(search, folder):
    """They are written as they were given: with dashes or a `no` before them, and settings that are objects to the Trainer."""
    options = ["--head-learning-rate", "2e-3", "--no-calibrate-scores", "--lr-scheduler-type=cosine"]
    options += ["--few-shot-types", "DISEASE", "PERSON", "--accelerator_config", '{"split_batches": false}']
    run(search, folder, "--trials", 1, *options, "--do-train")
    for name in ("trial", "best"):
        path = folder / "search" / f"{name}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert content["head_learning_rate"] == 2e-3 and content["lr_scheduler_type"] == "cosine"
        assert content["calibrate_scores"] is False and content["do_train"] is True
        assert content["few_shot_types"] == ["DISEASE", "PERSON"]
        assert not [key for key in content if "-" in key or key.startswith("no_")]
        _, _, training, _ = parse_settings(["--config", str(path)], search.STAGES["stage2"], path, "")
        assert training.accelerator_config.split_batches is False and training.head_learning_rate == 2e-3
    # The same options in another spelling go on with the same search.
    options[0] = "--head_learning_rate"
    run(search, folder, "--trials", 1, *options, "--do_train", "true")
    # This one would have every tensor looked at, by code that cannot.
    given = search.named_settings(["--debug", "underflow_overflow"], search.STAGES["stage2"])
    assert yaml.safe_load(search.stage_yaml(given)) == {"debug": ["underflow_overflow"]}


def stopping(make_trainer):
    def make(*args, **kwargs):
        trainer = make_trainer(*args, **kwargs)
        trainer.add_callback(Stop())
        return trainer

    return make


def test_options_of_the_stage_hold_for_trials_and_for_the_result(search, folder):
    options = ["--stage", "stage1", "--metric", "positive_distance", "--trials", "2", "--pruning", "true"]
    space = {"margin": {"low": 0.5, "high": 1.0}, "span_pooling": {"choices": ["mean", "max"]}}
    result = run(search, folder, *options, "--space", json.dumps(space), "--outside", "none", "--max_length", "64")
    assert result["direction"] == "minimize" and len(result["trials"]) == 2
    values = [trial["value"] for trial in result["trials"] if trial["state"] == "complete"]
    assert result["best"]["value"] == min(values)
    for name in ("trial", "best"):
        content = yaml.safe_load((folder / "search" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert (content["outside"], content["max_length"]) == ("none", 64)
    assert content["num_train_epochs"] == 2
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'search' / 'search.db'}")
    # With pruning a trial reports after every epoch, of which there is one.
    assert [len(trial.intermediate_values) for trial in study.trials] == [1, 1]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_trial_that_measures_nothing_has_failed(search, folder, stage):
    space = {"learning_rate": {"low": 1e29, "high": 1e30}}
    options = ["--stage", stage, "--space", json.dumps(space), "--trials", "2", "--max_grad_norm", "0"]
    with pytest.raises(search.UsageError, match="the last 5 trials failed"):
        run(search, folder, *options)


def test_the_search_goes_on_after_a_trial_that_diverged(search, folder):
    options = [
        "--space",
        json.dumps({"learning_rate": {"choices": [1e-4, 1e30, 1e-3]}}),
        "--trials",
        "3",
        "--max_grad_norm",
        "0",
    ]
    result = run(search, folder, *options)
    states = Counter(trial["state"] for trial in result["trials"])
    assert states["complete"] == 3 and states["fail"] >= 1
    assert {trial["settings"]["learning_rate"] for trial in result["trials"] if trial["state"] == "fail"} == {1e30}
    assert result["best"]["settings"]["learning_rate"] < 1


DIVERGING = {"learning_rate": {"choices": [1e-4, 1e-3, 1e30]}}


@pytest.mark.parametrize("scheduler", ["linear", "reduce_lr_on_plateau"])
def test_a_trial_that_diverged_ends_and_does_not_count_as_pruned(search, folder, scheduler):
    """After five trials the pruner ends any trial of NaN. The stage's `metric_for_best_model` is measured by none of these."""
    options = ["--pruning", "true", "--lr_scheduler_type", scheduler, "--trial_settings", '{"num_train_epochs": 2}']
    first = run(search, folder, *options, "--trials", 5, "--space", json.dumps(DIVERGING), "--max_grad_norm", "0")
    before = sum(trial["state"] != "fail" for trial in first["trials"])
    assert before == 5
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'search' / 'search.db'}")
    # Two in a row are not all, though one is left to be run when they begin.
    for _ in range(2):
        study.enqueue_trial({"learning_rate": 1e30})
    result = run(search, folder, *options, "--trials", 6, "--space", json.dumps(DIVERGING), "--max_grad_norm", "0")
    rates = {trial["state"]: trial["settings"]["learning_rate"] for trial in result["trials"] if trial["state"] != "pruned"}
    assert rates["fail"] == 1e30 and rates["complete"] < 1
    assert {trial["settings"]["learning_rate"] for trial in result["trials"] if trial["state"] == "pruned"} <= {1e-4, 1e-3}
    failed = [trial for trial in study.trials if trial.state.name == "FAIL"]
    assert len(failed) >= 2 and all(not trial.intermediate_values for trial in failed)


def test_trials_with_other_steps_an_epoch_are_compared_by_epochs(search, folder):
    space = {"per_device_train_batch_size": {"choices": [2, 5]}, "rare_type_share": {"choices": [0.0, 1.0]}}
    options = ["--space", json.dumps(space), "--trials", 3, "--pruning", "true"]
    run(search, folder, *options, "--trial_settings", '{"num_train_epochs": 3}')
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'search' / 'search.db'}")
    assert len({tuple(trial.params.values()) for trial in study.trials}) > 1
    assert [list(trial.intermediate_values) for trial in study.trials] == [[1, 2, 3]] * 3


def test_settings_of_a_search_that_never_began_bind_nobody(search, folder):
    for wrong in (["--dataset", str(folder / "nowhere")], ["--metric", "nope"]):
        with pytest.raises(INPUT_ERRORS, match="nowhere|nope"):
            run(search, folder, *wrong)
    assert len(run(search, folder, "--trials", "1")["trials"]) == 1


def test_a_search_that_never_began_leaves_no_direction(search, folder):
    with pytest.raises(INPUT_ERRORS, match="nowhere"):
        run(search, folder, "--metric", "loss", "--dataset", folder / "nowhere")
    result = run(search, folder, "--trials", 1, "--metric", "macro_f1")
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'search' / 'search.db'}")
    assert result["direction"] == "maximize" and study.direction == optuna.study.StudyDirection.MAXIMIZE
    # One that began keeps its trials.
    assert len(run(search, folder, "--trials", 2, "--metric", "macro_f1")["trials"]) == 2


def test_a_damaged_search_is_named(search, folder):
    (folder / "search").mkdir()
    (folder / "search" / "search.db").write_text("no database, but text that is long enough to be taken for one" * 9)
    with pytest.raises(search.UsageError, match="search.db: not readable as a search"):
        run(search, folder)


def test_a_token_of_null_is_none(search, folder):
    with (folder / "stage2.yaml").open("a", encoding="utf-8") as file:
        file.write("hub_token: null\n")
    assert run(search, folder, "--trials", 1)["best"] is not None


def test_the_time_is_up(search, folder, capsys):
    result = run(search, folder, "--max_hours", "1e-9")
    assert result["best"] is None and len(result["trials"]) <= 1
    assert "goes on" in capsys.readouterr().out and not (folder / "search" / "best.yaml").exists()


@pytest.mark.parametrize("place", ["option", "dashes", "trial_settings", "stage"])
def test_a_search_writes_no_secret(search, folder, place, capsys):
    secret, argv = "hf_" + "x" * 30, []
    if place == "stage":
        with (folder / "stage2.yaml").open("a", encoding="utf-8") as file:
            file.write(f"hub_token: {secret}\n")
    elif place == "trial_settings":
        argv = ["--trial_settings", json.dumps({"hub_token": secret})]
    else:
        argv = ["--hub_token" if place == "option" else "--hub-token", secret]
    with pytest.raises(search.UsageError, match="^hub_token: a search pushes nothing.* leave it out$") as error:
        run(search, folder, *argv)
    assert secret not in str(error.value) and secret not in "".join(capsys.readouterr())
    assert not [path for path in (folder / "search").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stage", "stage3"], "stage must be stage1 or stage2"),
        (["--trials", "0"], "trials must be at least 1"),
        (["--output_dir", __file__], "output_dir .*test_search.py is a file"),
        (["--max_hours", "0"], "max_hours must be positive"),
        (["--space", "{"], "space must be a JSON object"),
        (["--space", "{}"], "space: nothing to search"),
        (["--space", '{"levels": {"low": 1, "high": 2}}'], "space: levels is fixed"),
        (["--trial_settings", '{"levles": 2}'], "unknown key 'levles'; did you mean levels"),
        (["--levles", "2"], "unknown option --levles; did you mean levels"),
        (["--space", '{"focal_gamma": {"low": 1, "high": 2}}'], "space: focal_gamma changes nothing with ce_form plain"),
        (["--focal_gamma", "1"], "focal_gamma 1.0 changes nothing with ce_form plain"),
        (["--metric", "macro_f2"], "metric macro_f2: stage2 measures .*macro_f1"),
        (["--metric", "macro_f1", "loss"], "loss should fall and the others grow"),
        (["--learning_rate", "1e-3"], "learning_rate: searched"),
        (["--trial_settings", '{"learning_rate": 1e-3}'], "learning_rate: searched"),
        (
            ["--space", '{"dice_smoothing": {"low": 0.5, "high": 1}}', "--trial_settings", '{"dice_weight": 1.0}'],
            "dice_smoothing changes nothing with dice_weight 0.0; .*not of best.yaml",
        ),
        (["--resume_from_checkpoint", "last"], "resume_from_checkpoint: a search goes on by itself"),
        (
            ["--stage", "stage1", "--pair_mode", "sampled", "--space", '{"positive_weight": {"low": 0, "high": 1}}'],
            "drawn, once",
        ),
    ],
)
def test_searches_that_cannot_be_meant(search, folder, argv, message, capsys):
    with pytest.raises(SystemExit) as stopped, exit_on_input_error():
        run(search, folder, *argv)
    last = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and re.search(message, last), last


def test_a_folder_belongs_to_one_search(search, folder, monkeypatch):
    run(search, folder, "--trials", "1")
    for argv, message in (
        (["--max_length", "64"], "max_length was None, is 64"),
        (["--space", '{"layer_decay": {"low": 0.5, "high": 1}}'], "space was .*learning_rate.* is .*layer_decay"),
        (["--metric", "micro_f1"], "metric was None, is .*micro_f1"),
    ):
        with pytest.raises(search.UsageError, match=message):
            run(search, folder, *argv)
    with search.filelock.FileLock(folder / "search" / "search.lock"), pytest.raises(search.UsageError, match="another search"):
        run(search, folder)
    monkeypatch.setattr(NestedNerTrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(search.UsageError, match="one process"):
        run(search, folder)


def test_every_tunable_setting_is_one_of_its_stage(search):
    for stage, names in TUNABLE.items():
        _, network, training, _ = search.STAGES[stage]
        assert names <= {item.name for cls in (network, training) for item in fields(cls)}, stage


@pytest.mark.parametrize("config", sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("search.yaml")), ids=str)
def test_the_searches_that_come_along_can_be_run(search, config, tmp_path):
    path = ROOT / config
    (settings,) = parse_settings(["--config", str(path), "--output_dir", str(tmp_path)], [search.SearchArguments], path, "")
    stage = search.stage_settings(settings, Path(path), [])
    space = parse_space(settings.space, settings.stage, stage.parts[1:3])
    assert set(space) == set(settings.space)
