"""Documents with nested entities: their features, and the readers and writers of RuNNE files and brat folders.

Everywhere in the toolkit a document is `id`, `text` and `entities`, and an entity is `(start, end, type)` in characters
(code points) of the untouched text, `end` exclusive. RuNNE files count inclusively; only this module knows that.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from .brat import brat_texts, check_for_brat, read_brat, read_brat_document, write_brat
from .checks import (
    BOM,
    REASONS,
    CorpusError,
    Document,
    Entity,
    Place,
    Policy,
    ReadReport,
    marked_text,
    not_utf8,
    read_text,
    sorted_entities,
    sound_entities,
    validate,
)
from .conll import CONLL_SUFFIXES, read_conll
from .files import replacing

__all__ = [
    "FEATURES",
    "REASONS",
    "CorpusError",
    "Document",
    "Entity",
    "ReadReport",
    "brat_texts",
    "check_for_brat",
    "from_row",
    "marked_text",
    "read_annotations",
    "read_brat",
    "read_conll",
    "read_documents",
    "read_entity_types",
    "read_runne",
    "sorted_entities",
    "to_row",
    "validate",
    "write_brat",
    "write_runne",
]

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "text": datasets.Value("string"),
        "entities": datasets.List(
            {"start": datasets.Value("int32"), "end": datasets.Value("int32"), "type": datasets.Value("string")}
        ),
    }
)
"""The columns of a dataset of documents. Ids are strings there, whatever they were in the file."""


def _jsonl_policy(strict: bool | None, report: ReadReport | None) -> Policy:
    # The published RuNNE training set gives 15 entities twice (parts that several discontinuous mentions share), so
    # a default that stopped at them would refuse the very corpus the format is named after.
    tolerated = frozenset({"entity given twice"}) if strict is None else frozenset()
    return Policy(strict is not False, report if report is not None else ReadReport(), tolerated)


class _Record(NamedTuple):
    """A line of a RuNNE file; entities as they stood, but with an exclusive end."""

    id: str | int
    text: str | None
    entities: list[tuple[Any, Any, Any]]
    place: Place


def _records(path: Path, policy: Policy, required: Sequence[str]) -> Iterator[_Record]:
    """The objects of a RuNNE file with their keys and ids checked, but not their entities."""
    first_line: dict[str, int] = {}
    for number, line in _json_lines(path):
        place = Place(path, number)
        try:
            content = json.loads(line)
            if "\\ud" in line.lower():  # half a surrogate pair is legal JSON, but no text that can be stored
                json.dumps(content, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            policy.defect("broken line", place, f"not an object in JSON ({error})")
            continue
        problem = _shape_problem(content, required)
        if problem:
            policy.defect("unusable document", place, problem)
            continue
        place = place._replace(document=content["id"])
        if str(content["id"]) in first_line:
            policy.defect("id given twice", place, f"it is also on line {first_line[str(content['id'])]}")
            continue
        first_line[str(content["id"])] = number
        entities = list(_exclusive(content.get("ners", []), place, policy))
        yield _Record(content["id"], content.get("sentences"), entities, place)


def _json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. They end at LF only: U+2028 and its like occur inside texts."""
    number = 0
    try:
        with open(path, "rb") as file:
            for number, content in enumerate(file, 1):
                line = content.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise not_utf8(Place(path, number), error) from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _shape_problem(content: Any, required: Sequence[str]) -> str:
    """What is wrong with an object as a whole, or ""."""
    if not isinstance(content, dict):
        return "the line is not an object"
    if missing := [key for key in required if key not in content]:
        return f"no key {', '.join(map(repr, missing))}; an object is {{'id', 'sentences', 'ners': [[first, last, type]]}}"
    if type(content["id"]) is not int and not isinstance(content["id"], str):
        return f"'id' is {content['id']!r}, not a number or a string"
    if not isinstance(content.get("sentences", ""), str):
        return "'sentences' is not a string"
    if not isinstance(content.get("ners", []), list):
        return "'ners' is not a list"
    return ""


