"""What a search of hyperparameters chooses from, settings of a stage with a range or a list of values each, and by what."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

_SHARED = (
    "learning_rate weight_decay warmup_steps lr_scheduler_type num_train_epochs max_steps per_device_train_batch_size"
    " gradient_accumulation_steps max_grad_norm adam_beta1 adam_beta2 adam_epsilon label_smoothing_factor optim lookahead"
    " lookahead_alpha train_sampling_strategy"
)
_STAGE1 = "margin positive_weight overlap_weight same_surface_weight mining mining_margin span_pooling projection_size"
_STAGE2 = (
    "ce_weight dice_weight dice_smoothing dice_reduction ce_form focal_gamma logit_adjustment"
    " rare_type_share head_learning_rate layer_decay ema_decay rdrop_weight head_dropout"
    " head_init transitions candidate_paths scorer_weight scorer_learning_rate"
)
TUNABLE = {"stage1": frozenset(f"{_SHARED} {_STAGE1}".split()), "stage2": frozenset(f"{_SHARED} {_STAGE2}".split())}
"""Settings that may differ between trials: no documents or views, made once, follow from them."""


DEFAULT_METRICS = ("macro_f1", "few_shot_f1", "neighbour_accuracy")
"""Metrics whose sum a search maximises by default, of those that are measured: two of stage 2, and one of stage 1."""


class SpaceError(ValueError):
    """A space that cannot be searched, or not by such metrics; the message names the setting and what to change."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if `whole`; with `log` equally likely by order of magnitude."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, name: str, trial: Any) -> float | int:
        """What an Optuna trial suggests."""
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        return suggest(name, self.low, self.high, log=self.log)

    @property
    def typical(self) -> float | int:
        """The value in the middle."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return round(middle) if self.whole else middle

    @property
    def extremes(self) -> tuple:
        """Values of which all are allowed if any others are."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of the `values`."""

    values: tuple

    def draw(self, name: str, trial: Any) -> Any:
        """What an Optuna trial suggests."""
        return trial.suggest_categorical(name, self.values)

    @property
    def typical(self) -> Any:
        """The first value."""
        return self.values[0]

    @property
    def extremes(self) -> tuple:
        """All values."""
        return self.values


Space = dict[str, Range | Choice]


def parse_space(content: Mapping[str, Any], stage: str, owners: Sequence[Any]) -> Space:
    """The space that a YAML file describes: `{name: {low: 1e-5, high: 1e-3, log: true}, other: {choices: [a, b]}}`.

    Args:
        stage: `stage1` or `stage2`.
        owners: instances of the dataclasses whose fields the settings are, with the values of what is not searched.
    Raises:
        SpaceError: a setting is unknown, or fixed; a range is none; or the stage would refuse a value.
    """
    if not content:
        raise SpaceError("space: nothing to search; give at least one setting, as learning_rate: {low: 1e-5, high: 1e-3}")
    hints = {name: hint for owner in owners for name, hint in get_type_hints(type(owner)).items()}
    space = {}
    for name, entry in content.items():
        if name not in TUNABLE[stage]:
            why = "is fixed, as all trials share the documents and their views" if name in hints else "is unknown"
            raise SpaceError(f"space: {name} {why}; what {stage} can search: {', '.join(sorted(TUNABLE[stage]))}")
        kind = hints[name] if hints[name] in (bool, int, float) else str
        space[name] = _parse_entry(name, entry, kind)
    _check_values(space, owners)
    return space


def draw(space: Space, trial: Any) -> dict[str, Any]:
    """Values of all settings for an Optuna trial; asked again, a trial gives the same."""
    return {name: entry.draw(name, trial) for name, entry in space.items()}


def split(owner: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are fields of a dataclass instance."""
    names = {item.name for item in fields(owner)}
    return {name: value for name, value in settings.items() if name in names}


def default_metrics(known: Collection[str]) -> list[str]:
    """Those of `DEFAULT_METRICS` that are among the known ones; `few_shot_f1` is only where there are few-shot types.

    Raises:
        SpaceError: none is known.
    """
    if names := [name for name in DEFAULT_METRICS if name in known]:
        return names
    raise SpaceError(
        f"none of {', '.join(DEFAULT_METRICS)} is measured, only {', '.join(known)}; say what is to be optimised, as metric"
        " of recipes/search.py or compute_objective of a Trainer, or give the Trainer compute_metrics"
    )


def metric_values(metrics: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The named metrics of an evaluation, in which their names begin with `eval_`; NaN, and so a failed trial, if missing."""
    return {name: metrics.get(f"eval_{name}", math.nan) for name in names}


def default_objective(metrics: Mapping[str, float]) -> float:
    """What a search maximises by default, from the metrics of an evaluation; NaN where the network has diverged.

    Raises:
        SpaceError: the loss is finite, and none of `DEFAULT_METRICS` is measured.
    """
    known = [name.removeprefix("eval_") for name in metrics if name.startswith("eval_")]
    if not math.isfinite(metrics.get("eval_loss", 0.0)) and set(DEFAULT_METRICS).isdisjoint(known):
        return math.nan
    return sum(metric_values(metrics, default_metrics(known)).values())


def _parse_entry(name: str, entry: Any, kind: type) -> Range | Choice:
    keys = set(entry) if isinstance(entry, Mapping) else set()
    if keys == {"choices"}:
        values = entry["choices"]
        if not isinstance(values, list) or len(values) < 2 or len({str(value) for value in values}) < len(values):
            raise SpaceError(f"space: {name}: choices must be a list of at least two different values, got {values!r}")
        return Choice(tuple(_value(name, value, kind) for value in values))
    if not {"low", "high"} <= keys or keys - {"low", "high", "log"}:
        raise SpaceError(
            f"space: {name}: expected {{low: A, high: B, log: true or false}} or {{choices: [...]}}, got {entry!r}"
        )
    if kind not in (int, float):
        raise SpaceError(f"space: {name} is no number, so it has no range; give {{choices: [...]}}")
    low, high = (_value(name, entry[key], kind) for key in ("low", "high"))
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise SpaceError(f"space: {name}: log must be true or false, got {log!r}")
    if not low < high:
        raise SpaceError(f"space: {name}: low must be less than high, got {low} and {high}")
    if log and low <= 0:
        raise SpaceError(f"space: {name}: with log, low must be above 0, got {low}")
    return Range(low, high, log, whole=kind is int)


def _value(name: str, value: Any, kind: type) -> Any:
    """A value as the setting's type; YAML reads 5e-5 as text."""
    if kind in (bool, str):
        if not isinstance(value, kind):
            raise SpaceError(f"space: {name}: {value!r} should be of the type {kind.__name__}; text such as no needs quotes")
        return value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or kind is int and not number.is_integer():
        raise SpaceError(f"space: {name}: {value!r} is no {'whole' if kind is int else 'finite'} number")
    return kind(number)


def _check_values(space: Space, owners: Sequence[Any]) -> None:
    typical = {name: entry.typical for name, entry in space.items()}
    for name, entry in space.items():
        owner = next(owner for owner in owners if any(item.name == name for item in fields(owner)))
        for value in entry.extremes:
            try:
                replace(owner, **split(owner, typical | {name: value}))
            except ValueError as error:
                raise SpaceError(f"space: {name}: {value!r}: {' '.join(str(error).split())}") from error
