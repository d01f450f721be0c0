"""Windows with rare types stand several times in an epoch, by counts alone."""

import numpy as np
import pytest
from conftest import TYPES, make_documents
from datasets import Dataset

from runne_coner.preprocessing import bilou_view, load_tokenizer
from runne_coner.sampling import mention_counts, repeat_factors, repeat_rare_windows


def labelled(*windows, heads):
    """A view of windows given as `(head, tags)` lists."""
    rows = []
    for spans in windows:
        labels = np.zeros((6, heads), dtype=np.int8)
        labels[0] = labels[-1] = -100
        for head, tags in spans:
            labels[1 : 1 + len(tags), head] = tags
        rows.append(labels.tolist())
    return Dataset.from_dict({"labels": rows, "length": [6] * len(rows)})


def test_mentions_of_all_levels_count():
    # Two types, two levels: U, then B L of type 0; at level 2 a U of type 0 and B I L of type 1.
    view = labelled([(0, [4, 1, 3]), (2, [4]), (3, [1, 2, 3])], [(1, [0, 4, 4])], [], heads=4)
    assert mention_counts(view, 2).tolist() == [[3, 1], [0, 2], [0, 0]]


def test_mentions_are_those_of_the_documents(documents, wordpiece_encoder):
    view = bilou_view(documents, load_tokenizer(wordpiece_encoder), TYPES, 3)
    counts = mention_counts(view, len(TYPES))
    truth = [[e["type"] for entities in documents["entities"] for e in entities].count(name) for name in TYPES]
    # One mention of `documents` lies on level 4.
    assert (truth - counts.sum(axis=0)).min() >= 0 and (truth - counts.sum(axis=0)).sum() <= 1


@pytest.mark.parametrize(("mentions", "factor"), [(30, 10**0.5), (300, 1.0), (990, 1.0), (3, 8.0), (75, 2.0)])
def test_the_factor_is_the_square_root_of_target_over_mentions(mentions, factor):
    # One window with the type and a frequent one, one with the frequent one alone, one empty; the rest of the mentions apart.
    # A third type is not mentioned at all, and so is no part of the mean, of 1000.
    counts = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [mentions - 1, 1998 - mentions, 0]])
    assert repeat_factors(counts, 0.3)[:3] == pytest.approx([factor, 1.0, 1.0])


@pytest.mark.parametrize("mentions", [1, 20, 5000])
def test_neither_the_size_of_the_corpus_nor_a_type_as_frequent_as_others_matters(mentions):
    counts = np.eye(4, dtype=np.int64) * [mentions, mentions, mentions, 3 * mentions]
    assert repeat_factors(counts, 0.3).tolist() == [1.0] * 4
    assert repeat_factors(counts, 6.0) == pytest.approx([3.0, 3.0, 3.0, 3**0.5])  # mean 1.5 x mentions


def test_a_window_counts_by_its_rarest_type():
    counts = np.array([[1, 1, 0], [0, 99, 0], [3, 0, 1]])
    assert repeat_factors(counts, 48 / 105) == pytest.approx([2.0, 1.0, 4.0])  # 4, 100 and 1 mentions: target 16


def test_fractions_are_drawn_with_a_seed():
    view = labelled(*[[(0, [4])]] * 100, *[[(1, [4])]] * 400, *[[]] * 300, heads=2)
    repeated = repeat_rare_windows(view, 2, 0.9, seed=3)  # sqrt(0.9 x 250 / 100) = 1.5
    counts = mention_counts(repeated, 2).sum(axis=0)
    assert 130 <= counts[0] <= 170 and counts[1] == 400 and len(repeated) == counts.sum() + 300
    assert repeated["labels"][:] == repeat_rare_windows(view, 2, 0.9, seed=3)["labels"][:]
    assert len({len(repeat_rare_windows(view, 2, 0.9, seed=seed)) for seed in range(2)}) == 2
    assert repeat_rare_windows(view, 2, 0, seed=3) is view


def test_names_of_types_do_not_matter(wordpiece_encoder):
    documents = make_documents(copies=2)
    tokenizer = load_tokenizer(wordpiece_encoder)
    views = [bilou_view(documents, tokenizer, types) for types in (TYPES, TYPES[::-1])]
    first, second = ([row["input_ids"].tolist() for row in repeat_rare_windows(view, len(TYPES), 4, 7)] for view in views)
    assert first == second and len(first) > len(views[0])


def test_a_view_without_windows_or_mentions():
    assert len(repeat_rare_windows(labelled(heads=2), 2, 0.3, seed=0)) == 0
    assert len(repeat_rare_windows(labelled([], [], heads=2), 2, 0.3, seed=0)) == 2
