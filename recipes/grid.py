"""The grid of `experiment.py`: its settings, its cells, and the settings of every cell's stages."""

import argparse
import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import stage1
import stage2
import yaml

from runne_coner.arguments import (
    CardArguments,
    DataArguments,
    UsageError,
    check_idle_settings,
    parse_settings,
    whole_checkpoints,
)
from runne_coner.files import write_text
from runne_coner.significance import RESAMPLES
from runne_coner.training_args import ContrastiveTrainingArguments, NestedNerTrainingArguments

DEFAULT_CONFIG = Path(__file__).parent / "sample" / "e5-small-ru" / "experiment.yaml"
SCHEMES = ("standard", "coner", "standard-long")
STAGES = {
    "stage1": [DataArguments, stage1.Stage1Arguments, ContrastiveTrainingArguments, CardArguments],
    "stage2": [DataArguments, stage2.Stage2Arguments, NestedNerTrainingArguments, CardArguments],
}
OF_THE_GRID = ("model_name_or_path", "output_dir", "seed", "encoder_cache", "resume_from_checkpoint")
"""Settings of a stage that the grid gives to each cell."""
WHERE = ("output_dir", "encoder_cache")
"""Settings of a stage that say where files lie, not what is trained."""


@dataclass
class ExperimentArguments:
    """The grid, and the settings of its stages."""

    encoders: list[str] = field(
        default_factory=lambda: ["e5-small-ru"],
        metadata={"help": "Encoders to start from: Hub ids, folders, or e5-small-ru (built from a PyPI package)."},
    )
    schemes: list[str] = field(
        default_factory=lambda: list(SCHEMES), metadata={"help": "Schemes: standard, coner, standard-long."}
    )
    seeds: list[int] = field(default_factory=lambda: [42], metadata={"help": "Seeds; each gives one cell per scheme."})
    output_dir: str = field(default="runs/experiment", metadata={"help": "Folder of the cells and the report."})
    stage1_config: str | None = field(
        default=None, metadata={"help": "Settings of recipes/stage1.py; by default stage1.yaml beside the experiment's file."}
    )
    stage2_config: str | None = field(
        default=None, metadata={"help": "Settings of recipes/stage2.py; by default stage2.yaml beside the experiment's file."}
    )
    stage1: dict | str | None = field(
        default=None, metadata={"help": "Settings that replace those of stage1_config, on the command line as JSON."}
    )
    stage2: dict | str | None = field(
        default=None, metadata={"help": "Settings that replace those of stage2_config, on the command line as JSON."}
    )
    long_epochs: float | None = field(
        default=None, metadata={"help": "Epochs of standard-long; by default those of stage 2 plus those of stage 1."}
    )
    encoder_cache: str | None = field(
        default=None, metadata={"help": "Folder in which e5-small-ru is kept; by default the user's cache."}
    )
    max_hours: float | None = field(default=None, metadata={"help": "Start no cell after so many hours."})
    report_only: bool = field(default=False, metadata={"help": "Run nothing; make the report of the finished cells again."})
    figure_type: str | None = field(
        default=None, metadata={"help": "Type of Figure 3; by default MONEY, or the type with the most evaluated words."}
    )
    figure_words: int = field(default=3000, metadata={"help": "Words that Figure 3 shows at most."})
    error_cells: list[str] | None = field(
        default=None,
        metadata={"help": "Cells, as ENCODER/SCHEME/seed-SEED, whose errors are analysed; by default the first coner cell."},
    )
    resamples: int = field(default=RESAMPLES, metadata={"help": "Resamples of the bootstrap over documents."})

    def __post_init__(self):
        for name in ("encoders", "schemes", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be a list without repetitions of at least one, got {values}")
        unknown = sorted(set(self.schemes) - set(SCHEMES))
        if unknown:
            raise ValueError(f"schemes must be among {SCHEMES}, got {unknown}")
        if len({folder_name(encoder) for encoder in self.encoders}) < len(self.encoders):
            raise ValueError(f"encoders {self.encoders} would share a folder; give them different names")
        if self.long_epochs is not None and self.long_epochs <= 0:
            raise ValueError(f"long_epochs must be positive, got {self.long_epochs}")
        if self.max_hours is not None and self.max_hours < 0:
            raise ValueError(f"max_hours must be at least 0, got {self.max_hours}")
        if self.figure_words < 20 or self.resamples < 1:
            raise ValueError(
                f"figure_words must be at least 20 and resamples at least 1, got {self.figure_words} and {self.resamples}"
            )
        self.stage1, self.stage2 = dictionary_setting("stage1", self.stage1), dictionary_setting("stage2", self.stage2)


def is_hub_id(encoder: str) -> bool:
    """Whether an encoder is named as `owner/name`, and is no folder."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", encoder)) and not encoder.startswith(".") and not Path(encoder).is_dir()


def shown_name(encoder: str) -> str:
    """An encoder as reports name it: its Hub id, or the last part of its path."""
    return encoder if is_hub_id(encoder) else Path(encoder).resolve().name


def folder_name(encoder: str) -> str:
    """Name of an encoder's folder: `owner--name` for a Hub id, the last part of a path."""
    return re.sub(r"[^\w.-]", "_", shown_name(encoder).replace("/", "--")) or "encoder"


def dictionary_setting(name: str, value: dict | str | None) -> dict:
    """A setting that a YAML file gives as a dictionary and the command line as JSON.

    Raises:
        ValueError: it is neither.
    """
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        found = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f'{name} must be a JSON object such as {{"learning_rate": 1e-5}}, got {value!r}: {error}') from error
    if not isinstance(found, dict):
        raise ValueError(f'{name} must be a JSON object such as {{"learning_rate": 1e-5}}, got {value!r}')
    return found


