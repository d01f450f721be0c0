"""Settings of the recipes: data and network options, and a YAML file with `--key value` overrides for all of them."""

import argparse
import difflib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import yaml
from datasets import Dataset
from transformers import HfArgumentParser

from .corpora import Part, merge_corpora, read_type_mapping
from .idle_settings import idle_settings
from .nerel import FEW_SHOT_TYPES, load_documents, load_entity_types
from .windows import WindowSettings

logger = logging.getLogger("runne_coner.arguments")


class UsageError(ValueError):
    """A command line or configuration that cannot be meant; the message says what to change."""


@dataclass
class DataArguments:
    """Which documents are trained on, which ones are evaluated, and how they are cut into windows."""

    dataset: str = field(
        default="sample",
        metadata={"help": "Training corpus: sample, nerel, runne, a brat folder, a file (JSONL, BIO), or a folder of splits."},
    )
    train_split: str = field(default="train", metadata={"help": "Split of the training corpus to train on."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Corpus to evaluate on; by default the training corpus."})
    eval_split: str | None = field(
        default=None,
        metadata={"help": "Split to evaluate on; without it, eval_fraction of the training documents is held out."},
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training documents held out when there is no eval_split."}
    )
    entity_types: list[str] | None = field(
        default=None,
        metadata={"help": "Types to learn; by default the training corpus's, then those of the evaluation documents alone."},
    )
    few_shot_types: list[str] | None = field(
        default=None,
        metadata={"help": "Types scored apart; by default DISEASE, PENALTY, WORK_OF_ART where the corpus has them all."},
    )
    strict: bool | None = field(
        default=None, metadata={"help": "Stop at the first defect of a corpus (true) or repair and report (false)."}
    )
    max_documents: int | None = field(
        default=None, metadata={"help": "Use only so many documents for training and for evaluation, for trials."}
    )
    max_length: int = field(default=128, metadata={"help": "Sub-words of a window, special tokens included."})
    max_sentences: int = field(default=1, metadata={"help": "Sentences of a window at most; 0 = as many as fit."})
    stride: int = field(default=32, metadata={"help": "Sub-words shared by the pieces of a sentence longer than a window."})

    def __post_init__(self):
        if self.max_documents is not None and self.max_documents < 1:
            raise ValueError(f"max_documents must be at least 1, got {self.max_documents}")
        if not 0 <= self.stride < self.max_length:
            raise ValueError(f"stride must be at least 0 and less than max_length, got {self.stride} of {self.max_length}")
        if self.max_sentences < 0:
            raise ValueError(f"max_sentences must be 0 (no limit) or more, got {self.max_sentences}")

    @property
    def windows(self) -> WindowSettings:
        return WindowSettings(self.max_length, self.max_sentences, self.stride)


@dataclass
class EncoderArguments:
    """Which encoder is fine-tuned."""

    model_name_or_path: str = field(
        default="e5-small-ru",
        metadata={"help": "Encoder to start from: a Hub id, a folder, or e5-small-ru (built from a PyPI package)."},
    )
    encoder_cache: str | None = field(
        default=None, metadata={"help": "Folder in which e5-small-ru is kept; by default the user's cache."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Revision of the encoder on the Hub."})

    def hub_options(self) -> dict:
        """Keyword arguments for `from_pretrained`."""
        return {} if self.model_revision is None else {"revision": self.model_revision}


@dataclass
class CardArguments:
    """What the model card says and no run can find out."""

    language: list[str] | None = field(
        default=None, metadata={"help": "ISO codes for the model card; by default 'ru' for nerel, runne and sample."}
    )
    license: str | None = field(default=None, metadata={"help": "License of the model for its card; by default none is named."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Name of the training corpus in the model card, where dataset is a file or folder."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Name of the corpus of eval_dataset in the model card, where it is a file or folder."}
    )


@dataclass
class Corpus:
    """Documents of a run: `train` and `evaluation` datasets, and the types to learn.

    `annotated` says which corpus annotates which type, where there are several (`corpora.MergedCorpora`).
    """

    train: Dataset
    evaluation: Dataset
    entity_types: list[str]
    few_shot_types: list[str]
    annotated: np.ndarray | None = None


def load_corpus(arguments: DataArguments, seed: int) -> Corpus:
    """Training and evaluation documents as the arguments say.

    Without `entity_types`, types that only the evaluation documents have come last, as they count as missed there.

    Args:
        seed: of the draw of held-out documents, where there is no evaluation split.
    Raises:
        UsageError, documents.CorpusError: a setting or a corpus is wrong.
    """
    loaded = load_documents(arguments.dataset, split=arguments.train_split, strict=arguments.strict)
    train = loaded[arguments.train_split]
    if arguments.eval_split is not None:
        # The default is in the configurations of recipes/own, where a split may be named as well.
        if arguments.eval_fraction != DataArguments.eval_fraction:
            raise UsageError(
                f"eval_fraction {arguments.eval_fraction} changes nothing with eval_split {arguments.eval_split}; leave one of"
                " them out"
            )
        name = arguments.eval_dataset or arguments.dataset
        evaluation = load_documents(name, split=arguments.eval_split, strict=arguments.strict)[arguments.eval_split]
    elif arguments.eval_dataset is not None:
        raise UsageError(f"eval_dataset {arguments.eval_dataset} needs eval_split: say which split to evaluate on")
    else:
        if not 0.0 < arguments.eval_fraction < 1.0 or len(train) < 2:
            raise UsageError(
                f"eval_fraction {arguments.eval_fraction} of {len(train)} documents cannot be held out;"
                " name an eval_split, or give more documents and a share between 0 and 1"
            )
        parts = train.train_test_split(test_size=arguments.eval_fraction, seed=seed)
        train, evaluation = parts["train"], parts["test"]
    if arguments.max_documents is not None:
        train, evaluation = (part.take(min(arguments.max_documents, len(part))) for part in (train, evaluation))
    types = _types_of_all(load_entity_types(arguments.dataset, loaded), evaluation)
    if arguments.entity_types is not None:
        types = _chosen_types(arguments.entity_types, types)
        train = of_types(train, types, "training documents")
        evaluation = of_types(evaluation, types, "evaluation documents")
    few_shot = arguments.few_shot_types
    if few_shot is None:
        few_shot = [name for name in FEW_SHOT_TYPES if set(FEW_SHOT_TYPES) <= set(types)]
    unknown = sorted(set(few_shot) - set(types))
    if unknown:
        raise UsageError(f"few_shot_types {unknown} are not among the entity types {types}")
    return Corpus(train, evaluation, types, few_shot)


def _mentions(documents: Dataset) -> Counter:
    return Counter(entity["type"] for entities in documents["entities"][:] for entity in entities)


def _types_of_all(types: list[str], evaluation: Dataset) -> list[str]:
    """The types of the training corpus, and after them those that only the evaluation documents have: they count as missed."""
    return types + sorted(_mentions(evaluation).keys() - set(types))


def warn_of_unlearnable_types(corpus: Corpus) -> None:
    """Warn of the types that no training document mentions, and say how often the evaluation documents do."""
    learnt, wanted = _mentions(corpus.train), _mentions(corpus.evaluation)
    if missing := [name for name in corpus.entity_types if not learnt[name]]:
        logger.warning(
            "no training document mentions these types, so their heads can only learn to find nothing: %s; entity_types"
            " says which types to learn",
            ", ".join(f"{name} ({wanted[name]} in the evaluation documents)" for name in missing),
        )


def load_corpora(arguments: DataArguments, extra: Sequence[str], type_mapping: str | dict | None, seed: int) -> Corpus:
    """As `load_corpus`, and other corpora to train on beside it.

    Args:
        extra: names or paths of further training corpora; `NAME@SPLIT` takes a split other than `train_split`, or than the
            only one.
        type_mapping: see `corpora.read_type_mapping`.
    Raises:
        UsageError, documents.CorpusError: a setting or a corpus is wrong.
    """
    corpus, mapping = load_corpus(arguments, seed), read_type_mapping(type_mapping)
    if not extra and not mapping:
        return corpus
    parts = [Part(arguments.dataset, corpus.train, corpus.entity_types)]
    for setting in extra:
        name, _, split = setting.partition("@")
        loaded = load_documents(name, strict=arguments.strict)
        split = split or (arguments.train_split if len(loaded) > 1 else next(iter(loaded)))
        if split not in loaded:
            raise UsageError(
                f"extra_datasets {setting}: no split {split!r}; write {name}@SPLIT with one of {', '.join(loaded)}"
            )
        documents = loaded[split]
        if arguments.max_documents is not None:
            documents = documents.take(min(arguments.max_documents, len(documents)))
        parts.append(Part(name, documents, load_entity_types(name, loaded)))
    merged = merge_corpora(parts, corpus.evaluation, mapping)
    few_shot = [name for name in corpus.few_shot_types if name in merged.entity_types]
    return Corpus(merged.documents, merged.evaluation, merged.entity_types, few_shot, merged.annotated)


def _chosen_types(chosen: list[str], known: list[str]) -> list[str]:
    if not chosen:
        raise UsageError("entity_types: the list is empty; name the types to learn, or leave it out to learn all of the corpus")
    for name in chosen:
        if name not in known:
            raise UsageError(f"entity_types: the documents have no type {name}; they have {', '.join(known)}")
    return list(dict.fromkeys(chosen))


def of_types(documents: Dataset, types: Collection[str], role: str, where: str = "entity_types") -> Dataset:
    """The documents without the entities of other types, which are counted in a message.

    Args:
        role, where: what the message calls the documents, and the types that stay.
    """
    left_out = Counter({name: count for name, count in _mentions(documents).items() if name not in types})
    if not left_out:
        return documents
    counts = ", ".join(f"{name} {count}" for name, count in left_out.most_common())
    print(f"{role}: left out {left_out.total()} entities of types that are not among {where}: {counts}")
    return documents.map(
        lambda row: {"entities": [entity for entity in row["entities"] if entity["type"] in types]},
        features=documents.features,
        load_from_cache_file=False,
        desc=f"entities of {len(types)} types",
    )


def check_best_metric(name: str | None, known: Iterable[str]) -> None:
    """Refuse, before hours of training, a `metric_for_best_model` that no evaluation will give.

    Raises:
        UsageError: it is not among the known names (with or without `eval_` before it).
    """
    names = list(known)
    if name is not None and name.removeprefix("eval_") not in names:
        raise UsageError(f"metric_for_best_model {name} is none of the metrics of this stage: {', '.join(names)}")


def setting_values(owners: Sequence[Any]) -> dict[str, Any]:
    """Settings by name of instances of dataclasses."""
    return {item.name: getattr(owner, item.name) for owner in owners for item in fields(owner)}


def check_idle_settings(owners: Sequence[Any], searched: Collection[str] = ()) -> None:
    """Refuse settings that were given, and change nothing.

    Args:
        owners: instances of the dataclasses of a stage; what differs from its default was given.
        searched: settings that a search chooses, so that they have other values than the owners' as well.
    Raises:
        UsageError: it names the setting, and the one that it needs.
    """
    declared = {item.name: item for owner in owners for item in fields(owner)}
    settings = setting_values(owners)
    for name, partner in idle_settings(settings).items():
        if partner in searched or (name not in searched and settings[name] == declared[name].default):
            continue
        given = f"space: {name}" if name in searched else f"{name} {settings[name]}"
        raise UsageError(
            f"{given} changes nothing with {partner} {settings[partner]}; give {partner} as well, or leave {name} out"
        )


def parse_settings(
    argv: Sequence[str], classes: Sequence[type], default_config: Path, description: str, *, others: bool = False
) -> list:
    """Settings from a YAML file and `--key value` overrides.

    Args:
        argv: command line without the program; `--config FILE` names the YAML file.
        classes: dataclasses whose fields are the keys; no key may occur in two of them.
        default_config: the file used without `--config`.
        others: leave unknown options of the command line, which are for somebody else, in place of refusing them.
    Returns:
        One instance of each class; with `others` then a list, the options that were left.
    Raises:
        UsageError: an unknown key (the nearest known one is suggested), an unreadable file, or a value of a wrong type.
    """
    parser = _Parser(list(classes), description=description, allow_abbrev=False)
    parser.add_argument("--config", default=str(default_config), help="YAML file of settings; --key value overrides it.")
    known = {item.name for cls in classes for item in fields(cls) if item.init}
    config, _ = parser.parse_known_args([arg for arg in argv if arg not in ("-h", "--help")])
    settings = _read_yaml(Path(config.config), known)
    # Of the annotations: the parser overwrites `type` of the fields.
    hints = {
        name: hint.__name__ if isinstance(hint, type) else str(hint)
        for cls in classes
        for name, hint in get_type_hints(cls).items()
    }
    for action in parser._actions:
        if action.dest in settings:
            # A key in the file fills in for an argument that the parser would otherwise insist on.
            action.required = False
            settings[action.dest] = _as_given(action, settings[action.dest], hints[action.dest], config.config)
    parser.set_defaults(**settings)
    _, unknown = parser.parse_known_args(list(argv))
    if unknown and not others:
        name = unknown[0].split("=")[0].lstrip("-")
        raise UsageError(f"unknown option {unknown[0]}{_suggestion(name, known | {'config'})}")
    try:
        *parsed, _, rest = parser.parse_args_into_dataclasses(
            args=list(argv), look_for_args_file=False, return_remaining_strings=True
        )
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from error
    return [*parsed, rest] if others else parsed


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise UsageError(message)


def _read_yaml(path: Path, known: set[str]) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the configuration cannot be read ({error.strerror}); give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected lines of `key: value`, found {type(content).__name__}")
    for key in content:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}{_suggestion(str(key), known)}")
    return content


def _as_given(action: argparse.Action, value: Any, hint: str, path: str) -> Any:
    """A value of a YAML file as the command line would give it: text, which the parser turns into the setting's type.

    YAML reads 5e-5 as text, `no` as false and 2020-01-01 as a date.
    """
    if action.nargs == "+" and isinstance(value, list):
        if not all(type(item) in (str, int, float) for item in value):
            raise UsageError(f"{path}: {action.dest} must be a list of names (in quotes where needed), got {value!r}")
        try:
            # The parser converts the items of the command line only.
            return [action.type(str(item)) for item in value]
        except ValueError as error:
            raise UsageError(f"{path}: {action.dest} must be of the type {hint}, got {value!r}: {error}") from error
    if action.nargs == "+" and value is not None:
        raise UsageError(f"{path}: {action.dest} must be a list, such as [A, B], got {value!r}")
    if isinstance(value, str | int | float):
        return str(value)
    # Settings such as lr_scheduler_kwargs are dictionaries.
    if type(value).__name__ in hint or value is None and ("None" in hint or "Optional" in hint):
        return value
    raise UsageError(f"{path}: {action.dest} must be of the type {hint}, got {value!r}")


def _suggestion(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists the options"


def whole_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints that can be resumed from, the newest last; the Trainer writes `trainer_state.json` last.

    With `save_only_model` it writes no random states, and nothing of the optimiser.
    """
    found = {
        path.parent.name.removeprefix("checkpoint-"): path.parent
        for path in Path(folder).glob("checkpoint-*/trainer_state.json")
        if any(path.parent.glob("rng_state*.pth"))
    }
    return [found[step] for step in sorted(filter(str.isdecimal, found), key=int)]


def checkpoint_to_resume(setting: str | None, output_dir: str) -> str | None:
    """The checkpoint folder that `resume_from_checkpoint` means: a folder, or `last` for the newest one of `output_dir`.

    Raises:
        UsageError: there is no such checkpoint.
    """
    if setting is None or str(setting).lower() in ("false", "no"):
        return None
    if str(setting).lower() in ("last", "true", "yes"):
        if not (found := whole_checkpoints(output_dir)):
            raise UsageError(
                f"{output_dir} holds no checkpoint to resume from (those of save_only_model are none); leave out"
                " resume_from_checkpoint"
            )
        return str(found[-1])
    state = Path(setting) / "trainer_state.json"
    if not state.is_file():
        raise UsageError(f"{setting} is not a checkpoint (no trainer_state.json); give a checkpoint-N folder, or 'last'")
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{state} is damaged ({error}); give an earlier checkpoint, or start anew") from error
    return setting
