"""Embeddings of words in any encoder or model, which words belong to entities, and their projection onto a plane."""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .collators import pad_windows
from .documents import Document
from .modeling import max_positions, pretrained_encoder
from .preprocessing import load_tokenizer, split_words, window_rows
from .tagging import SPECIAL
from .windows import DEFAULT_WINDOWS, WindowSettings

PROJECTIONS = ("umap", "pca")


@dataclass(frozen=True)
class WordEmbeddings:
    """Words of documents and their embeddings.

    Attributes:
        vectors: `(words, hidden)` float32.
        document: `(words,)` index of the word's document.
        spans: `(words, 2)` start and end of the word in its text, in characters.
    """

    vectors: np.ndarray
    document: np.ndarray
    spans: np.ndarray


def load_encoder(model: str, **options) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder, without heads, of a model that stage 2 wrote, of the encoder that stage 1 wrote, or of any checkpoint.

    Args:
        model: folder or Hub id.
        options: of `from_pretrained` (`revision`, ...).
    Raises:
        ModelError: there is no such model, it is broken, or only an export. ViewError: it has no fast tokenizer.
    """
    return pretrained_encoder(model, **options).eval(), load_tokenizer(model, **options)


@torch.inference_mode()
def word_embeddings(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    windows: WindowSettings = DEFAULT_WINDOWS,
    batch_size: int = 32,
    progress: bool = False,
) -> WordEmbeddings:
    """Contextual embeddings of all words: the mean of each word's sub-words in the last hidden layer (section 4.2).

    Texts are cut into windows as at inference; a word is taken from the window in whose core it starts, so that every word
    counts once and has context on both sides.

    Args:
        encoder: any encoder with `last_hidden_state`, on any device.
        texts: of any length.
        windows: how texts are cut, if the encoder has positions for as long ones; else into as long ones as it has.
        batch_size: windows in a forward pass.
        progress: whether to show a progress bar.
    Returns:
        The words in the order of the texts. Words without sub-words (of invisible characters) are left out.
    """
    rows = window_rows(texts, tokenizer, windows.within(max_positions(encoder)))
    # Windows of one length side by side need no padding.
    order = sorted(range(len(rows)), key=lambda index: rows[index]["length"])
    starts = range(0, len(order), batch_size)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in tqdm(starts, desc="word embeddings", unit="batch", disable=not progress):
        batch = [rows[index] for index in order[start : start + batch_size]]
        hidden = _hidden(encoder, tokenizer, [row["input_ids"] for row in batch])
        parts += [_words_of(row, states) for row, states in zip(batch, hidden, strict=True)]
    if not parts:
        size = encoder.config.hidden_size
        return WordEmbeddings(np.zeros((0, size), np.float32), np.zeros(0, np.int64), np.zeros((0, 2), np.int64))
    vectors, document, spans = (np.concatenate(part) for part in zip(*parts, strict=True))
    place = np.lexsort((spans[:, 0], document))
    return WordEmbeddings(vectors[place], document[place], spans[place])


def _hidden(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[np.ndarray]) -> Tensor:
    """Last hidden states `(windows, tokens, hidden)`, float32 on the CPU."""
    inputs = {name: value.to(encoder.device) for name, value in pad_windows(tokenizer, ids).items()}
    output = encoder(**inputs)
    return output.last_hidden_state.float().cpu()


def _words_of(row: dict, states: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, document and spans of the words for which a window answers."""
    low, high = row["core"]
    starts = row["word_starts"]
    mine = (row["subword_cases"] != SPECIAL) & (starts >= low) & (starts < high)
    tokens = np.flatnonzero(mine)
    first, word = np.unique(starts[tokens], return_inverse=True)
    sums = np.zeros((len(first), states.shape[1]), dtype=np.float32)
    np.add.at(sums, word, states[tokens].numpy())
    vectors = sums / np.bincount(word, minlength=len(first))[:, None].astype(np.float32)
    ends = np.zeros(len(first), dtype=np.int64)
    ends[word] = row["word_ends"][tokens]
    return vectors, np.full(len(first), row["document"]), np.stack([first.astype(np.int64), ends], axis=1)


def word_membership(
    document: np.ndarray, spans: np.ndarray, documents: Sequence[Document], entity_types: Sequence[str]
) -> np.ndarray:
    """Which words lie, at least in part, in an entity of which type.

    Args:
        document: `(words,)` index of each word's document.
        spans: `(words, 2)` start and end in its text; the words of a document are ordered.
        documents: with gold entities.
        entity_types: entities of other types are left out.
    Returns:
        `(words, types)` bool; a word may belong to several types, or to none.
    """
    index = {name: position for position, name in enumerate(entity_types)}
    membership = np.zeros((len(spans), len(index)), dtype=bool)
    bounds = np.searchsorted(document, np.arange(len(documents) + 1))
    for number, found in enumerate(documents):
        low, high = bounds[number], bounds[number + 1]
        starts, ends = spans[low:high, 0], spans[low:high, 1]
        for entity in found.entities:
            if entity.type in index:
                first, last = np.searchsorted(ends, entity.start, side="right"), np.searchsorted(starts, entity.end)
                membership[low + first : low + last, index[entity.type]] = True
    return membership


def count_entity_words(documents: Iterable[Document], entity_types: Sequence[str]) -> np.ndarray:
    """How many words lie in entities of each type, `(types,)`; a word counts once for a type (Bondarenko 2022, table 3)."""
    counts = np.zeros(len(entity_types), dtype=np.int64)
    for document in documents:
        spans = split_words(document.text)
        counts += word_membership(np.zeros(len(spans), np.int64), spans, [document], entity_types).sum(axis=0)
    return counts


def project(vectors: np.ndarray, *, method: str | None = None, seed: int = 42) -> tuple[np.ndarray, str]:
    """Vectors on a plane: UMAP (McInnes et al. 2018), as in Figure 3 of the paper, or their first principal components.

    Args:
        vectors: `(N, D)`.
        method: `umap` (of the extra `analysis`; 15 neighbours, least distance 0.1, Euclidean) or `pca`; None is `umap`
            where it is installed and there are points enough for its neighbours, else `pca`.
        seed: of UMAP.
    Returns:
        `(N, 2)` coordinates and the method that was used.
    Raises:
        ValueError: there is no such method, it is not installed, or there are fewer than 3 points.
    """
    if len(vectors) < 3:
        raise ValueError(f"at least 3 points are needed for a projection, got {len(vectors)}")
    installed = importlib.util.find_spec("umap") is not None
    if method is None:
        method = "umap" if installed and len(vectors) > 15 else "pca"
    if method == "pca":
        return PCA(n_components=2, svd_solver="full").fit_transform(vectors), method
    if method != "umap":
        raise ValueError(f"method must be one of {PROJECTIONS}, got {method!r}")
    if not installed:
        raise ValueError("method umap needs umap-learn: install the extra `analysis`, or say method='pca'")
    from umap import UMAP

    # With a seed, UMAP runs in one thread; said here, it does not warn.
    reducer = UMAP(n_components=2, n_neighbors=min(15, len(vectors) - 1), min_dist=0.1, random_state=seed, n_jobs=1)
    return reducer.fit_transform(vectors), method
