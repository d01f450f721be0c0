"""From documents to what a network reads: words, sentences, windows of sub-words, and the views of both stages.

Text is cut into words by one regular expression, words into sub-words by any fast tokenizer, and `word_ids()` tells each
sub-word's case; so nothing here depends on how a tokenizer marks its pieces. A document becomes windows of whole sentences.
All views are made by `datasets.map`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Array2D, Dataset, Features, List, Value
from razdel import sentenize
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .outside import EVERY_RUN, OutsideSettings, outside_spans, surface_id
from .tagging import (
    FIRST,
    IGNORE_INDEX,
    LAST,
    MIDDLE,
    NUM_TAGS,
    SPECIAL,
    WHOLE,
    bilou_labels,
    head_index,
    head_levels,
)
from .windows import DEFAULT_WINDOWS, Window, WindowSettings, inference_windows, training_windows, with_neighbours

WORD = re.compile(r"\w[\w\u0300-\u036f]*|[^\w\s]")
"""Combining marks belong to the letter before them: text in NFD writes "й" and "ё" with them, and stress is marked by one."""


class ViewError(ValueError):
    """A corpus, encoder or setting that no view can be made of; the message says what to change."""


def load_tokenizer(name_or_path: str, **kwargs) -> PreTrainedTokenizerBase:
    """The fast tokenizer of an encoder, set up for text that is already split into words.

    Raises:
        ViewError: there is no such encoder, its tokenizer is missing or broken, or it is no fast one, which knows the word of
            each sub-word.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
        # Byte-level BPE (RoBERTa, GPT-2) refuses split text unless every word starts with a space.
        if tokenizer.is_fast and getattr(tokenizer, "add_prefix_space", None) is False:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, add_prefix_space=True, **kwargs)
    except OSError as error:
        raise ViewError(f"{name_or_path}: no tokenizer can be loaded: {error}") from error
    # A file that is missing or broken is a ValueError, KeyError, ImportError, ... or, of tokenizers, a mere Exception.
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ViewError(
            f"{name_or_path}: no tokenizer can be loaded; see its tokenizer.json and config.json: {said}"
        ) from error
    if not tokenizer.is_fast:
        raise ViewError(f"{name_or_path} has no fast tokenizer (tokenizer.json); choose an encoder that has one")
    # Where there is no file with a vocabulary, transformers makes a tokenizer of the special tokens alone.
    if len(tokenizer) < 2 * len(set(tokenizer.all_special_ids)):
        raise ViewError(f"{name_or_path}: the tokenizer has no vocabulary (tokenizer.json); choose an encoder that has one")
    return tokenizer


