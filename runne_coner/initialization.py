"""Where the heads of stage 2 start: at the directions of the types in the encoder's space, or at those of an earlier model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from .collators import BilouCollator
from .modeling import CoNERForTokenClassification, CoNERPreTrainedModel
from .tagging import IGNORE_INDEX, NUM_TAGS, O

HEAD_MARGIN = 4.0
"""By how much the mean entity token of a type is scored above the mean token by a head that starts at its centroid."""


@dataclass
class Centroids:
    """Mean embeddings of tokens: `types` (types, hidden) of those in a mention of each type, `center` (hidden,) of all, and
    `counts` (types,) how many tokens each type has."""

    types: Tensor
    center: Tensor
    counts: Tensor


@torch.no_grad()
def type_centroids(
    model: CoNERPreTrainedModel, view: Dataset, num_types: int, collator: BilouCollator, batch_size: int = 32
) -> Centroids:
    """Centroids of entity types in one pass of a model's encoder over the windows of a BILOU view, with a progress bar.

    Args:
        model: its encoder is used, in evaluation mode, on the device where it is.
        view: from `preprocessing.bilou_view`; tokens of a mention count once, at whatever level it lies.
    """
    device = model.device
    sums = torch.zeros(num_types + 1, model.config.hidden_size, dtype=torch.float64, device=device)
    counts = torch.zeros(num_types + 1, dtype=torch.float64, device=device)
    windows = view.select_columns(["input_ids", "subword_cases", "labels", "length"]).sort("length")
    was_training = model.training
    model.eval()
    for batch in tqdm(DataLoader(windows, batch_size, collate_fn=collator), desc="centroids of entity types", unit="batches"):
        labels, _ = batch.pop("labels").to(device), batch.pop("subword_cases")
        hidden = model.encoder(**{name: value.to(device) for name, value in batch.items()}).last_hidden_state
        real = (labels != IGNORE_INDEX).any(dim=-1)
        inside = (labels[real] > O).unflatten(-1, (-1, num_types)).any(dim=1)
        # The last column is that of all tokens.
        member = torch.cat([inside, torch.ones_like(inside[:, :1])], dim=1).double()
        sums += member.T @ hidden[real].double()
        counts += member.sum(dim=0)
    model.train(was_training)
    means = (sums / counts.clamp(min=1.0)[:, None]).float()
    return Centroids(means[:-1], means[-1], counts[:-1].long())


@torch.no_grad()
def start_at_centroids(
    model: CoNERForTokenClassification, centroids: Centroids, margin: float = HEAD_MARGIN, heads: Sequence[int] | None = None
) -> None:
    """Point the entity tags of every head the way of its type: from the mean of all tokens to the mean of the type's.

    With d that difference, the rows of B, I, L and U gain `margin * d / |d|^2`, and their biases lose what the mean token
    would score; so the mean token keeps its scores and the type's centroid scores entity tags `margin` higher. All levels
    of a type start alike. A type without a token stays as it was.

    Args:
        heads: indices of the heads to change, by default all.
    """
    num_types = len(model.config.entity_types)
    weight = model.classifier.weight.unflatten(0, (-1, NUM_TAGS))
    bias = model.classifier.bias.unflatten(0, (-1, NUM_TAGS))
    for head in range(len(model.config.heads)) if heads is None else heads:
        name = head % num_types
        direction = (centroids.types[name] - centroids.center).to(weight)
        squared = direction.square().sum()
        if centroids.counts[name] and squared > 0:
            direction = margin * direction / squared
            weight[head, O + 1 :] += direction
            bias[head, O + 1 :] -= direction @ centroids.center.to(weight)


@torch.no_grad()
def take_heads(model: CoNERForTokenClassification, saved: CoNERForTokenClassification) -> list[int]:
    """Copy the heads that an earlier model has under the same names (`TYPE`, `TYPE@2`, ...), and what its inner levels see.

    Returns:
        Indices of the heads copied.
    """
    known = {name: index for index, name in enumerate(saved.config.heads)}
    taken = [index for index, name in enumerate(model.config.heads) if name in known]
    sources = [known[model.config.heads[index]] for index in taken]
    for parameter, source in zip(model.classifier.parameters(), saved.classifier.parameters(), strict=True):
        parameter.unflatten(0, (-1, NUM_TAGS))[taken] = source.unflatten(0, (-1, NUM_TAGS))[sources].to(parameter)
    if model.conditioning is not None and saved.conditioning is not None:
        model.conditioning.take(saved.conditioning, model.config.entity_types, saved.config.entity_types)
    return taken
