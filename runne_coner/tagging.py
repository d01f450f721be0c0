"""The BILOU alphabet, the layout of heads, and the way from spans to tags and back (Bondarenko 2022, section 3.2).

A *head* tags one entity type at one nesting level. Heads are ordered level by level: head `(level - 1) * E + t` tags
type `t` of `E` at `level`, so the first `E` heads alone are the model of the paper. Which of two nested entities of a type
stands on level 1 is said by the level order (`head_levels`).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

TAGS = ("O", "B", "I", "L", "U")
O, B, I, L, U = range(len(TAGS))  # noqa: E741 - the names of the tagging scheme
NUM_TAGS = len(TAGS)
IGNORE_INDEX = -100
"""Label of tokens that are not scored: special tokens and padding."""

WHOLE, FIRST, MIDDLE, LAST, SPECIAL = range(5)
"""The four sub-word cases of section 3.3 (a whole word; the first, a middle, the last part of one) and special tokens."""
NUM_CASES = 5

LEVEL_ORDERS = ("innermost", "outermost")
"""From which side nested entities of one type are counted to get their heads; see `head_levels`."""


def head_index(type_index: int, level: int, num_types: int) -> int:
    """Index of the head that tags entity type `type_index` (0-based) at nesting level `level` (from 1)."""
    return (level - 1) * num_types + type_index


def head_names(entity_types: Sequence[str], levels: int) -> list[str]:
    """Names of all heads in order: `TYPE` at level 1, `TYPE@2`, `TYPE@3`, ... below."""
    return [name if level == 1 else f"{name}@{level}" for level in range(1, levels + 1) for name in entity_types]


def nesting_levels(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Nesting level of each of the distinct spans of ONE entity type (1 = outermost).

    The rule: spans are taken from the longest to the shortest (the leftmost first among equals); each gets the smallest
    level that lies below every span that holds it and on which it overlaps no other span. So nested spans stand on
    increasing levels, and of two spans that cross without nesting the shorter one goes down a level.

    Args:
        spans: `(start, end)` pairs, end exclusive, in any unit; each pair at most once.
    Returns:
        One level (>= 1) for each span, in the order of `spans`.
    Raises:
        ValueError: a span is empty or given twice.
    """
    if len(set(spans)) != len(spans):
        raise ValueError(f"a span is given twice: {sorted(spans)}")
    levels = [0] * len(spans)
    for cluster in _clusters(spans):
        placed: list[int] = []
        for index in sorted(cluster, key=lambda i: (spans[i][0] - spans[i][1], spans[i][0])):
            start, end = spans[index]
            if start >= end:
                raise ValueError(f"the span ({start}, {end}) is empty")
            overlapping = [j for j in placed if spans[j][0] < end and start < spans[j][1]]
            level = 1 + max((levels[j] for j in overlapping if spans[j][0] <= start and end <= spans[j][1]), default=0)
            taken = {levels[j] for j in overlapping}
            while level in taken:
                level += 1
            levels[index] = level
            placed.append(index)
    return levels


def head_levels(spans: Sequence[tuple[int, int]], levels: int, order: str) -> list[int]:
    """Level of the head that tags each of the distinct spans of ONE entity type; 0: it lies beyond `levels`.

    `outermost` counts from the outside: the levels are those of `nesting_levels`. `innermost` counts from the inside: a span
    stands one above the highest of the spans that it overlaps and that have a deeper nesting level, so on 1 if there is
    none. With two levels, the spans of [[[a] b] c] are on 1 (a), 2 (a b) and 0 (a b c), and a span apart from them is on 1.
    With one level there is nothing to count, and the outermost spans are tagged, as in the paper.

    Args:
        spans: as for `nesting_levels`.
        levels: how many there are, at least 1.
        order: one of `LEVEL_ORDERS`.
    Raises:
        ValueError: another order, or as `nesting_levels`.
    """
    if order not in LEVEL_ORDERS:
        raise ValueError(f"level_order must be one of {LEVEL_ORDERS}, got {order!r}")
    found = nesting_levels(spans)
    if order == "innermost" and levels > 1:
        found = _counted_from_the_inside(spans, found)
    return [level if level <= levels else 0 for level in found]


def _counted_from_the_inside(spans: Sequence[tuple[int, int]], nested: Sequence[int]) -> list[int]:
    heights = [0] * len(spans)
    for cluster in _clusters(spans):
        placed: list[int] = []
        # Overlapping spans have different nesting levels, so those that lie further in are placed before.
        for index in sorted(cluster, key=lambda i: -nested[i]):
            start, end = spans[index]
            below = (heights[j] for j in placed if spans[j][0] < end and start < spans[j][1])
            heights[index] = 1 + max(below, default=0)
            placed.append(index)
    return heights


