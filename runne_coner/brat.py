"""brat folders (`.txt`, `.ann`) to documents and back. Users import these names from `runne_coner.documents`."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .checks import (
    BOM,
    CorpusError,
    Document,
    Entity,
    Place,
    Policy,
    ReadReport,
    file_stem,
    read_text,
    sorted_entities,
    sound_entities,
    span_defect,
)
from .files import replacing_folder

RELOCATION_WINDOW = 20
"""How far (characters) a brat mention may stand from its offsets and still be taken for the same one."""


_TEXT_BOUND = re.compile(r"T\S+\t(\S+) (-?[0-9]+ -?[0-9]+(?:;-?[0-9]+ -?[0-9]+)*)\t(.*)", re.DOTALL)
_OTHER_ANNOTATION = re.compile(r"[RNAME][0-9]\S*\t|[#*]")


class _Mention(NamedTuple):
    """A text-bound line of an .ann file: the `(start, end)` of its parts, its type and text, and its line number."""

    parts: tuple[tuple[int, int], ...]
    type: str
    text: str
    line: int


def read_brat(
    folder: str | os.PathLike,
    *,
    strict: bool = False,
    types: Iterable[str] | None = None,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Read the documents of a brat folder, sorted by file name; a document's id is its file's stem.

    A `.txt` without `.ann` is a document without entities (`ners.txt`, the list of types, is none). Only text-bound
    lines (`T1<TAB>TYPE 0 5<TAB>text`) become entities; relations, normalisations, attributes, events and notes are
    passed over. How offsets and texts are reconciled:

    - Offsets count code points of the file, so a CR LF is two and a byte-order mark is one. If more mentions agree
      with their text when the mark is not counted, or CR LF counts as one, the document's text is the file's without
      the mark, or with LF alone. Offsets are never changed, and `text[start:end]` is the mention.
    - Line breaks and runs of white space may differ between a mention and its text: brat writes spaces for them.
    - A mention that stands elsewhere within `RELOCATION_WINDOW` characters is moved to its nearest occurrence, of
      whole words if there is one; one that stands nowhere there is skipped, since nobody can tell whether its offsets
      or its text are right.
    - Parts of a discontinuous span with nothing but white space between them are one mention (brat splits mentions
      at line breaks). Any other discontinuous span becomes one entity per part: this is what the organisers of RuNNE
      did to all 78 of them in the 461 training documents that RuNNE shares with NEREL.

    Args:
        folder: the folder, searched without its subfolders.
        strict: raise on the first defect instead of repairing or skipping it.
        types: the entity types allowed, or None for any.
        report: where defects are counted.
    Yields:
        Documents.
    Raises:
        CorpusError: the folder is missing or holds no text, a file or its name is not UTF-8, or, in strict mode, a defect.
    """
    folder = Path(folder)
    texts = brat_texts(folder)
    policy = Policy(strict, report if report is not None else ReadReport())
    if not texts:
        raise CorpusError(f"{folder}: no .txt file in the folder. A brat folder holds pairs of .txt and .ann files.")
    for orphan in sorted({path.stem for path in folder.glob("*.ann")} - {path.stem for path in texts}):
        if not orphan.startswith("."):
            path = folder / f"{orphan}.ann"
            policy.defect("annotations without a text", Place(path), f"there is no {orphan}.txt beside it")
    known = None if types is None else frozenset(types)
    for path in texts:
        yield read_brat_document(path, policy, known)


def brat_texts(folder: str | os.PathLike) -> list[Path]:
    """The `.txt` files of a brat folder that are documents, sorted; hidden files and a list of types are not."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such folder.")
    return sorted(
        path
        for path in folder.glob("*.txt")
        if not path.name.startswith(".") and (path.name != "ners.txt" or path.with_suffix(".ann").exists())
    )


def read_brat_document(path: Path, policy: Policy, types: frozenset[str] | None) -> Document:
    """One document: `path` is its .txt file."""
    name, text, annotations = file_stem(path), read_text(path), path.with_suffix(".ann")
    if not annotations.exists():
        return Document(name, text)
    mentions = list(_mentions(annotations, name, policy))
    text = _reading_that_fits(text, mentions)
    entities: list[Entity] = []
    places: list[Place] = []
    for mention in mentions:
        place = Place(annotations, mention.line, name)
        found = _reconciled(mention, text, place, policy)
        entities += found
        places += [place] * len(found)
    return Document(name, text, sound_entities(entities, len(text), types, places, policy))


def _mentions(path: Path, document: str, policy: Policy) -> Iterator[_Mention]:
    """The text-bound lines of an .ann file. Lines end at LF only: U+2028 and its like occur inside mentions."""
    for number, line in enumerate(read_text(path).removeprefix(BOM).split("\n"), 1):
        line = line.removesuffix("\r")
        if match := _TEXT_BOUND.fullmatch(line):
            name, offsets, text = match.groups()
            pairs = [part.split(" ") for part in offsets.split(";")]
            yield _Mention(tuple((int(start), int(end)) for start, end in pairs), name, text, number)
        elif line.strip() and not _OTHER_ANNOTATION.match(line):
            policy.defect("broken line", Place(path, number, document), repr(line[:80]))


def _reading_that_fits(text: str, mentions: Sequence[_Mention]) -> str:
    """The way to read a file's characters that most mentions agree with; as it is, if several do equally well."""
    readings = [text]
    if text.startswith(BOM):
        readings.append(text[1:])
    if "\r\n" in text:
        readings += [reading.replace("\r\n", "\n") for reading in readings]
    if len(readings) == 1:
        return text
    return max(readings, key=lambda reading: sum(_agrees(mention, reading) for mention in mentions))