def _exclusive(ners: list, place: Place, policy: Policy) -> Iterator[tuple[Any, Any, Any]]:
    """`[first, last, type]` to `(start, end, type)`; whatever else an item is wrong in is left for `sound_entities`."""
    for item in ners:
        if isinstance(item, list) and len(item) == 3:
            first, last, name = item
            yield first, last + 1 if type(last) is int else last, name
        else:
            policy.defect("broken entity", place, f"{item!r} is not [first, last, type]")


def read_runne(
    path: str | os.PathLike,
    *,
    strict: bool | None = None,
    types: Iterable[str] | None = None,
    answers: str | os.PathLike | None = None,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Read a RuNNE file: one JSON object a line, `{"id", "sentences", "ners": [[first, last, type], ...]}`.

    `last` is inclusive, `ners` may be absent, blank lines are passed over. Ids are compared as strings.

    Args:
        path: the `.jsonl` file.
        strict: True raises on every defect, False skips and counts; None raises on all but an entity given twice,
            which is kept once and counted (the published training set holds 15 of them).
        types: the entity types allowed, or None for any.
        answers: a file with the `id` and `ners` of the same documents, which replace those of `path`.
        report: where defects are counted.
    Yields:
        Documents, ids as they stood (a number stays a number).
    Raises:
        CorpusError: the file cannot be read, or a defect that `strict` does not let pass.
    """
    policy = _jsonl_policy(strict, report)
    known = None if types is None else frozenset(types)
    replies: dict[str, _Record] | None = None
    if answers is not None:
        replies = {str(record.id): record for record in _records(Path(answers), policy, ("id", "ners"))}
    for record in _records(Path(path), policy, ("id", "sentences")):
        reply = record
        if replies is not None:
            reply = replies.pop(str(record.id), record)
            if reply is record:
                policy.defect("document without an answer", record.place, f"its id is not in {answers}")
        places = [reply.place] * len(reply.entities)
        entities = sound_entities(reply.entities, len(record.text), known, places, policy)
        yield Document(record.id, record.text, entities)
    for reply in (replies or {}).values():
        policy.defect("answer without a document", reply.place, f"its id is not in {path}")


def read_annotations(path: str | os.PathLike, *, types: Iterable[str] | None = None, texts: bool = False) -> list[Document]:
    """Read references or predictions to be scored: `id` and `ners` count, `sentences` may be missing.

    Offsets are compared with the text only where there is one; an entity given twice is taken once, since scores are
    computed on sets.

    Args:
        path: a RuNNE `.jsonl` file.
        types: the entity types allowed, or None for any.
        texts: whether `sentences` must be there.
    Returns:
        Documents in the order of the file, with an empty text where the file has none.
    Raises:
        CorpusError: the file cannot be read, an id is given twice, or an entity is unsound.
    """
    policy = _jsonl_policy(None, None)
    policy.remedy = "Correct the file."
    known = None if types is None else frozenset(types)
    documents = []
    for record in _records(Path(path), policy, ("id", "sentences") if texts else ("id",)):
        length = None if record.text is None else len(record.text)
        places = [record.place] * len(record.entities)
        entities = sound_entities(record.entities, length, known, places, policy)
        documents.append(Document(record.id, record.text or "", entities))
    return documents


def write_runne(documents: Iterable[Document], path: str | os.PathLike) -> None:
    """Write documents as a RuNNE file, which appears under its name only when complete.

    Entities are sorted by start, then the longest first, then by type, and none is written twice.

    Raises:
        CorpusError: an id is given twice, an entity is unsound, or the file cannot be written.
    """
    seen: set[str] = set()
    try:
        with replacing(Path(path)) as file:
            for document in documents:
                if str(document.id) in seen:
                    raise CorpusError(f"document {document.id!r}: id given twice. Give every document its own id.")
                seen.add(str(document.id))
                ners = [[start, end - 1, name] for start, end, name in sorted_entities(document)]
                content = {"id": document.id, "sentences": document.text, "ners": ners}
                file.write(json.dumps(content, ensure_ascii=False) + "\n")
    except UnicodeEncodeError as error:
        raise CorpusError(f"{path}: a text is not valid Unicode ({error}).") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be written ({error.strerror or error}).") from error


def read_documents(
    path: str | os.PathLike, *, strict: bool | None = None, types: Iterable[str] | None = None
) -> list[Document]:
    """Read a RuNNE `.jsonl` file, a flat brat folder, a single `.txt` file (with its `.ann`, if there is one), or a file of
    columns (`read_conll`).

    Defects that were repaired or skipped are reported in one warning of the logger `runne_coner.documents`.

    Args:
        path: the file or folder.
        strict: True or False; None is the format's default (see `read_brat`, `read_runne` and `read_conll`).
        types: the entity types allowed, or None for any.
    Returns:
        The documents, in the order of the file or sorted by file name.
    Raises:
        CorpusError: nothing there, an unsupported format, or a defect.
    """
    path, report = Path(path), ReadReport()
    if path.is_dir():
        documents = list(read_brat(path, strict=bool(strict), types=types, report=report))
    elif not path.exists():
        raise CorpusError(f"{path}: no such file or folder.")
    elif path.suffix == ".jsonl":
        documents = list(read_runne(path, strict=strict, types=types, report=report))
    elif path.suffix in CONLL_SUFFIXES:
        documents = list(read_conll(path, strict=strict, types=types, report=report))
    elif path.suffix == ".txt":
        known = None if types is None else frozenset(types)
        documents = [read_brat_document(path, Policy(bool(strict), report), known)]
    else:
        raise CorpusError(
            f"{path}: unknown format. Supported are .jsonl (RuNNE), {', '.join(CONLL_SUFFIXES)}"
            " (columns), a folder of brat files, and .txt."
        )
    report.log()
    return documents


def to_row(document: Document) -> dict[str, Any]:
    """The document as a row of a dataset with `FEATURES`."""
    entities = [entity._asdict() for entity in document.entities]
    return {"id": str(document.id), "text": document.text, "entities": entities}


def from_row(row: Mapping[str, Any]) -> Document:
    """The document of a dataset's row; its id is a string."""
    entities = tuple(Entity(entity["start"], entity["end"], entity["type"]) for entity in row["entities"])
    return Document(row["id"], row["text"], entities)


def read_entity_types(path: str | os.PathLike) -> list[str]:
    """Read the names of the entity types.

    Args:
        path: `ners.txt` (one name a line; any name but `*.conf` is read so), brat's `annotation.conf`, or a folder
            that holds one of them (`ners.txt` first).
    Returns:
        The names, each once, in the order of the file.
    Raises:
        CorpusError: there is no such file, or it names no type.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("ners.txt", "annotation.conf") if (path / name).is_file()]
        if not found:
            raise CorpusError(f"{path}: neither ners.txt nor annotation.conf in the folder.")
        path = found[0]
    lines = [line.strip() for line in read_text(path).removeprefix(BOM).split("\n")]
    names = _configured_types(lines) if path.suffix == ".conf" else [line for line in lines if line]
    if not names:
        raise CorpusError(f"{path}: no entity type in the file.")
    return list(dict.fromkeys(names))


def _configured_types(lines: Iterable[str]) -> list[str]:
    """The types of an annotation.conf that may be annotated, whatever their place in the hierarchy."""
    section, names = "", []
    for line in lines:
        if line.startswith("[") and line.endswith("]"):
            section = line
        # Comments, macros (<NAME>=...), separators (----) and the hierarchy's nodes that annotate nothing (!name).
        elif section == "[entities]" and line and line[0] not in "#<-!":
            names.append(line.split()[0])
    return names