def split_words(text: str) -> np.ndarray:
    """Character offsets `(words, 2)` of the words of a text: runs of letters and digits, and single other signs."""
    return np.array([match.span() for match in WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)


def split_sentences(text: str) -> list[int]:
    """Character offsets at which sentences start (razdel, within lines; a line break always ends a sentence)."""
    starts = []
    offset = 0
    for line in text.split("\n"):
        starts.extend(offset + sentence.start for sentence in sentenize(line))
        offset += len(line) + 1
    return starts


@dataclass
class TokenizedText:
    """One text as sub-words, without special tokens.

    `word_offsets` (words, 2) characters; `input_ids` (tokens,); `word_ids` (tokens,) non-decreasing word index of each
    sub-word; `sentence_starts` (sentences,) word index. A word without any sub-word (a zero-width character, say) has its
    offsets and no token.
    """

    word_offsets: np.ndarray
    input_ids: np.ndarray
    word_ids: np.ndarray
    sentence_starts: np.ndarray

    @property
    def num_words(self) -> int:
        return len(self.word_offsets)


def tokenize_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedText]:
    """Words, sentences and sub-words of texts of any length."""
    offsets = [split_words(text) for text in texts]
    words = [[text[start:end] for start, end in spans] for text, spans in zip(texts, offsets, strict=True)]
    # Empty texts would make a batch of the wrong kind.
    filled = [index for index, found in enumerate(words) if found]
    encodings = {}
    if filled:
        batch = tokenizer(
            [words[index] for index in filled],
            is_split_into_words=True,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        encodings = dict(zip(filled, batch.encodings, strict=True))
    tokenized = []
    for index, (text, spans) in enumerate(zip(texts, offsets, strict=True)):
        ids = np.array(encodings[index].ids if index in encodings else [], dtype=np.int64)
        word_ids = np.array(encodings[index].word_ids if index in encodings else [], dtype=np.int64)
        starts = np.unique(np.searchsorted(spans[:, 0], split_sentences(text)))
        tokenized.append(TokenizedText(spans, ids, word_ids, starts[starts < len(spans)]))
    return tokenized


_CASES = np.array([MIDDLE, LAST, FIRST, WHOLE], dtype=np.int8)
"""Case of a sub-word by whether it is the first (2) and the last (1) of its word."""


def subword_cases(word_ids: np.ndarray) -> np.ndarray:
    """Case (WHOLE, FIRST, MIDDLE, LAST) of each sub-word from the word indices `(tokens,)`; int8."""
    first = np.ones(len(word_ids), dtype=bool)
    first[1:] = word_ids[1:] != word_ids[:-1]
    last = np.ones(len(word_ids), dtype=bool)
    last[:-1] = first[1:]
    return _CASES[2 * first + last]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after one sequence, such as [CLS] and [SEP]."""
    bare = tokenizer(["a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    full = tokenizer(["a"], is_split_into_words=True)["input_ids"]
    before = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:before], full[before + len(bare) :]


@dataclass
class _Placed:
    """The entities of a document as word spans, and what could not be placed: `lost` holds (type, reason).

    `inside` (words,) bool marks the words that touch any entity, placed or not.
    """

    spans: list[tuple[int, int, str]]
    lost: list[tuple[str, str]]
    inside: np.ndarray


def _place_entities(text: TokenizedText, entities: Iterable[tuple[int, int, str]]) -> _Placed:
    placed = _Placed([], [], np.zeros(text.num_words, dtype=bool))
    starts, stops = text.word_offsets[:, 0], text.word_offsets[:, 1]
    for start, end, name in entities:
        placed.inside[np.searchsorted(stops, start, side="right") : np.searchsorted(starts, end)] = True
        first, last = np.searchsorted(starts, start), np.searchsorted(stops, end)
        aligned = first < len(starts) and starts[first] == start and last < len(stops) and stops[last] == end
        if not aligned:
            placed.lost.append((name, "starts or ends inside a word"))
        elif first > last:
            placed.lost.append((name, "holds no word"))
        else:
            placed.spans.append((int(first), int(last) + 1, name))
    return placed


class _WindowMaker:
    """Cuts tokenized texts into the rows that all views share."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: WindowSettings):
        self.tokenizer = tokenizer
        self.settings = settings
        self.before, self.after = special_tokens(tokenizer)
        self.capacity = settings.max_length - len(self.before) - len(self.after)
        limit = tokenizer.model_max_length
        if not 1 <= self.capacity or settings.max_length > limit:
            raise ViewError(f"max_length {settings.max_length} must leave room for special tokens and be at most {limit}")

    def windows(self, text: TokenizedText, entities: Iterable[tuple[int, int]] | None) -> list[Window]:
        lengths = self._lengths(text)
        sentences, most = text.sentence_starts, self.settings.max_sentences
        if entities is None:
            found = inference_windows(lengths, sentences, self.capacity, most, self.settings.stride)
        else:
            found = training_windows(lengths, sentences, self.capacity, most, entities)
        # A window of nothing but words without sub-words has nothing to read.
        return [window for window in found if lengths[window.first : window.end].any()]

    def _lengths(self, text: TokenizedText) -> np.ndarray:
        # A word with more sub-words than a window is cut to what fits (see `row`), so it counts as that many.
        return np.minimum(np.bincount(text.word_ids, minlength=text.num_words), self.capacity)

    def with_neighbours(self, text: TokenizedText, windows: list[Window], context: int) -> list[Window]:
        """See `windows.with_neighbours`."""
        return with_neighbours(windows, self._lengths(text), self.capacity, context)

    def words(self, text: TokenizedText, window: Window) -> np.ndarray:
        """Word index of each sub-word of a window."""
        low, high = np.searchsorted(text.word_ids, (window.first, window.end))
        return text.word_ids[low : min(high, low + self.capacity)]

    def row(self, text: TokenizedText, window: Window) -> dict:
        """Columns of one window; character offsets of special tokens are 0."""
        words = self.words(text, window)
        low = np.searchsorted(text.word_ids, window.first)
        length = len(self.before) + len(words) + len(self.after)
        inside = slice(len(self.before), len(self.before) + len(words))
        # Filled in place: `np.pad` took a third of the time of everything before the encoder.
        ids = np.empty(length, dtype=np.int32)
        ids[: inside.start], ids[inside], ids[inside.stop :] = self.before, text.input_ids[low : low + len(words)], self.after
        cases = np.full(length, SPECIAL, dtype=np.int8)
        cases[inside] = subword_cases(words)
        offsets = np.zeros((2, length), dtype=np.int32)
        offsets[:, inside] = text.word_offsets[words].T
        core = text.word_offsets[window.core_first : window.core_end]
        return {
            "input_ids": ids,
            "subword_cases": cases,
            "word_starts": offsets[0],
            "word_ends": offsets[1],
            "core": np.array([core[0, 0], core[-1, 1]] if len(core) else [0, 0], dtype=np.int32),
            "length": length,
        }

    def token_span(self, text: TokenizedText, window: Window, first: int, end: int) -> tuple[int, int] | None:
        """Tokens `[first, end)` in the window of the words `[first, end)`; None if they are not all in it."""
        if not window.first <= first < end <= window.end:
            return None
        base = np.searchsorted(text.word_ids, window.first) - len(self.before)
        low, high = np.searchsorted(text.word_ids, (first, end)) - base
        return (int(low), int(high)) if low < high <= len(self.before) + self.capacity else None


_WINDOW_FEATURES = {
    "document": Value("int32"),
    "input_ids": List(Value("int32")),
    "subword_cases": List(Value("int8")),
    "word_starts": List(Value("int32")),
    "word_ends": List(Value("int32")),
    "core": List(Value("int32")),
    "length": Value("int32"),
}
_LOST_FEATURE = {"lost": List({"type": Value("string"), "reason": Value("string")})}


def window_rows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    settings: WindowSettings,
    first_document: int = 0,
    context: int = 0,
) -> list[dict]:
    """Inference windows of texts, without `datasets`: the columns of `bilou_view` but `labels` and `lost`.

    With `context`, `in_context` of a row is the row of its window together with so many windows before and after it, as far as
    they fit (`windows.with_neighbours`), and `shift` the number of tokens by which the window's own ones stand farther right;
    a window with which nothing fits has neither.
    """
    maker = _WindowMaker(tokenizer, settings)
    rows = []
    for index, text in enumerate(tokenize_texts(texts, tokenizer)):
        windows = maker.windows(text, None)
        found = [{"document": first_document + index} | maker.row(text, window) for window in windows]
        if context:
            for row, window, wide in zip(found, windows, maker.with_neighbours(text, windows, context), strict=True):
                if (wide.first, wide.end) == (window.first, window.end):
                    continue
                first, start = np.searchsorted(text.word_ids, (wide.first, window.first))
                row |= {"in_context": maker.row(text, wide), "shift": int(start - first)}
        rows.extend(found)
    return rows


