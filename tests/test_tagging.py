"""Tags, levels and spans: properties, and seqeval's strict BILOU reading as the outside view."""

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import BILOU, Entities

from runne_coner.tagging import (
    IGNORE_INDEX,
    TAGS,
    B,
    I,
    L,
    O,
    U,
    bilou_labels,
    character_spans,
    head_index,
    head_levels,
    head_names,
    nesting_levels,
    spans_from_tags,
    type_rarity,
)

RUNNE_TRAIN = Path(__file__).parents[2] / "shared" / "data" / "runne" / "train.jsonl"

span_sets = st.sets(st.tuples(st.integers(0, 14), st.integers(1, 8)), max_size=12).map(
    lambda pairs: sorted({(start, start + length) for start, length in pairs})
)


def overlap(one, other):
    return one[0] < other[1] and other[0] < one[1]


def holds(outer, inner):
    return outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]


def without_crossings(spans):
    kept = []
    for span in spans:
        if all(not overlap(span, k) or holds(span, k) or holds(k, span) for k in kept):
            kept.append(span)
    return kept


@settings(max_examples=300, deadline=None)
@given(span_sets)
def test_levels_separate_overlapping_spans(spans):
    levels = dict(zip(spans, nesting_levels(spans), strict=True))
    for span in spans:
        for other in spans:
            if span != other and overlap(span, other):
                assert levels[span] != levels[other]
            if holds(other, span):
                assert levels[span] > levels[other]


@settings(max_examples=300, deadline=None)
@given(span_sets)
def test_no_span_stands_lower_than_it_must(spans):
    levels = dict(zip(spans, nesting_levels(spans), strict=True))
    for span in spans:
        others = [other for other in spans if other != span and overlap(span, other)]
        not_shorter = [other for other in others if other[1] - other[0] >= span[1] - span[0]]
        if not not_shorter:
            assert levels[span] == 1
        lowest_container = max((levels[other] for other in others if holds(other, span)), default=0)
        for free in range(lowest_container + 1, levels[span]):
            assert any(levels[other] == free for other in not_shorter)


@settings(max_examples=200, deadline=None)
@given(span_sets.map(without_crossings))
def test_levels_of_properly_nested_spans_are_their_depths(spans):
    assert nesting_levels(spans) == [1 + sum(holds(other, span) for other in spans) for span in spans]


@settings(max_examples=100, deadline=None)
@given(span_sets, st.randoms(use_true_random=False))
def test_levels_do_not_depend_on_the_order_of_spans(spans, random):
    shuffled = list(spans)
    random.shuffle(shuffled)
    expected = dict(zip(spans, nesting_levels(spans), strict=True))
    assert dict(zip(shuffled, nesting_levels(shuffled), strict=True)) == expected


def test_the_nested_organizations_of_the_paper():
    # Section 4.3: "Центральный комитет [[Коммунистического союза молодёжи] Китая]", one ORGANIZATION around all.
    whole, committee, union_of_china, union = (0, 6), (0, 2), (2, 6), (2, 5)
    assert nesting_levels([whole, committee, union_of_china, union]) == [1, 2, 2, 3]


def test_of_two_crossing_spans_the_shorter_goes_down():
    assert nesting_levels([(0, 3), (2, 7)]) == [2, 1]
    assert nesting_levels([(0, 3), (2, 5)]) == [1, 2]  # the left one of two equally long ones stays up


@settings(max_examples=300, deadline=None)
@given(span_sets, st.integers(1, 4))
def test_heads_counted_from_the_outside_are_nesting_levels(spans, levels):
    expected = [level if level <= levels else 0 for level in nesting_levels(spans)]
    assert head_levels(spans, levels, "outermost") == expected
    # With one level both orders tag what the paper tags.
    assert head_levels(spans, 1, "innermost") == head_levels(spans, 1, "outermost")


@settings(max_examples=300, deadline=None)
@given(span_sets, st.integers(2, 4))
def test_heads_counted_from_the_inside_hold_spans_apart(spans, levels):
    heights = dict(zip(spans, head_levels(spans, 20, "innermost"), strict=True))
    for span, level in heights.items():
        others = [other for other in spans if other != span and overlap(span, other)]
        assert level not in [heights[other] for other in others]
        assert all(level > heights[other] for other in others if holds(span, other))
        # None stands higher than it must: right under it lies a span that it overlaps.
        assert level == 1 or level - 1 in {heights[other] for other in others}
    # As many layers as from the outside; fewer levels leave the upper ones out and change none.
    assert max(heights.values(), default=0) <= max(nesting_levels(spans), default=0)
    assert head_levels(spans, levels, "innermost") == [level if level <= levels else 0 for level in heights.values()]


