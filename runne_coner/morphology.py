"""Which cases and numbers a Russian mention may stand in, so that another can take its place.

It needs pymorphy3 (extra `augmentation`).
"""

import re
from functools import cache
from typing import NamedTuple

HYPHENATED_WORD = re.compile(r"\w+(?:-\w+)*")
LIKELY = 0.1
"""Probability from which on pymorphy3's reading of a word is one that it probably has."""
_PLAIN_CASES = {"gen1": "gent", "gen2": "gent", "acc1": "accs", "acc2": "accs", "loc1": "loct", "loc2": "loct"}
"""Second genitives and the like agree with words in the plain case."""


class Readings(NamedTuple):
    """`(case, number)` pairs that a mention's head word may be in at all, and the likely ones of them; empty: none is known."""

    possible: frozenset[tuple[str, str]] = frozenset()
    likely: frozenset[tuple[str, str]] = frozenset()

    def admit(self, other: "Readings") -> bool:
        """Whether a mention with the readings `other` can take this one's place: it may stand in whatever case and number this
        one probably stands in. Where this one's are unknown (a number, a foreign name), the other's must be as well."""
        return self.likely <= other.possible if self.likely else not other.possible


UNKNOWN = Readings()


class CaseReader:
    """Reads mentions with the morphological dictionary of pymorphy3 (Korobov 2015), words it does not know by their endings.

    The head word is the first noun; without one, the first word that has a case. Its context is not looked at, so forms that
    several cases share have several readings.

    Raises:
        ImportError: pymorphy3 is not installed.
    """

    def __init__(self):
        from pymorphy3 import MorphAnalyzer

        self._parse = cache(MorphAnalyzer(lang="ru").parse)

    def __call__(self, mention: str) -> Readings:
        words = [self._parse(word) for word in HYPHENATED_WORD.findall(mention)]
        for wanted in (lambda tag: tag.POS == "NOUN", lambda tag: tag.case is not None):
            for parses in words:
                if wanted(parses[0].tag):
                    return _readings([parse for parse in parses if parse.tag.POS == parses[0].tag.POS])
        return UNKNOWN


def _readings(parses: list) -> Readings:
    scores: dict[tuple[str, str], float] = {}
    for parse in parses:
        # Some words are of no number: they are as good in the singular as in the plural.
        for number in [parse.tag.number] if parse.tag.number else ["sing", "plur"]:
            if parse.tag.case is not None:
                reading = _PLAIN_CASES.get(parse.tag.case, parse.tag.case), number
                scores[reading] = scores.get(reading, 0.0) + parse.score
    # Of a word with very many readings none may reach the bound.
    bound = min(LIKELY, max(scores.values(), default=0.0))
    return Readings(frozenset(scores), frozenset(reading for reading, score in scores.items() if score >= bound))