def _agrees(mention: _Mention, text: str) -> bool:
    covered = " ".join(text[start:end] for start, end in mention.parts)
    return covered == mention.text or covered.split() == mention.text.split()


def _reconciled(mention: _Mention, text: str, place: Place, policy: Policy) -> list[Entity]:
    """The entities of one mention once its offsets and its text have been compared; offsets may still be unsound."""
    parts = _joined(mention.parts, text)
    entities = [Entity(start, end, mention.type) for start, end in parts]
    if any(span_defect(entity, len(text), None) for entity in entities):
        return entities
    offsets = ";".join(f"[{start}, {end})" for start, end in parts)
    if not _agrees(mention, text):
        covered = " ".join(text[start:end] for start, end in parts)
        moved = _nearest_occurrence(mention, text) if len(parts) == 1 else None
        reason = "text that disagrees with its span" if moved is None else "misplaced span"
        policy.defect(reason, place, f"{mention.type} at {offsets} is {mention.text!r}, the text there {covered!r}")
        return [] if moved is None else [moved]
    if len(parts) > 1:
        policy.defect("discontinuous span", place, f"{mention.type} at {offsets}, {mention.text!r}")
    return entities


def _joined(parts: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Parts of a span, those with only white space between them made one."""
    joined = [parts[0]]
    for start, end in parts[1:]:
        last = joined[-1][1]
        if 0 <= last <= start and not text[last:start].strip():
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _nearest_occurrence(mention: _Mention, text: str) -> Entity | None:
    words = mention.text.split()
    if not words:
        return None
    start = mention.parts[0][0]
    first = max(0, start - RELOCATION_WINDOW)
    last = start + RELOCATION_WINDOW + len(mention.text)
    found = re.finditer(r"\s+".join(map(re.escape, words)), text[first:last])
    spans = [(first + match.start(), first + match.end()) for match in found]
    # Inside a word ("он" in "телефон") only where it stands nowhere else.
    nearest = min(spans, key=lambda span: (_cuts_a_word(text, *span), abs(span[0] - start)), default=None)
    return nearest and Entity(*nearest, mention.type)


def _cuts_a_word(text: str, start: int, end: int) -> bool:
    return any(re.fullmatch(r"\w\w", text[max(border - 1, 0) : border + 1]) for border in (start, end))


def write_brat(documents: Iterable[Document], folder: str | os.PathLike) -> None:
    """Write a new brat folder, a `.txt` and an `.ann` file for each document; it appears only when complete.

    Args:
        documents: with ids that can be file names.
        folder: a folder that does not exist yet or is empty.
    Raises:
        CorpusError: the folder holds something, an id is no safe file name or given twice, an entity is unsound.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CorpusError(f"{folder}: exists and is not an empty folder. Give a new one, so that no corpora mix.")
    seen: set[str] = set()
    try:
        with replacing_folder(folder) as part:
            for document in documents:
                name = _file_name(document.id, seen)
                for suffix, content in ((".txt", document.text), (".ann", _annotation_lines(document))):
                    with open(part / (name + suffix), "w", encoding="utf-8", newline="") as file:
                        file.write(content)
    except UnicodeEncodeError as error:
        raise CorpusError(f"{folder}, document {document.id!r}: text that is not valid Unicode ({error}).") from error
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be written ({error.strerror or error}).") from error


def check_for_brat(documents: Iterable[Document], types: Iterable[str]) -> None:
    """Make sure, before they are predicted, that `write_brat` can write documents with entities of these types.

    Raises:
        CorpusError: an id is no safe file name or given twice, or a type holds white space.
    """
    seen: set[str] = set()
    for document in documents:
        _file_name(document.id, seen)
    for name in types:
        _check_type(name)


def _check_type(name: str, place: str = "") -> None:
    if len(name.split()) != 1 or name != name.strip():
        raise CorpusError(f"{place}brat cannot hold a type with white space: {name!r}.")


def _file_name(document_id: str | int, seen: set[str]) -> str:
    """The stem of a document's files; `seen` gathers the stems already taken."""
    name = str(document_id)
    unsafe = not name or name[0] in ". " or name[-1] in ". " or len(name.encode(errors="replace")) > 200
    if unsafe or not name.isprintable() or re.search(r'[/\\<>:"|?*\ud800-\udfff]', name) or name == "ners":
        raise CorpusError(f"document {document_id!r}: the id cannot be a file name. Give the document another id.")
    if name in seen:
        raise CorpusError(f"document {document_id!r}: id given twice. Give every document its own id.")
    seen.add(name)
    return name


def _annotation_lines(document: Document) -> str:
    lines = []
    for number, (start, end, name) in enumerate(sorted_entities(document), 1):
        _check_type(name, f"document {document.id!r}: ")
        mention = re.sub(r"[\r\n]", " ", document.text[start:end])
        lines.append(f"T{number}\t{name} {start} {end}\t{mention}\n")
    return "".join(lines)
