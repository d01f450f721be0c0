"""Word spaces of any models on the same texts, for `runne-coner analyze --model`: Table 3 and Figure 3 without a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from tqdm.auto import tqdm
from transformers import AutoConfig

from .configuration import CoNERConfig, ModelError
from .documents import Document
from .embeddings import WordEmbeddings, count_entity_words, load_encoder, project, word_embeddings, word_membership
from .encoders import EncoderError, resolve_encoder
from .figures import Panel, can_draw, projection_figure
from .report import Part, Section, Table
from .silhouette import type_silhouettes
from .windows import DEFAULT_WINDOWS, WindowSettings
from .word_spaces import choose_words, default_figure_type

PANELS = 4
"""Panels of a figure; more models make more figures."""
FIGURE_WORDS = 3000
SEED = 42


def model_sections(
    models: Sequence[str],
    documents: Sequence[Document],
    entity_types: Sequence[str],
    *,
    figure_type: str | None = None,
    training: Sequence[Document] | None = None,
) -> list[Section]:
    """Silhouettes of the types in the last hidden layer of each model, and projections of the words of one type.

    Args:
        models: folders or Hub ids of models of stage 2, encoders of stage 1 or any encoders, or `e5-small-ru`.
        documents: with gold entities; their words are compared.
        entity_types: the types of the table.
        figure_type: the type of the figure; None is MONEY, or the type with the most words.
        training: documents in which the words of each type are counted; None leaves the column out.
    Raises:
        EncoderError: a model cannot be loaded, or has diverged. ViewError: it has no fast tokenizer.
    """
    spaces = _common_words({name: _words(name, documents) for name in dict.fromkeys(models)})
    first = next(iter(spaces.values()))
    member = word_membership(first.document, first.spans, documents, entity_types)
    silhouettes = {name: type_silhouettes(space.vectors, member, progress=True) for name, space in spaces.items()}
    parts: list[Part] = [_table(silhouettes, member, entity_types, training)]
    if not member.any():
        parts.append("No word of the references belongs to an entity.")
    elif not can_draw():
        parts.append("The figure needs matplotlib: install the extra `analysis` and make the report again.")
    else:
        name = default_figure_type(entity_types, member) if figure_type is None else figure_type
        parts += _figures(spaces, silhouettes, member[:, list(entity_types).index(name)], name, list(entity_types))
    return [Section("Separability of entity words", parts, "separability")]


def _words(name: str, documents: Sequence[Document]) -> WordEmbeddings:
    try:
        encoder, tokenizer = load_encoder(resolve_encoder(name))
    except ModelError as error:
        raise EncoderError(str(error)) from error
    texts = [document.text for document in documents]
    space = word_embeddings(encoder, tokenizer, texts, windows=_windows(name), progress=True)
    if not np.isfinite(space.vectors).all():
        raise EncoderError(f"{name}: embeddings are not finite, so its training has diverged; give another model")
    return space


def _windows(name: str) -> WindowSettings:
    """Those that a model of stage 2 was made for."""
    config = AutoConfig.from_pretrained(resolve_encoder(name))
    if isinstance(config, CoNERConfig):
        return WindowSettings(config.max_length, config.max_sentences, config.stride)
    return DEFAULT_WINDOWS


def _common_words(spaces: Mapping[str, WordEmbeddings]) -> dict[str, WordEmbeddings]:
    """The spaces with the words that all have: one tokenizer may drop a word (of invisible characters) that another keeps."""
    keys = {name: list(zip(space.document.tolist(), space.spans[:, 0].tolist(), strict=True)) for name, space in spaces.items()}
    shared = set.intersection(*map(set, keys.values()))
    common = {}
    for name, space in spaces.items():
        kept = np.array([key in shared for key in keys[name]], dtype=bool)
        common[name] = WordEmbeddings(space.vectors[kept], space.document[kept], space.spans[kept])
    return common


def _table(
    silhouettes: Mapping[str, np.ndarray],
    member: np.ndarray,
    entity_types: Sequence[str],
    training: Sequence[Document] | None,
) -> Table:
    counts = {"words": member.sum(axis=0)}
    if training is not None:
        counts["words in training texts"] = count_entity_words(training, entity_types)
    rows = [
        [name, *(int(count[index]) for count in counts.values()), *(float(values[index]) for values in silhouettes.values())]
        for index, name in enumerate(entity_types)
        if member[:, index].any()
    ]
    return Table(
        "Silhouettes of the types",
        ["type", *counts, *silhouettes],
        rows,
        "Silhouette coefficient of the words of a type against all other words of the references, Euclidean; a word's embedding"
        " is the mean of its sub-words in the last hidden layer. Higher: further apart. Types without words are left out.",
        "silhouettes",
    )


def _figures(
    spaces: Mapping[str, WordEmbeddings],
    silhouettes: Mapping[str, np.ndarray],
    member: np.ndarray,
    name: str,
    entity_types: Sequence[str],
) -> list[Part]:
    chosen = choose_words(member, FIGURE_WORDS, SEED)
    if len(chosen) < 3:
        return ["There are too few words for a figure."]
    panels, method = [], ""
    for model, space in tqdm(spaces.items(), desc="projections", unit="model"):
        plane, method = project(space.vectors[chosen], seed=SEED)
        panels.append(Panel(_short(model), plane, float(silhouettes[model][entity_types.index(name)])))
    title = f"{method.upper()} projections of {len(chosen)} words, {int(member[chosen].sum())} of {name}"
    groups = [panels[start : start + PANELS] for start in range(0, len(panels), PANELS)]
    figures = [projection_figure(group, member[chosen], name, method, "") for group in groups]
    return [
        replace(figure, title=title + (f" ({number} of {len(figures)})" if len(figures) > 1 else ""))
        for number, figure in enumerate(figures, 1)
    ]


def _short(model: str) -> str:
    """The end of a path, short enough for the title of a panel."""
    return model if len(model) <= 36 else f"…{model[-35:]}"
