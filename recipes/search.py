"""Search of hyperparameters of one stage with Optuna (`pip install ".[search]"`).

    python recipes/search.py                                                   # stage 2 on the bundled sample
    python recipes/search.py --config recipes/runne/e5-small-ru/search.yaml --dataset FOLDER --trials 40
    python recipes/search.py --help                                            # settings of the search

All other options are those of the stage, as --dataset or --levels, and hold for every trial. Stopped at any time, it goes on
where it was. It leaves the trials in `output_dir`/search.json, and the stage's settings with the best values in best.yaml.
"""

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import stage1
import stage2
import yaml
from grid import STAGES, config_path, dictionary_setting, stage_yaml
from transformers import HfArgumentParser, Trainer, set_seed

from runne_coner.arguments import UsageError, check_idle_settings, parse_settings, setting_values
from runne_coner.cli import exit_on_input_error
from runne_coner.files import write_text
from runne_coner.idle_settings import idle_settings
from runne_coner.search_space import Space, default_metrics, draw, metric_values, parse_space, split

DEFAULT_CONFIG = Path(__file__).parent / "sample" / "e5-small-ru" / "search.yaml"
STUDY = "search"
_FAILED_IN_A_ROW = 5
"""So many trials without a finished one end a search, which would have no end."""
_OF_THE_MACHINE = ("encoder_cache", "cpu_threads", "disable_tqdm", "report_to")
"""Settings of a stage that change no score."""


@dataclass
class SearchArguments:
    """What is searched, and by which measure."""

    stage: str = field(default="stage2", metadata={"help": "Stage whose settings are searched: stage1 or stage2."})
    stage_config: str | None = field(
        default=None,
        metadata={"help": "Settings of the stage; by default stage1.yaml or stage2.yaml beside the search's file."},
    )
    trial_settings: dict | str | None = field(
        default=None,
        metadata={"help": "Settings of the stage for trials only, as fewer epochs; on the command line as JSON."},
    )
    space: dict | str | None = field(
        default=None,
        metadata={"help": "Settings to search: {name: {low: A, high: B, log: true}} or {name: {choices: [A, B]}}."},
    )
    metric: list[str] | None = field(
        default=None,
        metadata={"help": "Metrics whose sum counts; by default macro_f1 and few_shot_f1, of stage 1 neighbour_accuracy."},
    )
    trials: int = field(default=20, metadata={"help": "Trials in all, those before a restart included."})
    pruning: bool = field(
        default=False,
        metadata={"help": "Evaluate after every epoch, and end trials that are behind the median of those before."},
    )
    max_hours: float | None = field(default=None, metadata={"help": "Begin no trial after so many hours."})
    output_dir: str = field(default="runs/search", metadata={"help": "Folder of the search."})

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"stage must be stage1 or stage2, got {self.stage!r}")
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")
        if Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            raise ValueError(f"output_dir {self.output_dir} is a file; give a folder")
        if self.max_hours is not None and not self.max_hours > 0:
            raise ValueError(f"max_hours must be positive, got {self.max_hours}")
        self.space, self.trial_settings = (
            dictionary_setting(name, getattr(self, name)) for name in ("space", "trial_settings")
        )

    @property
    def direction(self) -> str:
        """Whether the metrics should grow or fall, as Optuna calls it.

        Raises:
            UsageError: some should grow and others fall.
        """
        falling = {name for name in self.metric or () if name == "loss" or name.endswith(("_loss", "positive_distance"))}
        if falling and falling < set(self.metric):
            raise UsageError(f"metric: {', '.join(sorted(falling))} should fall and the others grow; their sum means nothing")
        return "minimize" if falling else "maximize"


# -- Settings of the stage ----------------------------------------------------------------------------------------------


@dataclass
class StageSettings:
    """`best` is the content of the YAML file that the best values go into, `trial` that of all trials.

    `best_parts` and `parts` are the same as the stage reads them: data, network, training, card.
    """

    best: dict
    trial: dict
    best_parts: list
    parts: list


