"""Layer-wise learning rates and averaged weights."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from runne_coner.optimization import AveragedWeights, layer_scales, set_learning_rates


@pytest.mark.parametrize(
    "encoder",
    [
        BertModel(BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=3, num_attention_heads=1, intermediate_size=4)),
        DistilBertModel(DistilBertConfig(vocab_size=9, dim=4, n_layers=3, n_heads=1, hidden_dim=4)),
    ],
    ids=["bert", "distilbert"],
)
def test_scales_fall_from_the_top_layer_to_the_embeddings(encoder):
    scales = layer_scales([name for name, _ in encoder.named_parameters()], 0.5)
    for name, scale in scales.items():
        layers = {".0.": 0.25, ".1.": 0.5, ".2.": 1.0}
        expected = [value for number, value in layers.items() if number in name] or [0.125 if "embeddings" in name else 1.0]
        assert scale == expected[0], name
    assert set(scales.values()) == {0.125, 0.25, 0.5} | {1.0}
    assert set(layer_scales(scales, 1.0).values()) == {1.0}


def test_groups_are_split_by_rate_in_the_order_of_the_rates():
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = torch.optim.AdamW([{"params": [a, b], "weight_decay": 0.1}, {"params": [c], "weight_decay": 0.0}], lr=9.0)
    set_learning_rates(optimizer, {b: 0.5, a: 0.25, c: 0.25})
    found = [(group["lr"], group["weight_decay"], group["params"]) for group in optimizer.param_groups]
    assert [(rate, decay) for rate, decay, _ in found] == [(0.5, 0.1), (0.25, 0.0), (0.25, 0.1)]
    assert [parameters[0] is p for (_, _, parameters), p in zip(found, (b, c, a), strict=True)] == [True] * 3


def test_the_average_worked_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = AveragedWeights(model, 0.5)
    for step, weight in ((1, 11.0), (2, 2.0), (90, 4.0)):
        nn.init.constant_(model.weight, weight)
        average.update(step)
    # Decays 2/11, 3/12 and 1/2: 0 -> 9 -> 3.75 -> 3.875.
    assert model.weight.item() == 4.0
    with average.in_place():
        assert model.weight.item() == pytest.approx(3.875)
    assert model.weight.item() == 4.0 and average.averages["weight"].item() == pytest.approx(3.875)
