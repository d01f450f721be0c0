"""Batches of both views: what padding holds, and which row stands where."""

import numpy as np
import pytest
import torch
from conftest import TYPES, make_documents

from runne_coner.collators import BilouCollator, EntityCollator, EntityPairCollator, pad_windows
from runne_coner.pairs import entity_pair_view
from runne_coner.preprocessing import bilou_view, entity_view, load_tokenizer
from runne_coner.tagging import IGNORE_INDEX, SPECIAL
from runne_coner.windows import WindowSettings


@pytest.fixture
def tokenizer(any_encoder):
    return load_tokenizer(any_encoder)


def test_windows_are_padded_to_the_longest(tokenizer):
    windows = [np.array([5, 6, 7, 8]), [9, 10]]
    batch = pad_windows(tokenizer, windows)
    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, pad, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.long
    # Padding stands on the right even where a tokenizer pads on the left, as offsets of spans count from the left.
    tokenizer.padding_side = "left"
    assert pad_windows(tokenizer, windows, 8)["input_ids"][1].tolist() == [9, 10] + [pad] * 6


def test_token_types_only_where_the_encoder_knows_them(wordpiece_encoder, bpe_encoder):
    batch = pad_windows(load_tokenizer(wordpiece_encoder), [[5, 6], [7]])
    assert batch["token_type_ids"].tolist() == [[0, 0], [0, 0]]
    assert "token_type_ids" not in pad_windows(load_tokenizer(bpe_encoder), [[5, 6], [7]])


@pytest.mark.parametrize("multiple", [None, 8])
def test_bilou_batches(documents, tokenizer, multiple):
    view = bilou_view(documents, tokenizer, TYPES, 2)
    rows = [view[index] for index in range(len(view))]
    batch = BilouCollator(tokenizer, multiple)(rows)
    longest = max(row["length"] for row in rows)
    tokens = batch["input_ids"].shape[1]
    assert tokens == (longest if multiple is None else -(-longest // 8) * 8)
    assert batch["labels"].shape == (len(rows), tokens, 2 * len(TYPES))
    assert batch["subword_cases"].shape == batch["attention_mask"].shape == (len(rows), tokens)
    for index, row in enumerate(rows):
        length = row["length"]
        for name in ("input_ids", "subword_cases", "labels"):
            assert (batch[name][index, :length].numpy() == row[name]).all()
        assert (batch["labels"][index, length:] == IGNORE_INDEX).all()
        assert (batch["subword_cases"][index, length:] == SPECIAL).all()
        assert (batch["input_ids"][index, length:] == tokenizer.pad_token_id).all()
        assert batch["attention_mask"][index].sum() == length


def test_bilou_batches_without_labels(tokenizer):
    row = {"input_ids": np.array([1, 2]), "subword_cases": np.array([SPECIAL, SPECIAL], dtype=np.int8)}
    assert "labels" not in BilouCollator(tokenizer)([row])


def test_entity_batches_say_the_window_of_each_span(documents, tokenizer):
    view = entity_view(documents, tokenizer, TYPES)
    rows = [view[index] for index in range(len(view))]
    batch = EntityCollator(tokenizer)(rows)
    expected = [(window, *span) for window, row in enumerate(rows) for span in row["spans"].tolist()]
    got = torch.cat([batch["spans"], batch["types"][:, None]], dim=1).tolist()
    assert got == [list(span) for span in expected]
    assert batch["spans"].dtype == batch["types"].dtype == torch.long
    # Every span lies on real tokens of its window.
    assert (batch["spans"][:, 2] < batch["attention_mask"].sum(1)[batch["spans"][:, 0]]).all()


def test_windows_without_spans(tokenizer):
    row = {"input_ids": np.array([1, 2, 3]), "spans": np.zeros((0, 3), dtype=np.int32)}
    full = {"input_ids": np.array([1, 2]), "spans": np.array([[1, 2, 0]])}
    batch = EntityCollator(tokenizer)([row, full, row])
    assert batch["spans"].tolist() == [[1, 1, 2]] and batch["types"].tolist() == [0]
    batch = EntityCollator(tokenizer)([row, row])
    assert batch["spans"].shape == (0, 3) and batch["types"].shape == (0,)


def test_a_window_full_of_one_cut_entity_has_no_span(tokenizer):
    """Neither the entity, which fits nowhere, nor O: such a window goes through `datasets` and the collator."""
    text = "Директор школы при заводе города Перми"
    corpus = make_documents([(text, [(text, "PROFESSION")])])
    view = entity_view(corpus, tokenizer, TYPES, WindowSettings(6))
    assert len(view) > 1
    batch = EntityCollator(tokenizer)([view[index] for index in range(len(view))])
    assert batch["spans"].shape == (0, 3)


def test_pair_batches_hold_first_sides_then_second_sides(documents, tokenizer):
    pairs = entity_pair_view(entity_view(documents, tokenizer, TYPES), len(TYPES), 7, seed=1)
    rows = [pairs[index] for index in range(len(pairs))]
    batch = EntityPairCollator(tokenizer)(rows)
    assert batch["same"].tolist() == [bool(row["same"]) for row in rows]
    assert batch["spans"].shape == (2 * len(rows), 3) and len(batch["input_ids"]) == 2 * len(rows)
    for place, (window, first, end) in enumerate(batch["spans"].tolist()):
        side, row = ("first", rows[place]) if place < len(rows) else ("second", rows[place - len(rows)])
        assert window == place
        ids = row[f"{side}_input_ids"]
        assert batch["input_ids"][window, : len(ids)].tolist() == ids.tolist()
        assert np.flatnonzero(row[f"{side}_mask"]).tolist() == list(range(first, end))
