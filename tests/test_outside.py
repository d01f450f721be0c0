"""How O enters stage 1: which stretches of words become spans, and the numbers of spans' words."""

from collections import Counter

import numpy as np
import pytest
from conftest import TYPES, make_documents

from runne_coner.collators import EntityCollator
from runne_coner.outside import OutsideSettings, outside_spans, surface_id
from runne_coner.preprocessing import entity_view, load_tokenizer
from runne_coner.windows import WindowSettings

# Words 0-8 of one or two sub-words between special tokens; words 2 and 3 are an entity.
WORDS = np.array([-1, 0, 0, 1, 2, 3, 3, 4, 5, 5, 6, 7, 8, 8, -1])
INSIDE = np.isin(WORDS, [-1, 2, 3])
RUNS = [(1, 4), (7, 14)]


def test_every_run_is_the_default():
    assert outside_spans(WORDS, INSIDE, OutsideSettings(), [], (0, 0)) == RUNS
    assert outside_spans(WORDS, INSIDE, OutsideSettings("negative"), [], (0, 0)) == RUNS
    assert outside_spans(WORDS, INSIDE, OutsideSettings("none"), [], (0, 0)) == []


def test_runs_are_drawn_evenly_and_reproducibly():
    settings = OutsideSettings(per_window=1, seed=3)
    drawn = [outside_spans(WORDS, INSIDE, settings, [], (0, window)) for window in range(400)]
    counts = Counter(spans[0] for spans in drawn)
    assert all(len(spans) == 1 for spans in drawn) and set(counts) == set(RUNS)
    assert abs(counts[RUNS[0]] - 200) < 60  # 6 standard deviations
    assert drawn == [outside_spans(WORDS, INSIDE, settings, [], (0, window)) for window in range(400)]
    other = OutsideSettings(per_window=1, seed=4)
    assert drawn != [outside_spans(WORDS, INSIDE, other, [], (0, window)) for window in range(400)]
    assert outside_spans(WORDS, INSIDE, OutsideSettings(per_window=5), [], (0, 0)) == RUNS


@pytest.mark.parametrize("per_window", [0, 1, 3])
def test_pieces_are_whole_words_of_the_lengths_of_entities(per_window):
    settings = OutsideSettings(per_window=per_window, lengths="entities")
    lengths = Counter()
    for window in range(600):
        spans = outside_spans(WORDS, INSIDE, settings, [1, 1, 2, 9], (1, window))
        assert 1 <= len(spans) <= (per_window or 2) and spans == sorted(set(spans))
        for first, end in spans:
            assert any(low <= first < end <= high for low, high in RUNS)
            assert WORDS[first - 1] != WORDS[first] and WORDS[end] != WORDS[end - 1]
            if first >= 7:
                lengths[len(set(WORDS[first:end]))] += 1
    assert set(lengths) == {1, 2, 5}  # nine words are not to be had: the run has five
    assert 0.35 < lengths[1] / lengths.total() < 0.65


def test_windows_without_words_outside():
    assert outside_spans(WORDS, np.ones(len(WORDS), dtype=bool), OutsideSettings(per_window=2), [1], (0, 0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mode": "all"}, "outside.*'all'"), ({"per_window": -1}, "outside_per_window.*-1"), ({"lengths": "x"}, "lengths.*'x'")],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        OutsideSettings(**options)


def test_numbers_of_words():
    assert surface_id("Совет  Европы") == surface_id("СОВЕТ\nЕВРОПЫ") != surface_id("Совету Европы")
    # The same on every machine: 8 bytes of BLAKE2b of "a", without the last bit (as `b2sum -l 64` prints them).
    assert surface_id("a") == surface_id("A") == 0x40F89E395B66422F >> 1
    assert all(0 <= surface_id(text) < 2**63 for text in ("", "a", "б" * 1000, "\ud800"))


def spans_of(view, kind):
    return [(row["document"], *span[:2]) for row in view for span in row["spans"].reshape(-1, 3).tolist() if span[2] == kind]


def test_settings_reach_the_view(documents, wordpiece_encoder):
    tokenizer = load_tokenizer(wordpiece_encoder)
    o_type = len(TYPES)
    views = {
        settings: entity_view(documents, tokenizer, TYPES, WindowSettings(max_sentences=0), settings)
        for settings in (
            OutsideSettings(),
            OutsideSettings("none"),
            OutsideSettings(per_window=1),
            OutsideSettings(lengths="entities"),
        )
    }
    every, none, one, pieces = views.values()
    for kind in range(o_type):
        assert spans_of(every, kind) == spans_of(none, kind) == spans_of(one, kind) == spans_of(pieces, kind) != []
    assert spans_of(none, o_type) == []
    assert set(spans_of(one, o_type)) < set(spans_of(every, o_type))
    assert max(Counter(span[0] for span in spans_of(one, o_type)).values()) == 1
    assert len(spans_of(pieces, o_type)) == len(spans_of(every, o_type)) and spans_of(pieces, o_type) != spans_of(every, o_type)


def test_surfaces_are_those_of_the_spans(any_encoder):
    marked = [
        ("Томск. ТОМСК и Томск", [("Томск", "CITY"), ("ТОМСК", "CITY")]),
        ("Иван Петров приехал в Томск", [("Иван Петров", "PERSON"), ("Томск", "CITY"), ("Томск", "PERSON")]),
    ]
    corpus = make_documents(marked)
    view = entity_view(corpus, load_tokenizer(any_encoder), TYPES)
    batch = EntityCollator(load_tokenizer(any_encoder))([view[index] for index in range(len(view))])
    numbers = batch["surfaces"].tolist()
    assert len(numbers) == len(batch["types"]) and batch["corpora"].tolist() == [0] * len(numbers)
    assert Counter(numbers)[surface_id("Томск")] == 4 and surface_id("иван петров") in numbers
    rows = [row for row in view for _ in row["spans"].reshape(-1, 3)]
    spans = np.concatenate([row["spans"].reshape(-1, 3) for row in view])
    for number, row, (first, end, _) in zip(numbers, rows, spans, strict=True):
        text = corpus[int(row["document"])]["text"][row["word_starts"][first] : row["word_ends"][end - 1]]
        assert number == surface_id(text)
