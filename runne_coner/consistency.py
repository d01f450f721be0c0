"""Where the gold looks inconsistent: the same words labelled differently, or left without a label, elsewhere.

This is a hint, not a verdict: a name may well mean a country here and a team there.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .documents import Document
from .preprocessing import split_words

Words = tuple[str, ...]
"""A surface string as its words, so that white space and line breaks make no difference; case does."""


class Place(NamedTuple):
    """Characters `[start, end)` of a document."""

    document: str | int
    start: int
    end: int


Labellings = dict[tuple[str, ...], list[Place]]
"""Where a surface string has which types, sorted; the empty tuple is where it has none."""


def words_of(text: str) -> Words:
    """The words of a surface string, the key of `inconsistent_surfaces`."""
    return tuple(text[start:end] for start, end in split_words(text).tolist())


def inconsistent_surfaces(documents: Iterable[Document]) -> dict[Words, Labellings]:
    """Surface strings of entities that have different types at different places, or no label somewhere.

    An occurrence counts as left without a label only where it consists of whole words and overlaps no entity at all: the
    surname within a person's full name is no omission.

    Args:
        documents: gold documents, with their texts.
    Returns:
        For each such string its labellings (two or more), each with all its places in the order of the documents.
    """
    documents = list(documents)
    found: dict[Words, Labellings] = {}
    for document in documents:
        types_at: dict[tuple[int, int], set[str]] = {}
        for entity in document.entities:
            types_at.setdefault((entity.start, entity.end), set()).add(entity.type)
        for (start, end), types in sorted(types_at.items()):
            words = words_of(document.text[start:end])
            if words:
                places = found.setdefault(words, {}).setdefault(tuple(sorted(types)), [])
                places.append(Place(document.id, start, end))
    tree = _tree(found)
    for document in documents:
        for words, start, end in _unlabelled(document, tree):
            found[words].setdefault((), []).append(Place(document.id, start, end))
    return {words: labellings for words, labellings in found.items() if len(labellings) > 1}


def _tree(surfaces: Iterable[Words]) -> dict:
    """A prefix tree of word sequences; `None` marks the end of one."""
    tree: dict = {}
    for words in surfaces:
        node = tree
        for word in words:
            node = node.setdefault(word, {})
        node[None] = words
    return tree


def _unlabelled(document: Document, tree: dict) -> Iterator[tuple[Words, int, int]]:
    """Occurrences of the tree's word sequences that overlap no entity."""
    covered = np.zeros(len(document.text) + 1, dtype=bool)
    for entity in document.entities:
        covered[entity.start : entity.end] = True
    offsets = split_words(document.text)
    free = [not covered[start:end].any() for start, end in offsets.tolist()]
    words = [document.text[start:end] for start, end in offsets.tolist()]
    for first in range(len(words)):
        node, last = tree, first
        while last < len(words) and free[last] and (node := node.get(words[last])) is not None:
            last += 1
            if None in node:
                yield node[None], int(offsets[first, 0]), int(offsets[last - 1, 1])