# -- The grid -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One run of the grid: `stages` holds the settings of each of its stages, in the order in which they run."""

    encoder: str
    scheme: str
    seed: int
    folder: Path
    stages: dict[str, dict]

    @property
    def name(self) -> str:
        return f"{folder_name(self.encoder)}/{self.scheme}/seed-{self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    def results(self, stage: str) -> Path:
        """What a finished stage leaves: its cost and its last evaluation."""
        return self.folder / f"{stage}_results.json"

    def config(self, stage: str) -> Path:
        return self.folder / f"{stage}.yaml"

    def checkpoints(self, stage: str) -> list[Path]:
        """Checkpoints that can be resumed from."""
        return whole_checkpoints(self.folder / stage)


def make_grid(settings: ExperimentArguments, data: DataArguments, config: Path) -> list[Cell]:
    """The cells in the order in which they run: seeds, encoders, schemes.

    Args:
        config: the experiment's YAML file, beside which those of the stages lie by default.
    Raises:
        UsageError: a stage's settings cannot be read, are unknown, or are the grid's to set.
    """
    shared = dataclasses.asdict(data)
    bases = {stage: _stage_settings(settings, stage, config, shared) for stage in STAGES}
    cells = []
    for seed in settings.seeds:
        for encoder in settings.encoders:
            for scheme in settings.schemes:
                folder = Path(settings.output_dir) / folder_name(encoder) / scheme / f"seed-{seed}"
                own = {"seed": seed} | ({"encoder_cache": settings.encoder_cache} if settings.encoder_cache else {})
                stages = {}
                if scheme == "coner":
                    output = {"model_name_or_path": encoder, "output_dir": str(folder / "stage1")}
                    stages["stage1"] = bases["stage1"] | own | output
                start = str(folder / "stage1") if scheme == "coner" else encoder
                length = _long(bases, settings) if scheme == "standard-long" else {}
                output = {"model_name_or_path": start, "output_dir": str(folder / "stage2")}
                stages["stage2"] = bases["stage2"] | own | length | output
                cells.append(Cell(encoder, scheme, seed, folder, stages))
    return cells


def _stage_settings(settings: ExperimentArguments, stage: str, config: Path, shared: dict) -> dict:
    """Settings of a stage that all cells share: of its file, replaced by `settings.stage1` or `stage2`, and the data's."""
    given = {"stage1": settings.stage1_config, "stage2": settings.stage2_config}[stage]
    path = Path(given) if given else config.with_name(f"{stage}.yaml")
    # Reports what is wrong with the file as such.
    parse_settings(["--config", str(path), "--output_dir", settings.output_dir], STAGES[stage], path, "")
    of_file = yaml.safe_load(path.read_text(encoding="utf-8"))
    overrides = {"stage1": settings.stage1, "stage2": settings.stage2}[stage]
    for key in overrides:
        if key in OF_THE_GRID or key in shared:
            raise UsageError(f"{stage}: {key} is the experiment's to set; give it beside {stage}, not in it")
    corpora = ("dataset", "train_split", "eval_dataset", "eval_split", "eval_fraction")
    for key in of_file.keys() & shared.keys() - set(corpora):
        if of_file[key] != shared[key]:
            raise UsageError(
                f"{path}: {key} is {of_file[key]!r} there and {shared[key]!r} in the experiment; both stages share the"
                f" data's settings: say --{key} {of_file[key]} to the experiment, or leave it out there"
            )
    return {key: value for key, value in of_file.items() if key not in OF_THE_GRID} | overrides | shared


