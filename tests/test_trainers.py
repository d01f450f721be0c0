"""Both Trainers on a tiny encoder: what they change, log, save, resume and report."""

import copy
import importlib.util
import itertools
import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conftest import TYPES, make_documents
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForTokenClassification, TrainerCallback, TrainingArguments

from runne_coner.collators import BilouCollator, EntityCollator, EntityPairCollator
from runne_coner.configuration import CoNERConfig, TrainingError
from runne_coner.contrastive import ContrastiveTrainer
from runne_coner.entity_swap import SwapSettings, swapped_documents
from runne_coner.metric_losses import LOSSES
from runne_coner.metrics import ScoreError, make_compute_metrics
from runne_coner.modeling import CoNERForTokenClassification, EntityEncoder
from runne_coner.optimization import check_same_network
from runne_coner.pair_weights import PairWeighting
from runne_coner.pairs import entity_pair_view
from runne_coner.pipeline import load_pipeline
from runne_coner.preprocessing import bilou_view, entity_view, load_tokenizer
from runne_coner.span_metrics import SpanMetricError
from runne_coner.span_scorer import LONGEST, word_spans
from runne_coner.tagging import FIRST, IGNORE_INDEX, LAST, SPECIAL, WHOLE, spans_from_tags
from runne_coner.trainers import NestedNerTrainer
from runne_coner.training_args import ContrastiveTrainingArguments, NestedNerTrainingArguments, cpu_is_fast_in_bf16
from runne_coner.windows import WindowSettings

QUICK = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "seed": 1,
}


@pytest.fixture(scope="module")
def corpus():
    return make_documents(copies=3)


@pytest.fixture
def stage1(wordpiece_encoder, corpus, tmp_path):
    """Makes a ContrastiveTrainer; keyword arguments go to its training arguments."""
    tokenizer = load_tokenizer(wordpiece_encoder)
    view = entity_view(corpus, tokenizer, TYPES)

    def make(sampled=False, config=None, pair_weighting=None, **settings):
        args = ContrastiveTrainingArguments(str(tmp_path / "stage1"), **{**QUICK, **settings})
        return ContrastiveTrainer(
            EntityEncoder.from_encoder(wordpiece_encoder, CoNERConfig(**(config or {}))),
            args,
            train_dataset=entity_pair_view(view, len(TYPES), 40) if sampled else view,
            eval_dataset=view,
            data_collator=EntityCollator(tokenizer),
            pair_collator=EntityPairCollator(tokenizer) if sampled else None,
            pair_weighting=pair_weighting,
            processing_class=tokenizer,
        )

    return make


@pytest.fixture
def stage2(wordpiece_encoder, corpus, tmp_path):
    """Makes a NestedNerTrainer; keyword arguments go to its training arguments."""
    tokenizer = load_tokenizer(wordpiece_encoder)
    train = bilou_view(corpus, tokenizer, TYPES, 3)
    evaluation = bilou_view(corpus, tokenizer, TYPES, 3, training=False)

    def make(folder="stage2", network=None, optimizers=(None, None), train=train, callbacks=None, swapped=None, **settings):
        args = NestedNerTrainingArguments(str(tmp_path / folder), **{**QUICK, **settings})
        torch.manual_seed(0)
        network = {"levels": 3, "head_dropout": 0.0, **(network or {})}
        config = CoNERConfig(entity_types=TYPES, few_shot_types=["DISEASE"], **network)
        return NestedNerTrainer(
            CoNERForTokenClassification.from_encoder(wordpiece_encoder, config),
            args,
            train_dataset=train,
            swapped_windows=swapped,
            eval_dataset=evaluation,
            data_collator=BilouCollator(tokenizer),
            processing_class=tokenizer,
            compute_metrics=make_compute_metrics(evaluation, corpus, TYPES, ["DISEASE"]),
            optimizers=optimizers,
            callbacks=callbacks,
        )

    return make


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# -- Training changes everything, and says what it does -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampled", "pooling", "projection", "loss"),
    [
        (False, "mean", 0, "dbl"),
        (True, "mean", 8, "dbl"),
        (False, "masked_matrix", 0, "dbl"),
        (False, "first_last", 8, "supcon"),
        (False, "max", 0, "multi_similarity"),
        (False, "mean", 0, "n_pairs"),
    ],
)
def test_stage1_trains_every_parameter(stage1, sampled, pooling, projection, loss):
    settings = {"pair_mode": "sampled", "per_device_train_batch_size": 20} if sampled else {}
    config = {"span_pooling": pooling, "projection_size": projection}
    trainer = stage1(sampled, config, max_steps=4, loss=loss, **settings)
    assert (trainer.model.projection is None) == (projection == 0)
    before = weights(trainer.model)
    trainer.train()
    unchanged = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    assert unchanged == []
    for name in ("loss", "positive_distance", "negative_distance"):
        values = logged(trainer, name)
        assert len(values) == 4 and np.isfinite(values).all()
    assert all(0 < value <= 2 for value in logged(trainer, "positive_distance"))


def test_stage1_brings_spans_of_one_type_together(stage1):
    trainer = stage1(max_steps=25, learning_rate=3e-3)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert {"eval_loss", "eval_pair_auc", "eval_positive_distance", "eval_negative_distance"} <= after.keys()
    assert after["eval_loss"] < before["eval_loss"] and after["eval_pair_auc"] > before["eval_pair_auc"]
    assert after["eval_positive_distance"] < after["eval_negative_distance"]


