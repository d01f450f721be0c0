"""Flat corpora in columns: CoNLL-style files with one token a line and its BIO tag in the last column.

Read are BIO (IOB2), IOB1, and BIOES or BILOU tags. `-DOCSTART-` lines begin documents, blank lines end sentences.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .checks import BOM, Document, Place, Policy, ReadReport, file_stem, read_text, sound_entities

CONLL_SUFFIXES = (".conll", ".bio", ".tsv")
"""The suffixes of files that are read as columns."""

DOCUMENT_START = "-DOCSTART-"
_BORDER = " \r\t"
"""What may stand around a column and does not belong to it."""
_PREFIXES = frozenset("BIESLU")


class _Token(NamedTuple):
    """A line: the word, its tag's prefix ("" for O) and type, and where it stands."""

    word: str
    prefix: str
    type: str
    line: int


def read_conll(
    path: str | os.PathLike,
    *,
    strict: bool | None = None,
    types: Iterable[str] | None = None,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Read a file of columns: the token first, its tag last (`O`, `B-TYPE`, `I-TYPE`; `E-`/`L-` end, `S-`/`U-` are single).

    Columns are separated by tabs, in a file without tabs (comments aside) by spaces. The text of a document is its tokens
    with a space between them and a line break between sentences. `-DOCSTART-` begins a document; in a file without it every
    sentence is a document. Lines that begin with `# ` and do not end in a tag are comments.

    Args:
        path: the file.
        strict: True raises on every defect, False repairs or skips and counts; None raises on all but an entity that
            starts with `I-` (or `E-`, `L-`), as IOB1 writes them.
        types: the entity types allowed, or None for any.
        report: where defects are counted.
    Yields:
        Documents, with the ids `STEM-1`, `STEM-2`, ...; those without a token are left out.
    Raises:
        CorpusError: the file cannot be read, or a defect that `strict` does not let pass, with file and line.
    """
    path = Path(path)
    tolerated = frozenset({"entity without a beginning"}) if strict is None else frozenset()
    policy = Policy(strict is not False, report if report is not None else ReadReport(), tolerated)
    known = None if types is None else frozenset(types)
    name, number = file_stem(path), 0
    for sentences in _documents(path, policy):
        number += 1
        yield _document(f"{name}-{number}", sentences, path, policy, known)


def _documents(path: Path, policy: Policy) -> Iterator[list[list[_Token]]]:
    """Sentences by document; neither is ever empty."""
    content = read_text(path).removeprefix(BOM)
    lines = content.split("\n")
    separator = "\t" if any("\t" in line for line in lines if not line.startswith(("# ", DOCUMENT_START))) else None
    whole = any(line.startswith(DOCUMENT_START) for line in lines)
    sentences: list[list[_Token]] = []
    sentence: list[_Token] = []
    for number, line in enumerate([*lines, ""], 1):
        line = line.rstrip("\r")
        if "\r" in line:
            place = Place(path, number)
            policy.defect("broken line", place, "a CR that no LF follows stands in it; lines must end at LF or CR LF")
            continue
        starts = line.startswith(DOCUMENT_START)
        if starts or not line.strip():
            sentences += [sentence] if sentence else []
            sentence = []
            if sentences and (starts or not whole):
                yield sentences
                sentences = []
            continue
        token = _token(line, separator, Place(path, number), policy)
        if token is not None:
            sentence.append(token)
    if sentences:
        yield sentences


def _token(line: str, separator: str | None, place: Place, policy: Policy) -> _Token | None:
    """The token of a line; None for a comment, or for a broken line that the policy lets pass."""
    # A no-break space belongs to a token ("10\u00a0000"), so it separates nothing where spaces do, and is not cut off.
    columns = line.rstrip(_BORDER).split(separator) if separator else re.split(r" +", line.strip(_BORDER))
    word, tag = columns[0].strip(_BORDER), columns[-1].strip(_BORDER)
    prefix, hyphen, name = tag.partition("-")
    is_tag = tag == "O" or (prefix in _PREFIXES and hyphen and name)
    if len(columns) > 1 and word and is_tag:
        return _Token(word, "" if tag == "O" else prefix, name, place.line)
    if line.startswith("# "):
        return None
    if len(columns) < 2 or not word:
        problem = f"{line.strip()!r} is not a token and its tag in columns"
    else:
        problem = f"the last column {tag!r} is not O, B-TYPE or I-TYPE (or E-, L-, S-, U-)"
    policy.defect("broken line", place, problem)
    return None


def _document(name: str, sentences: list[list[_Token]], path: Path, policy: Policy, known: frozenset[str] | None) -> Document:
    pieces: list[str] = []
    found: list[tuple[int, int, str]] = []
    places: list[Place] = []
    length = 0
    for sentence in sentences:
        open_type = ""
        for index, token in enumerate(sentence):
            if length:
                pieces.append(" " if index else "\n")
                length += 1
            # No entity begins or ends with a no-break space at the border of a token, as no word does.
            bare = token.word.strip() or token.word
            start = length + token.word.index(bare)
            end, length = start + len(bare), length + len(token.word)
            pieces.append(token.word)
            place = Place(path, token.line, name)
            continues = token.prefix in ("I", "E", "L") and token.type == open_type
            if continues:
                found[-1] = (found[-1][0], end, token.type)
            elif token.prefix:
                if token.prefix not in ("B", "S", "U"):
                    detail = f"{token.prefix}-{token.type} at {token.word!r} continues no entity of its type"
                    policy.defect("entity without a beginning", place, detail)
                found.append((start, end, token.type))
                places.append(place)
            open_type = token.type if token.prefix in ("B", "I") else ""
    text = "".join(pieces)
    return Document(name, text, sound_entities(found, len(text), known, places, policy))