def _long(bases: dict[str, dict], settings: ExperimentArguments) -> dict:
    """Length of stage 2 in `standard-long`: its own plus that of stage 1, in epochs or, where they are set, in steps."""
    if settings.long_epochs is not None:
        return {"num_train_epochs": settings.long_epochs, "max_steps": -1}
    first, second = (stage_parts(stage, bases[stage] | {"output_dir": settings.output_dir})[2] for stage in STAGES)
    if first.pair_mode == "sampled":
        raise UsageError(
            "with pair_mode sampled an epoch of stage 1 is no pass over the texts: say long_epochs for standard-long"
        )
    if (first.max_steps > 0) != (second.max_steps > 0):
        raise UsageError("max_steps is set in one stage only: set it in both, or say long_epochs for standard-long")
    if second.max_steps > 0:
        sizes = [part.per_device_train_batch_size * part.gradient_accumulation_steps for part in (first, second)]
        return {"max_steps": second.max_steps + math.ceil(first.max_steps * sizes[0] / sizes[1])}
    return {"num_train_epochs": second.num_train_epochs + first.num_train_epochs}


def stage_parts(stage: str, content: dict) -> list:
    """What a stage will make of its settings: data, network, training, card."""
    folder = Path(content["output_dir"])
    path = folder / f".{stage}.check.yaml"
    try:
        write_text(path, stage_yaml(content))
        return parse_settings(["--config", str(path)], STAGES[stage], path, "")
    except UsageError as error:
        # The file is gone when the message is read.
        raise UsageError(f"{stage}: {str(error).removeprefix(f'{path}: ')}") from error
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); give another --output_dir") from error
    finally:
        path.unlink(missing_ok=True)


def stage_yaml(content: dict) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def check_grid(cells: list[Cell]) -> None:
    """Refuse settings that no stage would take, and cells that were begun with other settings.

    Raises:
        UsageError
    """
    for stage, content in {stage: cell.stages[stage] for cell in cells for stage in cell.stages}.items():
        parts = stage_parts(stage, content)
        try:
            check_idle_settings(parts)
            if stage == "stage1":
                _, network, training, _ = parts
                network.check_against(training)
        except UsageError as error:
            raise UsageError(f"{stage}: {error}") from error
    begun = []
    for cell in cells:
        for stage, content in cell.stages.items():
            if cell.results(stage).exists() or cell.checkpoints(stage):
                begun += [f"{cell.folder}: {stage}: {text}" for text in _differences(cell, stage, content)]
    if begun:
        more = f" (and {len(begun) - 3} more differences)" if len(begun) > 3 else ""
        raise UsageError(
            f"cells were run with other settings: {'; '.join(begun[:3])}{more}."
            " Restore the settings, give another --output_dir, or delete these cells' folders to run them anew"
        )


def _differences(cell: Cell, stage: str, wanted: dict) -> list[str]:
    try:
        recorded = yaml.safe_load(cell.config(stage).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [f"{cell.config(stage).name} is missing"]
    elsewhere = {*WHERE, "model_name_or_path"} if cell.scheme == "coner" and stage == "stage2" else set(WHERE)
    keys = sorted((recorded.keys() | wanted.keys()) - elsewhere)
    # As YAML, a list is a list, and a number what it will be read as.
    wanted = yaml.safe_load(stage_yaml(wanted))
    return [f"{key} was {recorded.get(key)!r}, is {wanted.get(key)!r}" for key in keys if recorded.get(key) != wanted.get(key)]


def config_path(argv: list[str], default: Path = DEFAULT_CONFIG) -> Path:
    """The file that `parse_settings` reads."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default=str(default))
    return Path(parser.parse_known_args(argv)[0].config)