def stage_settings(settings: SearchArguments, config: Path, rest: list[str]) -> StageSettings:
    """Settings of the trials: of the stage's file, `trial_settings` and the command line, in this order.

    Raises:
        UsageError: the stage would refuse them, or they contradict the search.
    """
    path = Path(settings.stage_config) if settings.stage_config else config.with_name(f"{settings.stage}.yaml")
    classes = STAGES[settings.stage]
    best_parts = parse_settings(["--config", str(path), *rest], classes, path, "")  # what is wrong is of this file
    overrides = named_settings(rest, classes)
    if twice := sorted(settings.space.keys() & (overrides.keys() | settings.trial_settings.keys())):
        raise UsageError(f"{', '.join(twice)}: searched, so no trial would take the value given; leave it out, or out of space")
    best = yaml.safe_load(path.read_text(encoding="utf-8")) | overrides
    trial = best | settings.trial_settings | overrides
    if secrets := sorted(name for name in trial if name.endswith("_token") and trial[name] is not None):
        raise UsageError(
            f"{', '.join(secrets)}: a search pushes nothing, and would write the secret into its files; leave it out"
        )
    # A trial keeps nothing and is scored once, at its end; with pruning after every epoch, the last included.
    own = {"output_dir": settings.output_dir, "save_strategy": "no", "load_best_model_at_end": False, "push_to_hub": False}
    own |= {"eval_strategy": "epoch" if settings.pruning else "no", "eval_on_start": False}
    trial_file = Path(settings.output_dir) / "trial.yaml"
    write_text(trial_file, stage_yaml(trial | own))
    parts = parse_settings(["--config", str(trial_file)], classes, trial_file, "")
    _, network, training, _ = parts
    if training.world_size > 1:
        raise UsageError("the search runs in one process: start it as python recipes/search.py, without a launcher")
    if training.resume_from_checkpoint is not None:
        raise UsageError("resume_from_checkpoint: a search goes on by itself in its output_dir; leave it out")
    check_idle_settings([network, training], settings.space)
    try:
        check_idle_settings(best_parts[1:3], settings.space)
    except UsageError as error:
        raise UsageError(f"{error} (trial_settings are those of trials, not of best.yaml)") from error
    if settings.stage == "stage1":
        network.check_against(training)
        if training.pair_mode == "sampled" and "positive_weight" in settings.space:
            raise UsageError("space: in pair_mode sampled positive_weight decides which pairs are drawn, once; leave it out")
    return StageSettings(best, trial, best_parts, parts)


def named_settings(argv: list[str], classes: list[type]) -> dict:
    """The settings that a command line names, in any spelling of theirs, with values as a YAML file may have them."""
    parser = HfArgumentParser(classes, allow_abbrev=False)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    given = vars(parser.parse_args(argv))
    # Enumerations occur in lists only; the parser gives single ones as text.
    plain = {name: [getattr(item, "value", item) for item in value] for name, value in given.items() if isinstance(value, list)}
    return given | plain


# -- Trials -------------------------------------------------------------------------------------------------------------


class Objective:
    """The sum of metrics of an evaluation; the running trial keeps them.

    `trial` is the running one, which the Trainer does not hand on.
    """

    def __init__(self, names: list[str]):
        self.names = names
        self.trial = None

    def __call__(self, metrics: Mapping[str, float]) -> float:
        # Of stage 1 nothing is measured where embeddings are not finite; to Optuna such a trial has failed.
        found = metric_values(metrics, self.names)
        self.trial.set_user_attr("metrics", found)
        return sum(found.values())


