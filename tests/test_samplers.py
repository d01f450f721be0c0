"""Batches by type: what each holds, how long its windows are, and that it is the same wherever it is drawn."""

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from conftest import TYPES, make_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from runne_coner.preprocessing import entity_view, load_tokenizer
from runne_coner.samplers import TypeBatchSampler, count_types


def corpus(windows=2000, types=12, seed=0):
    """Counts and lengths of a corpus in which type t is 1.7 times as rare as type t - 1, and long windows hold more spans."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(3.3, 0.6, windows).astype(int), 4, 128)
    rate = 1.7 ** -np.arange(types)
    return rng.poisson(rate * lengths[:, None] / 30), lengths


def global_batches(sampler):
    batches = list(sampler)
    return [sum(batches[i : i + sampler.num_processes], []) for i in range(0, len(batches), sampler.num_processes)]


def padding(batches, lengths):
    read = sum(len(batch) * lengths[batch].max() for batch in batches)
    return 1 - sum(lengths[batch].sum() for batch in batches) / read


def test_types_are_counted_per_window(wordpiece_encoder):
    view = entity_view(make_documents(), load_tokenizer(wordpiece_encoder), TYPES)
    counts = count_types(view)
    assert counts.shape == (len(view), len(TYPES) + 1)
    for row, found in zip(view, counts, strict=True):
        kinds = row["spans"].reshape(-1, 3)[:, 2].tolist()
        assert found.tolist() == [kinds.count(kind) for kind in range(len(TYPES) + 1)]


def test_batches_are_full_and_of_distinct_windows_with_little_padding():
    counts, lengths = corpus()
    sampler = TypeBatchSampler(counts, lengths, 32)
    batches = list(sampler)
    assert len(batches) == len(sampler) == -(-np.count_nonzero(counts.any(axis=1)) // 32)
    assert all(len(batch) == len(set(batch)) == 32 for batch in batches)
    assert padding(batches, lengths) < 0.1
    rng = np.random.default_rng(0)
    assert padding(np.array_split(rng.permutation(len(lengths)), len(batches)), lengths) > 0.4


def test_rare_types_have_pairs_far_more_often_than_by_chance():
    counts, lengths = corpus()
    ours = np.mean([counts[batch].sum(axis=0) >= 2 for batch in TypeBatchSampler(counts, lengths, 32)], axis=0)
    sequence = np.random.default_rng(0).permutation(len(lengths))
    chance = np.mean([counts[batch].sum(axis=0) >= 2 for batch in np.array_split(sequence, len(lengths) // 32)], axis=0)
    rare = (counts.sum(axis=0) >= 2) & (chance < 0.1)
    assert rare.sum() >= 3
    # Each type decides the length of some batch in 2 x 12, and joins those of its lengths.
    assert (ours[rare] > chance[rare] + 0.03).all() and (ours > 0).all()
    assert ours[rare].mean() > 5 * chance[rare].mean()


def test_a_type_with_two_distant_windows_is_drawn_as_a_pair():
    """Its two spans lie in the shortest and the longest window; without the sampler they would hardly ever meet."""
    counts, lengths = np.ones((400, 1), dtype=int), np.arange(1, 401)
    counts = np.column_stack([counts, np.zeros(400, dtype=int)])
    counts[[0, 399], 1] = 1
    together = [{0, 399} <= set(batch) for batch in TypeBatchSampler(counts, lengths, 8)]
    assert 5 <= sum(together) <= 25  # a quarter of 50 batches are expected


def test_most_windows_come_in_each_epoch_and_all_in_a_few():
    counts, lengths = corpus()
    useful = set(np.flatnonzero(counts.any(axis=1)).tolist())
    sampler = TypeBatchSampler(counts, lengths, 32)
    seen = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        seen.append(set(sum(sampler, [])))
    assert min(len(windows) for windows in seen) > 0.7 * len(useful)
    assert len(set.union(*seen)) > 0.99 * len(useful) and set.union(*seen) <= useful


def test_epochs_depend_on_seed_and_number_alone():
    counts, lengths = corpus(500)
    first, second = TypeBatchSampler(counts, lengths, 8, seed=3), TypeBatchSampler(counts, lengths, 8, seed=3)
    once = list(first)
    assert list(first) == once == list(second)
    first.set_epoch(2)
    second.set_epoch(1)
    assert list(first) != once and list(first) != list(second)
    second.set_epoch(2)
    assert list(first) == list(second)
    assert list(TypeBatchSampler(counts, lengths, 8, seed=4)) != once


def test_two_processes_read_the_halves_of_what_one_would():
    counts, lengths = corpus(500)
    one = list(TypeBatchSampler(counts, lengths, 32, seed=5))
    two = TypeBatchSampler(counts, lengths, 16, num_processes=2, seed=5)
    assert global_batches(two) == one
    shards = [list(BatchSamplerShard(two, 2, process)) for process in (0, 1)]
    assert [left + right for left, right in zip(*shards, strict=True)] == one
    assert [len(shard) for shard in shards] == [len(BatchSamplerShard(two, 2, process)) for process in (0, 1)]
    # Resuming skips the batches that a process has had.
    assert list(SkipBatchSampler(BatchSamplerShard(two, 2, 1), 4)) == shards[1][4:]


def test_drop_last_leaves_out_the_unfilled_batch():
    counts, lengths = corpus(70)
    counts[:, 0] += 1
    assert len(TypeBatchSampler(counts, lengths, 32)) == len(list(TypeBatchSampler(counts, lengths, 32))) == 3
    assert len(list(TypeBatchSampler(counts, lengths, 32, drop_last=True))) == 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_degenerate_corpora(data):
    """Types with one span or none, windows without spans, fewer windows than a batch or than processes."""
    windows, types = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 3))
    flat = data.draw(st.lists(st.integers(0, 2), min_size=windows * types, max_size=windows * types))
    counts = np.array(flat, dtype=int).reshape(windows, types)
    lengths = np.array(data.draw(st.lists(st.integers(1, 9), min_size=windows, max_size=windows)))
    size, processes = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    sampler = TypeBatchSampler(counts, lengths, size, num_processes=processes)
    batches = list(sampler)
    assert len(batches) == len(sampler) and len(batches) % processes == 0
    useful = set(np.flatnonzero(counts.any(axis=1)).tolist()) or set(range(windows))
    for batch in batches:
        assert 1 <= len(batch) <= size and set(batch) <= useful
    if len(useful) >= size * processes:
        assert all(len(batch) == size for batch in batches)
        assert all(len(set(batch)) == len(batch) for batch in global_batches(sampler))


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="there is no window to train on"):
        TypeBatchSampler(np.zeros((0, 3)), np.zeros(0), 4)
    with pytest.raises(ValueError, match="batch_size 0 and num_processes 1"):
        TypeBatchSampler(np.ones((2, 3)), np.ones(2), 0)
    with pytest.raises(ValueError, match=r"lengths \(windows,\), got \(2, 3\), \(3,\)"):
        TypeBatchSampler(np.ones((2, 3)), np.ones(3), 4)