def bilou_view(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    entity_types: Sequence[str],
    levels: int = 1,
    settings: WindowSettings = DEFAULT_WINDOWS,
    training: bool = True,
    level_order: str = "outermost",
) -> Dataset:
    """The view of stage 2: windows with a BILOU tag for every sub-word and head.

    Args:
        documents: features of `documents.FEATURES`.
        entity_types: types to label, in the order of the heads; others are an error.
        levels: nesting levels; see `tagging.nesting_levels`.
        level_order: which of nested entities of a type is on level 1, one of `tagging.LEVEL_ORDERS`; see `tagging.head_levels`.
        training: True: windows that cut no entity. False: windows as at inference, where gold is not known.
    Returns:
        One row a window: `document` (row of `documents`), `input_ids`, `subword_cases`, `word_starts`, `word_ends`
        (tokens,) character offsets of each sub-word's word, `core` (2,) characters the window answers for, `length`,
        `labels` int8 (tokens, heads), -100 on special tokens, and `lost`: entities that the labels do not hold, with the
        reason, noted at the first window of their document (`lost_entities` sums them up).
    Raises:
        ViewError: a document has a type that is not in `entity_types`, or `max_length` does not suit the tokenizer.
    """
    maker = _WindowMaker(tokenizer, settings)
    num_heads = len(entity_types) * levels
    index_of = {name: index for index, name in enumerate(entity_types)}

    def label_windows(batch: dict, indices: list[int]) -> dict:
        columns = defaultdict(list)
        for text, document, windows, placed in _cut(maker, batch, indices, index_of, training):
            labelled: set[tuple[int, int, str]] = set()
            deep: set[tuple[int, int, str]] = set()
            rows = []
            for window in windows:
                row = maker.row(text, window)
                spans = _levelled_spans(maker, text, window, placed.spans, index_of, levels, level_order, labelled, deep)
                labels = bilou_labels(spans, row["length"], num_heads)
                labels[row["subword_cases"] == SPECIAL] = IGNORE_INDEX
                rows.append({"document": document, **row, "labels": labels, "lost": []})
            for span in placed.spans:
                if span not in labelled:
                    reason = "nested deeper than levels" if span in deep else "cut by a window or without sub-words"
                    placed.lost.append((span[2], reason))
            _append_rows(columns, rows, placed.lost)
        return columns

    features = Features(_WINDOW_FEATURES | {"labels": Array2D(shape=(None, num_heads), dtype="int8")} | _LOST_FEATURE)
    return _map(documents, label_windows, features, "BILOU view")


