"""What a document is, and the checks that every reader and writer of documents shares.

A reader is *strict* (the first defect raises `CorpusError`) or *lenient* (the defect is repaired or what carries it is
left out, and a `ReadReport` counts it). `REASONS` lists every defect and what the lenient mode does about it.
Users import these names from `runne_coner.documents`.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger("runne_coner.documents")

BOM = "\ufeff"
"""The byte-order mark as a character."""


class Entity(NamedTuple):
    """A typed mention: characters `[start, end)` of its document's text."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class Document:
    """A text and its entities; `id` stays as it stood in the file (a number in RuNNE, the file's stem in brat)."""

    id: str | int
    text: str
    entities: tuple[Entity, ...] = ()


REASONS = {
    "entity given twice": "kept once",
    "empty span": "skipped",
    "reversed offsets": "skipped",
    "offsets outside the text": "skipped",
    "unknown type": "skipped",
    "broken entity": "skipped",
    "broken line": "skipped",
    "entity without a beginning": "its first tag taken for one",
    "discontinuous span": "each part became an entity",
    "misplaced span": "moved to its text",
    "text that disagrees with its span": "skipped",
    "annotations without a text": "skipped",
    "unusable document": "skipped",
    "id given twice": "the first document kept",
    "document without an answer": "kept as it was",
    "answer without a document": "skipped",
}
"""Every defect a reader reports, and what the lenient mode does about it."""


class CorpusError(ValueError):
    """A corpus cannot be read or written; the message says where (file, line, document, offsets) and what to do."""


class Place(NamedTuple):
    """Where something was found, for messages."""

    path: Path | str | None = None
    line: int | None = None
    document: str | int | None = None

    def __str__(self) -> str:
        parts = [str(self.path)] if self.path is not None else []
        parts += [f"line {self.line}"] if self.line is not None else []
        parts += [f"document {self.document!r}"] if self.document is not None else []
        return ", ".join(parts) or "document"


@dataclass
class ReadReport:
    """What lenient readers repaired or left out.

    Attributes:
        defects: `{(reason, file): how often}`, reasons as in `REASONS`.
    """

    defects: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, reason: str, path: Path | str | None = None) -> None:
        """Count one defect of a file."""
        self.defects[reason, str(path or "")] += 1

    @property
    def counts(self) -> Counter[str]:
        """How often each reason occurred, over all files."""
        totals: Counter[str] = Counter()
        for (reason, _), count in self.defects.items():
            totals[reason] += count
        return totals

    def summary(self) -> str:
        """One line with the count, the treatment and the files of every reason; "" if nothing was found."""
        parts = []
        for reason, count in self.counts.most_common():
            files = [path for found, path in self.defects if found == reason]
            where = f"in {Path(files[0]).name}" if len(files) == 1 else f"in {len(files)} files"
            parts.append(f"{count} x {reason} ({REASONS[reason]}; {where})")
        return f"Repaired or left out while reading: {', '.join(parts)}. strict=True stops at the first." if parts else ""

    def log(self) -> None:
        """Send the summary, if there is one, to the log as a single warning."""
        if summary := self.summary():
            logger.warning(summary)


@dataclass
class Policy:
    """What a reader does with a defect: raise it, or count it."""

    strict: bool
    report: ReadReport
    tolerated: frozenset[str] = frozenset()
    remedy: str = "Correct the file, or skip defects: strict=False (predict: --lenient; recipes: --strict false)."

    def defect(self, reason: str, place: Place, detail: str) -> None:
        """Raise or count one defect; `reason` is a key of `REASONS`."""
        if self.strict and reason not in self.tolerated:
            raise CorpusError(f"{place}: {reason}: {detail}. {self.remedy}")
        self.report.add(reason, place.path)