def make_search_trainer(settings: SearchArguments, parts: list, space: Space) -> tuple[Trainer, Objective]:
    """The stage's Trainer, which makes a network for every trial, and what its trials are measured by.

    Raises:
        UsageError: a metric is not given by the stage's evaluations.
    """
    data, network, training, _ = parts
    recipe = {"stage1": stage1, "stage2": stage2}[settings.stage]
    views = recipe.load_views(data, network, training)
    objective = Objective(list(settings.metric or ()))

    def model_init(trial=None):
        objective.trial = trial
        own = network if trial is None else _with(network, draw(space, trial))
        # Of stage 2 the heads start as the trial's `training`, which the Trainer shares, says.
        return recipe.make_model(views, data, own, *([training] if recipe is stage2 else []))

    trainer = recipe.make_trainer(views, training, model_init=model_init)
    known = views.metrics if recipe is stage2 else trainer.metric_names()
    objective.names = objective.names or default_metrics(known)
    if unknown := [name for name in objective.names if name not in known]:
        raise UsageError(f"metric {', '.join(unknown)}: {settings.stage} measures {', '.join(known)} on these documents")
    return trainer, objective


def _with(owner: Any, settings: Mapping[str, Any]) -> Any:
    """Settings of a stage with those of a trial, whose values may be possible each, but not together."""
    own = split(owner, settings)
    try:
        return replace(owner, **own)
    except ValueError as error:
        raise UsageError(f"space: {own} cannot be combined: {error}; narrow the space") from error


def run_trials(study, storage: str, settings: SearchArguments, trainer: Trainer, objective: Objective, space: Space) -> None:
    """Trials until `settings.trials` are finished, or the time is up; failed ones do not count.

    Raises:
        UsageError: values of the space cannot be combined, or one trial after the other fails.
    """
    import optuna

    def hp_space(trial) -> dict:
        chosen = draw(space, trial)
        _with(trainer.args, chosen)
        return split(trainer.args, chosen)

    begun, seed, old = time.monotonic(), trainer.args.seed, len(study.get_trials(deepcopy=False))
    while (done := len(finished(study))) < settings.trials:
        left = None if settings.max_hours is None else settings.max_hours * 3600 - (time.monotonic() - begun)
        if left is not None and left <= 0:
            return
        before = len(study.get_trials(deepcopy=False))
        try:
            trainer.hyperparameter_search(
                hp_space=hp_space,
                compute_objective=objective,
                n_trials=min(settings.trials - done, _FAILED_IN_A_ROW),
                direction=settings.direction,
                backend="optuna",
                study_name=STUDY,
                storage=storage,
                load_if_exists=True,
                # A sampler of the same seed would draw the same first trials again after a restart.
                sampler=optuna.samplers.TPESampler(seed=seed + before),
                pruner=optuna.pruners.MedianPruner() if settings.pruning else optuna.pruners.NopPruner(),
                timeout=left,
            )
        except ValueError as error:
            # Optuna has no best trial if none is complete. What went wrong within a trial left it without metrics.
            new = study.get_trials(deepcopy=False)[before:]
            if isinstance(error, UsageError) or (new and "metrics" not in new[-1].user_attrs):
                raise
        # One that is left to be run may have failed, and the next one need not.
        last = study.get_trials(deepcopy=False)[old:][-_FAILED_IN_A_ROW:]
        if len(last) == _FAILED_IN_A_ROW and {trial.state for trial in last} == {optuna.trial.TrialState.FAIL}:
            raise UsageError(
                f"the last {len(last)} trials failed, as their metrics are not finite: see the log, and narrow the space"
            )


# -- The study on disk --------------------------------------------------------------------------------------------------