def entity_view(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    entity_types: Sequence[str],
    settings: WindowSettings = DEFAULT_WINDOWS,
    outside: OutsideSettings = EVERY_RUN,
) -> Dataset:
    """The view of stage 1: windows with all their spans, entities and what lies between them.

    Args: as `bilou_view`, and
        documents: may have a column `corpus`, the number of the corpus of each document (see `corpora`).
        outside: which spans of O words there are; by default every maximal run outside all entities.
    Returns:
        The window columns of `bilou_view`, and `spans` (spans, 3) int32: first token, end token (exclusive), type, where
        the type `len(entity_types)` is O; `surfaces` (spans,) int64, equal for equal words up to case; `corpus`, 0 where
        the documents do not say. `lost` as in `bilou_view`.
    """
    maker = _WindowMaker(tokenizer, settings)
    index_of = {name: index for index, name in enumerate(entity_types)}
    entity_words = _words_of_entities(documents) if outside.lengths == "entities" else []

    def find_spans(batch: dict, indices: list[int]) -> dict:
        columns = defaultdict(list)
        for text, document, windows, placed in _cut(maker, batch, indices, index_of, True):
            found: set[tuple[int, int, str]] = set()
            rows = []
            place = document - indices[0]
            for number, window in enumerate(windows):
                row = maker.row(text, window)
                spans = []
                for span in placed.spans:
                    tokens = maker.token_span(text, window, span[0], span[1])
                    if tokens is not None:
                        spans.append((*tokens, index_of[span[2]]))
                        found.add(span)
                # Also the words of an entity that is not in the window as a whole are no O.
                words = np.full(row["length"], -1)
                words[row["subword_cases"] != SPECIAL] = maker.words(text, window)
                inside = words < 0
                inside[~inside] = placed.inside[words[~inside]]
                between = outside_spans(words, inside, outside, entity_words, (document, number))
                spans.extend((first, end, len(entity_types)) for first, end in between)
                surfaces = [
                    surface_id(batch["text"][place][row["word_starts"][first] : row["word_ends"][end - 1]])
                    for first, end, _ in spans
                ]
                row["spans"] = np.array(spans, dtype=np.int32).reshape(-1, 3)
                row["surfaces"] = np.array(surfaces, dtype=np.int64)
                row["corpus"] = batch["corpus"][place] if "corpus" in batch else 0
                rows.append({"document": document, **row, "lost": []})
            lost = [(span[2], "cut by a window or without sub-words") for span in placed.spans if span not in found]
            _append_rows(columns, rows, placed.lost + lost)
        return columns

    spans_features = {"spans": Array2D(shape=(None, 3), dtype="int32"), "surfaces": List(Value("int64"))}
    features = Features(_WINDOW_FEATURES | spans_features | {"corpus": Value("int32")} | _LOST_FEATURE)
    return _map(documents, find_spans, features, "entity view")


