"""Error taxonomy: what became of every gold entity, and where every predicted one came from.

Every gold and every predicted span of a document belongs to exactly one *outcome*:

- `correct`: the same start, end and type on both sides;
- `confusion`: the same start and end, another type;
- `too long`, `too short`, `shifted`: the same type and overlapping spans; the predicted one contains the gold one, lies inside
  it, or neither;
- `missed`: a gold span without partner; `spurious`: a predicted span without partner.

Correct spans are taken first. The others are paired one to one so that, per document, as many spans as possible have a partner
and, among all such pairings, the summed overlap (intersection over union, in characters; 1 for a confusion) is largest. The
pairing is an assignment problem, solved exactly (`scipy.optimize.linear_sum_assignment`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from scipy.optimize import linear_sum_assignment

from .documents import Document, Entity
from .metrics import ScoreError, paired_documents
from .preprocessing import split_words

BOUNDARY_KINDS = ("too long", "too short", "shifted")
KINDS = ("correct", "confusion", *BOUNDARY_KINDS, "missed", "spurious")
"""The kinds of outcomes, in the order of tables."""

FLAT, OUTER, INNER_OTHER, INNER_SAME = NESTINGS = ("flat", "outer", "inner of another type", "inner of the same type")
"""How an entity is nested among the others of its side (`nesting_of`)."""


@dataclass(frozen=True)
class Mention:
    """An entity with what tables are split by: its `text`, its length in `words` and its `nesting` (one of `NESTINGS`)."""

    start: int
    end: int
    type: str
    text: str
    words: int
    nesting: str


@dataclass(frozen=True)
class Outcome:
    """One line of the account: the `document`'s id, the `kind`, and the gold and predicted mention, either may be None."""

    document: str | int
    kind: str
    gold: Mention | None
    predicted: Mention | None

    @property
    def mention(self) -> Mention:
        """What the outcome is counted under: the gold mention, or the spurious one."""
        return self.gold or self.predicted


def error_taxonomy(references: Iterable[Document], predictions: Iterable[Document]) -> list[Outcome]:
    """The outcome of every gold and predicted span (see the module's docstring), in the order of the references.

    Args:
        references, predictions: documents with the same ids, in any order; the references' texts are used.
    Raises:
        ScoreError: a document is missing, unexpected or given twice, or an entity does not lie in the text.
    """
    outcomes = []
    for reference, prediction in paired_documents(references, predictions):
        for side, entities in (("references", reference.entities), ("predictions", prediction.entities)):
            for entity in entities:
                if not 0 <= entity.start < entity.end <= len(reference.text):
                    raise ScoreError(
                        f"document {reference.id!r} of the {side} has a {entity.type} at [{entity.start}, {entity.end}), which"
                        f" does not lie in the text of the references ({len(reference.text)} characters)"
                    )
        sides = [_mentions(reference.text, set(side.entities)) for side in (reference, prediction)]
        found = [
            Outcome(reference.id, outcome_kind(gold, guess), sides[0].get(gold), sides[1].get(guess))
            for gold, guess in match_spans(reference.entities, prediction.entities)
        ]
        outcomes += sorted(found, key=lambda outcome: (outcome.mention.start, -outcome.mention.end, outcome.mention.type))
    return outcomes


def match_spans(gold: Iterable[Entity], predicted: Iterable[Entity]) -> list[tuple[Entity | None, Entity | None]]:
    """Pair the spans of one document one to one (see the module's docstring); spans without partner stand beside None."""
    truth, guess = set(gold), set(predicted)
    pairs: list[tuple[Entity | None, Entity | None]] = [(entity, entity) for entity in truth & guess]
    left = [(entity, True) for entity in truth - guess] + [(entity, False) for entity in guess - truth]
    for cluster in _clusters(sorted(left), lambda item: item[0]):
        pairs += _assigned([e for e, is_gold in cluster if is_gold], [e for e, is_gold in cluster if not is_gold])
    return pairs


def _clusters(items: Iterable, entity_of: Callable) -> Iterator[list]:
    """Items sorted by start, in groups of which no two overlap."""
    cluster: list = []
    reach = 0
    for item in items:
        entity = entity_of(item)
        if cluster and entity.start >= reach:
            yield cluster
            cluster, reach = [], 0
        cluster.append(item)
        reach = max(reach, entity.end)
    if cluster:
        yield cluster


