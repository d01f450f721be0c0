"""Gradient caching: the gradients of the whole batch, the random state of dropout, and that activations are not kept."""

import pytest
import torch
from conftest import TYPES, make_documents

from runne_coner.collators import EntityCollator
from runne_coner.configuration import CoNERConfig
from runne_coner.gradient_cache import embed_in_chunks
from runne_coner.losses import DistanceBasedLogisticLoss
from runne_coner.modeling import EntityEncoder
from runne_coner.preprocessing import entity_view, load_tokenizer


@pytest.fixture
def batch(wordpiece_encoder):
    tokenizer = load_tokenizer(wordpiece_encoder)
    view = entity_view(make_documents(), tokenizer, TYPES)
    rows = EntityCollator(tokenizer)(list(view))
    # The network does not read what only weighs the pairs.
    return {name: value for name, value in rows.items() if name not in ("surfaces", "corpora")}


def gradients(model, batch, **options):
    model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "types"}
    embeddings = model(**inputs, **options).span_embeddings
    loss = DistanceBasedLogisticLoss()(embeddings, batch["types"], torch.arange(len(embeddings)))["loss"]
    loss.backward()
    return loss.item(), {name: value.grad.clone() for name, value in model.named_parameters()}


def difference(first, second):
    return max((first[name] - second[name]).abs().max() for name in first)


@pytest.mark.parametrize("pooling", ["mean", "masked_matrix"])
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("shuffled", [False, True])
def test_gradients_are_those_of_the_whole_batch(wordpiece_encoder, batch, pooling, chunk_size, shuffled):
    model = EntityEncoder.from_encoder(wordpiece_encoder, CoNERConfig(span_pooling=pooling)).train()
    if shuffled:
        order = torch.randperm(len(batch["types"]), generator=torch.Generator().manual_seed(0))
        batch = {**batch, "spans": batch["spans"][order], "types": batch["types"][order]}
    loss, whole = gradients(model, batch)
    cached_loss, cached = gradients(model, batch, chunk_size=chunk_size)
    assert cached_loss == pytest.approx(loss, abs=1e-6)
    assert difference(whole, cached) < 1e-5 < 1e-2 < max(value.abs().max() for value in whole.values())


def test_dropout_is_the_same_on_both_passes(wordpiece_encoder, batch):
    """The gradients are those of encoding the same chunks, under the same seed, with all activations kept."""
    model = EntityEncoder.from_encoder(wordpiece_encoder, CoNERConfig())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    model.train()
    torch.manual_seed(3)
    _, cached = gradients(model, batch, chunk_size=2)
    after = torch.random.get_rng_state()
    model.zero_grad()
    torch.manual_seed(3)
    pieces = []
    for start in range(0, len(batch["input_ids"]), 2):
        spans = batch["spans"][(batch["spans"][:, 0] >= start) & (batch["spans"][:, 0] < start + 2)]
        windows = {name: value[start : start + 2] for name, value in batch.items() if name not in ("spans", "types")}
        pieces.append(model(**windows, spans=spans - torch.tensor([start, 0, 0])).span_embeddings)
    embeddings = torch.cat(pieces)
    DistanceBasedLogisticLoss()(embeddings, batch["types"], torch.arange(len(embeddings)))["loss"].backward()
    kept = {name: value.grad for name, value in model.named_parameters()}
    assert difference(kept, cached) < 1e-5
    assert torch.equal(after, torch.random.get_rng_state())
    torch.manual_seed(4)
    assert difference(kept, gradients(model, batch, chunk_size=2)[1]) > 1e-3


def test_bf16_autocast_is_replayed(wordpiece_encoder, batch):
    model = EntityEncoder.from_encoder(wordpiece_encoder, CoNERConfig()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, whole = gradients(model, batch)
        cached_loss, cached = gradients(model, batch, chunk_size=2)
    assert cached_loss == pytest.approx(loss, abs=1e-5)
    # The sums over the windows are rounded to 8 bits chunk by chunk.
    largest = max(value.abs().max() for value in whole.values())
    assert difference(whole, cached) < 0.02 * largest


def test_no_activation_of_the_encoder_is_kept(wordpiece_encoder, batch):
    """What autograd saves on the way forward does not grow with the windows."""
    model = EntityEncoder.from_encoder(wordpiece_encoder, CoNERConfig()).train()
    inputs = {name: value for name, value in batch.items() if name != "types"}

    def saved(**options):
        sizes = []

        def count(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(**inputs, **options)
        return sum(sizes)

    assert saved(chunk_size=2) < 0.05 * saved()


def test_windows_without_spans_are_not_encoded_but_for_one_chunk():
    seen = []

    def embed(input_ids, spans):
        seen.append(input_ids[:, 0].tolist())
        return input_ids[spans[:, 0]].float()

    ids = torch.arange(5)[:, None].expand(5, 3)
    found = embed_in_chunks(embed, {"input_ids": ids}, torch.tensor([[4, 0, 1], [0, 0, 1], [1, 1, 2]]), 2)
    assert seen == [[0, 1], [4]] and found[:, 0].tolist() == [4.0, 0.0, 1.0]
    seen.clear()
    assert embed_in_chunks(embed, {"input_ids": ids}, torch.zeros(0, 3, dtype=torch.long), 2).shape == (0, 3)
    assert seen == [[0, 1]]