def _words_of_entities(documents: Dataset) -> np.ndarray:
    """Lengths in words of all entities, `(entities,)`; without those of no word."""
    lengths = [
        len(split_words(row["text"][entity["start"] : entity["end"]])) for row in documents for entity in row["entities"]
    ]
    return np.array([length for length in lengths if length], dtype=np.int64)


def _map(documents: Dataset, function, features: Features, name: str) -> Dataset:
    if not len(documents):
        # `map` leaves no columns of no documents.
        return Dataset(features.arrow_schema.empty_table()).cast(features).with_format("numpy")
    # The cache of `datasets` would not notice a change of this module: always compute, it takes seconds.
    return documents.map(
        function,
        batched=True,
        batch_size=64,
        with_indices=True,
        remove_columns=documents.column_names,
        features=features,
        load_from_cache_file=False,
        desc=f"{name}: windows of {len(documents)} documents",
    ).with_format("numpy")


def _cut(maker: _WindowMaker, batch: dict, indices: list[int], index_of: dict, training: bool):
    for text, document, entities in zip(
        tokenize_texts(batch["text"], maker.tokenizer), indices, batch["entities"], strict=True
    ):
        triples = sorted({(e["start"], e["end"], e["type"]) for e in entities})
        unknown = sorted({name for _, _, name in triples} - set(index_of))
        if unknown:
            raise ViewError(
                f"document {batch['id'][indices.index(document)]!r} has entities of the types {unknown}, which are not"
                f" among the entity types {sorted(index_of)}; add them or filter them out"
            )
        placed = _place_entities(text, triples)
        windows = maker.windows(text, {span[:2] for span in placed.spans} if training else None)
        if triples and not windows:
            # Nothing to read, and entities all the same: a window without words notes them as lost.
            windows = [Window(0, 0, 0, 0)]
        yield text, document, windows, placed


def _levelled_spans(maker, text, window, spans, index_of, levels, order, labelled, deep) -> list[tuple[int, int, int]]:
    """Head spans of a window; notes the entities that they hold exactly in `labelled`, the others' in `deep`."""
    by_type: dict[str, dict[tuple[int, int], list]] = defaultdict(lambda: defaultdict(list))
    for span in spans:
        tokens = maker.token_span(text, window, span[0], span[1])
        if tokens is not None:
            by_type[span[2]][tokens].append(span)
    found = []
    for name, sources in by_type.items():
        for tokens, level in zip(sources, head_levels(list(sources), levels, order), strict=True):
            if not level:
                deep.update(sources[tokens])
                continue
            found.append((head_index(index_of[name], level, len(index_of)), *tokens))
            base = np.searchsorted(text.word_ids, window.first) - len(maker.before)
            words = (text.word_ids[tokens[0] + base], text.word_ids[tokens[1] - 1 + base] + 1)
            # A border word without a sub-word cannot be given back: such a span is labelled, and counted as lost. So is
            # one that starts outside the core, as decoding leaves it to the neighbouring window.
            if window.core_first <= words[0] < window.core_end:
                labelled.update(span for span in sources[tokens] if span[:2] == words)
    return found


def _append_rows(columns: dict, rows: list[dict], lost: list[tuple[str, str]]) -> None:
    if rows:
        rows[0]["lost"] = [{"type": name, "reason": reason} for name, reason in lost]
    for row in rows:
        for key, value in row.items():
            columns[key].append(value)


def count_tags(view: Dataset) -> np.ndarray:
    """How often each head of a BILOU view has each tag: `(heads, 5)`, special tokens left out."""
    labels = np.concatenate(view.with_format("numpy")["labels"][:])
    return np.stack([(labels == tag).sum(axis=0) for tag in range(NUM_TAGS)], axis=1)


def lost_entities(view: Dataset) -> dict[str, Counter]:
    """How many entities a view could not hold: type -> Counter of reasons."""
    lost: dict[str, Counter] = defaultdict(Counter)
    for entries in view.with_format(None)["lost"][:]:
        for entry in entries:
            lost[entry["type"]][entry["reason"]] += 1
    return dict(sorted(lost.items()))