def _assigned(gold: list[Entity], predicted: list[Entity]) -> list[tuple[Entity | None, Entity | None]]:
    if not gold or not predicted:
        return [(entity, None) for entity in gold] + [(None, entity) for entity in predicted]
    (starts, ends), (found_starts, found_ends) = (
        np.array([(entity.start, entity.end) for entity in side]).T for side in (gold, predicted)
    )
    common = np.minimum(ends[:, None], found_ends) - np.maximum(starts[:, None], found_starts)
    union = np.maximum(ends[:, None], found_ends) - np.minimum(starts[:, None], found_starts)
    types, found_types = (np.array([entity.type for entity in side], dtype=object) for side in (gold, predicted))
    allowed = (common > 0) & ((types[:, None] == found_types) | (common == union))
    # A pair more always outweighs any overlap, which sums to at most the number of pairs.
    gain = np.where(allowed, min(allowed.shape) + 1 + common / union, 0.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    partner = {row: column for row, column in zip(rows.tolist(), columns.tolist(), strict=True) if allowed[row, column]}
    pairs = [(entity, predicted[partner[row]] if row in partner else None) for row, entity in enumerate(gold)]
    taken = set(partner.values())
    return pairs + [(None, entity) for column, entity in enumerate(predicted) if column not in taken]


def outcome_kind(gold: Entity | None, predicted: Entity | None) -> str:
    """The kind, one of `KINDS`, of a pair that `match_spans` made."""
    if gold is None or predicted is None:
        return "missed" if predicted is None else "spurious"
    if (gold.start, gold.end) == (predicted.start, predicted.end):
        return "correct" if gold.type == predicted.type else "confusion"
    if predicted.start <= gold.start and gold.end <= predicted.end:
        return "too long"
    return "too short" if gold.start <= predicted.start and predicted.end <= gold.end else "shifted"


# -- what a span is like ------------------------------------------------------------------------------------------------


def _mentions(text: str, entities: set[Entity]) -> dict[Entity, Mention]:
    nesting = nesting_of(entities)
    mentions = {}
    for entity in entities:
        surface = text[entity.start : entity.end]
        mentions[entity] = Mention(*entity, surface, len(split_words(surface)), nesting[entity])
    return mentions


def nesting_of(entities: Iterable[Entity]) -> dict[Entity, str]:
    """How each entity of a document is nested among the others, one of `NESTINGS`.

    An entity is *inner* if another one contains it, of the same type if any that contain it has its type; *outer* if it
    contains others and nothing contains it; else *flat*. Spans that coincide or cross do not contain each other.
    """
    nesting = {}
    for cluster in _clusters(sorted(set(entities), key=lambda e: (e.start, -e.end, e.type)), lambda entity: entity):
        starts, ends = np.array([(entity.start, entity.end) for entity in cluster]).T
        contains = (starts[:, None] <= starts) & (ends[:, None] >= ends)
        contains &= (starts[:, None] != starts) | (ends[:, None] != ends)
        for number, entity in enumerate(cluster):
            around = {cluster[other].type for other in np.flatnonzero(contains[:, number])}
            if around:
                nesting[entity] = INNER_SAME if entity.type in around else INNER_OTHER
            else:
                nesting[entity] = OUTER if contains[number].any() else FLAT
    return nesting


def type_support(documents: Iterable[Document]) -> Counter:
    """How many mentions each type has in documents."""
    return Counter(entity.type for document in documents for entity in set(document.entities))


def binned(value: int, borders: Sequence[int]) -> str:
    """The name of the bin of a count: `2-4` for borders 1, 2, 5; bins start at the borders, and the last one is open."""
    above = [border for border in borders if border > value]
    low = max((border for border in borders if border <= value), default=0)
    if not above:
        return f"{low} or more"
    return str(low) if above[0] == low + 1 else f"{low}-{above[0] - 1}"


# -- splits -------------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Outcomes of one group of spans.

    Attributes:
        kinds: how many outcomes of each kind; an outcome counts in the group of its gold span, a spurious one in that of
            its predicted span. The sum over all groups is the number of outcomes.
        gold, predicted: gold and predicted spans that belong to the group themselves.
        found, right: the correct ones among them.
    """

    kinds: Counter = field(default_factory=Counter)
    gold: int = 0
    predicted: int = 0
    found: int = 0
    right: int = 0

    @property
    def recall(self) -> float | None:
        """Correct share of the gold spans of the group, None without any."""
        return self.found / self.gold if self.gold else None

    @property
    def precision(self) -> float | None:
        """Correct share of the predicted spans of the group, None without any."""
        return self.right / self.predicted if self.predicted else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 0 if either is 0 or undefined; None without gold spans."""
        if not self.gold:
            return None
        both = (self.precision or 0.0) + (self.recall or 0.0)
        return 2 * (self.precision or 0.0) * (self.recall or 0.0) / both if both else 0.0


def split_outcomes(
    outcomes: Iterable[Outcome], group_of: Callable[[Mention], str], groups: Iterable[str] = ()
) -> dict[str, Tally]:
    """Count outcomes by a property of their spans, such as `lambda mention: mention.type`.

    Recall is over gold spans by their own group, precision over predicted spans by theirs: a span that is inner in the gold
    may be flat among the predictions.

    Args:
        outcomes: of `error_taxonomy`.
        group_of: the group of a mention.
        groups: those that come first, in this order, whether they occur or not; others follow as they appear.
    """
    tallies = {group: Tally() for group in groups}
    for outcome in outcomes:
        correct = outcome.kind == "correct"
        tallies.setdefault(group_of(outcome.mention), Tally()).kinds[outcome.kind] += 1
        if outcome.gold:
            tally = tallies.setdefault(group_of(outcome.gold), Tally())
            tally.gold += 1
            tally.found += correct
        if outcome.predicted:
            tally = tallies.setdefault(group_of(outcome.predicted), Tally())
            tally.predicted += 1
            tally.right += correct
    return tallies


def confusion_matrix(outcomes: Iterable[Outcome]) -> Counter:
    """Counts of `(gold type, predicted type)` at equal spans; the diagonal holds the correct ones."""
    return Counter(
        (outcome.gold.type, outcome.predicted.type) for outcome in outcomes if outcome.kind in ("correct", "confusion")
    )


def instructive_errors(outcomes: Iterable[Outcome], limit: int = 50) -> list[Outcome]:
    """A sample of the errors that shows the frequent ones often and the rare ones too.

    The kinds take turns as long as they have errors left. Within a kind, errors are grouped by gold and predicted type, and the
    turn goes to the group with the largest size / (2 * turns so far + 1) (Sainte-Lague), the first one on a tie. Within a
    group, errors with different texts come first, those whose text recurs most in the group before others.

    Returns:
        At most `limit` outcomes, by kind and, within a kind, in the order of `outcomes`.
    """
    groups: dict[str, dict[tuple, list[tuple[int, Outcome]]]] = {kind: {} for kind in KINDS if kind != "correct"}
    for position, outcome in enumerate(outcomes):
        if outcome.kind != "correct":
            types = tuple(mention and mention.type for mention in (outcome.gold, outcome.predicted))
            groups[outcome.kind].setdefault(types, []).append((position, outcome))
    queues = [_proportional(list(map(_varied, of_kind.values()))) for of_kind in groups.values()]
    turns = [item for turn in zip_longest(*queues) for item in turn if item is not None]
    chosen = sorted(turns[:limit], key=lambda item: (KINDS.index(item[1].kind), item[0]))
    return [outcome for _, outcome in chosen]


def _proportional(groups: list[list]) -> list:
    """The items of all groups in an order of which every beginning holds each group in proportion to its size."""
    turns = [(-len(group) / (2 * turn + 1), number, turn) for number, group in enumerate(groups) for turn in range(len(group))]
    return [groups[number][turn] for _, number, turn in sorted(turns)]


def _varied(group: list[tuple[int, Outcome]]) -> list[tuple[int, Outcome]]:
    count = Counter(outcome.mention.text for _, outcome in group)
    seen: Counter = Counter()
    keys = []
    for position, outcome in group:
        text = outcome.mention.text
        keys.append((seen[text], -count[text], position, outcome))
        seen[text] += 1
    return [(position, outcome) for _, _, position, outcome in sorted(keys, key=lambda key: key[:3])]