@pytest.mark.parametrize("option", ["overlap_weight", "same_surface_weight", "mining", "loss", "negatives_only"])
def test_options_of_the_pairs_reach_the_loss(stage1, option):
    """Each changes the loss of the same batch, in training and in evaluation; nested spans and equal words are in it."""
    values = {"overlap_weight": 4.0, "same_surface_weight": 0.0, "mining": "semi_hard", "loss": "supcon"}
    settings = {"per_device_eval_batch_size": 8} | ({option: values[option]} if option in values else {})
    weighting = PairWeighting(negatives_only=len(TYPES)) if option == "negatives_only" else None
    plain, changed = stage1(per_device_eval_batch_size=8), stage1(pair_weighting=weighting, **settings)
    inputs = next(iter(plain.get_eval_dataloader()))
    for mode in ("train", "eval"):
        with torch.no_grad():
            one, other = (t.compute_loss(getattr(t.model, mode)(), dict(inputs)).item() for t in (plain, changed))
        assert np.isfinite(other) and abs(one - other) > 1e-4
    assert np.isfinite(changed.evaluate()["eval_loss"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "triplet"}, "loss must be one of.*'triplet'"),
        ({"mining": "hard"}, "mining must be one of.*'hard'"),
        ({"mining_margin": 0.0}, "mining_margin"),
        ({"overlap_weight": -1.0}, "overlap_weight"),
        ({"same_surface_weight": float("nan")}, "same_surface_weight"),
        ({"loss": "supcon", "margin": 0.5}, "loss supcon cannot honour margin 0.5"),
        ({"loss": "n_pairs", "positive_weight": 0.5}, "loss n_pairs cannot honour positive_weight 0.5"),
        ({"loss": "multi_similarity", "label_smoothing_factor": 0.1}, "cannot honour label_smoothing_factor 0.1"),
        ({"loss": "supcon", "overlap_weight": 2.0}, "cannot honour overlap_weight 2.0"),
        ({"loss": "n_pairs", "mining": "semi_hard"}, "cannot honour mining semi_hard"),
        ({"pair_mode": "sampled", "loss": "supcon"}, "sampled.*loss supcon"),
        ({"pair_mode": "sampled", "same_surface_weight": 0.0}, "sampled.*same_surface_weight 0.0"),
    ],
)
def test_options_that_cannot_be_honoured_are_errors(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ContrastiveTrainingArguments(str(tmp_path), **settings)
    # Left out by weight 0, pairs are left out of every loss.
    ContrastiveTrainingArguments(str(tmp_path), loss="supcon", overlap_weight=0.0, same_surface_weight=0.0)


def test_the_projection_head_stays_in_stage_1(stage1, tmp_path):
    """Checkpoints hold it, so that training can go on; the encoder that is saved knows nothing of it."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = stage1(config={"projection_size": 8}, **settings)
    trainer.train()
    whole = weights(trainer.model)
    trainer.save_model()
    saved = load_file(tmp_path / "stage1" / "model.safetensors")
    assert not [name for name in saved if "projection" in name]
    assert "projection" not in (tmp_path / "stage1" / "config.json").read_text(encoding="utf-8")
    model, info = AutoModel.from_pretrained(tmp_path / "stage1", add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, whole[f"encoder.{name}"]) for name, value in model.named_parameters())
    resumed = stage1(config={"projection_size": 8}, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stage1" / "checkpoint-2"))
    assert all(torch.equal(value, whole[name]) for name, value in resumed.model.named_parameters())


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_degenerate_corpora_never_give_nan(stage1, wordpiece_encoder, loss, bf16):
    """Windows without spans, batches of one span, of spans of one type, of one type each: training goes on."""
    cut = ("Директор школы при заводе города Перми", "CITY")  # longer than the windows: no span, not even O
    corpora = [
        [(cut[0], [cut])],
        [("Томск", [("Томск", "CITY")])],
        [("Томск", [("Томск", "CITY")]), ("Москва", [("Москва", "CITY")])],
        [("Томск", [("Томск", "CITY"), ("Томск", "PERSON")])],
        [("Томск", [("Томск", "CITY")]), ("Анна", [("Анна", "PERSON")])],
        [("и", [])],
    ]
    tokenizer = load_tokenizer(wordpiece_encoder)
    trainer = stage1(max_steps=1, loss=loss, bf16=bf16)
    model = trainer.model.train()
    for marked in corpora:
        view = entity_view(make_documents(marked), tokenizer, TYPES, WindowSettings(6))
        inputs = trainer.data_collator([view[index] for index in range(len(view))])
        with torch.autograd.set_detect_anomaly(True), trainer.compute_loss_context_manager():
            found = trainer.compute_loss(model, inputs)
            found.backward()
        assert torch.isfinite(found)
        assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


@pytest.mark.parametrize("dice_weight", [1.0, 0.0])
def test_stage2_trains_every_parameter(stage2, dice_weight):
    trainer = stage2(max_steps=4, dice_weight=dice_weight, ce_weight=2.0)
    before = weights(trainer.model)
    trainer.train()
    unchanged = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    assert unchanged == []
    total, entropy, dice = (logged(trainer, name) for name in ("loss", "ce_loss", "dice_loss"))
    assert len(total) == len(entropy) == len(dice) == 4
    # Equation 6, up to the digits that the Trainer logs.
    assert np.allclose(total, 2.0 * np.array(entropy) + dice_weight * np.array(dice), atol=1e-3)
    assert (np.array(dice) == 0).all() == (dice_weight == 0)


def test_bf16_on_cpu(stage1, stage2):
    for trainer in (stage1(max_steps=2, bf16=True), stage2(max_steps=2, bf16=True)):
        trainer.train()
        assert np.isfinite(logged(trainer, "loss")).all()
        assert all(value.dtype == torch.float32 for value in trainer.model.parameters())
        assert np.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("asked", ["setting", "accelerate launch"])
@pytest.mark.parametrize(("capability", "bf16"), [("NO AVX", False), ("AVX2", False), ("AVX512", True), ("DEFAULT", True)])
def test_bf16_is_left_out_where_it_is_slow(stage2, monkeypatch, caplog, capability, bf16, asked):
    if asked == "accelerate launch":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr("runne_coner.training_args.cpu_is_fast_in_bf16", cpu_is_fast_in_bf16)  # not that of conftest
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    trainer = stage2(max_steps=1, bf16=asked == "setting")
    assert trainer.args.bf16 is (bf16 and asked == "setting")
    assert ("training in float32" in caplog.text) == (not bf16)
    assert trainer.accelerator.mixed_precision == ("bf16" if bf16 else "no")


def test_fp16_is_left_out_on_a_cpu(stage2, caplog):
    trainer = stage2(max_steps=1, fp16=True)
    assert trainer.args.fp16 is False and trainer.accelerator.mixed_precision == "no"
    assert "fp16: PyTorch does not train in float16 on a CPU; training in float32" in caplog.text


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step, as the optimiser sees them."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.found = {name: value.grad.clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("longer", ["", " с визитом"])
def test_gradient_accumulation_equals_the_large_batch(stage2, wordpiece_encoder, longer):
    """Four windows of different labels, and of one length or several, in one batch or in four of one window."""
    text = "Министр Сергей Лавров прибыл в Париж"
    mentions = [("Министр", "PROFESSION"), ("Сергей Лавров", "PERSON"), ("Париж", "CITY"), ("Лавров", "CITY")]
    corpus = make_documents([(text + number * longer, mentions[:number]) for number in range(4)])
    train = bilou_view(corpus, load_tokenizer(wordpiece_encoder), TYPES, 3)
    found = []
    for size, steps in ((4, 1), (1, 4)):
        keeper = Gradients()
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_grad_norm": 0.0}
        trainer = stage2(train=train, callbacks=[keeper], max_steps=1, ce_weight=0.1, **settings)
        trainer.train()
        found.append((keeper.found, logged(trainer, "ce_loss")))
    (large, large_loss), (small, small_loss) = found
    assert max((large[name] - small[name]).abs().max() for name in large) < 1e-6
    assert max(value.abs().max() for value in large.values()) > 1e-3
    assert large_loss == pytest.approx(small_loss, rel=1e-5) and len(large_loss) == 1


def test_losses_of_an_evaluation_do_not_depend_on_its_batches(stage2):
    network = {"candidate_paths": 2}
    found = [stage2(network=network, per_device_eval_batch_size=size, dice_weight=0.5).evaluate() for size in (1, 3, 64)]
    losses = [{name: value for name, value in metrics.items() if name.endswith("loss")} for metrics in found]
    assert set(losses[0]) == {"eval_loss", "eval_ce_loss", "eval_dice_loss", "eval_scorer_loss"}
    for other in losses[1:]:
        assert losses[0] == pytest.approx(other, rel=1e-4)


def test_means_of_an_evaluation_weigh_tokens_and_pass_over_undefined_parts(stage2):
    trainer = stage2()
    for loss, part, tokens in ((1.0, float("nan"), 10), (4.0, 2.0, 30), (3.0, 6.0, 10)):
        trainer._record({"loss": torch.tensor(loss), "part": torch.tensor(part)}, training=False, weight=tokens)
    assert trainer._recorded(training=False) == pytest.approx({"loss": 3.2, "part": 3.0})
    for loss in (1.0, float("nan")):
        trainer._record({"loss": torch.tensor(loss), "part": torch.tensor(float("inf"))}, training=False, weight=5)
    assert trainer._recorded(training=False) == pytest.approx({"loss": float("nan"), "part": float("inf")}, nan_ok=True)
    assert trainer._recorded(training=False) == {}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_drop_last_is_for_training(stage, request):
    make = request.getfixturevalue(stage)
    found = []
    for drop_last in (False, True):
        trainer = make(per_device_eval_batch_size=4, per_device_train_batch_size=4, dataloader_drop_last=drop_last)
        assert len(trainer.eval_dataset) % 4
        assert (len(trainer.get_train_dataloader()) * 4 <= len(trainer.train_dataset)) == drop_last
        metrics = trainer.evaluate()
        again = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval").metrics
        found += [
            {name: value for name, value in one.items() if name != "epoch" and "time" not in name and "per_second" not in name}
            for one in (metrics, again)
        ]
        assert trainer.args.dataloader_drop_last == drop_last
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_what_a_trainer_cannot_take_is_refused_in_one_line(stage, request, tmp_path):
    trainer = request.getfixturevalue(stage)()
    kind, given = type(trainer), dict(train_dataset=trainer.train_dataset, processing_class=trainer.processing_class)
    for args in (None, TrainingArguments(str(tmp_path), report_to="none")):
        with pytest.raises(TypeError, match=f"^{kind.__name__} needs {type(trainer.args).__name__} as args, got "):
            kind(trainer.model, args, **given)
    with pytest.raises(ValueError, match="does not call compute_loss_func: give loss="):
        kind(trainer.model, trainer.args, compute_loss_func=lambda *_: 0, **given)
    with pytest.raises(ValueError, match="^training needs a train_dataset$"):
        kind(trainer.model, trainer.args, processing_class=trainer.processing_class).train()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_options_that_this_machine_or_the_corpus_cannot_honour(stage, request, monkeypatch):
    make = request.getfixturevalue(stage)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for settings, message in (
        ({"optim": "adamw_bnb_8bit"}, "^optim adamw_bnb_8bit cannot be used: .*install what it needs, or choose another$"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"nope": 1}},
            "^lr_scheduler_type polynomial with lr_scheduler_kwargs {'nope': 1}: .*nope",
        ),
    ):
        with pytest.raises(TrainingError, match=message):
            make(max_steps=1, **settings).train()
    single = {"rare_type_share": 0.0} if stage == "stage2" else {}
    for settings in ({"max_steps": 1}, {"num_train_epochs": 1}):
        trainer = make(dataloader_drop_last=True, per_device_train_batch_size=1000, **settings, **single)
        with pytest.raises(ValueError, match=f"no batch of 1000 windows: there are {len(trainer.train_dataset)}$"):
            trainer.train()
    monkeypatch.setattr(trainer.args, "_n_gpu", 2)
    with pytest.raises(ValueError, match="one process for 2 GPUs would cut .*--num_processes 2.*CUDA_VISIBLE_DEVICES=0"):
        type(trainer)(trainer.model, trainer.args, processing_class=trainer.processing_class)


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_windows_are_repeated_of_a_dataset_only(stage2, strategy):
    trainer = stage2(max_steps=1, train_sampling_strategy=strategy)
    trainer.train_dataset = list(trainer.train_dataset)
    with pytest.raises(ValueError, match="^rare_type_share and swap_share need a datasets.Dataset of windows, got list; give"):
        trainer.train()
    trainer.args.rare_type_share = 0.0
    assert math.isfinite(trainer.train().training_loss)


@pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_in_half_precision_leaves_the_weights_as_they_are(stage2, tmp_path, option):
    trainer = stage2(max_steps=1, **{option: True})
    trainer.train()
    before, seen = weights(trainer.model), []
    hook = trainer.model.classifier.register_forward_hook(lambda module, *_: seen.append(module.weight.dtype))
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    hook.remove()
    assert set(seen) == {torch.bfloat16 if option == "bf16_full_eval" else torch.float16}
    for name, value in trainer.model.named_parameters():
        assert value.dtype == torch.float32 and torch.equal(value, before[name]), name
    assert all(value.dtype != seen[0] for value in trainer.model.buffers())
    trainer.save_model(str(tmp_path / "saved"))
    saved = CoNERForTokenClassification.from_pretrained(tmp_path / "saved")
    assert saved.dtype == torch.float32 and torch.equal(saved.classifier.weight, before["classifier.weight"])
    trainer.train()


def test_stage1_refuses_what_it_would_not_heed(stage1):
    trainer = stage1()
    with pytest.raises(ValueError, match="calls no compute_metrics"):
        ContrastiveTrainer(trainer.model, trainer.args, compute_metrics=lambda _: {})
    with pytest.raises(ValueError, match="^pair_mode is sampled, and train_dataset a view for in_batch: give"):
        stage1(pair_mode="sampled").train()
    with pytest.raises(ValueError, match="^pair_mode is in_batch, and train_dataset a view for sampled: give"):
        stage1(sampled=True, loss="supcon").train()
    with pytest.raises(ValueError, match="dispatch_batches cuts every column by windows"):
        stage1(accelerator_config={"dispatch_batches": True})


def test_stage1_has_a_default_collator(stage1):
    trainer = stage1()
    plain = ContrastiveTrainer(
        trainer.model, trainer.args, eval_dataset=trainer.eval_dataset, processing_class=trainer.processing_class
    )
    assert plain.evaluate()["eval_pair_auc"] == pytest.approx(trainer.evaluate()["eval_pair_auc"])


# -- Optimiser ----------------------------------------------------------------------------------------------------------


def test_heads_have_their_own_learning_rate(stage2):
    trainer = stage2(learning_rate=1e-4, head_learning_rate=5e-3, weight_decay=0.02)
    optimizer = trainer.create_optimizer()
    of = {id(value): group for group in optimizer.param_groups for value in group["params"]}
    assert len(of) == sum(len(group["params"]) for group in optimizer.param_groups) == len(list(trainer.model.parameters()))
    for name, value in trainer.model.named_parameters():
        assert of[id(value)]["lr"] == (5e-3 if name.startswith("classifier.") else 1e-4), name
        decays = not (name.endswith("bias") or "LayerNorm" in name)
        assert of[id(value)]["weight_decay"] == (0.02 if decays else 0.0), name


def test_schedule_moves_both_learning_rates(stage2):
    trainer = stage2(max_steps=4, learning_rate=1e-4, head_learning_rate=5e-3)
    trainer.train()
    rates = {group["lr"] for group in trainer.optimizer.param_groups if group["params"]}
    assert rates == {0.0} or max(rates) < 2e-3  # linear to 0 at the end
    first = logged(trainer, "learning_rate")[0]
    assert first in (pytest.approx(1e-4), pytest.approx(5e-3))


def test_a_given_optimizer_is_left_alone(stage2):
    trainer = stage2()
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.25)
    given = stage2(optimizers=(optimizer, None))
    given.model = trainer.model
    assert given.create_optimizer() is optimizer
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["lr"] == 0.25


# -- Evaluation ---------------------------------------------------------------------------------------------------------


def force_logits(trainer, logits_of):
    """Makes the model of a trainer say what `logits_of(labels)` says about the labels of a batch."""
    compute_loss = trainer.compute_loss

    def with_labels(model, inputs, **kwargs):
        trainer.labels_at_hand = inputs["labels"]
        return compute_loss(model, inputs, **kwargs)

    def forward(input_ids, **kwargs):
        return type("Output", (dict,), {"logits": logits_of(trainer.labels_at_hand), "span_features": None})()

    trainer.compute_loss = with_labels
    trainer.model.forward = forward


def test_a_perfect_model_scores_one(stage2):
    """Through collator, Viterbi, gathering and windows of unequal length: every entity comes back where it was."""
    trainer = stage2()
    force_logits(trainer, lambda labels: 20.0 * nn.functional.one_hot(labels.clamp(min=0), 5).float())
    metrics = trainer.evaluate()
    for name in ("micro_f1", "macro_f1", "few_shot_f1", "macro_all_f1", "micro_precision", "micro_recall", "f1_CITY"):
        assert metrics[f"eval_{name}"] == 1.0, name
    assert metrics["eval_seqeval_micro_f1"] == 1.0
    assert metrics["eval_ce_loss"] < 1e-3 and "eval_dice_loss" in metrics


def test_a_model_that_finds_nothing_scores_zero(stage2):
    trainer = stage2()
    force_logits(trainer, lambda labels: 20.0 * nn.functional.one_hot(torch.zeros_like(labels), 5).float())
    metrics = trainer.evaluate()
    assert metrics["eval_micro_f1"] == metrics["eval_macro_f1"] == 0.0


def test_predictions_stand_in_the_order_of_the_windows(stage2):
    """Training batches are grouped by length; those of evaluation must not be, nor those of `predict`."""
    trainer = stage2(per_device_eval_batch_size=2)
    view = trainer.eval_dataset
    output = trainer.predict(view)
    assert len(output.predictions) == len(view)
    for row, tags, labels in zip(view, output.predictions, output.label_ids, strict=True):
        assert (labels[: row["length"]] == row["labels"]).all()
        assert (labels[row["length"] :] == IGNORE_INDEX).all()
        assert (tags[: row["length"]][row["subword_cases"] == SPECIAL] == 0).all()


def test_prediction_loss_only(stage1, stage2):
    for trainer in (stage1(prediction_loss_only=True), stage2(prediction_loss_only=True)):
        trainer.compute_metrics = None
        assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_batches_without_spans(stage1, wordpiece_encoder):
    """An entity longer than every window is no span, and its words are not O: loss 0 and no pair, but no error."""
    text = "Директор школы при заводе города Перми"
    view = entity_view(make_documents([(text, [(text, "CITY")])]), load_tokenizer(wordpiece_encoder), TYPES, WindowSettings(6))
    trainer = stage1(max_steps=2)
    trainer.train_dataset = view
    trainer.train()
    assert logged(trainer, "loss") == [0.0, 0.0] and logged(trainer, "positive_distance") == []
    metrics = trainer.evaluate(view)
    assert metrics["eval_loss"] == 0.0 and "eval_pair_auc" not in metrics


def test_stage1_evaluates_all_spans_together_and_leaves_a_picture(stage1, tmp_path):
    trainer = stage1(max_steps=1, eval_strategy="steps", eval_steps=1, eval_projection=True, eval_neighbours=3)
    trainer.entity_types = TYPES
    trainer.train()
    names = {"pair_auc", "positive_distance", "negative_distance", "neighbour_accuracy", "silhouette"}
    names |= {f"silhouette_{name}" for name in [*TYPES, "O"]}
    metrics = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert {f"eval_{name}" for name in names} <= metrics.keys()
    assert (tmp_path / "stage1" / "projection-1.png").is_file()
    # Values do not depend on how the windows are batched, which those within batches would.
    trainer.args.per_device_eval_batch_size = 7
    again = trainer.evaluate()
    assert [again[f"eval_{name}"] for name in names] == pytest.approx([metrics[f"eval_{name}"] for name in names], abs=1e-4)
    # If all others vote, everything looks like the most frequent type.
    trainer.args.eval_neighbours = 10_000
    assert trainer.evaluate()["eval_neighbour_accuracy"] < again["eval_neighbour_accuracy"]


def test_a_metric_that_evaluation_cannot_give_is_refused_before_training(stage1):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    for name in ("pair_auk", "silhouette_CRIME"):
        trainer = stage1(metric_for_best_model=name, **settings)
        trainer.entity_types = TYPES
        with pytest.raises(SpanMetricError, match=f"{name}.*choose one of loss, pair_auc.*silhouette_CITY"):
            trainer.train()
        assert trainer.state.global_step == 0
    trainer = stage1(metric_for_best_model="silhouette", **settings)
    trainer.eval_dataset = trainer.eval_dataset.select([])
    with pytest.raises(SpanMetricError, match="it is empty"):
        trainer.train()
    assert stage1(metric_for_best_model="positive_distance", **settings).args.greater_is_better is False
    assert stage1(metric_for_best_model="eval_silhouette", **settings).args.greater_is_better is True


def test_an_empty_evaluation_set_and_broken_embeddings_stop_nothing(stage1, caplog):
    trainer = stage1(max_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    view, trainer.eval_dataset = trainer.eval_dataset, trainer.eval_dataset.select([])
    trainer.train()
    assert not any("silhouette" in key for entry in trainer.state.log_history for key in entry)
    trainer = stage1(metric_for_best_model="silhouette", max_steps=1, eval_strategy="steps", eval_steps=1)
    trainer.eval_dataset = view
    trainer.model.encoder.embeddings.LayerNorm.bias.data[0] = float("nan")
    trainer.train()
    assert "not finite" in caplog.text and "eval_silhouette is not defined after step 1" in caplog.text
    assert trainer.state.best_metric is None


@pytest.mark.parametrize("processes", [1, 2])
def test_by_type_batches_go_on_where_a_checkpoint_was_taken(stage1, tmp_path, processes):
    """Also in the second epoch, and for a process of several: the sampler is told its epoch by the trainer itself."""
    settings = {"train_sampling_strategy": "by_type", "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1}
    whole = stage1(**settings)
    seen = watch(whole)
    whole.train()
    steps = whole.state.global_step // 2
    assert steps >= 3 and seen[:steps] != seen[steps:]
    resumed = stage1(**settings)
    if processes == 2:
        # What `accelerate` makes of the sampler in one of several processes; here with all batches.
        prepare = resumed.accelerator.prepare
        wrapped = lambda *given: wrap_sampler(prepare(*given)) if len(given) == 1 else prepare(*given)  # noqa: E731
        resumed.accelerator.prepare = wrapped
    seen_again = watch(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stage1" / f"checkpoint-{steps + 1}"))
    assert seen_again == seen[steps + 1 :]


def wrap_sampler(loader):
    if isinstance(loader, torch.utils.data.DataLoader):
        loader = torch.utils.data.DataLoader(
            loader.dataset, batch_sampler=BatchSamplerShard(loader.batch_sampler, 1, 0), collate_fn=loader.collate_fn
        )
    return loader


def watch(trainer):
    """The input ids of each training batch, as the trainer sees them."""
    seen, compute_loss = [], trainer.compute_loss

    def keep(model, inputs, **kwargs):
        seen.append(inputs["input_ids"].tolist())
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = keep
    return seen


DEGENERATE = {
    "no span": lambda spans: spans[:0],
    "a single span in a window": lambda spans: spans[:1],
    "all of one type": lambda spans: spans * np.array([1, 1, 0]),
    "the same span twice": lambda spans: (
        np.repeat(spans[:1], 2, axis=0) + np.array([[0, 0, 0], [0, 0, 1]])[: 2 * len(spans[:1])]
    ),
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_batches_are_never_nan(stage1, kind, bf16):
    settings = {"train_sampling_strategy": "by_type", "gradient_cache_chunk": 2, "per_device_train_batch_size": 3}
    trainer = stage1(max_steps=2, bf16=bf16, **settings)
    change = DEGENERATE[kind]
    view = trainer.train_dataset.map(lambda row: {"spans": change(row["spans"].reshape(-1, 3))}, load_from_cache_file=False)
    trainer.train_dataset = view
    with torch.autograd.set_detect_anomaly(True):
        trainer.train()
    assert not torch.is_autocast_enabled("cpu")  # mixed precision ends with the forward pass
    assert len(logged(trainer, "loss")) == 2 and np.isfinite(logged(trainer, "loss")).all()
    assert np.isfinite(logged(trainer, "grad_norm")).all()
    assert all(torch.isfinite(value).all() for value in trainer.model.parameters())
    metrics = trainer.evaluate(view)
    assert all(np.isfinite(value) for value in metrics.values())


# -- Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["group_by_length", "random", "batch_rebalance"])
def test_resumed_training_ends_where_the_uninterrupted_one_does(stage2, strategy):
    # The checkpoint lies in the middle of the second epoch.
    settings = {"save_strategy": "steps", "num_train_epochs": 3, "per_device_train_batch_size": 2, "max_steps": -1}
    settings["train_sampling_strategy"] = strategy
    steps = len(stage2(**settings).get_train_dataloader())
    assert steps >= 3
    settings["save_steps"] = steps + steps // 2
    whole = stage2("whole", **settings)
    whole.train()
    resumed = stage2("resumed", **settings)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{settings['save_steps']}")
    assert resumed.state.global_step == 3 * steps
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, dict(resumed.model.named_parameters())[name]), name


@pytest.mark.parametrize(
    "changed",
    [{"learning_rate": 1e-3}, {"head_learning_rate": 1e-4}, {"scorer_learning_rate": 1e-2}, {"optim": "sgd"}]
    + [{"weight_decay": 0.5}, {"adam_beta1": 0.5}, {"adam_beta2": 0.5}, {"adam_epsilon": 1e-4}],
)
def test_a_checkpoint_of_other_rates_or_optimiser_is_refused(stage2, changed):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-4, "head_learning_rate": 1e-3}
    whole = stage2("whole", **settings)
    whole.train()
    name, value = next(iter(changed.items()))
    with pytest.raises(TrainingError, match=f"{name} .*, not {value}: resume with {name}"):
        stage2("resumed", **settings | changed).train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-1")


@pytest.mark.parametrize("levels", [1, 2])
def test_the_order_of_levels_matters_where_there_are_several(wordpiece_encoder, tmp_path, levels):
    settings = {"entity_types": TYPES, "levels": levels}
    config = CoNERConfig(**settings, level_order="outermost")
    CoNERForTokenClassification.from_encoder(wordpiece_encoder, config).save_pretrained(tmp_path)
    for order in ("outermost", "innermost"):
        refused = pytest.raises(TrainingError, match="with level_order outermost, not innermost: resume with")
        with refused if order == "innermost" and levels > 1 else nullcontext():
            check_same_network(CoNERConfig(**settings, level_order=order), tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.json"])
def test_a_damaged_checkpoint_is_refused_by_name(stage2, name):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = stage2("whole", **settings)
    whole.train()
    folder = Path(whole.args.output_dir) / "checkpoint-1"
    (folder / name).write_bytes(b"")
    with pytest.raises(TrainingError, match="checkpoint-1 cannot be resumed from .*give an earlier checkpoint"):
        stage2("resumed", **settings).train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_a_checkpoint_without_an_optimiser_is_not_resumed_from(stage2, ema_decay):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "ema_decay": ema_decay}
    whole = stage2("whole", **settings, save_only_model=True)
    whole.train()
    folder = Path(whole.args.output_dir) / "checkpoint-1"
    with pytest.raises(TrainingError, match="checkpoint-1 holds no state of the optimiser, as with save_only_model"):
        stage2("resumed", **settings).train(resume_from_checkpoint=str(folder))


def test_reporting_to_nothing_may_be_written_as_null(tmp_path):
    assert NestedNerTrainingArguments(str(tmp_path), report_to=None).report_to == []


def test_the_collator_of_bilou_views_is_the_default(stage2):
    trainer = stage2(max_steps=1)
    bare = NestedNerTrainer(
        trainer.model, trainer.args, train_dataset=trainer.train_dataset, processing_class=trainer.processing_class
    )
    assert bare.train().global_step == 1


def test_labels_that_are_missing_or_of_other_levels_are_named(stage2, wordpiece_encoder, corpus):
    trainer = stage2()
    with pytest.raises(ValueError, match="no labels"):
        trainer.predict(trainer.eval_dataset.remove_columns("labels"))
    tokenizer = load_tokenizer(wordpiece_encoder)
    flat = bilou_view(corpus, tokenizer, TYPES, 1, training=False)
    with pytest.raises(ValueError, match=f"for {len(TYPES)} heads, the model has {3 * len(TYPES)} .* 3 levels"):
        trainer.evaluate(flat)
    with pytest.raises(ScoreError, match="tags of 2 windows"):
        trainer.evaluate(trainer.eval_dataset.select([0, 1]))


def test_best_model_is_loaded_at_the_end(stage2):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    trainer = stage2(load_best_model_at_end=True, metric_for_best_model="macro_all_f1", learning_rate=5e-3, **settings)
    trainer.train()
    scores = logged(trainer, "eval_macro_all_f1")
    assert len(scores) == 4 and trainer.state.best_metric == max(scores)
    assert trainer.evaluate()["eval_macro_all_f1"] == max(scores)


def test_stage1_selects_and_resumes_too(stage1, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "pair_auc"}
    trainer = stage1(**settings)
    trainer.train()
    assert trainer.state.best_metric == max(logged(trainer, "eval_pair_auc"))
    resumed = stage1(**settings | {"max_steps": 6})
    resumed.train(resume_from_checkpoint=str(tmp_path / "stage1" / "checkpoint-2"))
    assert resumed.state.global_step == 6


def test_stage1_leaves_a_plain_encoder(stage1, tmp_path, corpus):
    trainer = stage1(max_steps=2)
    trainer.train()
    folder = tmp_path / "plain"
    trainer.save_model(str(folder))
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training_args.json"} <= files
    assert "training_args.bin" not in files
    encoder = AutoModel.from_pretrained(folder).eval()
    assert type(encoder).__name__ == "BertModel"
    tokenizer = load_tokenizer(str(folder))
    batch = tokenizer(corpus["text"][:3], padding=True, truncation=True, max_length=60, return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).last_hidden_state
        assert torch.equal(encoder(**batch).last_hidden_state, expected)
    # It is what stage 2 starts from.
    model = CoNERForTokenClassification.from_encoder(str(folder), CoNERConfig(entity_types=TYPES))
    assert torch.equal(model.encoder.embeddings.word_embeddings.weight, trainer.model.encoder.embeddings.word_embeddings.weight)


def test_saved_files_of_stage2(stage2, tmp_path):
    trainer = stage2(max_steps=2, save_strategy="steps", save_steps=1, hub_token="secret")
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "stage2", tmp_path / "stage2" / "checkpoint-2"):
        assert not (folder / "training_args.bin").exists()
        saved = (folder / "training_args.json").read_text(encoding="utf-8")
        assert json.loads(saved)["max_steps"] == 2 and "secret" not in saved
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "stage2")
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, dict(model.named_parameters())[name])
    assert model.config.entity_types == TYPES and model.config.levels == 3


# -- Arguments ----------------------------------------------------------------------------------------------------------


def test_arguments_that_cannot_be_meant(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="remove_unused_columns"):
        NestedNerTrainingArguments(str(tmp_path), remove_unused_columns=True)
    for wrong, message in (
        ({"pair_mode": "all"}, "pair_mode.*all"),
        ({"pair_mode": "sampled", "train_sampling_strategy": "by_type"}, "by_type.*in_batch"),
        ({"train_sampling_strategy": "bytype"}, "must be one of.*by_type.*got 'bytype'"),
        ({"gradient_cache_chunk": -1}, "gradient_cache_chunk.*-1"),
        ({"eval_neighbours": 0}, "eval_neighbours.*0"),
    ):
        with pytest.raises(ValueError, match=message):
            ContrastiveTrainingArguments(str(tmp_path), **wrong)
    for option, message in (
        ({"label_names": ["tags"]}, "^label_names: the Trainers know"),
        ({"use_liger_kernel": True}, "^use_liger_kernel needs liger_kernel, which is not installed; leave it out$"),
        ({"deepspeed": "ds.json"}, "^deepspeed needs deepspeed, which is not installed; leave it out$"),
    ):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=message):
            NestedNerTrainingArguments(str(tmp_path), **option)
    with pytest.raises(ValueError, match="by_type.*stage 1"):
        NestedNerTrainingArguments(str(tmp_path), train_sampling_strategy="by_type")


def test_a_given_loss_is_used(stage2):
    class Constant(nn.Module):
        def forward(self, logits, labels):
            return {"loss": 0.0 * logits.sum() + 7.0, "my_part": torch.tensor(3.0)}

    trainer = stage2(max_steps=2)
    trainer.loss = Constant()
    model = copy.deepcopy(trainer.model)
    trainer.train()
    assert logged(trainer, "loss") == [7.0, 7.0] and logged(trainer, "my_part") == [3.0, 3.0]
    assert trainer.evaluate()["eval_my_part"] == 3.0
    assert torch.equal(model.classifier.weight, trainer.model.classifier.weight)


# -- Options of stage 2 beyond the paper --------------------------------------------------------------------------------


def test_rare_windows_are_seen_more_often(stage2):
    """With length grouping, and without touching the dataset that was given."""
    plain, repeated = stage2(rare_type_share=0), stage2(rare_type_share=4)
    dataset = repeated.train_dataset
    counts = [sum(len(batch["labels"]) for batch in trainer.get_train_dataloader()) for trainer in (plain, repeated)]
    assert counts[0] == len(dataset) < counts[1] < 8 * len(dataset)
    assert repeated.train_dataset is dataset
    repeated.args.max_steps = 2
    repeated.train()
    assert len(logged(repeated, "loss")) == 2
    with pytest.raises(ValueError, match="rare_type_share"):
        stage2(rare_type_share=-1)


def test_swapped_windows_are_trained_on_beside_the_others(stage2, wordpiece_encoder, corpus):
    """Also with repeats; the training set and the evaluation stay as they are."""
    plain = stage2(rare_type_share=0)
    copies = swapped_documents(corpus, plain.train_dataset, len(TYPES), SwapSettings(4), seed=1)
    swapped = bilou_view(copies, load_tokenizer(wordpiece_encoder), TYPES, 3)
    options = {"swap_share": 4, "max_steps": 2}
    trainer = stage2(swapped=swapped, rare_type_share=0, **options)
    rows = [row for batch in trainer.get_train_dataloader() for row in batch["input_ids"].tolist()]
    assert len(rows) == len(plain.train_dataset) + len(swapped) > len(plain.train_dataset)
    seen = {tuple(token for token in row if token) for row in rows}
    assert {tuple(row["input_ids"].tolist()) for row in swapped} <= seen
    both = stage2(swapped=swapped, rare_type_share=4, **options)
    assert sum(len(batch["labels"]) for batch in both.get_train_dataloader()) > len(rows)
    assert trainer.train_dataset is plain.train_dataset and len(trainer.eval_dataset) == len(plain.eval_dataset)
    trainer.train()
    assert len(logged(trainer, "loss")) == 2
    with pytest.raises(ValueError, match="swap_share needs the copies"):
        stage2(swap_share=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"swap_share": -1}, "swap_share must be 0"),
        ({"swap_probability": 0}, "swap_probability must lie in"),
        ({"swap_share": 9, "swap_agreement": "case"}, "swap_agreement must be one of.*'case'"),
        ({"swap_agreement": "pymorphy3"}, "give a swap_share"),
    ],
)
def test_options_of_swapping_out_of_range(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        NestedNerTrainingArguments(str(tmp_path), **settings)


def test_agreement_without_pymorphy3_says_what_to_install(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pymorphy3" else find_spec(name, *rest)
    )
    with pytest.raises(ValueError, match=r"runne-coner\[augmentation\].*swap_agreement none"):
        NestedNerTrainingArguments(str(tmp_path), swap_share=9, swap_agreement="pymorphy3")


def test_layers_have_learning_rates_of_their_own(stage2):
    trainer = stage2(learning_rate=1e-4, head_learning_rate=5e-3, layer_decay=0.5, max_steps=2, lr_scheduler_type="constant")
    optimizer = trainer.create_optimizer()
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    expected = {"embeddings": 0.25e-4, "layer.0.": 0.5e-4, "layer.1.": 1e-4, "classifier": 5e-3}
    for name, value in trainer.model.named_parameters():
        assert rates[id(value)] == pytest.approx(next(rate for part, rate in expected.items() if part in name)), name
    trainer.train()
    assert logged(trainer, "learning_rate")[0] == pytest.approx(1e-4)


AVERAGED = {"ema_decay": 0.8, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}


def test_averaged_weights_are_evaluated_saved_and_left(stage2, tmp_path):
    class Keeper(TrainerCallback):
        seen = []

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.seen.append(weights(model))

    trainer = stage2(callbacks=[Keeper()], eval_strategy="steps", eval_steps=2, **AVERAGED)
    average = weights(trainer.model)
    trainer.train()
    for step, seen in enumerate(Keeper.seen, start=1):
        decay = min(0.8, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * value for name, value in seen.items()}
    assert len(Keeper.seen) == 4
    saved = CoNERForTokenClassification.from_pretrained(tmp_path / "stage2" / "checkpoint-4")
    for name, value in trainer.model.named_parameters():
        torch.testing.assert_close(value, average[name])
        assert torch.equal(value, dict(saved.named_parameters())[name]) and not torch.equal(value, Keeper.seen[-1][name])
    last = logged(trainer, "eval_loss")[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(last)
    trainer.model.load_state_dict(Keeper.seen[-1])
    assert trainer.evaluate()["eval_loss"] != pytest.approx(last, rel=1e-6)


def test_resumed_averages_end_where_the_uninterrupted_ones_do(stage2):
    whole = stage2("whole", **AVERAGED)
    whole.train()
    resumed = stage2("resumed", **AVERAGED)  # made after that training, as both start from the same random state
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, dict(resumed.model.named_parameters())[name]), name


def test_the_best_average_is_loaded(stage2):
    settings = {**AVERAGED, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = stage2(metric_for_best_model="inner_same_recall", learning_rate=5e-3, **settings | {"max_steps": 6})
    trainer.train()
    scores = logged(trainer, "eval_inner_same_recall")
    assert trainer.state.best_metric == max(scores) == trainer.evaluate()["eval_inner_same_recall"]


def test_the_last_average_is_what_is_left_if_the_best_one_is_lost(stage2, caplog):
    class Lose(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            (Path(state.best_model_checkpoint) / "model.safetensors").unlink(missing_ok=True)

    settings = {**AVERAGED, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = stage2(callbacks=[Lose()], **settings)
    trainer.train()
    assert "Could not locate the best model" in caplog.text
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logged(trainer, "eval_loss")[-2])


def test_the_divergence_of_two_passes_is_trained_on_and_logged(stage2):
    dropout = {"head_dropout": 0.5}
    settings = {"max_steps": 2, "gradient_accumulation_steps": 2, "dice_weight": 0.0, "ce_weight": 1.0}
    plain, rdrop = (stage2(network=dropout, **settings, **more) for more in ({}, {"rdrop_weight": 3.0}))
    for trainer in (plain, rdrop):
        trainer.train()
    divergence = logged(rdrop, "rdrop_loss")
    assert logged(plain, "rdrop_loss") == [] and len(divergence) == 2 and min(divergence) > 0
    total = np.array(logged(rdrop, "ce_loss")) + 3.0 * np.array(divergence)
    assert logged(rdrop, "loss") == pytest.approx(total, abs=1e-3)
    assert not torch.equal(plain.model.classifier.weight, rdrop.model.classifier.weight)
    assert "eval_rdrop_loss" not in rdrop.evaluate()


SCORER = {"candidate_paths": 3}


def test_the_scorer_of_spans_is_trained_beside_the_heads(stage2):
    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "dice_weight": 0.0, "ce_weight": 1.0}
    trainer = stage2(network=SCORER, scorer_weight=2.0, **settings)
    before = weights(trainer.model)
    trainer.train()
    assert [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])] == []
    scored = logged(trainer, "scorer_loss")
    assert len(scored) == 4 and min(scored) > 0
    assert logged(trainer, "loss") == pytest.approx(np.array(logged(trainer, "ce_loss")) + 2.0 * np.array(scored), abs=1e-3)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_ce_loss"] + 2.0 * metrics["eval_scorer_loss"], abs=1e-3)
    assert "eval_scorer_loss" not in stage2(**settings).evaluate()


def test_the_loss_of_the_scorer_is_that_of_a_loop_over_spans(stage2):
    trainer = stage2(network=SCORER, ce_weight=1.0)
    batch = next(iter(trainer.get_eval_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        plain = trainer.loss(outputs.logits, batch["labels"])["loss"]
        total, tokens = 0.0, 0
        for window, (cases, labels) in enumerate(zip(batch["subword_cases"], batch["labels"], strict=True)):
            tokens += int((labels[:, 0] != IGNORE_INDEX).sum())
            gold = {(first, end, head % len(TYPES)) for _, head, first, end in spans_from_tags(labels[None].numpy()).tolist()}
            for first, end in itertools.combinations(range(len(cases) + 1), 2):
                if cases[first] in (WHOLE, FIRST) and cases[end - 1] in (WHOLE, LAST) and end - first <= LONGEST:
                    span = torch.tensor([[window, first, end]])
                    for name, logit in enumerate(trainer.model.span_scorer(outputs.span_features, span)[0]):
                        sign = 1.0 if (first, end, name) in gold else -1.0
                        total -= torch.nn.functional.logsigmoid(sign * logit).item()
    assert gold and loss.item() == pytest.approx(plain.item() + total / tokens, rel=1e-4)


def test_the_scorer_is_trained_on_a_draw_of_the_spans_and_evaluated_on_all(stage2):
    trainer = stage2(network=SCORER)
    batch = next(iter(trainer.get_eval_dataloader()))
    sizes = []
    for training in (True, False):
        trainer.model.train(training)
        _, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        sizes.append(len(outputs.span_logits))
    assert 0 < sizes[0] < sizes[1] == len(word_spans(batch["subword_cases"]))


@pytest.mark.parametrize("option", ["scorer_weight", "scorer_learning_rate"])
def test_options_of_the_scorer_reach_its_training(stage2, option):
    one, other = (stage2(network=SCORER, max_steps=2, **more) for more in ({}, {option: 0.01}))
    for trainer in (one, other):
        trainer.train()
    assert not torch.equal(one.model.span_scorer.output.weight, other.model.span_scorer.output.weight)
    if option == "scorer_learning_rate":
        rates = {id(value): group["initial_lr"] for group in other.optimizer.param_groups for value in group["params"]}
        assert len({rates[id(value)] for value in other.model.span_scorer.parameters()}) == 1
        assert rates[id(other.model.span_scorer.output.weight)] != rates[id(other.model.classifier.weight)]


def test_the_scorer_reads_both_passes_of_rdrop(stage2):
    trainer = stage2(network={**SCORER, "head_dropout": 0.5}, max_steps=2, rdrop_weight=1.0, ce_weight=1.0)
    trainer.train()
    parts = [np.array(logged(trainer, name)) for name in ("ce_loss", "scorer_loss", "rdrop_loss")]
    assert logged(trainer, "loss") == pytest.approx(sum(parts), abs=1e-3)


def test_evaluation_finds_what_the_pipeline_finds_with_a_scorer(stage2, corpus, tmp_path):
    rates = {"learning_rate": 1e-3, "head_learning_rate": 1e-2, "scorer_learning_rate": 1e-2}
    trainer = stage2(network={**SCORER, "level_order": "innermost"}, max_steps=80, **rates)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    metrics = trainer.evaluate()
    answers = load_pipeline(str(tmp_path / "model"))(list(corpus["text"]))
    found = {(d, e["start"], e["end"], e["entity_type"]) for d, entities in enumerate(answers) for e in entities}
    gold = {(d, e["start"], e["end"], e["type"]) for d, row in enumerate(corpus) for e in row["entities"]}
    assert len(found & gold) > 5
    assert metrics["eval_micro_f1"] == pytest.approx(2 * len(found & gold) / (len(found) + len(gold)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("layer_decay", 0), ("layer_decay", 1.1), ("ema_decay", 1), ("rdrop_weight", -1)),
        *(("scorer_weight", 0), ("scorer_weight", float("nan")), ("scorer_learning_rate", -1e-3)),
        *(("lookahead", -1), ("lookahead_alpha", 0), ("lookahead_alpha", 1.1), ("lookahead_alpha", float("nan"))),
    ],
)
def test_options_of_the_optimiser_out_of_range(stage2, name, value):
    with pytest.raises(ValueError, match=name):
        stage2(**{name: value})


RANGER = {"optim": "radam", "lookahead": 3, "lookahead_alpha": 0.25, "max_grad_norm": 0.0, "weight_decay": 0.1}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_lookahead_follows_radam_as_worked_by_hand(stage, request):
    """Gradients of the training, given to torch's RAdam, and slow weights from algorithm 1 of Zhang et al. 2019."""

    class Keeper(TrainerCallback):
        def __init__(self):
            self.gradients, self.rates = [], []

        def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            self.gradients.append(
                {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
            )
            self.rates.append({id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]})

    own = {"head_learning_rate": 3e-3, "layer_decay": 0.5} if stage == "stage2" else {}
    trainer = request.getfixturevalue(stage)(max_steps=7, warmup_steps=2, **RANGER, **own)
    keeper = Keeper()
    trainer.add_callback(keeper)
    start, model = weights(trainer.model), trainer.model
    decayed = set(trainer.get_decay_parameter_names(model))
    trainer.train()
    names = {name: id(value) for name, value in model.named_parameters() if name in keeper.gradients[0]}
    fast = {name: nn.Parameter(start[name].clone()) for name in names}
    slow = {name: start[name].clone() for name in names}
    groups = [{"params": [fast[name]], "weight_decay": 0.1 if name in decayed else 0.0} for name in names]
    radam = torch.optim.RAdam(groups, lr=1.0, decoupled_weight_decay=True)
    for step, (gradients, rates) in enumerate(zip(keeper.gradients, keeper.rates, strict=True), start=1):
        for name, group in zip(names, radam.param_groups, strict=True):
            fast[name].grad, group["lr"] = gradients[name], rates[names[name]]
        radam.step()
        if step % 3 == 0:
            with torch.no_grad():
                for name in names:
                    slow[name] += 0.25 * (fast[name] - slow[name])
                    fast[name].copy_(slow[name])
    for name, value in model.named_parameters():
        if name in names:
            torch.testing.assert_close(value, fast[name], rtol=1e-4, atol=1e-6)
    if stage == "stage2":
        assert len(set(keeper.rates[-1].values())) == 4  # embeddings, two layers, heads
    assert set(keeper.rates[0].values()) != set(keeper.rates[2].values())  # the schedule reaches the wrapped optimiser


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_lookahead_resumes_where_it_stopped(stage, request, tmp_path):
    """The checkpoint lies between two moves of the slow weights; with the average in stage 2."""
    settings = {**RANGER, "max_steps": 6, "save_strategy": "steps", "save_steps": 4, "logging_steps": 1}
    settings |= {"ema_decay": 0.8} if stage == "stage2" else {}
    make = request.getfixturevalue(stage)
    whole = make(**settings)
    start = whole.model.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    whole.train()
    checkpoint = tmp_path / stage / "checkpoint-4"
    resumed = make(**settings)
    resumed.model.load_state_dict(start)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, dict(resumed.model.named_parameters())[name]), name
    for changed in ({"lookahead": 0}, {"optim": "adamw_torch"}):
        with pytest.raises(ValueError, match=rf"checkpoint-4 was written with {next(iter(changed))}"):
            make(**settings | changed).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_model_that_diverged_is_not_saved(stage, request, tmp_path):
    trainer = request.getfixturevalue(stage)(max_steps=1)
    trainer.train()
    trainer.save_model()
    saved = (tmp_path / stage / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(trainer.model.parameters())[0] = torch.nan
    with pytest.raises(TrainingError, match=r"training diverged \(.*embeddings.* and 0 other weights.*lower learning_rate"):
        trainer.save_model()
    assert (tmp_path / stage / "model.safetensors").read_bytes() == saved


def test_lookahead_needs_an_optimiser_that_only_steps_and_its_library(stage2, monkeypatch):
    for optim in ("schedule_free_radam", "galore_adamw_layerwise", "adalomo"):
        with pytest.raises(ValueError, match=f"lookahead cannot wrap optim {optim}"):
            stage2(optim=optim, lookahead=6)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pytorch_optimizer" else find(name, *rest)
    )
    with pytest.raises(ValueError, match=r"pip install .*optimizers"):
        stage2(lookahead=6)
    assert stage2(optim="radam").args.to_dict()["optim"] == "radam"


def test_the_form_of_the_cross_entropy_reaches_the_loss(stage2):
    trainer = stage2(ce_form="focal", focal_gamma=1.5, max_steps=2)
    assert (trainer.loss.ce_form, trainer.loss.focal_gamma) == ("focal", 1.5)
    trainer.train()
    assert np.isfinite(logged(trainer, "loss")).all()


@pytest.mark.parametrize(("name", "value"), [("ce_form", "x"), ("focal_gamma", -1)])
def test_options_of_the_loss_out_of_range(stage2, name, value):
    with pytest.raises(ValueError, match=name):
        stage2(**{name: value})
