"""Where the heads of stage 2 start: at directions of types or their names in the encoder's space, or at an earlier model's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .collators import BilouCollator
from .documents import CorpusError
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


def words_of_types(entity_types: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """The words that stand for each type: those given, else its name with its parts apart (WORK_OF_ART: work of art).

    Raises:
        CorpusError: words are given for a type that there is not, or are none.
    """
    if unknown := sorted(given.keys() - set(entity_types)):
        raise CorpusError(
            f"label_words: no such entity type: {', '.join(map(str, unknown))}; there are {', '.join(entity_types)}"
        )
    for name, words in given.items():
        if not isinstance(words, str) or not words.strip():
            raise CorpusError(f"label_words: {name}: expected words that say what the type is, got {words!r}")
    return [given.get(name, re.sub(r"[\W_]+", " ", name).strip().lower() or name) for name in entity_types]


@torch.no_grad()
def at_label_names(
    centroids: Centroids, model: CoNERPreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]
) -> Centroids:
    """Centroids that types would have if they lay to each other as the encoder sees their names.

    The embedding of a name is the mean of its sub-words in the last hidden layer; what it has over the mean of all names is
    added to `centroids.center`. Label names as a start for heads: Ma et al. 2022 (few-shot NER with label semantics).

    Args:
        centroids: of `type_centroids`; only the center counts.
        words: of each type, see `words_of_types`.
    Returns:
        Centroids of which every type has one token.
    """
    was_training = model.training
    model.eval()
    batch = tokenizer(list(words), padding=True, return_tensors="pt", return_special_tokens_mask=True).to(model.device)
    real = (1 - batch["special_tokens_mask"]).unsqueeze(-1)
    hidden = model.encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    names = (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
    model.train(was_training)
    return Centroids(centroids.center + names - names.mean(dim=0), centroids.center, torch.ones(len(names), dtype=torch.long))


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
    """Copy the heads that an earlier model has under the same names (`TYPE`, `TYPE@2`, ...).

    Where both have a scorer of spans, it is copied as well, with the rows of the types that the earlier model has.

    Returns:
        Indices of the heads copied.
    """
    known = {name: index for index, name in enumerate(saved.config.heads)}
    taken = [index for index, name in enumerate(model.config.heads) if name in known]
    sources = [known[model.config.heads[index]] for index in taken]
    for parameter, source in zip(model.classifier.parameters(), saved.classifier.parameters(), strict=True):
        parameter.unflatten(0, (-1, NUM_TAGS))[taken] = source.unflatten(0, (-1, NUM_TAGS))[sources].to(parameter)
    if model.span_scorer is not None and saved.span_scorer is not None:
        _take_scorer(model, saved)
    return taken


def _take_scorer(model: CoNERForTokenClassification, saved: CoNERForTokenClassification) -> None:
    before, now = saved.config.entity_types, model.config.entity_types
    common = [name for name in now if name in before]
    rows, sources = ([types.index(name) for name in common] for types in (now, before))
    for (name, parameter), source in zip(model.span_scorer.named_parameters(), saved.span_scorer.parameters(), strict=True):
        if name.startswith("output."):
            parameter[rows] = source[sources].to(parameter)
        else:
            parameter.copy_(source)