@settings(max_examples=200, deadline=None)
@given(span_sets.map(without_crossings))
def test_innermost_levels_of_properly_nested_spans_are_their_heights(spans):
    heights = {}
    for span in sorted(spans, key=lambda s: s[1] - s[0]):
        heights[span] = 1 + max((heights[other] for other in spans if holds(span, other)), default=0)
    assert head_levels(spans, 20, "innermost") == [heights[span] for span in spans]


def test_an_unknown_level_order_is_an_error():
    with pytest.raises(ValueError, match="level_order must be one of.*'inner'"):
        head_levels([(0, 2)], 2, "inner")


def test_levels_of_a_long_text_take_no_longer_than_they_must():
    # Compared pairwise, 50,000 spans would take hours.
    spans = [pair for start in range(0, 200_000, 8) for pair in ((start, start + 5), (start + 1, start + 2))]
    assert nesting_levels(spans) == [1, 2] * 25_000 and head_levels(spans, 2, "innermost") == [2, 1] * 25_000


@pytest.mark.parametrize("spans", [[(1, 2), (1, 2)], [(3, 3)], [(4, 2)]])
def test_doubled_and_empty_spans_are_errors(spans):
    with pytest.raises(ValueError, match="twice|empty"):
        nesting_levels(spans)


def test_rarity_of_types_worked_by_hand():
    assert type_rarity(np.array([1000, 100, 10, 0])) == pytest.approx([0.0, 0.0, math.log(3.7), 0.0])
    assert type_rarity(np.zeros(3, dtype=int)).tolist() == [0.0] * 3  # no mention at all


@given(st.lists(st.integers(0, 10_000), min_size=3, max_size=3), st.integers(2, 50))
def test_rarity_follows_from_the_mix_of_types_and_not_from_the_size_of_a_corpus(mentions, times):
    rarity = type_rarity(np.array(mentions))
    assert type_rarity(np.array([*mentions, 0]) * times) == pytest.approx([*rarity, 0.0])
    assert (rarity >= 0).all() and rarity[np.argmax(mentions)] == 0
    ordered = [rare for _, rare in sorted((n, -rare) for n, rare in zip(mentions, rarity, strict=True) if n)]
    assert ordered == sorted(ordered)


def test_heads_are_ordered_level_by_level():
    types = ["PERSON", "CITY", "LAW"]
    names = head_names(types, 3)
    assert names == ["PERSON", "CITY", "LAW", "PERSON@2", "CITY@2", "LAW@2", "PERSON@3", "CITY@3", "LAW@3"]
    for level in (1, 2, 3):
        for index, name in enumerate(types):
            assert names[head_index(index, level, 3)] == (name if level == 1 else f"{name}@{level}")


@st.composite
def tagged_windows(draw):
    """Windows of one length, with spans that do not overlap within a head but often touch."""
    windows, tokens, heads = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    spans = []
    for window in range(windows):
        for head in range(heads):
            position = 0
            while position < tokens:
                length, inside = draw(st.tuples(st.integers(1, 4), st.booleans()))
                end = min(position + length, tokens)
                if inside:
                    spans.append((window, head, position, end))
                position = end
    return windows, tokens, heads, spans


@settings(max_examples=200, deadline=None)
@given(tagged_windows(), st.integers(0, 3))
def test_spans_come_back_from_their_tags(case, padding):
    windows, tokens, heads, spans = case
    tags = np.full((windows, tokens + padding, heads), IGNORE_INDEX, dtype=np.int64)
    for window in range(windows):
        tags[window, :tokens] = bilou_labels([span[1:] for span in spans if span[0] == window], tokens, heads)
    assert [tuple(span) for span in spans_from_tags(tags).tolist()] == spans
    assert [tuple(span) for span in spans_from_tags(tags.astype(np.int8)).tolist()] == spans


@settings(max_examples=200, deadline=None)
@given(span_sets)
def test_overlapping_spans_of_one_type_come_back_from_their_levels(spans):
    levels = nesting_levels(spans)
    labels = bilou_labels([(level - 1, *span) for span, level in zip(spans, levels, strict=True)], 22, max(levels, default=1))
    assert sorted(tuple(row[2:]) for row in spans_from_tags(labels[None]).tolist()) == spans


