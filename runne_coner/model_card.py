"""The model card: facts of both stages, written down when they are measured, and the README.md rendered from them.

Each recipe leaves its facts in `training_facts.json` beside its model; stage 2 takes over those of stage 1 with the encoder.
The card says what these facts say and nothing else: what was not measured or is not known is left out.
"""

import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from enum import Enum
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments

from .files import write_text
from .idle_settings import idle_settings

FACTS_NAME = "training_facts.json"
FEW_MENTIONS = 50
"""Types with fewer training mentions are named among the limits."""

PIPELINE_TAG = "token-classification"
"""The Hub's task. Its list has no nested entities: `nested-ner` is the name of the pipeline, and stands among the tags."""

_CORPORA = {
    "nerel": ("NEREL", "https://github.com/nerel-ds/NEREL"),
    "runne": ("RuNNE-2022", "https://github.com/dialogue-evaluation/RuNNE"),
    "sample": ("runne-coner sample (generated Russian texts)", None),
}
"""Title and address of the corpora that the toolkit knows by name; all are Russian."""

_LOCAL = "local corpus"
_KNOWN_ENCODERS = {"e5-small-ru": "intfloat/multilingual-e5-small"}
_HYPERPARAMETERS = (
    "learning_rate head_learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps"
    " lr_scheduler_type warmup_steps weight_decay optim max_grad_norm label_smoothing_factor bf16 fp16 seed pair_mode loss"
    " margin positive_weight overlap_weight same_surface_weight mining mining_margin"
    " ce_weight dice_weight dice_smoothing dice_reduction ce_form focal_gamma logit_adjustment"
    " rare_type_share swap_share swap_probability swap_agreement layer_decay ema_decay lookahead lookahead_alpha"
    " rdrop_weight scorer_weight scorer_learning_rate load_best_model_at_end metric_for_best_model train_sampling_strategy"
).split()
_OF_THE_MACHINE = (
    "output_dir logging_dir run_name project trackio local_rank deepspeed fsdp_config resume_from_checkpoint report_to"
    " push_to_hub ddp_ disable_tqdm log_ logging_ hub_ use_cpu accelerator_config parallelism_config debug trackio_space_id"
    " dataloader_ ignore_data_skip past_index"
).split()
"""Training arguments, or the beginnings of their names, that say where and not how a model was trained."""

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "accelerate")
_CITATIONS = """\
```bibtex
@inproceedings{bondarenko2022coner,
  title = {Contrastive fine-tuning to improve generalization in deep NER},
  author = {Bondarenko, Ivan},
  booktitle = {Computational Linguistics and Intellectual Technologies: Proceedings of the International Conference
    "Dialogue 2022"},
  pages = {70--80},
  year = {2022},
  doi = {10.28995/2075-7182-2022-21-70-80}
}
```"""


# ---------------------------------------------------------------------------------------------------------------------
# Facts


