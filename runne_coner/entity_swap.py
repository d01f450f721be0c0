"""More training windows for stage 2: copies in which mentions are replaced by others of their type (`swap_share`).

What is swapped is a whole mention with everything annotated inside it: its nested mentions leave with it, and those of the new
one come along. So all annotations stay exact. Copies are made of windows with rare types, as many as `sampling.repeat_factors`
says, and only from training documents. Entity replacement follows Dai and Adel 2020 ("mention replacement").
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from .documents import FEATURES, Document, Entity, from_row, to_row
from .morphology import UNKNOWN, CaseReader, Readings
from .preprocessing import ViewError
from .sampling import window_copies

_FUSED = re.compile(r"\w\w")


class Mention(NamedTuple):
    """Words of a mention and all entities in them, offsets from its start; those of the whole text say what it is."""

    text: str
    entities: tuple[Entity, ...]

    @property
    def kind(self) -> tuple[str, ...]:
        """Types of the whole mention, sorted; mostly one."""
        return tuple(sorted(e.type for e in self.entities if (e.start, e.end) == (0, len(self.text))))


class Replacement(NamedTuple):
    """Characters `[start, end)` of a text give way to a mention."""

    start: int
    end: int
    mention: Mention


@dataclass(frozen=True)
class SwapSettings:
    """Options of `NestedNerTrainingArguments`: `swap_share`, `swap_probability`, `swap_agreement`."""

    share: float
    probability: float = 0.5
    agreement: str = "none"


def _word_borders(text: str, *places: int) -> bool:
    """Whether no place lies between two letters or digits of one word."""
    return not any(_FUSED.match(text, place - 1) for place in places if place)


def swappable(document: Document) -> list[Replacement]:
    """The mentions that could be swapped, each with itself in its place, sorted by start, outer ones first.

    They start and end with a word, and no entity crosses their borders; so any two of them are nested or apart.
    """
    if not document.entities:
        return []
    entities = sorted(set(document.entities), key=lambda e: (e.start, -e.end, e.type))
    starts, ends = (np.array([e[column] for e in entities]) for column in (0, 1))
    # Rows are looked at, columns are compared with them.
    crosses = (starts[:, None] < starts) & (starts < ends[:, None]) & (ends[:, None] < ends)
    crossed = crosses.any(axis=0) | crosses.any(axis=1)
    inside = (starts[:, None] <= starts) & (ends <= ends[:, None])
    found = {}
    for index, (start, end, _) in enumerate(entities):
        if (start, end) not in found and not crossed[index] and _word_borders(document.text, start, end):
            held = (entities[other] for other in np.flatnonzero(inside[index]))
            moved = tuple(Entity(e.start - start, e.end - start, e.type) for e in held)
            found[start, end] = Replacement(start, end, Mention(document.text[start:end], moved))
    return list(found.values())


def replace_mentions(document: Document, replacements: Sequence[Replacement]) -> Document:
    """The document with other mentions in the places given, sorted and apart; all that lies inside the places goes with them.

    Entities around a place grow or shrink with it, those behind it move.
    """
    ends = [place.end for place in replacements]
    growth = np.concatenate([[0], np.cumsum([len(p.mention.text) - (p.end - p.start) for p in replacements])])

    def moved(position: int) -> int:
        return position + int(growth[np.searchsorted(ends, position, side="right")])

    pieces, position, entities = [], 0, []
    for number, (start, end, mention) in enumerate(replacements):
        pieces += [document.text[position:start], mention.text]
        position = end
        base = start + int(growth[number])
        entities += [Entity(base + e.start, base + e.end, e.type) for e in mention.entities]
    for start, end, name in document.entities:
        if not any(place.start <= start and end <= place.end for place in replacements):
            entities.append(Entity(moved(start), moved(end), name))
    entities.sort(key=lambda e: (e.start, -e.end, e.type))
    return Document(document.id, "".join(pieces) + document.text[position:], tuple(entities))


class MentionPool:
    """All different mentions of a corpus by what they are, to draw from; each has the same chance, however frequent it is.

    Args:
        documents: where the mentions come from.
        readings: case and number of a mention (`morphology.CaseReader`); by default nothing has to agree.
    """

    def __init__(self, documents: Iterable[Document], readings: Callable[[str], Readings] = lambda text: UNKNOWN):
        self.readings = readings
        self.by_kind: dict[tuple[str, ...], dict[Readings, dict[Mention, None]]] = defaultdict(lambda: defaultdict(dict))
        for document in documents:
            for place in swappable(document):
                self.by_kind[place.mention.kind][readings(place.mention.text)][place.mention] = None
        self._admitted: dict[tuple, list[Mention]] = {}

    def counts(self) -> tuple[int, int]:
        """How many different mentions there are, and of how many the case is known."""
        groups = [(found, len(mentions)) for kinds in self.by_kind.values() for found, mentions in kinds.items()]
        return sum(size for _, size in groups), sum(size for found, size in groups if found.possible)

    def draw(self, old: Mention, before: str, after: str, rng: np.random.Generator) -> Mention | None:
        """A mention of the types of `old` that agrees with it and has other words, or None if there is none.

        Args:
            before, after: the characters around the place ("" at the ends of a text), with which it must not make one word.
        """
        readings = self.readings(old.text)
        key = (old.kind, readings)
        if key not in self._admitted:
            groups = self.by_kind[old.kind].items()
            self._admitted[key] = [mention for found, group in groups if readings.admit(found) for mention in group]
        mentions = self._admitted[key]
        for index in rng.permutation(len(mentions)):
            new = mentions[index]
            if new.text.casefold() != old.text.casefold():
                if not _FUSED.match(before + new.text[0]) and not _FUSED.match(new.text[-1] + after):
                    return new
        return None


def swap_mentions(document: Document, pool: MentionPool, probability: float, rng: np.random.Generator) -> Document | None:
    """The document with some of its mentions replaced by others of the pool; None if there is none that can be.

    Args:
        probability: chance of every mention that is not inside one already replaced. If the draw chooses none, one is
            replaced all the same.
    """
    places = swappable(document)
    chosen = _drawn(document.text, places, pool, rng.random(len(places)) < probability, rng)
    for index in rng.permutation(len(places)):
        if chosen:
            break
        chosen = _drawn(document.text, places, pool, np.arange(len(places)) == index, rng)
    return replace_mentions(document, chosen) if chosen else None


def _drawn(text: str, places: list[Replacement], pool: MentionPool, wanted, rng) -> list[Replacement]:
    chosen: list[Replacement] = []
    for (start, end, old), swap in zip(places, wanted, strict=True):
        last = chosen[-1] if chosen else None
        if not swap or (last and start < last.end):
            continue
        # The neighbour on the left may be new itself.
        before = last.mention.text[-1] if last and last.end == start else text[max(start - 1, 0) : start]
        new = pool.draw(old, before, text[end : end + 1], rng)
        if new is not None:
            chosen.append(Replacement(start, end, new))
    return chosen


def swapped_documents(documents: Dataset, view: Dataset, num_types: int, settings: SwapSettings, seed: int) -> Dataset:
    """Copies of the windows with rare types in which mentions are swapped, as documents of their own.

    A window is copied as often as `sampling.repeat_rare_windows` would repeat it beyond its first time, less the copies that
    come out like another one. It depends on the arguments alone: every process, and a resumed run, makes the same.

    Args:
        documents: the training documents, features of `documents.FEATURES`.
        view: `preprocessing.bilou_view` of them.
        num_types: entity types of its heads.
        settings: `share` must be above 0.
    Returns:
        A dataset of documents; ids are `ID@CHARACTER#COPY`.
    Raises:
        preprocessing.ViewError: mentions are to agree, and pymorphy3 knows the case of none.
    """
    sources = [from_row(row) for row in documents]
    pool = MentionPool(sources, CaseReader()) if settings.agreement == "pymorphy3" else MentionPool(sources)
    mentions, known = pool.counts()
    if settings.agreement == "pymorphy3":
        if mentions and not known:
            raise ViewError(
                f"swap_agreement pymorphy3 is for Russian, and it knows the case of none of the {mentions} mentions of the"
                " training documents; take swap_agreement none"
            )
        print(
            f"swap_agreement: pymorphy3 tells the case of {known} of {mentions} different mentions; others replace each other"
        )
    rng = np.random.default_rng([seed, 1])
    copies = window_copies(view, num_types, settings.share, seed) - 1
    rows = []
    columns = view.with_format("numpy").select_columns(["document", "core"])
    for index in np.flatnonzero(copies):
        row = columns[int(index)]
        window = _cut_out(sources[int(row["document"])], *row["core"].tolist())
        made = (swap_mentions(window, pool, settings.probability, rng) for _ in range(copies[index]))
        distinct = dict.fromkeys(document for document in made if document is not None)
        rows += [to_row(document) | {"id": f"{document.id}#{number}"} for number, document in enumerate(distinct, 1)]
    print(f"swap_share: {len(rows)} copies of training windows with other mentions, {copies.sum() - len(rows)} had none")
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return Dataset.from_dict(columns, features=FEATURES)


def _cut_out(document: Document, start: int, end: int) -> Document:
    entities = [Entity(e.start - start, e.end - start, e.type) for e in document.entities if start <= e.start and e.end <= end]
    return Document(f"{document.id}@{start}", document.text[start:end], tuple(entities))
