"""How far entities stand apart in the word spaces of the models: Table 3 and Figure 3 of the paper (section 4.2)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from .documents import Document
from .embeddings import WordEmbeddings, count_entity_words, load_encoder, project, word_embeddings, word_membership
from .encoders import resolve_encoder
from .figures import Panel, can_draw, projection_figure
from .files import write_text
from .report import Part, Section, Table
from .significance import paired_t_test
from .silhouette import type_silhouettes
from .windows import WindowSettings

PRE_TRAINED, STANDARD, STAGE_1, CONER = "pre-trained", "standard NER", "after stage 1", "after stage 2 (CoNER)"
PAPERS_TYPE = "MONEY"
FIGURE_SEED = 42
"""Of the draw of words and of UMAP, the same in all panels."""


class SpaceRun(Protocol):
    """What is asked of a finished run; see `experiment.Run`."""

    encoder: str
    model: str
    scheme: str
    seed: int
    folder: Path
    metrics: dict[str, Any]
    references: list[Document]


@dataclass(frozen=True)
class SpaceSettings:
    """Settings of Table 3 and Figure 3.

    Attributes:
        windows: how texts are cut for the encoders.
        figure_type: type of Figure 3; None is MONEY, or the one with the most words in the evaluated texts.
        figure_words: how many words Figure 3 shows at most.
        encoder_cache: folder in which e5-small-ru is kept.
        batch_size: windows in a forward pass.
    """

    windows: WindowSettings
    figure_type: str | None = None
    figure_words: int = 3000
    encoder_cache: str | None = None
    batch_size: int = 32


def space_sections(runs: Sequence[SpaceRun], training: Sequence[Document], settings: SpaceSettings) -> list[Section]:
    """Table 3 and Figure 3 for each encoder that has a standard and a CoNER model of one seed."""
    parts: list[Part] = []
    figures: list[Part] = []
    for encoder in dict.fromkeys(run.encoder for run in runs):
        pairs = _pairs([run for run in runs if run.encoder == encoder])
        if not pairs:
            parts.append(f"{encoder}: Table 3 and Figure 3 need a standard and a CoNER model of one seed, and one is missing.")
            continue
        spaces = _four_spaces(*pairs[0], settings)
        separations = _separations(spaces, pairs, settings)
        parts += _table_3(encoder, pairs, training, separations)
        figures.append(_figure_3(encoder, pairs[0][0], spaces, separations, settings))
    sections = [Section("Separability of the types' words", parts, "separability")]
    return [*sections, Section("Word spaces", figures, "word-spaces")] if figures else sections


def _pairs(runs: Sequence[SpaceRun]) -> list[tuple[SpaceRun, SpaceRun]]:
    """The standard and the CoNER model of each seed that has both."""
    standard = {run.seed: run for run in runs if run.scheme == "standard"}
    return [(standard[run.seed], run) for run in runs if run.scheme == "coner" and run.seed in standard]


def _four_spaces(standard: SpaceRun, coner: SpaceRun, settings: SpaceSettings) -> dict[str, WordEmbeddings]:
    """The evaluated words in the four encoders of Figure 3."""
    folders = {
        PRE_TRAINED: resolve_encoder(standard.model, settings.encoder_cache),
        STANDARD: str(standard.folder / "stage2"),
        STAGE_1: str(coner.folder / "stage1"),
        CONER: str(coner.folder / "stage2"),
    }
    return {label: _words(folder, standard.references, settings) for label, folder in folders.items()}


def _words(model: str, documents: Sequence[Document], settings: SpaceSettings) -> WordEmbeddings:
    encoder, tokenizer = load_encoder(model)
    texts = [document.text for document in documents]
    return word_embeddings(encoder, tokenizer, texts, windows=settings.windows, batch_size=settings.batch_size, progress=True)


def _membership(space: WordEmbeddings, run: SpaceRun) -> np.ndarray:
    return word_membership(space.document, space.spans, run.references, run.metrics["entity_types"])


def _separations(
    spaces: Mapping[str, WordEmbeddings], pairs: Sequence[tuple[SpaceRun, SpaceRun]], settings: SpaceSettings
) -> dict[str, np.ndarray]:
    """Silhouettes `(seeds, types)` in each of the four spaces; of the pre-trained one and after stage 1, of one seed."""
    standard, coner = pairs[0]
    member = _membership(spaces[PRE_TRAINED], standard)
    rows = {
        PRE_TRAINED: [type_silhouettes(spaces[PRE_TRAINED].vectors, member, progress=True)],
        STAGE_1: [_kept(coner, "stage1", settings, lambda: spaces[STAGE_1])],
        STANDARD: [_kept(standard, "stage2", settings, lambda: spaces[STANDARD])],
        CONER: [_kept(coner, "stage2", settings, lambda: spaces[CONER])],
    }
    for others in pairs[1:]:
        for label, run in zip((STANDARD, CONER), others, strict=True):
            model = str(run.folder / "stage2")
            rows[label].append(
                _kept(run, "stage2", settings, lambda run=run, model=model: _words(model, run.references, settings))
            )
    return {label: np.array(values) for label, values in rows.items()}


def _kept(run: SpaceRun, stage: str, settings: SpaceSettings, space_of: Callable[[], WordEmbeddings]) -> np.ndarray:
    """Silhouettes `(types,)` of a model of a run; they are kept in its folder, as they take minutes."""
    path, types = run.folder / f"{stage}_silhouettes.json", run.metrics["entity_types"]
    made_of = {"types": types, "windows": asdict(settings.windows)}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["made_of"] == made_of:
            return np.array(kept["silhouettes"], dtype=np.float64)  # null is not-a-number
    space = space_of()
    values = type_silhouettes(space.vectors, _membership(space, run), progress=True)
    plain = [None if np.isnan(value) else float(value) for value in values]
    write_text(path, json.dumps({"made_of": made_of, "silhouettes": plain}, indent=1, ensure_ascii=False))
    return values


# -- Table 3 ------------------------------------------------------------------------------------------------------------


def _table_3(
    encoder: str,
    pairs: Sequence[tuple[SpaceRun, SpaceRun]],
    training: Sequence[Document],
    separations: Mapping[str, np.ndarray],
) -> list[Part]:
    types, few_shot = pairs[0][0].metrics["entity_types"], pairs[0][0].metrics["few_shot_types"]
    standard, coner = separations[STANDARD].mean(axis=0), separations[CONER].mean(axis=0)
    columns = [standard, coner, coner - standard, separations[PRE_TRAINED][0], separations[STAGE_1][0]]
    words = count_entity_words(training, types)
    rows = [
        [f"{name}*" if name in few_shot else name, int(words[index]), *(float(column[index]) for column in columns)]
        for index, name in enumerate(types)
    ]
    seeds = ", ".join(str(run.seed) for run, _ in pairs)
    note = (
        "Silhouette coefficient of the words of a type against all other words of the evaluated texts, Euclidean; a word's"
        " embedding is the mean of its sub-words in the last hidden layer. A word counts once for a type."
        f" {STANDARD} and CoNER: means over the seeds {seeds}; pre-trained and after stage 1: seed {pairs[0][0].seed}."
    )
    note += " * few-shot type." if few_shot else ""
    note += " A dash: the type has no word there." if np.isnan(standard).any() else ""
    title = f"Table 3: silhouettes of the types, {encoder}"
    names = ["type", "words in training texts", STANDARD, "CoNER", "difference", PRE_TRAINED, STAGE_1]
    table = Table(title, names, rows, note, f"table 3: {encoder}")
    there = np.isfinite(standard) & np.isfinite(coner)
    if there.sum() < 2:
        return [table, f"{encoder}: fewer than two types have words in the evaluated texts, so there is no t-test."]
    result = paired_t_test(standard[there], coner[there])
    row = [STANDARD, "CoNER", result.pairs, float(standard[there].mean()), float(coner[there].mean())]
    test = Table(
        f"Paired t-test of Table 3, two-sided, {encoder}",
        ["first", "second", "types", "mean of first", "mean of second", "t", "p"],
        [[*row, result.statistic, result.pvalue]],
        "As in section 4.2 of the paper; t is negative where the words of the types stand further apart in the second space.",
        f"t-test: {encoder}",
    )
    return [table, test]


# -- Figure 3 -----------------------------------------------------------------------------------------------------------


def _figure_3(
    encoder: str,
    run: SpaceRun,
    spaces: Mapping[str, WordEmbeddings],
    separations: Mapping[str, np.ndarray],
    settings: SpaceSettings,
) -> Part:
    if not can_draw():
        return f"{encoder}: Figure 3 needs matplotlib: install the extra `analysis` and make the report again."
    types = run.metrics["entity_types"]
    member = _membership(spaces[PRE_TRAINED], run)
    name = settings.figure_type or default_figure_type(types, member)
    words = member[:, types.index(name)]
    if not words.any():
        return f"{encoder}: no word of the evaluated texts belongs to {name}; name another figure_type for Figure 3."
    chosen = choose_words(words, settings.figure_words, FIGURE_SEED)
    panels, method = [], "pca"
    for label, space in tqdm(spaces.items(), desc="projections", unit="space"):
        plane, method = project(space.vectors[chosen], seed=FIGURE_SEED)
        panels.append(Panel(label, plane, float(separations[label][0][types.index(name)])))
    return projection_figure(panels, words[chosen], name, method, encoder)


def default_figure_type(types: Sequence[str], member: np.ndarray) -> str:
    """MONEY, as in the paper, or, where the evaluated texts have none, the type with the most words in them."""
    counts = dict(zip(types, member.sum(axis=0).tolist(), strict=True))
    return PAPERS_TYPE if counts.get(PAPERS_TYPE) else max(counts, key=counts.get)


def choose_words(member: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Indices, ascending, of at most `most` words: those of the type (a third at most), and a draw from the others."""
    random = np.random.default_rng(seed)
    inside, outside = np.flatnonzero(member), np.flatnonzero(~member)
    if len(member) <= most:
        return np.arange(len(member))
    inside = random.permutation(inside)[: max(most // 3, most - len(outside))]
    outside = random.permutation(outside)[: most - len(inside)]
    return np.sort(np.concatenate([inside, outside]))