def span_defect(entity: Sequence, length: int | None, types: frozenset[str] | None) -> tuple[str, str] | None:
    """Reason and detail of what is wrong with one entity taken alone, or None."""
    start, end, name = entity
    if type(start) is not int or type(end) is not int or not isinstance(name, str) or not name:
        return "broken entity", f"{list(entity)!r} is not [number, number, type]"
    shown = f"{name} at [{start}, {end})"
    if end < start:
        return "reversed offsets", shown
    if start < 0 or (length is not None and end > length):
        return (
            "offsets outside the text",
            f"{shown}, offsets run from 0 to {'the end of the text' if length is None else length}",
        )
    if start == end:
        return "empty span", shown
    if types is not None and name not in types:
        return "unknown type", f"{shown}; known are {', '.join(sorted(types))}"
    return None


def validate(
    document: Document,
    types: Iterable[str] | None = None,
    *,
    strict: bool = True,
    report: ReadReport | None = None,
    source: Path | str | None = None,
    lines: Sequence[int] | None = None,
) -> Document:
    """Check the entities of a document: every reader and writer passes through here.

    Args:
        document: what was read.
        types: the entity types allowed, or None for any.
        strict: raise on the first defect; otherwise leave the entity out and count it.
        report: where defects are counted.
        source: the file, for messages.
        lines: the line of each entity, for messages.
    Returns:
        The document with its sound entities, each once, in the order given.
    Raises:
        CorpusError: in strict mode, naming file, line, document and offsets.
    """
    policy = Policy(strict, report if report is not None else ReadReport())
    places = [Place(source, line, document.id) for line in lines or [None] * len(document.entities)]
    known = None if types is None else frozenset(types)
    return Document(document.id, document.text, sound_entities(document.entities, len(document.text), known, places, policy))


def sound_entities(
    entities: Iterable[Sequence],
    length: int | None,
    types: frozenset[str] | None,
    places: Iterable[Place],
    policy: Policy,
) -> tuple[Entity, ...]:
    """The entities without a defect, each once; `length` None leaves out the comparison with the text."""
    sound: dict[Entity, None] = {}
    for entity, place in zip(entities, places, strict=True):
        defect = span_defect(entity, length, types)
        if defect is None and entity in sound:
            defect = "entity given twice", f"{entity[2]} at [{entity[0]}, {entity[1]})"
        if defect is None:
            sound[Entity(*entity)] = None
        else:
            policy.defect(defect[0], place, defect[1])
    return tuple(sound)


def sorted_entities(document: Document) -> list[Entity]:
    """The entities of a document as they are written: by start, outer ones first, then by type; none twice.

    Raises:
        CorpusError: an entity is unsound.
    """
    once = tuple(dict.fromkeys(document.entities))
    checked = validate(Document(document.id, document.text, once)).entities
    return sorted(checked, key=lambda entity: (entity.start, -entity.end, entity.type))


def read_text(path: Path) -> str:
    """The file as it is: no newline is translated and a byte-order mark stays."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error}).") from error


def file_stem(path: Path) -> str:
    """The name of a file without its suffix, of which ids are made.

    Raises:
        CorpusError: it is not UTF-8.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{str(path)!r}: the file's name is not UTF-8; rename it") from error
    return path.stem


def not_utf8(place: Path | Place, error: UnicodeDecodeError) -> CorpusError:
    """The error to raise for a file, or for its line, in another encoding."""
    return CorpusError(f"{place}: is not UTF-8 ({error.reason} at byte {error.start}). Convert the file to UTF-8.")


def marked_text(document: Document, start: int = 0, end: int | None = None) -> str:
    """A stretch of the text with its entities in brackets: `[PROFESSION мэр [CITY Казани]]`.

    Args:
        start, end: characters to show; entities that are not wholly inside are left out.
    """
    end = len(document.text) if end is None else end
    shown = [entity for entity in sorted_entities(document) if start <= entity.start and entity.end <= end]
    pieces = []
    for position in range(start, end + 1):
        pieces.extend("]" for entity in shown if entity.end == position)
        pieces.extend(f"[{entity.type} " for entity in shown if entity.start == position)
        pieces.append(document.text[position : min(position + 1, end)])
    return "".join(pieces)
