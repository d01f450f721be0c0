"""Training arguments of both stages: `transformers.TrainingArguments` with the knobs of the method."""

import importlib.util
import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from .losses import CE_FORMS
from .metric_losses import LOSSES
from .pair_weights import MININGS

logger = logging.getLogger(__name__)

PAIR_MODES = ("in_batch", "sampled")
DICE_REDUCTIONS = ("token", "batch")
SWAP_AGREEMENTS = ("none", "pymorphy3")
SAMPLING_STRATEGIES = ("group_by_length", "by_type", "random", "sequential", "batch_rebalance")
_NEUTRAL_WEIGHTS = {"overlap_weight": 1.0, "same_surface_weight": 1.0, "mining": "none"}
"""Options of the choice of pairs of a batch, with the values that change nothing."""
_OF_DBL = {"margin": 1.0, "positive_weight": 0.3, "label_smoothing_factor": 0.0}
"""Options that only the DBL loss has, with their defaults."""
_OFF_AT_ZERO = ("focal_gamma", "rare_type_share", "swap_share", "rdrop_weight")
"""Options of stage 2 that change nothing at 0, and grow from there."""


RADAM = "radam"
"""Value of `optim` that transformers does not have: `torch.optim.RAdam` with decoupled weight decay (Liu et al. 2020)."""
_OWN_STEPS = ("schedule_free", "layerwise", "lomo")
"""Parts of the names of optimisers that move the weights, or read gradients, outside `step`: nothing can look ahead there."""


_PACKAGES = {"deepspeed": "deepspeed", "use_liger_kernel": "liger_kernel"}
"""Options that need a package."""


def cpu_is_fast_in_bf16() -> bool:
    """Whether PyTorch multiplies bfloat16 matrices on this CPU by a library: on x86, oneDNN does from AVX512 upwards."""
    return torch.backends.cpu.get_cpu_capability() not in ("AVX2", "NO AVX")


