"""How weights move: a learning rate for each layer, slow weights behind the fast ones, and a running average beside them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .configuration import CoNERConfig, TrainingError
from .files import replacing

logger = logging.get_logger(__name__)

_MEANING = ("entity_types", "levels", "level_order", "span_pooling", "projection_size", "candidate_paths")
"""Settings of the network without which its weights, or the labels it learns, mean something else."""

_IN_STATE = (
    *("learning_rate", "head_learning_rate", "scorer_learning_rate", "layer_decay"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
)
"""Settings that the state of the optimiser holds for every parameter."""

TRAINING_WEIGHTS = "training_weights.safetensors"
"""File of a checkpoint that holds the weights in training where `model.safetensors` holds their average."""


# ---------------------------------------------------------------------------------------------------------------------
# Learning rates


def layer_scales(names: Iterable[str], decay: float) -> dict[str, float]:
    """Factor of the learning rate of each parameter of an encoder: `decay ** (layers above it)` (Howard and Ruder 2018).

    For example with two layers and decay 0.9: embeddings 0.81, first layer 0.9, second layer and all else 1.

    Args:
        names: parameters of the encoder. A layer is known by the first number in a name (`layer.3.`, `layers.3.`), the
            embeddings by `embed` in it.
        decay: in (0, 1].
    """
    depths = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", f".{name}")
        depths[name] = int(number[1]) + 1 if number else 0 if "embed" in name else None
    top = max((depth for depth in depths.values() if depth is not None), default=0)
    return {name: 1.0 if depth is None else decay ** (top - depth) for name, depth in depths.items()}


def set_learning_rates(optimizer: Optimizer, rates: Mapping[Tensor, float]) -> None:
    """Split the parameter groups of an optimiser by learning rate, in the order in which the rates stand in `rates`.

    The Trainer logs the rate of the first group, so the one that should be logged must come first.
    """
    order = list(dict.fromkeys(rates.values()))
    for group in list(optimizer.param_groups):
        by_rate: dict[float, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            by_rate[rates[parameter]].append(parameter)
        options = {key: value for key, value in group.items() if key not in ("params", "lr")}
        (group["lr"], group["params"]), *others = sorted(by_rate.items(), key=lambda item: order.index(item[0])) or [
            (group["lr"], [])
        ]
        for rate, parameters in others:
            optimizer.add_param_group({**options, "params": parameters, "lr": rate})


# ---------------------------------------------------------------------------------------------------------------------
# Slow weights


def with_lookahead(optimizer: Optimizer, steps: int, alpha: float) -> Optimizer:
    """Lookahead (Zhang et al. 2019, algorithm 1) around an optimiser.

    After every `steps` steps the slow weights, at first those of now, go `alpha` of the way to the weights in training, which
    go on from there. Evaluated and saved are the weights in training. The parameter groups are those of `optimizer`, and the
    state holds the slow weights and the count of steps as well.
    """
    from pytorch_optimizer import Lookahead  # of the extra `optimizers`

    return Lookahead(optimizer, k=steps, alpha=alpha)


def check_same_optimizer(saved: Mapping[str, Any], args: TrainingArguments, folder: Path) -> None:
    """Refuse to resume with an optimiser that cannot take the state of the one that a checkpoint was written with.

    Args:
        saved: training arguments of the checkpoint.
        folder: the checkpoint's.
    Raises:
        TrainingError: one of both has `lookahead` and the other not, or `optim`, a learning rate, the weight decay or a
            constant of Adam is another: the state holds them, so new ones would change nothing.
    """
    known, now = saved.get("lookahead", 0), args.lookahead
    if bool(known) != bool(now):
        raise _other(folder, "lookahead", known, now)
    for name in ("optim", *_IN_STATE):
        now = getattr(args, name, None)
        now = getattr(now, "value", now)
        if (known := saved.get(name, now)) != now:
            raise _other(folder, name, known, now)


def check_same_network(config: CoNERConfig, folder: Path) -> None:
    """Refuse to resume a network whose weights, or labels, mean something else than those of the checkpoint.

    Args:
        config: of the network that shall go on.
        folder: the checkpoint's.
    Raises:
        TrainingError: `entity_types`, `levels` or another of the settings that decide what weights stand for is another.
    """
    if not (folder / CONFIG_NAME).is_file():
        return
    saved = CoNERConfig.from_pretrained(folder)
    for name in _MEANING:
        known, now = getattr(saved, name), getattr(config, name)
        # One level has no order, whatever an older run was given.
        if known != now and not (name == "level_order" and config.levels == 1):
            raise _other(folder, name, known, now)


def _other(folder: Path, name: str, known: Any, now: Any) -> TrainingError:
    return TrainingError(f"{folder} was written with {name} {known}, not {now}: resume with {name} {known}, or start anew")


# ---------------------------------------------------------------------------------------------------------------------
# Averaged weights


class AveragedWeights:
    """Exponential moving average of a network's weights: `a <- d a + (1 - d) w` after every step.

    In step t the decay d is at most `(1 + t) / (10 + t)`, so that the average soon forgets where training started.

    Args:
        model: its parameters now are the first average.
        decay: d in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = dict(model.named_parameters())
        self.averages = {name: value.detach().clone() for name, value in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (1 = the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.averages.values()), list(self.weights.values()), step)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and the averages."""
        for name, weight in self.weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the averaged weights within the context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def save_training_weights(self, folder: Path) -> None:
        """Write the weights in training beside the average that a checkpoint holds."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / TRAINING_WEIGHTS, binary=True) as file:
            file.write(save({name: value.detach().contiguous() for name, value in self.weights.items()}))

    @torch.no_grad()
    def load_training_weights(self, folder: Path) -> None:
        """Read what `save_training_weights` wrote, into the network; the averages stay."""
        found = load_file(folder / TRAINING_WEIGHTS)
        for name, weight in self.weights.items():
            weight.copy_(found[name])