def stage_facts(
    corpus: Any,
    data: Any,
    network: Any,
    training: TrainingArguments,
    card: Any,
    *,
    lost: Mapping[str, Counter],
    windows: int,
    seconds: float,
    metrics: Mapping[str, float],
    resumed: bool = False,
) -> dict:
    """What one stage knows about itself, free of paths and names of the machine.

    Args:
        corpus: `arguments.Corpus`. data, card: `arguments.DataArguments`, `arguments.CardArguments`.
        network: the recipe's arguments of encoder and network.
        lost: from `preprocessing.lost_entities` of the training view.
        windows: rows of the training view.
        seconds: time that the training loop took, since it was last resumed if it was.
        metrics: of `Trainer.evaluate`, with or without the prefix `eval_`.
        resumed: whether training went on from a checkpoint.
    Returns:
        A dictionary for `record_facts`.
    """
    held_out = None if data.eval_split is not None else f"{data.eval_fraction:g} of {data.train_split}, held out"
    name = _public_name(data.dataset, card.dataset_name)
    evaluation_name = name if data.eval_dataset is None else _public_name(data.eval_dataset, card.eval_dataset_name)
    languages = card.language or (["ru"] if name in _CORPORA else [])
    trained, examples = _mentions(corpus.train)
    evaluated, _ = _mentions(corpus.evaluation)
    settings = {key: value for key, value in asdict(network).items() if key not in _ENCODER_KEYS}
    settings |= {key: getattr(data, key) for key in ("max_length", "max_sentences", "stride")}
    settings |= {key: _plain(getattr(training, key)) for key in _HYPERPARAMETERS if hasattr(training, key)}
    # What another setting makes void is left out.
    void = {"num_train_epochs" if training.max_steps > 0 else "max_steps", *idle_settings(settings)}
    void.update(_OF_THE_OWNER)
    if extra := settings.pop("extra_datasets", None):
        settings["extra_datasets"] = ", ".join(_public_name(entry.partition("@")[0], None) for entry in extra)
    settings = {key: value for key, value in settings.items() if key not in void}
    return {
        "base_model": base_model(network.model_name_or_path),
        "language": languages,
        "license": card.license,
        "dataset": {
            "name": name,
            "split": data.train_split,
            "documents": len(corpus.train),
            "windows": windows,
            "entities": trained.total(),
        },
        "evaluation": {
            "name": evaluation_name,
            "split": held_out or data.eval_split,
            "documents": len(corpus.evaluation),
            "entities": evaluated.total(),
        },
        "entity_types": {
            key: {"mentions": trained[key], "evaluated": evaluated[key], "example": examples.get(key)}
            for key in corpus.entity_types
        },
        "few_shot_types": list(corpus.few_shot_types),
        "not_represented": {key: dict(reasons) for key, reasons in lost.items()},
        "hyperparameters": settings | {"processes": training.world_size},
        "seconds": round(seconds, 1),
        "resumed": resumed,
        "hardware": hardware(),
        "versions": {key: metadata.version(key) for key in ("runne-coner", *PACKAGES)} | {"python": platform.python_version()},
        "metrics": {key.removeprefix("eval_"): value for key, value in metrics.items()},
    }


_OF_THE_OWNER = ("type_mapping", "label_words")
"""Settings that may be a file; as the names of local corpora, they mean something to their owner only."""

_ENCODER_KEYS = ("model_name_or_path", "encoder_cache", "model_revision")


def _public_name(corpus: str, given: str | None) -> str:
    """Name of a corpus in the card: the given one, or that of a known corpus; never a path."""
    if given is not None:
        return given.lower() if given.lower() in _CORPORA else given
    return corpus if corpus in _CORPORA else _LOCAL


