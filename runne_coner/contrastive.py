"""The Trainer of stage 1; the loss is computed in `compute_loss`, the spans of an evaluation are looked at together."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from scipy import sparse
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .collators import EntityCollator
from .gathering import SPAN_COLUMNS, gather_spans
from .metric_losses import make_loss
from .modeling import EntityEncoder
from .pair_weights import PairWeighting
from .samplers import TypeBatchSampler, count_types
from .span_metrics import SpanMetricError, defined_span_metrics, span_metrics, write_projection
from .span_trainer import SpanTrainer
from .training_args import ContrastiveTrainingArguments

logger = logging.getLogger(__name__)

_OF_PAIRS = {"overlap_weight", "same_surface_weight", "mining", "mining_margin"}
"""Training arguments that `PairWeighting.of` reads."""


class ContrastiveTrainer(SpanTrainer):
    """Stage 1: fine-tunes an `EntityEncoder` so that spans of one type lie close together (Bondarenko 2022, section 3.1).

    `train_dataset` is an entity view (pair mode `in_batch`) with an `EntityCollator`, or an entity-pair view (`sampled`)
    with an `EntityPairCollator` as `pair_collator`; `eval_dataset` is always an entity view. In mode `in_batch` the loss is
    over the spans of all processes, so that 2 processes with 16 windows train as one with 32.

    Evaluation reports, over all spans of the evaluation set, `eval_pair_auc`, `eval_positive_distance`,
    `eval_negative_distance`, `eval_neighbour_accuracy`, `eval_silhouette` and `eval_silhouette_TYPE` (see
    `span_metrics.span_metrics`; O is a type like the others) as far as they are defined there, and `metric_for_best_model`
    may be any of these. With `eval_projection` it writes a picture, `projection-STEP.png`.

    Args:
        model: None with `model_init`.
        loss: `loss(embeddings, types, groups, weights=...)`, a dictionary with `loss` and parts to log; by default the
            one that `args` names.
        data_collator: default `EntityCollator(processing_class)`.
        pair_collator: collator of the training batches where it differs from `data_collator`.
        pair_weighting: which pairs of a batch count how much; by default as `args` says, for spans of one corpus.
        entity_types: names of the types, for the metrics; default `0`, `1`, ... as far as the evaluation set needs them.
    """

    arguments_class = ContrastiveTrainingArguments

    def __init__(
        self,
        model: EntityEncoder | None,
        args: ContrastiveTrainingArguments,
        *,
        loss: nn.Module | None = None,
        pair_collator=None,
        pair_weighting: PairWeighting | None = None,
        entity_types: Sequence[str] | None = None,
        **kwargs,
    ):
        if kwargs.get("compute_metrics") is not None:
            raise ValueError(
                "ContrastiveTrainer calls no compute_metrics: its metrics are those of `span_metrics`; leave it out"
            )
        if kwargs.get("data_collator") is None and kwargs.get("processing_class") is not None:
            kwargs["data_collator"] = EntityCollator(kwargs["processing_class"])
        super().__init__(model, args, loss=loss, **kwargs)
        self.pair_weighting = pair_weighting or PairWeighting.of(args)
        self.label_names = ["types"]
        self.pair_collator = pair_collator
        self.entity_types = entity_types
        self._evaluated: list[tuple] | None = None

    def _make_loss(self) -> nn.Module:
        return make_loss(
            self.args.loss,
            margin=self.args.margin,
            positive_weight=self.args.positive_weight,
            label_smoothing=self.args.label_smoothing_factor,
        )

    def _begin(self, changed: Collection[str]) -> None:
        super()._begin(changed)
        if not _OF_PAIRS.isdisjoint(changed):
            old = self.pair_weighting
            self.pair_weighting = PairWeighting.of(self.args, negatives_only=old.negatives_only, annotated=old.annotated)

    # -- Training -----------------------------------------------------------------------------------------------------------

    def train(self, *args, **kwargs):
        """Train as `Trainer.train`.

        Raises:
            SpanMetricError: `metric_for_best_model` is not known, or not defined on the evaluation set.
            ValueError: there is no train_dataset, or it is a view for another `pair_mode`.
        """
        if columns := getattr(self.train_dataset, "column_names", None):
            given = "sampled" if "same" in columns else "in_batch"
            if given != self.args.pair_mode:
                raise ValueError(
                    f"pair_mode is {self.args.pair_mode}, and train_dataset a view for {given}: give an `entity_view` for"
                    " in_batch, an `entity_pair_view` for sampled"
                )
        self._check_metric_for_best_model()
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        if self.args.train_sampling_strategy == "by_type":
            return self._loader_by_type()
        if self.pair_collator is None:
            return super().get_train_dataloader()
        evaluation_collator, self.data_collator = self.data_collator, self.pair_collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = evaluation_collator

    def _loader_by_type(self) -> DataLoader:
        args = self.args
        sampler = TypeBatchSampler(
            count_types(self.train_dataset),
            self.train_dataset[args.length_column_name][:],
            self._train_batch_size,
            num_processes=args.world_size,
            seed=self._data_seed,
            drop_last=args.dataloader_drop_last,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        same = inputs.pop("same", None)
        columns = {name: inputs[name] for name in SPAN_COLUMNS if name in inputs}
        windows = {name: value for name, value in inputs.items() if name not in SPAN_COLUMNS}
        chunk_size = self.args.gradient_cache_chunk if model.training else 0
        outputs = model(**windows, spans=inputs["spans"], chunk_size=chunk_size)
        embeddings = outputs.span_embeddings
        if same is not None:
            # The mean over the processes, which DDP takes, is that of their pairs.
            parts = self.loss.forward_pairs(*embeddings.chunk(2), same)
        else:
            embeddings, columns = gather_spans(self.accelerator, embeddings, columns, len(inputs["input_ids"]))
            parts = self._span_loss(embeddings, columns, training=model.training)
            self._keep_evaluated(embeddings, columns, training=model.training)
        self._record(parts, training=model.training)
        return (parts["loss"], outputs) if return_outputs else parts["loss"]

    def _span_loss(self, embeddings: Tensor, columns: dict[str, Tensor], training: bool) -> dict[str, Tensor]:
        """The loss and its parts, from all spans of a batch and their columns."""
        spans, types = columns["spans"], columns["types"]
        _, groups = torch.unique(spans, dim=0, return_inverse=True)
        weights = self.pair_weighting(embeddings, spans, types, groups, columns.get("surfaces"), columns.get("corpora"))
        return self.loss(embeddings, types, groups, weights=weights)

    # -- Evaluation ---------------------------------------------------------------------------------------------------------

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss of a batch; its spans are kept for the metrics over all of them."""
        return super().prediction_step(model, inputs, True, ignore_keys)

    def _keep_evaluated(self, embeddings: Tensor, columns: dict[str, Tensor], training: bool) -> None:
        if training or self._evaluated is None:
            return
        spans, types = columns["spans"], columns["types"]
        state = self.accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0:
            # To give all processes a batch, windows of the first ones come again at the end.
            real = spans[:, 0] < state.remainder
            embeddings, spans, types = embeddings[real], spans[real], types[real]
        if self.is_world_process_zero():
            found = embeddings.detach().float().cpu().numpy()
            if self.model.config.span_pooling == "masked_matrix":
                # Zero outside the span, and as wide as the batch is long.
                found = sparse.csr_matrix(found)
            self._evaluated.append((found, types.cpu().numpy(), spans.cpu().numpy()))

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._evaluated = None if self.args.prediction_loss_only else []
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            found = [{}]
            if self._evaluated is not None and self.is_world_process_zero():
                found = [self._metrics_of_spans(metric_key_prefix)]
        finally:
            self._evaluated = None
        # All processes have to agree on the best checkpoint.
        broadcast_object_list(found)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found[0].items()})
        return output

    def _metrics_of_spans(self, prefix: str) -> dict[str, float]:
        embeddings, types, identity = _joined(self._evaluated)
        names = self._type_names(types)
        progress = not self.args.disable_tqdm
        metrics = span_metrics(embeddings, types, identity, names, neighbours=self.args.eval_neighbours, progress=progress)
        if len(types) and not metrics and defined_span_metrics(types, identity, names):
            logger.warning("embeddings of the evaluation set are not finite: nothing can be said about their distances")
        elif self.args.eval_projection and len(types):
            part = prefix.removeprefix("eval").strip("_")
            name = "-".join(["projection", *([part] if part else []), str(self.state.global_step)])
            title = f"{len(types)} spans after {self.state.global_step} steps"
            write_projection(Path(self.args.output_dir) / f"{name}.png", embeddings, types, names, title)
        return metrics

    def _type_names(self, types: np.ndarray) -> list[str]:
        if self.entity_types is not None:
            return [*self.entity_types, "O"]
        return [str(index) for index in range(int(types.max(initial=-1)) + 1)]

    def _check_metric_for_best_model(self) -> None:
        wanted = self.args.metric_for_best_model
        if wanted is None or self.eval_dataset is None:
            return
        known = self.metric_names()
        if wanted.removeprefix("eval_") not in known:
            raise SpanMetricError(
                f"metric_for_best_model {wanted!r} is not known, or not defined on this evaluation set; "
                + (f"choose one of {', '.join(known)}" if known else "it is empty: give evaluation documents")
            )

    def metric_names(self) -> list[str]:
        """Names of the metrics, without `eval_`, that are defined on the evaluation set."""
        parts = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        known = []
        for part, view in parts.items():
            found = [np.asarray(spans).reshape(-1, 3) for spans in view["spans"][:]]
            window = np.repeat(np.arange(len(found)), [len(spans) for spans in found])
            flat = np.concatenate([np.zeros((0, 3), dtype=np.int64), *found])
            spans, types = np.column_stack([window, flat[:, :2]]), flat[:, 2].astype(np.int64)
            names = ["loss"] if len(view) else []
            if not self.args.prediction_loss_only:
                names += defined_span_metrics(types, _identity(spans), self._type_names(types))
            known += [f"{part}_{name}" if part else name for name in names]
        return known

    def _determine_best_metric(self, metrics, trial) -> bool:
        # What could not be computed, as an embedding was not finite, is no best value.
        name = "eval_" + (self.args.metric_for_best_model or "").removeprefix("eval_")
        if self.args.metric_for_best_model is not None and name not in metrics:
            logger.warning("%s is not defined after step %d: this is no best checkpoint", name, self.state.global_step)
            return False
        return super()._determine_best_metric(metrics, trial)

    # -- Files --------------------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the plain encoder with its tokenizer, ready for stage 2 or `AutoModel`; checkpoints keep the whole network."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            encoder = self.accelerator.unwrap_model(self.model).encoder
            self._check_finite(encoder.state_dict(), folder)
            encoder.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            self._save_arguments(folder)
        return None


def _identity(spans: np.ndarray) -> np.ndarray:
    """A number `(S,)` for each distinct row of spans `(S, 3)`."""
    return np.unique(spans, axis=0, return_inverse=True)[1].reshape(-1)


def _joined(batches: list[tuple]) -> tuple[np.ndarray | sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Embeddings `(N, D)`, types and identities `(N,)` of all spans of several batches."""
    if not batches:
        return np.zeros((0, 1)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    embeddings, types, spans = zip(*batches, strict=True)
    # Windows are numbered within their batches.
    numbered = [np.column_stack([np.full(len(part), number), part]) for number, part in enumerate(spans)]
    if sparse.issparse(embeddings[0]):
        width = max(part.shape[1] for part in embeddings)
        for part in embeddings:
            part.resize(part.shape[0], width)
        joined = sparse.vstack(embeddings, format="csr")
    else:
        joined = np.concatenate(embeddings)
    return joined, np.concatenate(types), _identity(np.concatenate(numbered))