def open_study(settings: SearchArguments, trial_settings: dict):
    """The study in `output_dir`, and its address; trials that a killed program left running have failed.

    Raises:
        UsageError: it has trials with other settings, or its file is damaged.
    """
    import optuna
    from sqlalchemy.exc import DatabaseError  # of Optuna's storage

    storage = f"sqlite:///{(Path(settings.output_dir) / 'search.db').as_posix()}"
    try:
        study = optuna.create_study(storage=storage, study_name=STUDY, direction=settings.direction, load_if_exists=True)
        if not study.get_trials(deepcopy=False):
            # Of a search that stopped before its first trial, as at a wrong path: nothing of it, as the direction, binds.
            optuna.delete_study(study_name=STUDY, storage=storage)
            study = optuna.create_study(storage=storage, study_name=STUDY, direction=settings.direction)
    except DatabaseError as error:
        file = Path(settings.output_dir) / "search.db"
        raise UsageError(f"{file}: not readable as a search ({error.orig}); give another --output_dir, or remove it") from error
    now = {name: getattr(settings, name) for name in ("stage", "metric", "space")}
    now |= {name: value for name, value in trial_settings.items() if name not in _OF_THE_MACHINE}
    now = json.loads(json.dumps(now))  # as they are read again
    before = study.user_attrs.get("settings", now)
    if changed := sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name)):
        was = "; ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed[:3])
        raise UsageError(
            f"{settings.output_dir}: its trials had other settings: {was}. Restore them, or give another --output_dir"
        )
    study.set_user_attr("settings", now)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study, storage


def finished(study) -> list:
    """Trials that count: complete and pruned ones."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])


def result_settings(stage: StageSettings, drawn: Mapping[str, Any]) -> dict:
    """The stage's settings with the values that a trial drew; without those that others make idle, which it would refuse."""
    content = stage.best | drawn
    idle = idle_settings(setting_values(stage.best_parts) | drawn)
    return {name: value for name, value in content.items() if name not in idle}


def write_results(study, settings: SearchArguments, stage: StageSettings) -> None:
    """Write search.json and, once a trial is complete, best.yaml; print the best values and the next command."""
    folder = Path(settings.output_dir)
    trials = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            # Optuna gives a pruned trial its last value, which is not that of a whole training.
            "value": trial.value if trial.state.name == "COMPLETE" else None,
            "settings": trial.params,
            "metrics": {name: value for name, value in trial.user_attrs.get("metrics", {}).items() if math.isfinite(value)},
            "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    choose = max if settings.direction == "maximize" else min
    best = choose(complete, key=lambda trial: trial["value"]) if complete else None
    result = {"stage": settings.stage, "direction": settings.direction, "best": best, "trials": trials}
    write_text(folder / "search.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if best is None:
        print(f"no trial is complete yet; the same command goes on in {folder}")
        return
    head = f"# {settings.stage} with the best values of {len(complete)} complete trials: trial {best['trial']}.\n"
    path = folder / "best.yaml"
    write_text(path, head + stage_yaml(result_settings(stage, best["settings"])))
    parse_settings(["--config", str(path)], STAGES[settings.stage], path, "")
    print(f"best of {len(complete)} complete trials: {best['value']:.4f} with {json.dumps(best['settings'])}")
    if len(finished(study)) < settings.trials:
        print(f"{len(finished(study))} of {settings.trials} trials are finished; the same command goes on")
    print(f"next: accelerate launch recipes/{settings.stage}.py --config {path}")


def main(argv: list[str]) -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UsageError('the search needs Optuna: pip install ".[search]"')
    settings, rest = parse_settings(argv, [SearchArguments], DEFAULT_CONFIG, __doc__, others=True)
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / "search.lock", timeout=0):
            stage = stage_settings(settings, config_path(argv, DEFAULT_CONFIG), rest)
            _, network, training, _ = stage.parts
            space = parse_space(settings.space, settings.stage, [network, training])
            study, storage = open_study(settings, stage.trial)
            if len(finished(study)) < settings.trials:
                set_seed(training.seed)
                training.use_cpu_threads()
                trainer, objective = make_search_trainer(settings, stage.parts, space)
                run_trials(study, storage, settings, trainer, objective, space)
            write_results(study, settings, stage)
    except filelock.Timeout as error:
        raise UsageError(f"{folder}: another search is at work there; wait for it, or give another --output_dir") from error


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
