"""What the Trainers of both stages share."""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import HPSearchBackend, IntervalStrategy, has_length

from .configuration import TrainingError
from .files import write_text
from .hub import create_repository, push_model, write_card
from .model_card import public_arguments
from .optimization import (
    check_same_network,
    check_same_optimizer,
    with_lookahead,
)
from .samplers import LengthSampler, SamplerEpochs
from .search_space import default_objective
from .training_args import RADAM

ARGUMENTS_NAME = "training_args.json"
"""File beside a model, and in a checkpoint, with the arguments of its training."""


class SpanTrainer(Trainer):
    """What both Trainers share: logging the parts of the loss by name, arguments saved as JSON, and trials of a search.

    `hyperparameter_search(backend="optuna", ...)` takes any training argument that `hp_space` gives, those of the loss
    included. A trial has its settings before its model is made, so `model_init` may read them in `args`.
    """

    arguments_class: type[TrainingArguments] = TrainingArguments

    def __init__(self, model, args, *, loss: nn.Module | None = None, **kwargs):
        if not isinstance(args, self.arguments_class):
            raise TypeError(f"{type(self).__name__} needs {self.arguments_class.__name__} as args, got {type(args).__name__}")
        if args.n_gpu > 1:
            raise ValueError(
                f"one process for {args.n_gpu} GPUs would cut a batch by rows, and some columns have one a span: start a"
                f" process for each (accelerate launch --num_processes {args.n_gpu}), or show it one (CUDA_VISIBLE_DEVICES=0)"
            )
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                f"{type(self).__name__} does not call compute_loss_func: give loss=, a module that it calls instead"
            )
        super().__init__(model, args, **kwargs)
        self._given_loss = loss
        self.add_callback(SamplerEpochs())
        self._begin(())

    def _make_loss(self) -> nn.Module:
        """The loss that the arguments describe, where none is given."""
        raise TypeError(f"{type(self).__name__} does not say what its loss is; give one")

    def _begin(self, changed: Collection[str]) -> None:
        """Make what follows from the arguments, of which those `changed` are a trial's."""
        self.loss = (self._given_loss or self._make_loss()).to(self.args.device)
        # A pruned trial leaves its last parts behind.
        self._parts: dict[bool, dict[str, list[Tensor]]] = {True: defaultdict(list), False: defaultdict(list)}

    def hyperparameter_search(self, hp_space=None, compute_objective=None, n_trials=20, direction=None, *args, **kwargs):
        """As `Trainer.hyperparameter_search`; without `compute_objective` it maximises `search_space.default_objective`.

        The Trainer's own default would be the sum of all metrics, with parts of the loss among them.
        """
        if compute_objective is None:
            compute_objective, direction = default_objective, direction or "maximize"
        return super().hyperparameter_search(hp_space, compute_objective, n_trials, direction or "minimize", *args, **kwargs)

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """As `Trainer.train`.

        Raises:
            ValueError: there is no train_dataset, a trial's settings are unknown or out of range, or the search has another
                backend than Optuna.
        """
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset")
        if trial is not None:
            if self.hp_search_backend != HPSearchBackend.OPTUNA:
                raise ValueError(f"only Optuna's trials are understood, got {type(trial).__name__}: give backend='optuna'")
            self._take_settings(self.hp_space(trial))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _take_settings(self, settings: Mapping[str, Any]) -> None:
        # The Trainer would make the model first, with the last trial's seed, and would set whatever it is given.
        known = {item.name for item in fields(self.args) if item.init}
        if unknown := sorted(settings.keys() - known):
            raise ValueError(f"hp_space: {', '.join(unknown)}: no such training argument; take network settings in model_init")
        checked = replace(self.args, **settings)
        for name in settings:
            setattr(self.args, name, getattr(checked, name))
        self._begin(settings.keys())

    def _report_to_hp_search(self, trial, step: int, metrics: dict[str, float]) -> None:
        """As the Trainer's, but by epochs where these are what is evaluated; a trial that has diverged ends, and fails.

        Trials are compared at the same number, and how many steps an epoch has may follow from what is searched, as the batch
        size. Pruned, a trial of NaN would count among the measured ones.
        """
        if self.hp_search_backend is None or trial is None:
            return
        value = self.compute_objective(metrics.copy())
        if not np.isfinite(value).all():
            self.objective = value
            self.control.should_training_stop = True
            return
        if self.args.eval_strategy == IntervalStrategy.EPOCH:
            step = math.ceil(round(self.state.epoch, 6))
        super()._report_to_hp_search(trial, step, metrics)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        """As the Trainer's, and `optim` may be `radam`."""
        if args.optim != RADAM:
            return Trainer.get_optimizer_cls_and_kwargs(args, model)
        betas = (args.adam_beta1, args.adam_beta2)
        return torch.optim.RAdam, {
            "lr": args.learning_rate,
            "betas": betas,
            "eps": args.adam_epsilon,
            "decoupled_weight_decay": True,
        }

    def create_optimizer(self, model=None):
        """The Trainer's optimiser; with `args.lookahead` slow weights follow it.

        Raises:
            ValueError: the weights are shared out among processes (FSDP, DeepSpeed), and so would be the slow ones.
            TrainingError: `optim` needs a package that is missing, or other settings.
        """
        if self.optimizer is not None:
            return self.optimizer
        optim = getattr(self.args.optim, "value", self.args.optim)
        with _naming(f"optim {optim} cannot be used", "; install what it needs, or choose another"):
            super().create_optimizer(model)
        if self.args.lookahead:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("lookahead needs whole weights in every process; set it to 0 with FSDP and DeepSpeed")
            self.optimizer = with_lookahead(self.optimizer, self.args.lookahead, self.args.lookahead_alpha)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The Trainer's schedule.

        Raises:
            TrainingError: it cannot be made with `lr_scheduler_kwargs`.
        """
        kind = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
        with _naming(f"lr_scheduler_type {kind} with lr_scheduler_kwargs {self.args.lr_scheduler_kwargs or {}}"):
            return super().create_scheduler(num_training_steps, optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with _reading(resume_from_checkpoint):
            check_same_network(self.model.config, Path(resume_from_checkpoint))
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            arguments = Path(checkpoint, ARGUMENTS_NAME) if checkpoint is not None else None
            if arguments is not None and arguments.is_file():
                check_same_optimizer(json.loads(arguments.read_text(encoding="utf-8")), self.args, Path(checkpoint))
            whole = self.is_deepspeed_enabled or self.is_fsdp_enabled  # their files have other names
            if checkpoint is not None and not whole and not Path(checkpoint, OPTIMIZER_NAME).is_file():
                raise TrainingError(
                    f"{checkpoint} holds no state of the optimiser, as with save_only_model: it cannot be resumed from. Train"
                    f" on from its weights with it as the model, or start anew"
                )
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _record(self, parts: dict[str, Tensor], training: bool, weight: Tensor | float | None = None) -> None:
        """Keep the parts of the loss of a batch, which counts so much in their mean; None: as much as the others.

        Of an evaluation whose batches are weighted the loss itself is kept too: the Trainer's mean counts every window the
        same, so it would depend on which windows share a batch.
        """
        for name, value in parts.items():
            if name != "loss" or (weight is not None and not training):
                own = torch.as_tensor(1.0 if weight is None else weight, dtype=torch.float32, device=value.device)
                self._parts[training][name].append(torch.stack([value.detach().float(), own]))

    def _recorded(self, training: bool) -> dict[str, float]:
        """Means over what was recorded since the last call, on all processes; a part may be undefined (NaN) in a batch.

        The loss itself may not: one batch of NaN is a loss of NaN.
        """
        recorded, self._parts[training] = self._parts[training], defaultdict(list)
        means = {}
        for name, batches in recorded.items():
            values, weights = torch.stack(batches).unbind(-1)
            undefined = weights == 0
            if name != "loss":
                undefined |= values.isnan()
            values, weights = (part.masked_fill(undefined, 0.0) for part in (values, weights))
            sums = self.accelerator.gather(torch.stack([(values * weights).sum(), weights.sum()])[None])
            total, weight = sums.sum(dim=0).tolist()
            if weight:
                means[name] = total / weight
        return means

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return LengthSampler(sampler.batch_size, list(sampler.lengths), self._data_seed)

    def get_train_dataloader(self):
        """The Trainer's.

        Raises:
            ValueError: it has no batch, as `dataloader_drop_last` leaves out the only one.
        """
        loader = super().get_train_dataloader()
        if self.args.dataloader_drop_last and has_length(loader) and not len(loader):
            raise ValueError(
                f"dataloader_drop_last leaves no batch of {self._train_batch_size} windows: there are {len(self.train_dataset)}"
            )
        return loader

    # `dataloader_drop_last` is for training; the Trainer would leave windows of an evaluation out as well.

    def get_eval_dataloader(self, eval_dataset=None):
        with self._keeping_all():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._keeping_all():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keeping_all(self) -> Iterator[None]:
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_eval_sampler(self, eval_dataset):
        # The Trainer would group evaluation batches by length too, and the scores need the windows in their order.
        return SequentialSampler(eval_dataset)

    def _predicted(self, outputs, inputs) -> tuple[Tensor, Tensor]:
        """What a batch hands to `compute_metrics`: predictions and what they are compared with."""
        raise TypeError(f"{type(self).__name__} does not say what it predicts")

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss of a batch, and what `_predicted` makes of its outputs."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), *self._predicted(outputs, inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._recorded(training=True)
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        with self._keeping_weights():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        parts = self._recorded(training=False)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in parts.items()})
        return output

    @contextmanager
    def _keeping_weights(self) -> Iterator[None]:
        """The model keeps its weights; `bf16_full_eval` and `fp16_full_eval` would leave it, and what is saved, rounded.

        They round outside training only, so an average of weights is not concerned.
        """
        if not (self.args.bf16_full_eval or self.args.fp16_full_eval):
            yield
            return
        kept = [(value, value.data) for value in (*self.model.parameters(), *self.model.buffers())]
        try:
            yield
        finally:
            for value, data in kept:
                value.data = data

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        self._check_finite(self.model.state_dict() if state_dict is None else state_dict, folder)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # The Trainer pickles its arguments; JSON says the same and runs no code when it is read.
            (folder / TRAINING_ARGS_NAME).unlink()
            self._save_arguments(folder)

    @staticmethod
    def _check_finite(weights: Mapping[str, Tensor], folder: Path) -> None:
        if broken := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
            raise TrainingError(
                f"the training diverged ({broken[0]} and {len(broken) - 1} other weights are not finite), so {folder} gets no"
                " model: lower learning_rate, or what else of the settings is unusually large"
            )

    def _save_arguments(self, folder: Path) -> None:
        write_text(folder / ARGUMENTS_NAME, json.dumps(public_arguments(self.args), indent=2))

    def leave_processes(self) -> None:
        """End the process group, together with the other processes; the last thing a program with several does.

        The wrapped network goes first. Were it what keeps the gloo group alive, the group would end with Python's lock held,
        and wait for a thread of its own that waits for the lock (seen as a process that hangs in `~ProcessGroupGloo`).
        """
        self.accelerator.wait_for_everyone()
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        self.accelerator.end_training()

    # The Trainer's own pushes upload whole folders, at every checkpoint and before there are scores. Here `--push_to_hub`
    # makes sure at the start that the repository can be written to, and `push_to_hub` uploads once, what `hub.read_folder`
    # says and nothing else; `hub_strategy` has no effect.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        pass

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository `hub_model_id`, if there is none, and check that it can be written to.

        Raises:
            hub.HubError: the Hub cannot be reached, or refuses the token or the name.
        """
        if self.is_world_process_zero():
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = create_repository(name, private=private, token=token or self.args.hub_token)
            self.push_in_progress = None

    def create_model_card(self, language=None, license=None, tags=None, model_name=None, **_) -> None:
        """Write the card, README.md, from the facts that the recipes record in `output_dir` (see `model_card`).

        Args:
            language, license, tags: in place of, or beside, those recorded.
            model_name: Hub id that the card's examples load.
        """
        if self.is_world_process_zero():
            name = model_name or self.hub_model_id
            write_card(self.args.output_dir, name, language=language, license=license, tags=tags)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> str | None:
        """Save the model, write its card and upload both (see `hub.push_model`); always waits for the end.

        Args:
            kwargs: for `create_model_card`, whose card is the one that is uploaded.
        Returns:
            Address of the repository, on the main process.
        Raises:
            hub.HubError: the model cannot be pushed; the local one is complete.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        options = {"token": token, "revision": revision or self.args.hub_revision, "keep_card": True}
        message = commit_message or "End of training"
        return push_model(self.args.output_dir, self.hub_model_id, commit_message=message, **options)


@contextmanager
def _naming(settings: str, remedy: str = "") -> Iterator[None]:
    """What cannot be made with these settings is said in one line.

    Raises:
        TrainingError: a package is missing, or a value does not fit.
    """
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise TrainingError(f"{settings}: {said}{remedy}") from error


@contextmanager
def _reading(checkpoint: str | None) -> Iterator[None]:
    """What cannot be read of a checkpoint is said in one line.

    Raises:
        TrainingError: a file is missing, empty or damaged.
    """
    try:
        yield
    except (TrainingError, MemoryError, torch.OutOfMemoryError):
        raise
    # Files of many kinds are read there, and what is wrong with one may be an EOFError, a SafetensorError, a KeyError, ...
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise TrainingError(
            f"{checkpoint} cannot be resumed from ({type(error).__name__}: {said}): give an earlier checkpoint, or start anew"
        ) from error