class WeightAveraging(Trainer):
    """A Trainer whose evaluated, saved and final weights are averaged ones, if `args.ema_decay` is above 0.

    Checkpoints also hold the weights in training (`TRAINING_WEIGHTS`), and a resumed run ends where an uninterrupted one does.
    """

    average: AveragedWeights | None = None

    def train(self, *args, **kwargs):
        """As `Trainer.train`.

        Raises:
            ValueError: the weights are shared out among processes (FSDP, DeepSpeed), and cannot be averaged.
        """
        self.average = None
        # Always, as a trial of a search may set `ema_decay` later.
        if not any(isinstance(callback, _Averaging) for callback in self.callback_handler.callbacks):
            self.add_callback(_Averaging(self))
        return super().train(*args, **kwargs)

    def start_average(self) -> None:
        """Begin with the present weights if there shall be an average, unless a checkpoint gave one."""
        if self.average is not None or not self.args.ema_decay:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("ema_decay needs whole weights in every process; set it to 0 with FSDP and DeepSpeed")
        self.average = AveragedWeights(self.model, self.args.ema_decay)

    def finish_average(self) -> None:
        """Leave the model with the average."""
        if self.average is not None:
            self.average.swap()
            self.average = None

    def evaluation_loop(self, *args, **kwargs):
        if self.average is None:
            return super().evaluation_loop(*args, **kwargs)
        with self.average.in_place():
            return super().evaluation_loop(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.average is None:
            return super()._save(output_dir, state_dict)
        with self.average.in_place():
            return super()._save(output_dir)

    def _save_checkpoint(self, model, trial) -> None:
        if self.average is not None and self.args.should_save and not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.average.save_training_weights(folder)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        if self.args.ema_decay:
            self.start_average()
            if (folder / TRAINING_WEIGHTS).is_file():
                self.average.load_training_weights(folder)
            else:
                logger.warning(
                    f"{folder} holds no {TRAINING_WEIGHTS}: it was written without ema_decay, or with save_only_model; the"
                    " average starts here"
                )
        elif (folder / TRAINING_WEIGHTS).is_file():
            logger.warning(f"{folder} holds averaged weights, and training goes on from those, as ema_decay is 0")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        folder = Path(self.state.best_model_checkpoint)
        # A checkpoint's model is an average already. Where it is gone (the Trainer warns), the last average is what is left.
        if any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
            self.average = None


class _Averaging(TrainerCallback):
    def __init__(self, trainer: WeightAveraging):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.start_average()

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.average is not None:
            self.trainer.average.update(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.finish_average()