def _clusters(spans: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Indices of spans in groups that do not touch each other's levels (comparing all of a long text takes long)."""
    cluster: list[int] = []
    reach = 0
    for index in sorted(range(len(spans)), key=lambda i: spans[i]):
        if cluster and spans[index][0] >= reach:
            yield cluster
            cluster = []
        cluster.append(index)
        reach = max(reach, spans[index][1])
    if cluster:
        yield cluster


def tag_log_frequencies(tag_counts: np.ndarray) -> np.ndarray:
    """Log of how frequent each tag of each head is, from counts `(heads, 5)`; 1 is added to each count, so that a tag that
    never occurs is rare and not impossible."""
    counts = np.asarray(tag_counts, dtype=np.float64) + 1.0
    return np.log(counts / counts.sum(axis=-1, keepdims=True))


RARE_SHARE = 0.1
"""Types with fewer mentions than this share of the mean type count as rare where spans are decoded (docs/stage2.md)."""


def type_rarity(mentions: np.ndarray) -> np.ndarray:
    """How rare each entity type is: the log of how many times fewer mentions it has than a tenth of the mean type.

    `max(0, log(0.1 * mean / n))` with n mentions, where a type has `mean` of them; types without a mention, of which nothing
    was learned, have 0 and are not in the mean. For example 1000, 100, 10 and 0 mentions, 370 in the mean: 0, 0,
    log(37 / 10) = 1.31 and 0.

    Args:
        mentions: `(types,)` training mentions of each type, at all levels.
    Returns:
        float64 `(types,)`, none below 0.
    """
    rarity = np.zeros(len(mentions))
    present = np.asarray(mentions) > 0
    if present.any():
        found = np.asarray(mentions, dtype=np.float64)[present]
        rarity[present] = np.log(np.maximum(RARE_SHARE * found.mean() / found, 1.0))
    return rarity


def write_span(labels: np.ndarray, head: int, first: int, end: int) -> None:
    """Write one span of tokens `[first, end)` into `labels` (tokens, heads) in place: U, or B I ... I L."""
    if end - first == 1:
        labels[first, head] = U
    else:
        labels[first, head] = B
        labels[first + 1 : end - 1, head] = I
        labels[end - 1, head] = L


def bilou_labels(spans: Iterable[tuple[int, int, int]], num_tokens: int, num_heads: int) -> np.ndarray:
    """Labels of a window from its spans.

    Args:
        spans: `(head, first, end)` token spans, end exclusive; spans of one head must not overlap (see `nesting_levels`).
    Returns:
        int8 array `(num_tokens, num_heads)` of tag indices.
    Raises:
        ValueError: two spans of one head overlap, or a span lies outside the window.
    """
    labels = np.zeros((num_tokens, num_heads), dtype=np.int8)
    for head, first, end in spans:
        if not 0 <= first < end <= num_tokens:
            raise ValueError(f"the token span [{first}, {end}) lies outside a window of {num_tokens} tokens")
        if labels[first:end, head].any():
            raise ValueError(f"two spans of head {head} overlap at tokens [{first}, {end}); put them on different levels")
        write_span(labels, head, first, end)
    return labels


def spans_from_tags(tags: np.ndarray) -> np.ndarray:
    """All well-formed spans of a batch of tag sequences: `U`, or `B I* L`; anything else is not a span.

    Args:
        tags: integer array `(windows, tokens, heads)`; values outside 0..4 (such as `IGNORE_INDEX`) count as O.
    Returns:
        int64 array `(spans, 4)` of `(window, head, first, end)`, end exclusive, sorted by window, head, first.
    """
    sequences = np.ascontiguousarray(np.transpose(tags, (0, 2, 1)))
    _, heads, tokens = sequences.shape
    flat = sequences.reshape(-1)
    # Only the tokens that are not O matter, and they are few: walk over those.
    inside = np.flatnonzero((flat > O) & (flat <= U))
    if len(inside) == 0:
        return np.zeros((0, 4), dtype=np.int64)
    values = flat[inside]
    # A tag continues its left neighbour when both stand side by side in one sequence, as B I, I I, B L or I L.
    adjacent = np.zeros(len(inside), dtype=bool)
    adjacent[1:] = (np.diff(inside) == 1) & (inside[1:] // tokens == inside[:-1] // tokens)
    continues = np.isin(values, (I, L))
    continues[1:] &= adjacent[1:] & np.isin(values[:-1], (B, I))
    continues[:1] = False
    # A run starts at each tag that does not continue; it is a span when it is one U, or starts with B and ends with L.
    run_starts = np.flatnonzero(~continues)
    run_ends = np.append(run_starts[1:], len(inside)) - 1
    unit = (values[run_starts] == U) & (run_starts == run_ends)
    chunk = (values[run_starts] == B) & (values[run_ends] == L)
    keep = unit | chunk
    first, last = inside[run_starts[keep]], inside[run_ends[keep]]
    sequence = first // tokens
    return np.stack([sequence // heads, sequence % heads, first % tokens, last % tokens + 1], axis=1)


def character_spans(
    tags: np.ndarray, word_starts: Sequence[np.ndarray], word_ends: Sequence[np.ndarray], cores: Sequence[np.ndarray]
) -> np.ndarray:
    """Tagged spans of a batch of windows in characters of their documents.

    Where windows overlap, a span belongs to the window whose core its first character lies in; the others' copy is left
    out, so that each mention is given once.

    Args:
        tags: `(windows, tokens, heads)`, tokens padded to any length.
        word_starts, word_ends: per window `(tokens,)` character offsets of the word of each sub-word.
        cores: per window `(2,)`, the first and the end character that the window answers for.
    Returns:
        int64 `(spans, 4)`: window, head, start, end (exclusive).
    """
    spans = spans_from_tags(tags)
    found = []
    for window, head, first, end in spans.tolist():
        start = int(word_starts[window][first])
        if cores[window][0] <= start < cores[window][1]:
            found.append((window, head, start, int(word_ends[window][end - 1])))
    return np.array(found, dtype=np.int64).reshape(-1, 4)