def _is_hub_name(name: str) -> bool:
    """Whether a corpus may stand under `datasets` of a card's metadata: the Hub refuses a card with what cannot be an id."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _mentions(documents: Iterable[Mapping]) -> tuple[Counter, dict[str, str]]:
    """Mentions of each type, and the commonest one of each (the shorter, then the first by alphabet, among equals)."""
    surfaces: dict[str, Counter] = {}
    for document in documents:
        for entity in document["entities"]:
            surface = " ".join(document["text"][entity["start"] : entity["end"]].split())
            surfaces.setdefault(entity["type"], Counter())[surface] += 1
    examples = {
        name: min(found, key=lambda surface, found=found: (-found[surface], len(surface), surface))
        for name, found in surfaces.items()
    }
    return Counter({name: found.total() for name, found in surfaces.items()}), examples


def base_model(name_or_path: str) -> str | None:
    """Hub id of the encoder that training started from; None if it is a folder that does not know."""
    if name_or_path in _KNOWN_ENCODERS:
        return _KNOWN_ENCODERS[name_or_path]
    if os.path.isdir(name_or_path):
        return next((facts["base_model"] for facts in read_facts(name_or_path).values()), None)
    return name_or_path


def hardware() -> str:
    """The accelerators of this machine, or its processor."""
    if torch.cuda.is_available():
        names = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return ", ".join(f"{number} x {name}" for name, number in names.items())
    model = platform.machine()
    with_names = Path("/proc/cpuinfo")
    if with_names.is_file():
        for line in with_names.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{os.cpu_count()} CPU cores ({model})"


def record_facts(folder: str | os.PathLike, stage: str, facts: Mapping, encoder: str | None = None) -> None:
    """Write the facts of a stage into `training_facts.json`.

    Args:
        folder: of the model.
        stage: `stage1` or `stage2`.
        encoder: id or folder that stage 2 started from; what stage 1 recorded there is taken over.
    """
    inherited = read_facts(encoder) if encoder is not None and os.path.isdir(encoder) else {}
    kept = {"stage1": inherited["stage1"]} if stage == "stage2" and "stage1" in inherited else {}
    text = json.dumps({**kept, stage: dict(facts)}, ensure_ascii=False, indent=2)
    write_text(Path(folder, FACTS_NAME), text + "\n")


def read_facts(folder: str | os.PathLike) -> dict[str, dict]:
    """Facts of the stages that made the model in a folder, oldest first; empty where none are recorded."""
    path = Path(folder, FACTS_NAME)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def public_arguments(arguments: TrainingArguments | Mapping) -> dict:
    """Training arguments as the world may see them: without tokens, paths, and what concerns the machine only."""
    settings = arguments.to_dict() if isinstance(arguments, TrainingArguments) else dict(arguments)
    return {key: _without_paths(value) for key, value in settings.items() if not key.startswith(tuple(_OF_THE_MACHINE))}


def _without_paths(value: Any) -> Any:
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).drive or value[:1] == "~"):
        return None
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    return [_without_paths(item) for item in value] if isinstance(value, (list, tuple)) else value


# ---------------------------------------------------------------------------------------------------------------------
# The card


def make_card(
    facts: Mapping[str, Mapping],
    *,
    model_id: str | None = None,
    requirements: Iterable[str] = (),
    config: Mapping | None = None,
    language: str | list[str] | None = None,
    license: str | None = None,
    tags: str | Iterable[str] | None = None,
) -> ModelCard:
    """The card of a model.

    Args:
        facts: from `read_facts`; may be empty.
        model_id: where the model lies on the Hub; without it the usage block loads the current folder.
        requirements: packages that the code in the repository imports.
        config: content of `config.json` of a stage 2 model, None for a stage 1 encoder.
        language, license: in place of those recorded.
        tags: a further tag, or several.
    Returns:
        A `huggingface_hub.ModelCard`, metadata and text.
    """
    last = facts.get("stage2" if config is not None else "stage1", {})
    title = model_id or ("CoNER model" if config is not None else "CoNER encoder")
    data = _metadata(last, facts, title, config is not None)
    data.language = _unlisted(language) or data.language
    data.license = license or data.license
    data.tags = list(dict.fromkeys([*data.tags, *([tags] if isinstance(tags, str) else tags or ())]))
    sections = [f"# {title}\n\n{_introduction(data, facts, config)}"]
    body = {
        "Usage": _usage(config, model_id or ".", list(requirements), _example_text(data, last)),
        "Entity types": _type_table(last, config),
        "Results": _results(last),
        "Training": _training(facts),
        "Nesting and limits": _limits(last, config),
        "Versions": ", ".join(f"{name} {version}" for name, version in last.get("versions", {}).items()),
        "Citation": _CITATIONS,
    }
    sections += [f"## {heading}\n\n{text}" for heading, text in body.items() if text]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _unlisted(values: Any) -> Any:
    """A list of one as its element, as the Hub writes it; nothing as None."""
    return values[0] if isinstance(values, list) and len(values) == 1 else values or None


def _metadata(last: Mapping, facts: Mapping, title: str, recognizer: bool) -> ModelCardData:
    datasets = [name for stage in facts if _is_hub_name(name := facts[stage]["dataset"]["name"])]
    results = _eval_results(last) if recognizer else []
    base = next((facts[stage]["base_model"] for stage in facts if facts[stage]["base_model"]), None)
    return ModelCardData(
        language=_unlisted(last.get("language")),
        license=last.get("license"),
        library_name="runne-coner",
        pipeline_tag=PIPELINE_TAG if recognizer else "feature-extraction",
        tags=["nested-ner", "named-entity-recognition", "coner"] if recognizer else ["coner", "contrastive"],
        base_model=base,
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=["f1"] if results else None,
        eval_results=results or None,
        model_name=title.split("/")[-1] if results else None,
    )


_SCORES = {
    "micro_f1": "Micro F1",
    "macro_f1": "Macro F1 (few-shot types left out)",
    "few_shot_f1": "Few-shot macro F1",
    "macro_all_f1": "Macro F1 of all types",
}


def _eval_results(last: Mapping) -> list[EvalResult]:
    metrics = last.get("metrics", {})
    names = {key: name for key, name in _SCORES.items() if key in metrics}
    names |= {f"f1_{name}": f"F1 of {name}" for name in last.get("entity_types", {}) if f"f1_{name}" in metrics}
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Nested named-entity recognition",
            dataset_type=last["evaluation"]["name"],
            dataset_name=_title(last["evaluation"]["name"]),
            dataset_split=last["evaluation"]["split"],
            metric_type="f1",
            metric_name=name,
            metric_value=round(metrics[key], 6),
        )
        for key, name in names.items()
    ]


def _title(corpus: str) -> str:
    return _CORPORA.get(corpus, (corpus, None))[0]


def _introduction(data: ModelCardData, facts: Mapping, config: Mapping | None) -> str:
    base = f"[{data.base_model}](https://huggingface.co/{data.base_model})" if data.base_model else "an encoder"
    method = "CoNER (Bondarenko 2022)"
    if config is None:
        return (
            f"{base[0].upper()}{base[1:]}, fine-tuned so that mentions of one entity type lie close together: stage 1 of"
            f" {method}. It is a plain encoder, from which stage 2 makes a recognizer of nested named entities."
        )
    heads = "BILOU heads and a scorer of whole spans" if config.get("candidate_paths") else "BILOU heads"
    how = f"in two stages (contrastive fine-tuning, then {heads})" if "stage1" in facts else f"as {heads} on an encoder"
    return (
        f"Recognizes nested named entities: {base}, trained {how} after {method} with the `runne-coner` toolkit."
        f"\n\nThe pipeline is called `nested-ner`; `pipeline_tag` says `{PIPELINE_TAG}` as the Hub has no task of that name."
    )


def _example_text(data: ModelCardData, last: Mapping) -> str:
    if data.language == "ru":
        return "Ольга Калинина назначена директором департамента культуры мэрии Ижевска."
    # In a language that is not known, the commonest type's example is at least a text of that language.
    entries = sorted(last.get("entity_types", {}).values(), key=lambda entry: entry["mentions"])
    return (entries and entries[-1]["example"]) or "..."


def _usage(config: Mapping | None, model: str, requirements: list[str], text: str) -> str:
    if config is None:
        return f'```python\nfrom transformers import AutoModel, AutoTokenizer\n\nmodel = AutoModel.from_pretrained("{model}")\
\ntokenizer = AutoTokenizer.from_pretrained("{model}")\n```'
    loop = f"for entity in recognize({json.dumps(text, ensure_ascii=False)}):\n    print(entity)"
    call = f'pipeline("nested-ner", model="{model}"'
    ours = f"```python\nimport runne_coner\nfrom transformers import pipeline\n\nrecognize = {call})\n{loop}\n```"
    theirs = f"```python\nfrom transformers import pipeline\n\nrecognize = {call}, trust_remote_code=True)\n{loop}\n```"
    needs = f" (it needs `pip install {' '.join(requirements)}`)" if requirements else ""
    answer = (
        "Each entity is a dictionary of `entity_type`, `start`, `end` (characters), `text`, `score` (probability of the whole"
        " span) and `level` (1 = outermost of its type)."
    )
    return f"With the package:\n\n{ours}\n\nWithout it, with the code in the repository{needs}:\n\n{theirs}\n\n{answer}"


def _type_table(last: Mapping, config: Mapping | None) -> str:
    if config is None:
        return ""
    if not last:
        return ", ".join(f"`{name}`" for name in config["entity_types"])
    few, metrics = last["few_shot_types"], last.get("metrics", {})
    rows = [
        (
            f"{_cell(name)}{' *' if name in few else ''}",
            _cell(entry["example"]),
            entry["mentions"],
            entry["evaluated"],
            _percent(metrics.get(f"f1_{name}")),
        )
        for name, entry in last["entity_types"].items()
    ]
    note = "\n\n\\* few-shot type, scored apart" if few else ""
    return _table(("type", "example from the training data", "training mentions", "evaluated mentions", "F1"), rows) + note


def _results(last: Mapping) -> str:
    metrics = last.get("metrics", {})
    rows = [(name, _percent(metrics[key])) for key, name in _SCORES.items() if key in metrics]
    if "pair_auc" in metrics:
        rows.append(("Pair AUC (a random pair of one type lies closer than one of two types)", f"{metrics['pair_auc']:.4f}"))
    if not rows:
        return ""
    for part in ("recall", "precision"):
        if f"micro_{part}" in metrics:
            rows.insert(1, (f"Micro {part}", _percent(metrics[f"micro_{part}"])))
    measured = last["evaluation"]
    where = f"Measured on {_title(measured['name'])}, split `{measured['split']}` ({measured['documents']} documents"
    if "micro_f1" in metrics:
        where += f", {measured['entities']} entities; in percent: exact matches of start, end and type"
    if "ece_after" in metrics:
        rows.append(("Expected calibration error of the scores (cross-fitted)", _percent(metrics["ece_after"])))
    return f"{where}).\n\n" + _table(("score", ""), rows)


def _training(facts: Mapping) -> str:
    stages = []
    for stage, title in (("stage1", "Stage 1: contrastive fine-tuning"), ("stage2", "Stage 2: named-entity recognition")):
        if stage not in facts:
            continue
        own = facts[stage]
        source, address = _CORPORA.get(own["dataset"]["name"], (own["dataset"]["name"], None))
        where = f"[{source}]({address})" if address else source
        # Nobody has measured the parts before; facts of earlier versions do not say.
        time = "Time since the run was last resumed" if own.get("resumed") else "Time"
        lines = [
            f"Data: {where}, split `{own['dataset']['split']}`: {own['dataset']['documents']} documents,"
            f" {own['dataset']['windows']} windows, {own['dataset']['entities']} entities. "
            f"{time}: {_duration(own['seconds'])} on {own['hardware']}."
        ]
        # Facts of earlier versions hold settings of the owner.
        told = {key: value for key, value in own["hyperparameters"].items() if key not in _OF_THE_OWNER}
        settings = [(f"`{key}`", f"{value}") for key, value in told.items() if value is not None]
        stages.append(f"### {title}\n\n" + "\n".join(lines) + "\n\n" + _table(("hyperparameter", "value"), settings))
    return "\n\n".join(stages)


def _limits(last: Mapping, config: Mapping | None) -> str:
    lines = []
    if config is not None:
        levels, length = config.get("levels", 1), config.get("max_length")
        lines.append(
            "Entities of different types may be nested in each other or cover the same words at will; of one type,"
            + (" none is found inside another." if levels == 1 else f" they are found {levels} levels deep.")
        )
        if length:
            lines.append(f"An entity longer than a window ({length} sub-words) is not found.")
    types = last.get("entity_types", {})
    rare = [f"{name} ({entry['mentions']})" for name, entry in types.items() if entry["mentions"] < FEW_MENTIONS]
    if rare:
        lines.append(f"Types with fewer than {FEW_MENTIONS} training mentions: {', '.join(rare)}.")
    reasons: dict[str, list[str]] = {}
    for name, found in last.get("not_represented", {}).items():
        for reason, number in found.items():
            reasons.setdefault(reason, []).append(f"{number} {name}")
    for reason, names in reasons.items():
        lines.append(f"Training entities that could not be represented ({reason}): {', '.join(names)}.")
    return "\n".join(f"- {line}" for line in lines)


def _table(head: tuple, rows: Iterable[tuple]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def _cell(text: str | None) -> str:
    """Text that cannot be taken for Markdown or HTML."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text or "")
    return escaped


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{number} {unit}" for number, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if number]
    return " ".join(parts[:2]) or "less than a second"
