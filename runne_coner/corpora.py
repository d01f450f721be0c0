"""Several corpora with different label sets in one stage-1 run: whose types are compared with whose."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from datasets import Dataset, concatenate_datasets

from .documents import CorpusError


class Part(NamedTuple):
    """One corpus: the name under which it was asked for, its documents, and the types that it annotates."""

    name: str
    documents: Dataset
    types: Sequence[str]

    @property
    def short_name(self) -> str:
        """The name of its file or folder, without what leads there."""
        return Path(self.name).stem or self.name


class MergedCorpora(NamedTuple):
    """Documents of all corpora with a column `corpus`, the types that they have together, and who annotates which.

    `evaluation` are documents of the first corpus. `annotated` is bool `(corpora, types + 1)`, the last column (O) False:
    what one corpus leaves out, another may annotate.
    """

    documents: Dataset
    evaluation: Dataset
    entity_types: list[str]
    annotated: np.ndarray


def merge_corpora(
    parts: Sequence[Part], evaluation: Dataset, mapping: Mapping[str, Mapping[str, str]] | None = None
) -> MergedCorpora:
    """Put the documents of several corpora together.

    A type of the first corpus keeps its name, one of another becomes `CORPUS/TYPE`, so that equal names of different
    corpora are different types; the mapping gives types other names. Types of one name are one type, and corpora that
    both annotate the types of two spans may compare them (`pair_weights.PairWeighting`).

    Args:
        parts: the corpora, the main one first.
        evaluation: documents of the main corpus to evaluate on.
        mapping: new names of types, by corpus (its name as asked for, or that of its file or folder) and type.
    Raises:
        CorpusError: a corpus is given twice, the mapping names an unknown corpus or type, or documents have a type that
            their corpus does not annotate.
    """
    names = [part.name for part in parts]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise CorpusError(f"{', '.join(doubled)}: given twice. Name every corpus once.")
    labels = [_label(part, [other for other in parts if other is not part]) for part in parts]
    known = {**dict(zip(labels, range(len(parts)), strict=True)), **dict(zip(names, range(len(parts)), strict=True))}
    renamed: list[dict[str, str]] = [
        {name: name if number == 0 else f"{labels[number]}/{name}" for name in part.types} for number, part in enumerate(parts)
    ]
    for corpus, given in (mapping or {}).items():
        if corpus not in known:
            raise CorpusError(f"type_mapping: there is no corpus {corpus!r}. There are {', '.join(labels)}.")
        types = renamed[known[corpus]]
        if unknown := sorted(set(given) - set(types)):
            raise CorpusError(f"type_mapping: {corpus} has no type {', '.join(unknown)}. It has {', '.join(types)}.")
        types.update(given)
    entity_types = list(dict.fromkeys(name for types in renamed for name in types.values()))
    annotated = np.zeros((len(parts), len(entity_types) + 1), dtype=bool)
    for number, types in enumerate(renamed):
        annotated[number, [entity_types.index(name) for name in types.values()]] = True
    documents = [_renamed(part, types, number) for number, (part, types) in enumerate(zip(parts, renamed, strict=True))]
    evaluated = _renamed(parts[0]._replace(documents=evaluation), renamed[0], 0)
    return MergedCorpora(concatenate_datasets(documents), evaluated, entity_types, annotated)


def _label(part: Part, others: Sequence[Part]) -> str:
    """Its short name or, where another corpus has that too, as much of the end of its path as tells it apart.

    The label becomes part of names of types, which are published: the whole path would tell of the machine.
    """
    if part.short_name not in {other.short_name for other in others}:
        return part.short_name
    own, *rest = (_folders(each.name) for each in (part, *others))
    lengths = range(1, len(own) + 1)
    return next(("/".join(own[-n:]) for n in lengths if all(own[-n:] != each[-n:] for each in rest)), part.name)


def _folders(name: str) -> tuple[str, ...]:
    return Path(name).relative_to(Path(name).anchor).parts


def _renamed(part: Part, types: Mapping[str, str], number: int) -> Dataset:
    def rename(row: dict) -> dict:
        for entity in row["entities"]:
            if entity["type"] not in types:
                raise CorpusError(
                    f"{part.name}, document {row['id']!r}: type {entity['type']} is not one of {', '.join(types)}."
                )
        return {"entities": [{**entity, "type": types[entity["type"]]} for entity in row["entities"]]}

    renamed = part.documents.map(rename, load_from_cache_file=False, desc=f"types of {part.short_name}")
    return renamed.add_column("corpus", np.full(len(renamed), number, dtype=np.int32))


def read_dictionary(setting: str | os.PathLike | Mapping | None, option: str) -> tuple[Any, str]:
    """What an option holds that takes a dictionary, one written as JSON, or a `.json`, `.yaml` or `.yml` file of it.

    Returns:
        The content (of None: an empty dictionary), which may be something else, and what to call it in an error.
    Raises:
        CorpusError: the file cannot be read, or the text is no JSON or YAML.
    """
    if setting is None or isinstance(setting, Mapping):
        return setting or {}, option
    text, where = os.fspath(setting), f"{option} {setting}"
    try:
        if Path(text).suffix in (".json", ".yaml", ".yml"):
            text = Path(text).read_text(encoding="utf-8")
        return json.loads(text) if Path(os.fspath(setting)).suffix not in (".yaml", ".yml") else yaml.safe_load(text), where
    except OSError as error:
        raise CorpusError(f"{where}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise CorpusError(f"{where}: neither JSON nor a .json or .yaml file of it ({problem}).") from error


def read_type_mapping(setting: str | os.PathLike | Mapping | None) -> dict[str, dict[str, str]]:
    """New names of types by corpus, `{corpus: {type: name}}`, from what `read_dictionary` takes.

    Raises:
        CorpusError: the file cannot be read, or its content is something else.
    """
    content, where = read_dictionary(setting, "type_mapping")
    sound = isinstance(content, Mapping) and all(
        isinstance(types, Mapping) and all(isinstance(name, str) and name for pair in types.items() for name in pair)
        for types in content.values()
    )
    if not sound:
        raise CorpusError(f"{where}: expected {{corpus: {{type: new name}}}}, all of them names, got {content!r}.")
    return {str(corpus): dict(types) for corpus, types in content.items()}