@dataclass
class _SpanTrainingArguments(TrainingArguments):
    # The views carry columns that the collators read and `forward` does not.
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop dataset columns that the model does not read; the collators need them."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "How training windows are drawn: 'group_by_length' keeps padding low, 'by_type' (stage 1, in_batch) gives "
            "every entity type a chance in every batch as well, 'random' does not sort."
        },
    )

    # Of the parent class the command line would offer its own names only.
    optim: str = field(
        default=TrainingArguments.optim,
        metadata={"help": "Optimiser: one of transformers, or 'radam' (rectified Adam with decoupled weight decay)."},
    )
    cpu_threads: int = field(
        default=0, metadata={"help": "Threads of a process that trains on the CPU; 0 shares all cores out among the processes."}
    )
    lookahead: int = field(
        default=0,
        metadata={"help": "Steps of the optimiser after which slow weights follow (Lookahead, extra 'optimizers'); 0 = off."},
    )
    lookahead_alpha: float = field(
        default=0.5, metadata={"help": "Share of the way that the slow weights of lookahead go towards the fast ones."}
    )

    def __post_init__(self):
        # Without an accelerator the Trainer accepts bf16 only when it is told what it could see.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        rectified = self.optim == RADAM
        if rectified:  # `SpanTrainer` makes it; the parent class would refuse the name.
            self.optim = "adamw_torch"
        if self.report_to is None:
            self.report_to = "none"
        for name, package in _PACKAGES.items():
            if getattr(self, name) and importlib.util.find_spec(package) is None:
                raise ValueError(f"{name} needs {package}, which is not installed; leave it out")
        super().__post_init__()
        if rectified:
            self.optim = RADAM
        if self.use_cpu and self.mixed_precision == "fp16":
            logger.warning("fp16: PyTorch does not train in float16 on a CPU; training in float32 (fp16 false)")
            self.fp16, self.mixed_precision = False, "no"
        if self.use_cpu and self.mixed_precision == "bf16" and not cpu_is_fast_in_bf16():
            logger.warning(
                "bf16: this CPU has no AVX512, without which PyTorch takes tens of times as long for products in bfloat16 as"
                " in float32; training in float32 (bf16 false)"
            )
            self.bf16, self.mixed_precision = False, "no"
        # NaN and infinity are numbers to the parser, and would show only as a loss of NaN after the first step.
        shared = (
            "learning_rate",
            "num_train_epochs",
            "weight_decay",
            "warmup_steps",
            "label_smoothing_factor",
            "lookahead_alpha",
        )
        for name in (*shared, *self._finite()):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate must not be negative, got {self.learning_rate}")
        if not 0.0 <= self.label_smoothing_factor < 1.0:
            raise ValueError(f"label_smoothing_factor must lie in [0, 1), got {self.label_smoothing_factor}")
        ready = get_available_reporting_integrations()
        if missing := [name for name in self.report_to if name not in ready and name != "flyte"]:
            raise ValueError(f"report_to {', '.join(missing)}: not installed, or unknown; installed are {ready or 'none'}")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_train_epochs < 0:
            raise ValueError(f"num_train_epochs must not be negative, got {self.num_train_epochs}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0.0 <= self.adam_epsilon < math.inf:
            raise ValueError(f"adam_epsilon must be 0 or more, got {self.adam_epsilon}")
        for name in ("seed", "data_seed"):
            if not 0 <= (getattr(self, name) or 0) < 2**32:
                raise ValueError(f"{name} must lie between 0 and {2**32 - 1}, got {getattr(self, name)}")
        if self.batch_eval_metrics or not self.eval_do_concat_batches:
            raise ValueError("all windows are evaluated together: leave out batch_eval_metrics and eval_do_concat_batches")
        if self.label_names is not None:
            raise ValueError("label_names: the Trainers know the columns of their labels; leave it out")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay false: the collators read columns that forward() does not")
        if self.train_sampling_strategy not in SAMPLING_STRATEGIES:
            raise ValueError(
                f"train_sampling_strategy must be one of {SAMPLING_STRATEGIES}, got {self.train_sampling_strategy!r}"
            )
        if Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            raise ValueError(f"output_dir {self.output_dir} is a file; give a folder")
        if self.cpu_threads < 0:
            raise ValueError(f"cpu_threads must be 0 (all cores) or more, got {self.cpu_threads}")
        self._check_lookahead()

    def _check_lookahead(self) -> None:
        if self.lookahead < 0:
            raise ValueError(f"lookahead must be 0 (off) or a number of steps, got {self.lookahead}")
        if not 0.0 < self.lookahead_alpha <= 1.0:
            raise ValueError(f"lookahead_alpha must lie in (0, 1], got {self.lookahead_alpha}")
        if not self.lookahead:
            return
        optim = getattr(self.optim, "value", self.optim)
        if any(part in optim for part in _OWN_STEPS):
            raise ValueError(f"lookahead cannot wrap optim {optim}; set it to 0, or choose another optimiser, as radam")
        if importlib.util.find_spec("pytorch_optimizer") is None:
            raise ValueError('lookahead needs pytorch-optimizer: pip install "runne-coner[optimizers]", or set it to 0')

    @staticmethod
    def _finite() -> tuple[str, ...]:
        """Settings of the stage that must be finite numbers."""
        return ()

    def use_cpu_threads(self) -> None:
        """Give a process that trains on the CPU its threads; `accelerate launch` would leave it a single one."""
        if self.device.type == "cpu":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            torch.set_num_threads(self.cpu_threads or max(1, cores // processes))


@dataclass
class ContrastiveTrainingArguments(_SpanTrainingArguments):
    """Arguments of `ContrastiveTrainer` (stage 1; Bondarenko 2022, section 3.1).

    Parameters that control the loss:
        pair_mode: `in_batch` compares all spans of a batch from one forward pass; `sampled` trains on pairs drawn in
            advance as in the paper.
        loss: `dbl`, or `supcon`, `multi_similarity`, `n_pairs` of `metric_losses` (in mode `in_batch`).
        margin: m of eq. 3.
        positive_weight: weight of the positive pairs in `in_batch`.
        label_smoothing_factor (of TrainingArguments): targets of the log-loss become s / 2 and 1 - s / 2.

    Parameters that control the batches:
        train_sampling_strategy (of TrainingArguments): also `by_type` in pair mode `in_batch`, see
            `samplers.TypeBatchSampler`.
        gradient_cache_chunk: windows encoded at a time, so that a batch of 256 needs no more memory than one of so many;
            costs a second forward pass; 0 encodes the batch at once. See `gradient_cache`.

    Parameters that control the optimiser:
        optim (of TrainingArguments): also `radam`, as in stage 2.
        lookahead, lookahead_alpha: see `optimization.with_lookahead`; 0 steps is off.

    Parameters that control the evaluation:
        eval_neighbours: k of `eval_neighbour_accuracy`.
        eval_projection: whether each evaluation leaves a picture of the spans in `output_dir`; needs matplotlib.
        greater_is_better (of TrainingArguments): default false for `positive_distance` as it is for losses.
    Parameters that control which pairs of a batch count how much (see `pair_weights.PairWeighting`):
        overlap_weight: weight of negative pairs of nested or overlapping spans.
        same_surface_weight: weight of positive pairs of the same words.
        mining, mining_margin: `semi_hard` keeps only the negatives a little farther away than a positive.

    An option that the chosen mode or loss cannot honour is an error.

    Defaults that differ from TrainingArguments: `remove_unused_columns=False`,
    `train_sampling_strategy="group_by_length"`.
    """

    pair_mode: str = field(default="in_batch", metadata={"help": "Pairs: 'in_batch' (all of a batch) or 'sampled'."})
    margin: float = field(default=1.0, metadata={"help": "Margin m of the distance-based logistic loss."})
    positive_weight: float = field(default=0.3, metadata={"help": "Weight of positive pairs in pair mode in_batch."})
    gradient_cache_chunk: int = field(
        default=0, metadata={"help": "Windows encoded at a time to save memory (gradient caching); 0 = the whole batch."}
    )
    eval_neighbours: int = field(default=10, metadata={"help": "Nearest neighbours that eval_neighbour_accuracy looks at."})
    eval_projection: bool = field(
        default=False, metadata={"help": "Leave a picture of the spans in output_dir at each evaluation."}
    )

    loss: str = field(
        default="dbl", metadata={"help": "Loss: 'dbl' (eq. 3), 'supcon', 'multi_similarity' or 'n_pairs' (extra 'losses')."}
    )
    overlap_weight: float = field(
        default=1.0, metadata={"help": "Weight of negative pairs of nested or overlapping spans; 0 leaves them out."}
    )
    same_surface_weight: float = field(
        default=1.0, metadata={"help": "Weight of positive pairs of the same words; 0 leaves them out."}
    )
    mining: str = field(
        default="none", metadata={"help": "Negative pairs: all ('none'), or the 'semi_hard' ones of each span by distance."}
    )
    mining_margin: float = field(
        default=0.2, metadata={"help": "How much farther away than a positive a 'semi_hard' negative is at most."}
    )

    @staticmethod
    def _finite() -> tuple[str, ...]:
        return ("margin", "positive_weight")

    def __post_init__(self):
        # The Trainer would take every metric but losses for one that should grow.
        name = self.metric_for_best_model or ""
        if self.greater_is_better is None and name.endswith("positive_distance"):
            self.greater_is_better = False
        super().__post_init__()
        for name, known in (("pair_mode", PAIR_MODES), ("loss", LOSSES), ("mining", MININGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not 0.0 <= self.positive_weight <= 1.0:
            raise ValueError(f"positive_weight must lie in [0, 1], got {self.positive_weight}")
        if self.train_sampling_strategy == "by_type" and self.pair_mode != "in_batch":
            raise ValueError(
                "train_sampling_strategy 'by_type' is for pair_mode 'in_batch', as drawn pairs have their types already; say"
                " 'group_by_length'"
            )
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "accelerator_config dispatch_batches cuts every column by windows, and a batch of stage 1 has one row a span in"
                " some; leave it out"
            )
        if self.gradient_cache_chunk < 0:
            raise ValueError(f"gradient_cache_chunk must be 0 (off) or more windows, got {self.gradient_cache_chunk}")
        if self.eval_neighbours < 1:
            raise ValueError(f"eval_neighbours must be at least 1, got {self.eval_neighbours}")
        if self.eval_projection and importlib.util.find_spec("matplotlib") is None:
            raise ValueError('eval_projection needs matplotlib: pip install "runne-coner[analysis]", or leave it out')
        for name in ("overlap_weight", "same_surface_weight"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0.0 < self.mining_margin < float("inf"):
            raise ValueError(f"mining_margin must be positive, got {self.mining_margin}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        changed = [f"{name} {getattr(self, name)}" for name, value in _NEUTRAL_WEIGHTS.items() if getattr(self, name) != value]
        if self.pair_mode == "sampled":
            changed += [f"loss {self.loss}"] if self.loss != "dbl" else []
            if changed:
                raise ValueError(f"pair_mode sampled, the paper's, knows no {', '.join(changed)}; take pair_mode in_batch")
        if self.loss == "dbl":
            return
        foreign = [f"{name} {getattr(self, name)}" for name, value in _OF_DBL.items() if getattr(self, name) != value]
        foreign += [
            f"{name} {getattr(self, name)}"
            for name in ("overlap_weight", "same_surface_weight")
            if getattr(self, name) not in (0.0, 1.0)
        ]
        foreign += ["mining semi_hard"] if self.loss == "n_pairs" and self.mining != "none" else []
        if foreign:
            raise ValueError(f"loss {self.loss} cannot honour {', '.join(foreign)}; leave them out, or take loss dbl")


@dataclass
class NestedNerTrainingArguments(_SpanTrainingArguments):
    """Arguments of `NestedNerTrainer` (stage 2; Bondarenko 2022, sections 3.2-3.3).

    Parameters that control the loss (eq. 6):
        ce_weight: alpha, weight of the cross-entropy.
        dice_weight: weight of the dice term, 1 in the paper; 0 leaves it out (it did not help, see docs/stage2.md).
        dice_smoothing: gamma.
        dice_reduction: `token` or `batch`, see `losses.DiceLoss`.
        label_smoothing_factor (of TrainingArguments): smoothing of the cross-entropy's targets.
        ce_form, focal_gamma: `plain`, `focal` or `asymmetric` cross-entropy, see `losses.NamedEntityLoss`.
        scorer_weight: weight of the loss of the scorer of spans, where the model has one (`losses.span_loss`).

    Parameters that control what is trained on:
        rare_type_share: windows with a type of fewer mentions than this share of the mean type stand several times in an
            epoch, see `sampling.repeat_factors`; 0 leaves all windows single.
        swap_share: such windows are joined by as many copies in which mentions are replaced by others of their type, see
            `entity_swap`; 0 is off. It may be combined with `rare_type_share`.
        swap_probability: chance of every mention of a copy to be replaced.
        swap_agreement: `pymorphy3` replaces Russian mentions only by those that may stand in the same case and number
            (`morphology.Readings`); `none`.

    Parameters that control the optimiser:
        head_learning_rate: peak learning rate of the heads; `learning_rate` is the encoder's.
        scorer_learning_rate: that of the scorer of spans.
        layer_decay: learning rate of an encoder layer as a share of that of the layer above; the embeddings count as the
            lowest layer; 1 gives all the same (`optimization.layer_scales`).
        ema_decay: decay of a running average of the weights, which is what is evaluated and saved; 0 is off
            (`optimization.AveragedWeights`).
        optim (of TrainingArguments): also `radam`, Adam whose first steps are shortened as their variance is large
            (Liu et al. 2020), with decoupled weight decay.
        lookahead, lookahead_alpha: see `optimization.with_lookahead`; 0 steps is off.

    Parameters that control regularisation:
        rdrop_weight: weight of the divergence between two passes with different dropout masks; 0 is off, else a step
            costs twice as much (`losses.rdrop_divergence`).

    Defaults that differ from TrainingArguments: `remove_unused_columns=False`,
    `train_sampling_strategy="group_by_length"`.
    """

    ce_weight: float = field(default=5.0, metadata={"help": "Weight alpha of the cross-entropy in the loss."})
    dice_weight: float = field(default=0.0, metadata={"help": "Weight of the dice term in the loss (1 in the paper); 0 = off."})
    dice_smoothing: float = field(default=1.0, metadata={"help": "Smoothing gamma of the dice term."})
    dice_reduction: str = field(default="token", metadata={"help": "Dice per 'token' or over the 'batch'."})
    ce_form: str = field(
        default="plain", metadata={"help": "Cross-entropy: 'plain', 'focal', or 'asymmetric' (focal on tokens that are O)."}
    )
    focal_gamma: float = field(default=2.0, metadata={"help": "Exponent of the focal and asymmetric cross-entropy."})
    rare_type_share: float = field(
        default=0.3,
        metadata={
            "help": "Repeat windows whose rarest type has n mentions sqrt(share * mean / n) times, 1 to 8, where a type has"
            " mean mentions; 0 = off."
        },
    )
    swap_share: float = field(
        default=0.0,
        metadata={"help": "Add copies of windows as rare_type_share repeats them, with other mentions; 0 = off (try 0.3)."},
    )
    swap_probability: float = field(
        default=0.5, metadata={"help": "Chance of a mention of such a copy to be replaced by another of its type."}
    )
    swap_agreement: str = field(
        default="none",
        metadata={"help": "What a replacement must agree in: case and number by 'pymorphy3' (Russian), or 'none'."},
    )
    head_learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate of the heads."})
    scorer_weight: float = field(default=1.0, metadata={"help": "Weight of the loss of the scorer of spans (candidate_paths)."})
    scorer_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the scorer of spans."})
    layer_decay: float = field(
        default=1.0, metadata={"help": "Learning rate of an encoder layer as a share of that of the layer above; 1 = equal."}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Evaluate and save a running average of the weights with this decay, as 0.999; 0 = off."}
    )
    rdrop_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence between two passes with other dropout masks; 0 = off."}
    )

    @staticmethod
    def _finite() -> tuple[str, ...]:
        rates = ("head_learning_rate", "scorer_learning_rate", "layer_decay", "ema_decay")
        return ("ce_weight", "dice_weight", "dice_smoothing", "scorer_weight", *rates, *_OFF_AT_ZERO)

    def __post_init__(self):
        super().__post_init__()
        if self.train_sampling_strategy == "by_type":
            raise ValueError("train_sampling_strategy 'by_type' is for stage 1 in pair_mode 'in_batch'; choose another one")
        if self.dice_reduction not in DICE_REDUCTIONS:
            raise ValueError(f"dice_reduction must be one of {DICE_REDUCTIONS}, got {self.dice_reduction!r}")
        if min(self.ce_weight, self.dice_weight) < 0 or self.ce_weight + self.dice_weight == 0:
            raise ValueError(f"ce_weight {self.ce_weight} and dice_weight {self.dice_weight} must be >= 0 and not both 0")
        if self.dice_smoothing <= 0:
            raise ValueError(f"dice_smoothing must be positive, got {self.dice_smoothing}")
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        for name in _OFF_AT_ZERO:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (off) or a positive number, got {getattr(self, name)}")
        if self.ce_form not in CE_FORMS:
            raise ValueError(f"ce_form must be one of {CE_FORMS}, got {self.ce_form!r}")
        self._check_swaps()
        for name in ("head_learning_rate", "scorer_learning_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.scorer_weight <= 0:
            raise ValueError(f"scorer_weight must be positive, got {self.scorer_weight}; candidate_paths 0 is without a scorer")

    def _check_swaps(self) -> None:
        if not 0.0 < self.swap_probability <= 1.0:
            raise ValueError(f"swap_probability must lie in (0, 1], got {self.swap_probability}; swap_share 0 swaps nothing")
        if self.swap_agreement not in SWAP_AGREEMENTS:
            raise ValueError(f"swap_agreement must be one of {SWAP_AGREEMENTS}, got {self.swap_agreement!r}")
        if self.swap_probability != type(self).swap_probability and not self.swap_share:
            raise ValueError("swap_probability says how many mentions of a copy are swapped; give a swap_share as well")
        if self.swap_agreement != "none" and not self.swap_share:
            raise ValueError(f"swap_agreement {self.swap_agreement} says how mentions are swapped; give a swap_share as well")
        if self.swap_agreement == "pymorphy3" and importlib.util.find_spec("pymorphy3") is None:
            raise ValueError(
                'swap_agreement pymorphy3 needs pymorphy3: pip install "runne-coner[augmentation]", or take swap_agreement none'
            )
