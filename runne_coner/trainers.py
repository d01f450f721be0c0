"""The Trainer of stage 2; its losses are computed in `compute_loss`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from transformers.utils import logging

from .collators import BilouCollator
from .decoding import SpanDecoder
from .losses import NamedEntityLoss, rdrop_divergence, span_loss
from .modeling import CoNERForTokenClassification
from .optimization import WeightAveraging, layer_scales, set_learning_rates
from .sampling import repeat_rare_windows
from .span_scorer import drawn_spans, span_targets, word_spans
from .span_trainer import SpanTrainer
from .tagging import IGNORE_INDEX
from .training_args import NestedNerTrainingArguments
from .viterbi import BrokenLogitsError

logger = logging.get_logger(__name__)

_WEIGHT = "batch_weight"
"""Column of a training batch of stage 2, see `NestedNerTrainer.get_batch_samples`."""


def _real_tokens(labels: Tensor) -> Tensor:
    """How many tokens of a batch have labels, `(batch, tokens, heads)`."""
    return (labels != IGNORE_INDEX).any(dim=-1).sum()


def named_entity_loss(args: NestedNerTrainingArguments) -> NamedEntityLoss:
    """The loss of stage 2 with the settings of `args`."""
    settings = (args.ce_weight, args.dice_weight, args.dice_smoothing, args.dice_reduction, args.label_smoothing_factor)
    return NamedEntityLoss(*settings, ce_form=args.ce_form, focal_gamma=args.focal_gamma)


class NestedNerTrainer(WeightAveraging, SpanTrainer):
    """Stage 2: trains the encoder and its BILOU heads under the named-entity loss (Bondarenko 2022, section 3.2, eq. 6).

    Datasets are BILOU views with a `BilouCollator`. Predictions are the decoded spans (`decoding.SpanDecoder`) as tags,
    `(windows, tokens, heads)`; with `compute_metrics=metrics.make_compute_metrics(...)` the scores are those of whole spans,
    and `metric_for_best_model` may be any of them (`macro_f1`, `few_shot_f1`, `micro_f1`, ...). With `ema_decay`, evaluated
    and saved weights are averaged ones. Parts of the loss are logged as `ce_loss`, `dice_loss`, `scorer_loss` and `rdrop_loss`.

    The loss is a mean over tokens: those of all batches of a step where there are several (`gradient_accumulation_steps`,
    processes), so that they train as one large batch, and those of all windows in an evaluation, whatever its batches. A dice
    term over the batch is a mean over batches, weighted by their tokens.

    Args:
        model: None with `model_init`.
        loss: default `named_entity_loss(args)`.
        data_collator: default `BilouCollator(processing_class)`.
        swapped_windows: BILOU view of the copies that `swap_share` asks for (`entity_swap.swapped_documents`); they are
            trained on beside `train_dataset`, and not counted where frequencies of tags or types are.
    Raises:
        ValueError: `swap_share` without `swapped_windows`.
    """

    arguments_class = NestedNerTrainingArguments

    def __init__(
        self,
        model: CoNERForTokenClassification | None,
        args: NestedNerTrainingArguments,
        *,
        loss: nn.Module | None = None,
        swapped_windows: Dataset | None = None,
        **kwargs,
    ):
        if getattr(args, "swap_share", 0) and swapped_windows is None:
            raise ValueError("swap_share needs the copies with other mentions; give swapped_windows, or leave it out")
        if kwargs.get("data_collator") is None and kwargs.get("processing_class") is not None:
            kwargs["data_collator"] = BilouCollator(kwargs["processing_class"])
        super().__init__(model, args, loss=loss, **kwargs)
        self.label_names = ["labels"]
        self.decoder = SpanDecoder(self.model.config)
        self.swapped_windows = swapped_windows

    def _make_loss(self) -> nn.Module:
        return named_entity_loss(self.args)

    def call_model_init(self, trial=None):
        model = super().call_model_init(trial)
        self.decoder = SpanDecoder(model.config)
        return model

    def get_train_dataloader(self):
        windows = self.train_dataset
        if (self.args.rare_type_share or self.swapped_windows is not None) and not isinstance(windows, Dataset):
            raise ValueError(
                f"rare_type_share and swap_share need a datasets.Dataset of windows, got {type(windows).__name__}; give one, or"
                " set them to 0"
            )
        num_types = len(self.model.config.entity_types)
        try:
            self.train_dataset = repeat_rare_windows(windows, num_types, self.args.rare_type_share, self.args.seed)
            if self.swapped_windows is not None:
                self.train_dataset = concatenate_datasets([self.train_dataset, self.swapped_windows])
            return super().get_train_dataloader()
        finally:
            self.train_dataset = windows

    def _take_settings(self, settings: Mapping[str, Any]) -> None:
        if fixed := sorted(name for name in settings if name.startswith("swap_")):
            raise ValueError(f"hp_space: {', '.join(fixed)}: all trials train on the same swapped_windows; set it in args")
        super()._take_settings(settings)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """As `Trainer.evaluate`. A trial of a search whose logits are NaN has measured nothing but a loss of NaN, and fails.

        Raises:
            viterbi.BrokenLogitsError: the logits are NaN, and it is no trial.
        """
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        except BrokenLogitsError as error:
            if self.hp_search_backend is None:
                raise
            logger.warning(f"this trial fails: {error}")
            # The Trainer looks for the metric by which it would keep a checkpoint, or lower the learning rate.
            best = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
            return dict.fromkeys((f"{metric_key_prefix}_loss", f"{metric_key_prefix}_{best}"), math.nan)

    def create_optimizer(self, model=None):
        """The Trainer's optimiser, in which the heads have a learning rate of their own, and every layer may have one."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        encoder = dict(self.model.encoder.named_parameters())
        scales = layer_scales(encoder, self.args.layer_decay)
        # The top layer comes first, as its rate, `learning_rate`, is the one to be logged.
        ordered = sorted(encoder, key=scales.get, reverse=True)
        rates = {encoder[name]: self.args.learning_rate * scales[name] for name in ordered}
        heads = {value: self.args.head_learning_rate for value in self.model.parameters() if value not in rates}
        scorer = [] if self.model.span_scorer is None else self.model.span_scorer.parameters()
        set_learning_rates(optimizer, rates | heads | dict.fromkeys(scorer, self.args.scorer_learning_rate))
        return optimizer

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of a step, as of `Trainer`, each with its weight in the mean over the tokens of all of them."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            self._check_labels(batch)
        if batches:
            tokens = torch.stack([_real_tokens(batch["labels"]) for batch in batches]).to(device).float()
            mean = self.accelerator.gather(tokens.mean()[None]).mean()
            batches = [{**batch, _WEIGHT: share} for batch, share in zip(batches, tokens / mean.clamp(min=1.0), strict=True)]
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._check_labels(inputs)
        inputs = dict(inputs)
        weight = inputs.pop(_WEIGHT, 1.0)
        twice = model.training and self.args.rdrop_weight > 0
        if twice:
            inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
        labels, cases = inputs.pop("labels"), inputs.pop("subword_cases")
        config = self.model.config
        if config.candidate_paths:
            inputs["spans"], weights = drawn_spans(cases, labels) if model.training else (word_spans(cases), None)
        outputs = model(**inputs)
        parts = self.loss(outputs.logits, labels)
        real = int(_real_tokens(labels))
        if config.candidate_paths:
            targets = span_targets(inputs["spans"], labels, len(config.entity_types))
            scored = span_loss(outputs.span_logits, targets, real, weights)
            parts |= {"loss": parts["loss"] + self.args.scorer_weight * scored, "scorer_loss": scored}
        if twice:
            divergence = rdrop_divergence(outputs.logits, labels)
            parts |= {"loss": parts["loss"] + self.args.rdrop_weight * divergence, "rdrop_loss": divergence}
        self._record(parts, training=model.training, weight=weight if model.training else real)
        loss = parts["loss"] * weight
        return (loss, outputs) if return_outputs else loss

    def _check_labels(self, inputs: Mapping[str, Tensor]) -> None:
        config = self.model.config
        if "labels" not in inputs:
            raise ValueError(
                "the windows have no labels, which losses and scores need: give a `bilou_view`, or predict by"
                " pipeline('nested-ner', ...)"
            )
        if (given := inputs["labels"].shape[-1]) != len(config.heads):
            raise ValueError(
                f"the labels are for {given} heads, the model has {len(config.heads)} ({len(config.entity_types)} types at"
                f" {config.levels} levels): give `bilou_view` the types and levels of the model"
            )

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss of a batch, and the decoded tags and labels of its windows."""
        state = self.accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0 and "labels" in inputs:
            # To give all processes a batch, windows of the first ones come again at the end; the loss has seen them.
            size = len(inputs["labels"])
            again = (
                torch.arange(size, device=inputs["labels"].device) + self.accelerator.process_index * size >= state.remainder
            )
            inputs = {**inputs, "labels": inputs["labels"].masked_fill(again[:, None, None], IGNORE_INDEX)}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _predicted(self, outputs, inputs) -> tuple[Tensor, Tensor]:
        """Decoded tags and labels, both int8 `(batch, tokens, heads)`."""
        scorer = self.model.span_scorer
        tags = self.decoder.tags(inputs["subword_cases"], outputs.logits, outputs.span_features, scorer)
        return tags.to(torch.int8), inputs["labels"].to(torch.int8)