def test_labels_worked_by_hand():
    labels = bilou_labels([(0, 0, 2), (0, 2, 3), (0, 3, 6), (1, 5, 6)], 6, 2)
    assert labels[:, 0].tolist() == [B, L, U, B, I, L]
    assert labels[:, 1].tolist() == [O, O, O, O, O, U]


def test_adjacent_entities_stay_apart():
    tags = np.array([B, L, B, I, L, U, U, B, L])[None, :, None]
    assert spans_from_tags(tags)[:, 2:].tolist() == [[0, 2], [2, 5], [5, 6], [6, 7], [7, 9]]


@pytest.mark.parametrize(
    ("spans", "message"),
    [([(0, 0, 2), (0, 1, 3)], "overlap"), ([(0, 3, 5)], "outside"), ([(0, 2, 2)], "outside"), ([(0, -1, 1)], "outside")],
)
def test_spans_that_cannot_be_labelled_are_errors(spans, message):
    with pytest.raises(ValueError, match=message):
        bilou_labels(spans, 4, 1)


def test_ill_formed_tags_are_read_as_seqeval_reads_them():
    generator = np.random.default_rng(0)
    # Mostly tags of entities, so that right and wrong runs of every kind occur, and touch the borders of sequences.
    tags = generator.choice([O, B, I, L, U, IGNORE_INDEX], size=(60, 9, 7), p=[0.15, 0.25, 0.25, 0.2, 0.1, 0.05])
    found = {tuple(span) for span in spans_from_tags(tags).tolist()}
    expected = set()
    for window in range(60):
        for head in range(7):
            names = [TAGS[tag] if tag > O else "O" for tag in tags[window, :, head]]
            sequence = [name if name == "O" else f"{name}-X" for name in names]
            for entity in Entities([sequence], BILOU).entities[0]:
                expected.add((window, head, entity.start, entity.end))
    assert len(expected) > 300
    assert found == expected


@pytest.mark.parametrize("tags", ["BI", "IL", "L", "B", "I", "BB", "BU", "BIU", "BOL", "IIL", "UL", "BO", "LB", "BIIO"])
def test_pieces_of_entities_are_no_spans(tags):
    found = spans_from_tags(np.array([TAGS.index(tag) for tag in tags])[None, :, None])[:, 2:].tolist()
    assert found == [[i, i + 1] for i, tag in enumerate(tags) if tag == "U"]


def test_spans_do_not_run_on_into_the_next_head_or_window():
    tags = np.full((2, 2, 2), O)
    tags[:, 1, :] = B  # the last token of each sequence ...
    tags[:, 0, :] = L  # ... and the first of the one behind it in memory
    assert len(spans_from_tags(tags)) == 0


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 3), (2, 4, 0)])
def test_nothing_tagged_gives_no_spans(shape):
    assert spans_from_tags(np.zeros(shape, dtype=np.int8)).shape == (0, 4)


def test_character_spans_belong_to_the_window_whose_core_holds_their_start():
    # The text "aa bb cc dd": two windows of three words, sharing "bb cc"; the first answers for characters [0, 6).
    starts, ends = [np.array([0, 3, 6]), np.array([3, 6, 9])], [np.array([2, 5, 8]), np.array([5, 8, 11])]
    cores = [np.array([0, 6]), np.array([6, 11])]
    tags = np.zeros((2, 4, 1), dtype=np.int64)  # one token of padding
    tags[0, :, 0] = [U, B, L, O]  # "aa", "bb cc"
    tags[1, :, 0] = [B, L, U, O]  # "bb cc" once more, "dd"
    assert character_spans(tags, starts, ends, cores).tolist() == [[0, 0, 0, 2], [0, 0, 3, 8], [1, 0, 9, 11]]
    assert character_spans(np.zeros_like(tags), starts, ends, cores).shape == (0, 4)


@pytest.mark.skipif(not RUNNE_TRAIN.is_file(), reason=f"the RuNNE corpus is not there: {RUNNE_TRAIN.name}")
def test_levels_reach_the_recall_measured_on_runne():
    # ARCHITECTURE, decision 3: of the distinct entities of RuNNE train.
    reached, total = defaultdict(int), 0
    for line in RUNNE_TRAIN.read_text(encoding="utf-8").splitlines():
        by_type = defaultdict(set)
        for first, last, name in json.loads(line)["ners"]:
            by_type[name].add((first, last + 1))
        for spans in by_type.values():
            for level in nesting_levels(sorted(spans)):
                reached[level] += 1
                total += 1
    shares = np.cumsum([reached[level] for level in (1, 2, 3)]) / total
    assert shares.round(3).tolist() == [0.915, 0.992, 0.999]
