"""Words, sentences, sub-words, windows and views: offsets survive any text, and no entity vanishes without a count."""

import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import SENTENCES, TYPES
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runne_coner.arguments import DataArguments, UsageError, load_corpus
from runne_coner.documents import FEATURES
from runne_coner.encoders import EncoderError, resolve_encoder
from runne_coner.metric_losses import LOSSES
from runne_coner.nerel import load_documents, load_entity_types
from runne_coner.pairs import check_pairs, draw_pairs, entity_pair_view
from runne_coner.preprocessing import (
    ViewError,
    bilou_view,
    entity_view,
    load_tokenizer,
    lost_entities,
    special_tokens,
    split_sentences,
    split_words,
    subword_cases,
    tokenize_texts,
    window_rows,
)
from runne_coner.tagging import FIRST, IGNORE_INDEX, LAST, MIDDLE, SPECIAL, WHOLE, character_spans, nesting_levels
from runne_coner.windows import Window, WindowSettings, inference_windows, training_windows, with_neighbours

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# Zero-width space, soft hyphen, byte order mark, a control character, a combining accent, a variation selector.
INVISIBLE = ["\u200b", "\u00ad", "\ufeff", "\x01", "\u0301", "\ufe0f"]


def surfaces(text):
    return [text[start:end] for start, end in split_words(text)]


def encode(text, folder):
    return tokenize_texts([text], load_tokenizer(folder))[0]


# -- Words and sentences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Путин, 12.06.2000-го!", ["Путин", ",", "12", ".", "06", ".", "2000", "-", "го", "!"]),
        ("  «Газпром»\tи\u00a0К° ", ["«", "Газпром", "»", "и", "К", "°"]),
        ("snake_case и ё", ["snake_case", "и", "ё"]),
        ("😀Анна😀😀", ["😀", "Анна", "😀", "😀"]),
        ("a\u200bb\u0301", ["a", "\u200b", "b\u0301"]),
        ("Диа́с, и\u0306\u0301од \u0301ё", ["Диа́с", ",", "и\u0306\u0301од", "\u0301", "ё"]),
        ("", []),
        (" \n\t\u2003", []),
    ],
)
def test_words(text, words):
    assert surfaces(text) == words


@given(st.text(alphabet="Ёйеи\u0308äa1_ -.«😀", max_size=40))
def test_decomposed_text_is_cut_as_composed_text(text):
    composed = unicodedata.normalize("NFC", text)
    decomposed = unicodedata.normalize("NFD", text)
    assert surfaces(decomposed) == [unicodedata.normalize("NFD", word) for word in surfaces(composed)]
    if "\u0308" not in composed:
        assert surfaces(composed) == re.findall(r"\w+|[^\w\s]", composed)


@given(st.text(max_size=60))
def test_words_cover_everything_but_space_in_order(text):
    spans = split_words(text)
    assert spans.shape == (len(spans), 2)
    assert (spans[:, 0] < spans[:, 1]).all() and (spans[1:, 0] >= spans[:-1, 1]).all()
    assert "".join(surfaces(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "first_words"),
    [
        ("Он ушёл. Она осталась! А я?", ["Он", "Она", "А"]),
        ("Заголовок без точки\nТекст новости.\r\n\r\nКонец", ["Заголовок", "Текст", "Конец"]),
        ("А. С. Пушкин родился в г. Москве в 1799 г. в семье.", ["А"]),
        ("  \n  Начало после пустых строк.", ["Начало"]),
    ],
)
def test_sentence_starts(text, first_words, wordpiece_encoder):
    encoded = encode(text, wordpiece_encoder)
    words = surfaces(text)
    assert [words[index] for index in encoded.sentence_starts] == first_words
    assert all(0 <= start <= len(text) for start in split_sentences(text))


# -- Sub-words ----------------------------------------------------------------------------------------------------------


def test_subword_cases():
    cases = subword_cases(np.array([0, 1, 1, 3, 3, 3, 3, 4]))
    assert cases.tolist() == [WHOLE, FIRST, LAST, FIRST, MIDDLE, MIDDLE, LAST, WHOLE]
    assert len(subword_cases(np.array([], dtype=np.int64))) == 0


def test_subwords_stay_inside_their_words(any_encoder):
    tokenizer = load_tokenizer(any_encoder)
    number_sign = ("№", "No") if "unigram" in any_encoder else ("", "")  # NFKC
    seen = set()
    for text, encoded in zip(SENTENCES, tokenize_texts(SENTENCES, tokenizer), strict=True):
        assert (np.diff(encoded.word_ids) >= 0).all()
        assert set(encoded.word_ids) == set(range(encoded.num_words))  # every visible word has a sub-word
        for word, (start, end) in enumerate(encoded.word_offsets):
            ids = encoded.input_ids[encoded.word_ids == word]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids).replace(" ", "") == text[start:end].replace(*number_sign)
        cases = subword_cases(encoded.word_ids)
        seen.update(cases.tolist())
        assert (np.isin(cases, (WHOLE, FIRST))).sum() == encoded.num_words == np.isin(cases, (WHOLE, LAST)).sum()
    assert seen == {WHOLE, FIRST, MIDDLE, LAST}  # or nothing was tested


def test_the_tokenizers_own_truncation_and_padding_do_not_apply(wordpiece_encoder):
    """Sentence encoders are published with both switched on (here: to 6 tokens)."""
    long, short = tokenize_texts([" ".join(SENTENCES), "Перми"], load_tokenizer(wordpiece_encoder))
    assert len(long.input_ids) > 60 and long.word_ids[-1] == long.num_words - 1
    assert len(short.input_ids) < 6 and 0 not in short.input_ids


def test_special_tokens(any_encoder):
    tokenizer = load_tokenizer(any_encoder)
    assert special_tokens(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])


def test_encoder_without_fast_tokenizer_is_refused(wordpiece_encoder, monkeypatch):
    slow = type("Slow", (), {"is_fast": False})()
    monkeypatch.setattr("runne_coner.preprocessing.AutoTokenizer.from_pretrained", lambda *args, **kwargs: slow)
    with pytest.raises(ValueError, match="no fast tokenizer"):
        load_tokenizer(wordpiece_encoder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": None, "tokenizer_config.json": None}, "has no vocabulary .tokenizer.json."),
        ({"tokenizer.json": None}, "no tokenizer can be loaded.*tokenizer.json"),
        ({"tokenizer.json": b""}, "no tokenizer can be loaded.*tokenizer.json.*JSONDecodeError"),
        ({"tokenizer.json": b"[]"}, "no tokenizer can be loaded.*tokenizer.json.*TypeError"),
        ({"tokenizer.json": b'{"version": "1.0"}'}, "no tokenizer can be loaded.*tokenizer.json.*KeyError"),
        ({"tokenizer.json": b'{"added_tokens": [], "model": {}}'}, "no tokenizer can be loaded.*tokenizer.json.*did not match"),
        ({"tokenizer_config.json": b"{"}, "no tokenizer can be loaded.*JSONDecodeError"),
        ({"config.json": b"{"}, "no tokenizer can be loaded.*config.json"),
        ({"config.json": b"[]"}, "no tokenizer can be loaded.*config.json"),
    ],
)
def test_encoder_without_a_whole_tokenizer_is_refused(files, message, wordpiece_encoder, tmp_path):
    folder = shutil.copytree(wordpiece_encoder, tmp_path / "encoder")
    for name, content in files.items():
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(ViewError, match=f"{folder}.*{message}"):
        load_tokenizer(str(folder))


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("We couldn't connect to the Hub.\nCheck your internet connection.")

    monkeypatch.setattr("runne_coner.preprocessing.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(ViewError, match=r"^owner/name: no tokenizer can be loaded: We couldn't connect to the Hub\."):
        load_tokenizer("owner/name")


def test_an_empty_list_of_types_is_refused():
    with pytest.raises(UsageError, match="entity_types: the list is empty; name the types to learn, or leave it out"):
        load_corpus(DataArguments("sample", entity_types=[]), seed=1)


@pytest.mark.parametrize("sign", INVISIBLE)
@pytest.mark.parametrize("pattern", ["{}", "{0}{0} {0}", "{}Анна", "Анна{}", "Анна {} в Перми", "Ан{}на", "\n{}\n"])
def test_words_without_subwords_keep_their_offsets(sign, pattern, any_encoder):
    text = pattern.format(sign)
    encoded = encode(text, any_encoder)
    assert "".join(text[start:end] for start, end in encoded.word_offsets) == "".join(text.split())
    rows = window_rows([text], load_tokenizer(any_encoder), WindowSettings(32))
    for row in rows:
        real = row["subword_cases"] != SPECIAL
        assert real.any()
        words = {text[a:b] for a, b in zip(row["word_starts"][real], row["word_ends"][real], strict=True)}
        assert words <= set(surfaces(text))
        assert {word for word in surfaces(text) if word.isalpha() and word != sign} <= words
    assert rows or "А" not in text


def test_texts_without_words(any_encoder):
    tokenizer = load_tokenizer(any_encoder)
    encoded = tokenize_texts(["", "Анна", "  \n ", ""], tokenizer)
    assert [text.num_words for text in encoded] == [0, 1, 0, 0]
    assert [len(text.sentence_starts) for text in encoded] == [0, 1, 0, 0]
    assert tokenize_texts([], tokenizer) == []
    rows = window_rows(["", "Анна", "  \n "], tokenizer, WindowSettings(32), first_document=5)
    assert [row["document"] for row in rows] == [6]
    assert window_rows([""], tokenizer, WindowSettings(32)) == []


def test_offsets_count_code_points(any_encoder):
    text = "😀😀 Анна\u200b𝔘 конец"
    (row,) = window_rows([text], load_tokenizer(any_encoder), WindowSettings(64))
    found = {text[a:b] for a, b in zip(row["word_starts"], row["word_ends"], strict=True)}
    assert {"Анна", "конец"} <= found


# -- Windows ------------------------------------------------------------------------------------------------------------


@st.composite
def cut_up_texts(draw, with_entities=False):
    """Sub-words of each word (also none, also as many as a window holds), sentence starts, and the capacity."""
    capacity = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(0, min(capacity, 4)) | st.just(capacity), min_size=1, max_size=40))
    number = len(lengths)
    starts = sorted({0, *draw(st.lists(st.integers(0, number - 1), max_size=6))})
    spans = st.tuples(st.integers(0, number - 1), st.integers(1, 9)).map(lambda s: (s[0], min(s[0] + s[1], number)))
    entities = draw(st.lists(spans, max_size=15)) if with_entities else []
    return np.array(lengths), np.array(starts), capacity, draw(st.integers(0, 3)), entities


def check_windows(windows, lengths, starts, capacity, most):
    covered = np.zeros(len(lengths), dtype=bool)
    for window in windows:
        assert 0 <= window.first <= window.core_first < window.core_end <= window.end <= len(lengths)
        assert lengths[window.first : window.end].sum() <= capacity
        covered[window.first : window.end] = True
    assert covered.all()


@given(cut_up_texts(with_entities=True))
@example((np.ones(12, dtype=int), np.array([0]), 5, 0, [(0, 3), (2, 5), (4, 7), (6, 9), (8, 11)]))  # a chain without a gap
def test_training_windows(drawn):
    lengths, starts, capacity, most, entities = drawn
    windows = training_windows(lengths, starts, capacity, most, entities)
    check_windows(windows, lengths, starts, capacity, most)
    for first, end in entities:
        if lengths[first:end].sum() <= capacity:
            assert any(window.first <= first and end <= window.end for window in windows), (first, end, windows)
    # Sentences that an entity joins count as one.
    joined = {s for s in starts for a, b in entities if a < s < b and lengths[a:b].sum() <= capacity}
    borders = [s for s in starts if s not in joined]
    for window in windows if most else ():
        assert sum(window.first < s < window.end for s in borders) < most


def test_windows_with_their_neighbours_as_far_as_they_fit():
    windows = [Window(first, first + 2, first, first + 2) for first in (0, 2, 4, 6)]
    lengths = np.array([1, 1, 1, 1, 5, 1, 1, 1])

    def reach(capacity: int, context: int) -> list[tuple[int, int]]:
        found = with_neighbours(windows, lengths, capacity, context)
        assert [(window.core_first, window.core_end) for window in found] == [(0, 2), (2, 4), (4, 6), (6, 8)]
        return [(window.first, window.end) for window in found]

    assert reach(100, 1) == [(0, 4), (0, 6), (2, 8), (4, 8)]
    assert reach(100, 2) == [(0, 6), (0, 8), (0, 8), (2, 8)]
    # The third window alone holds 6 sub-words; of two neighbours that fit one by one, the one before comes first.
    assert reach(8, 1) == [(0, 4), (0, 4), (2, 6), (4, 8)]
    assert reach(5, 3) == [(0, 4), (0, 4), (4, 6), (6, 8)]
    assert reach(100, 10**15) == [(0, 8)] * 4


@given(cut_up_texts(), st.integers(0, 15))
def test_inference_windows(drawn, stride):
    lengths, starts, capacity, most, _ = drawn
    windows = inference_windows(lengths, starts, capacity, most, stride)
    check_windows(windows, lengths, starts, capacity, most)
    cores = [word for window in windows for word in range(window.core_first, window.core_end)]
    assert cores == list(range(len(lengths)))
    for window in windows if most else ():
        assert sum(window.first < s < window.end for s in starts) < most
    wanted = min(stride, capacity // 2)
    for left, right in zip(windows, windows[1:], strict=False):
        overlap = lengths[right.first : left.end].sum()
        assert overlap <= wanted
        if left.end not in starts:  # two pieces of one sentence
            # They share all that the stride allows, unless the next word would not fit then.
            more = lengths[right.first - 1 : left.end].sum()
            assert more > wanted or lengths[right.first - 1 : left.end + 1].sum() > capacity


@pytest.mark.parametrize("stride", [0, 8])
def test_word_longer_than_a_window(stride, bpe_encoder):
    text = "Анна " + "щъ" * 200 + " Перми"
    rows = window_rows([text], load_tokenizer(bpe_encoder), WindowSettings(32, 0, stride))
    assert all(row["length"] <= 32 == len(row["input_ids"]) or row["length"] == len(row["input_ids"]) for row in rows)
    seen = {text[a:b] for row in rows for a, b in zip(row["word_starts"], row["word_ends"], strict=True)} - {""}
    assert seen == set(text.split())


def test_long_text_without_sentence_ends(wordpiece_encoder):
    words = 20_000
    text = "директор школы " * (words // 2)
    tokenizer = load_tokenizer(wordpiece_encoder)
    rows = window_rows([text], tokenizer, WindowSettings(128, 1, 32))
    starts = {int(a) for row in rows for a, s in zip(row["word_starts"], row["subword_cases"], strict=True) if s != SPECIAL}
    assert starts == set(split_words(text)[:, 0].tolist())
    cores = [tuple(row["core"]) for row in rows]
    assert cores[0][0] == 0 and cores[-1][1] == len(text.rstrip())
    assert all(left[1] <= right[0] for left, right in zip(cores, cores[1:], strict=False))
    # 20,000 words and their entities in training: all words are in a window, and no window is too long.
    lengths, entities = np.full(words, 2), [(i, i + 3) for i in range(0, words - 3, 2)]
    windows = training_windows(lengths, np.array([0]), 126, 1, entities)
    assert windows[0].first == 0 and windows[-1].end == words and max(w.end - w.first for w in windows) <= 63


@pytest.mark.parametrize("length", [2, 161])
def test_window_length_must_suit_the_tokenizer(length, wordpiece_encoder):
    with pytest.raises(ValueError, match=f"max_length {length}"):
        window_rows(["Анна"], load_tokenizer(wordpiece_encoder), WindowSettings(length))


# -- Views --------------------------------------------------------------------------------------------------------------


def recovered(view, number_of_documents, types):
    """Entities of each document that the labels of a view stand for, as `tagging` reads them."""
    rows = view.with_format("numpy")
    found = [set() for _ in range(number_of_documents)]
    # By columns: of rows `datasets` converts every value on its own, also of columns that are not read.
    columns = (rows[name][:] for name in ("document", "labels", "word_starts", "word_ends", "core"))
    for document, labels, starts, ends, core in zip(*columns, strict=True):
        for _, head, start, end in character_spans(labels[None], [starts], [ends], [core]).tolist():
            found[int(document)].add((start, end, types[head % len(types)]))
    return found


def trimmed(text, entity):
    """An entity without the words at its borders that have no sub-words."""
    visible = text.word_offsets[np.unique(text.word_ids)]
    inside = visible[(visible[:, 0] >= entity[0]) & (visible[:, 1] <= entity[1])]
    return (int(inside[0, 0]), int(inside[-1, 1]), entity[2]) if len(inside) else entity


def gold(documents):
    return [{(e["start"], e["end"], e["type"]) for e in row["entities"]} for row in documents]


def lost_counts(view):
    return {name: reasons.total() for name, reasons in lost_entities(view).items()}


@st.composite
def corpora(draw):
    """Documents of odd texts: entities mostly on word borders, nested and crossing at will, some within words."""
    words = ["Анна", "Пермь", "и", "Министр", "щъыь", "№", ".", "!", "😀", *INVISIBLE]
    gaps = st.sampled_from([" ", " ", " ", "", "\n", ". А"])
    rows = []
    for number in range(draw(st.integers(1, 3))):
        pieces = draw(st.lists(st.tuples(st.sampled_from(words), gaps), max_size=25))
        text = "".join(word + gap for word, gap in pieces)
        offsets = split_words(text)
        entities = set()
        if len(offsets):
            index = st.integers(0, len(offsets) - 1)
            for first, size, name in draw(st.lists(st.tuples(index, st.integers(0, 8), st.sampled_from("ABC")), max_size=10)):
                entities.add((int(offsets[first, 0]), int(offsets[min(first + size, len(offsets) - 1), 1]), name))
        if text:
            start = draw(st.integers(0, len(text) - 1))
            entities.add((start, draw(st.integers(start + 1, len(text))), "A"))
        dicts = [dict(zip(("start", "end", "type"), entity, strict=True)) for entity in sorted(entities)]
        rows.append({"id": str(number), "text": text, "entities": dicts})
    return rows


@settings(max_examples=40)
@given(corpora(), st.integers(1, 3), st.sampled_from([(8, 1), (12, 0), (64, 2)]), st.booleans())
def test_spans_come_back_or_are_counted_as_lost(any_encoder, rows, levels, size, training):
    corpus = Dataset.from_list(rows, features=FEATURES)
    tokenizer = load_tokenizer(any_encoder)
    window = WindowSettings(*size, stride=3)
    view = bilou_view(corpus, tokenizer, ["A", "B", "C"], levels, window, training)
    truth, found = gold(corpus), recovered(view, len(corpus), ["A", "B", "C"])
    missing = Counter()
    for text, wanted, got in zip(tokenize_texts(corpus["text"], tokenizer), truth, found, strict=True):
        # Words without sub-words at a border cannot be given back: what is left of such an entity is no entity.
        assert got - wanted <= {trimmed(text, entity) for entity in wanted}
        missing.update(name for _, _, name in wanted - got)
    assert lost_counts(view) == dict(missing)
    for row in view:
        special = row["subword_cases"] == SPECIAL
        assert (row["labels"][special] == IGNORE_INDEX).all() and (row["labels"][~special] >= 0).all()
        assert len(row["labels"]) == len(row["input_ids"]) == row["length"] <= size[0]


@pytest.mark.parametrize(("stride", "lost"), [(0, 6 + 4), (8, 3 * 2)])
def test_what_overlapping_windows_lose_is_counted(stride, lost, wordpiece_encoder):
    """An entity across the end of the window that answers for its start is lost, also if the next one has it whole.

    Of 40 words a window holds 18. Without overlap, of the entities of 7 words those that start on words 12-17 or 30-33 are
    cut. With 8, windows end at 18, 28, 38 and answer for starts before 14, 24, 34: starts on 12, 13, 22, 23, 32, 33 are lost.
    """
    text = "и " * 40
    entities = [{"start": 2 * start, "end": 2 * start + 13, "type": "A"} for start in range(34)]
    rows = [{"id": str(number), "text": text, "entities": [entity]} for number, entity in enumerate(entities)]
    corpus = Dataset.from_list(rows, features=FEATURES)
    view = bilou_view(corpus, load_tokenizer(wordpiece_encoder), ["A"], 1, WindowSettings(20, 1, stride), training=False)
    found = recovered(view, len(corpus), ["A"])
    assert sum(not entities for entities in found) == lost
    assert lost_counts(view) == {"A": lost}


@given(corpora())
def test_every_entity_on_visible_words_fits_into_a_large_window(any_encoder, rows):
    """With as many levels as there are nested entities, only what has no sub-word at its borders can be lost."""
    corpus = Dataset.from_list(rows, features=FEATURES)
    tokenizer = load_tokenizer(any_encoder)
    view = bilou_view(corpus, tokenizer, ["A", "B", "C"], 12, WindowSettings(160, 0))
    encoded = tokenize_texts(corpus["text"], tokenizer)
    for text, wanted, got in zip(encoded, gold(corpus), recovered(view, len(corpus), ["A", "B", "C"]), strict=True):
        starts, ends = (set(column) for column in text.word_offsets[np.unique(text.word_ids)].T.tolist())
        assert got & wanted == {entity for entity in wanted if entity[0] in starts and entity[1] in ends}


def test_levels_hold_the_layers_of_one_type(documents, any_encoder):
    """In the second document ORGANIZATION is nested three deep; CITY and PROFESSION on the same words do not count."""
    lost = [lost_counts(bilou_view(documents, load_tokenizer(any_encoder), TYPES, n)) for n in (1, 2, 3)]
    assert lost == [{"ORGANIZATION": 3}, {"ORGANIZATION": 1}, {}]
    per_document = [
        [level for name in TYPES for level in nesting_levels([(a, b) for a, b, t in sorted(entities) if t == name])]
        for entities in gold(documents)
    ]
    assert [sum(level > n for levels in per_document for level in levels) for n in (1, 2, 3)] == [3, 1, 0]


def test_the_level_order_says_which_of_nested_entities_has_the_first_head(wordpiece_encoder):
    """ORGANIZATION three deep, and one apart: "отдел комитета союза" in it "комитета союза" and "союза"; then "союза"."""
    text = "отдел комитета союза и союза"
    spans = {"all": (0, 20), "middle": (6, 20), "inner": (15, 20), "apart": (23, 28)}
    entities = [{"start": start, "end": end, "type": "ORGANIZATION"} for start, end in spans.values()]
    documents = Dataset.from_list([{"id": "1", "text": text, "entities": entities}], features=FEATURES)
    tokenizer = load_tokenizer(wordpiece_encoder)
    heads_of = {}
    for order in ("outermost", "innermost"):
        for levels in (1, 2, 3):
            view = bilou_view(documents, tokenizer, ["ORGANIZATION"], levels, level_order=order)
            row = view.with_format("numpy")[0]
            found = character_spans(row["labels"][None], row["word_starts"][None], row["word_ends"][None], row["core"][None])
            names = {span: name for name, span in spans.items()}
            heads_of[order, levels] = {names[start, end]: head + 1 for _, head, start, end in found.tolist()}
            assert lost_counts(view) == ({"ORGANIZATION": 3 - levels} if levels < 3 else {})
    assert heads_of["outermost", 1] == heads_of["innermost", 1] == {"all": 1, "apart": 1}
    assert heads_of["outermost", 2] == {"all": 1, "middle": 2, "apart": 1}
    assert heads_of["innermost", 2] == {"middle": 2, "inner": 1, "apart": 1}
    assert heads_of["outermost", 3] == {"all": 1, "middle": 2, "inner": 3, "apart": 1}
    assert heads_of["innermost", 3] == {"all": 3, "middle": 2, "inner": 1, "apart": 1}


def test_adjacent_entities_stay_apart(documents, wordpiece_encoder):
    view = bilou_view(documents, load_tokenizer(wordpiece_encoder), TYPES, 3)
    assert recovered(view, len(documents), TYPES) == gold(documents)


@pytest.mark.parametrize("make", [bilou_view, entity_view])
def test_lost_entities_of_documents_without_windows_are_counted(make, wordpiece_encoder):
    row = {"id": "z", "text": "\u200b", "entities": [{"start": 0, "end": 1, "type": "CITY"}]}
    blank = {"id": "e", "text": "  ", "entities": []}
    for rows in ([row], [blank, row], [row, blank, {"id": "a", "text": "Анна", "entities": []}]):
        view = make(Dataset.from_list(rows, features=FEATURES), load_tokenizer(wordpiece_encoder), TYPES)
        assert lost_counts(view) == {"CITY": 1}


@pytest.mark.parametrize("make", [bilou_view, entity_view])
def test_empty_documents_make_an_empty_view(make, wordpiece_encoder):
    empty = Dataset.from_list([{"id": str(n), "text": t, "entities": []} for n, t in enumerate(["", " "])], features=FEATURES)
    view = make(empty, load_tokenizer(wordpiece_encoder), TYPES)
    assert len(view) == 0 and lost_entities(view) == {}
    mixed = Dataset.from_list([*empty, {"id": "x", "text": "Анна", "entities": []}, *empty], features=FEATURES)
    assert make(mixed, load_tokenizer(wordpiece_encoder), TYPES)["document"][:].tolist() == [2]


@pytest.mark.parametrize("make", [bilou_view, entity_view])
def test_unknown_types_are_refused(make, documents, wordpiece_encoder):
    with pytest.raises(ValueError, match="'d1'.*DISEASE"):
        make(documents, load_tokenizer(wordpiece_encoder), TYPES[:-1])


@settings(max_examples=40)
@given(corpora(), st.sampled_from([(8, 1), (64, 0)]))
def test_entity_view(any_encoder, rows, size):
    """All entities are there; O spans are exactly the maximal runs of tokens whose words lie outside every entity."""
    corpus = Dataset.from_list(rows, features=FEATURES)
    types = ["A", "B", "C"]
    view = entity_view(corpus, load_tokenizer(any_encoder), types, WindowSettings(*size))
    truth = gold(corpus)
    found = [set() for _ in truth]
    for row in view:
        entities = truth[row["document"]]
        inside = [True] * row["length"]
        for token in np.flatnonzero(row["subword_cases"] != SPECIAL):
            start, end = row["word_starts"][token], row["word_ends"][token]
            inside[token] = any(a < end and start < b for a, b, _ in entities)
        runs = [(i, j) for i in range(row["length"]) for j in range(i + 1, row["length"]) if not any(inside[i:j])]
        runs = [(i, j) for i, j in runs if inside[i - 1] and inside[j]]
        spans = row["spans"].reshape(-1, 3).tolist()
        assert sorted((a, b) for a, b, kind in spans if kind == len(types)) == runs
        for first, end, kind in spans:
            if kind < len(types):
                found[row["document"]].add((int(row["word_starts"][first]), int(row["word_ends"][end - 1]), types[kind]))
    missing = sum(len(wanted - got) for wanted, got in zip(truth, found, strict=True))
    # A border without sub-words is cut off here; the entity itself is in the view.
    assert sum(lost_counts(view).values()) <= missing
    if not any(sign in text for text in corpus["text"] for sign in INVISIBLE):
        assert sum(lost_counts(view).values()) == missing


# -- Pairs --------------------------------------------------------------------------------------------------------------


def synthetic_spans(counts):
    """Distinct spans, three to a window, with `counts[t]` of type t."""
    kinds = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(kinds))
    return np.column_stack([number // 3, 1 + number % 3, 2 + number % 3, kinds])


def test_pairs_follow_the_papers_rule():
    counts = [4000, 400, 1000, 1, 2000]
    spans = synthetic_spans(counts)
    pairs = draw_pairs(spans, len(counts) - 1, 2000, 0.3, seed=7)
    kinds = spans[pairs, 3]
    same = kinds[:, 0] == kinds[:, 1]
    assert len(pairs) == 2000 and len(np.unique(np.sort(pairs, axis=1), axis=0)) == 2000
    assert abs(same.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    # Types are uniform, however rare: four make positives, five make negatives. 23.5: p = 0.0001 for 4 degrees of freedom.
    positives = np.bincount(kinds[same, 0], minlength=5)[[0, 1, 2, 4]]
    assert ((positives - positives.mean()) ** 2 / positives.mean()).sum() < 23.5
    negatives = np.bincount(kinds[~same, 0], minlength=5)
    # The only span of type 3 meets each of its partners once, so it can come up less often.
    assert np.delete(negatives, 3).min() > 0.8 * negatives.max() and negatives[3] > 0.5 * negatives.max()
    assert 3 not in kinds[same] and 3 in kinds[~same]
    assert (draw_pairs(spans, 4, 2000, 0.3, seed=7) == pairs).all()
    assert (draw_pairs(spans, 4, 2000, 0.3, seed=8) != pairs).any()


def test_share_of_positives_holds_where_types_run_out_of_pairs():
    """Three spans of a type make three pairs; the share is kept by the other types."""
    pairs = draw_pairs(spans := synthetic_spans([3, 3, 300, 2, 300]), 4, 2000)
    kinds = spans[pairs, 3]
    assert len(pairs) == 2000
    assert abs((kinds[:, 0] == kinds[:, 1]).mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)


def test_a_span_under_two_types_is_no_pair():
    spans = np.array([[0, 1, 3, 0], [0, 1, 3, 1], [1, 1, 3, 0], [1, 1, 3, 1]])
    pairs = draw_pairs(spans, 2, 200, 0.3)
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == {(0, 2), (1, 3), (0, 3), (1, 2)}


@pytest.mark.parametrize(
    ("counts", "possible"), [([50], "same"), ([2], "same"), ([1, 1], "other"), ([1, 1, 1, 1], "other"), ([2, 1], "both")]
)
def test_few_types_or_mentions_do_not_loop(counts, possible, caplog):
    spans = synthetic_spans(counts)
    pairs = draw_pairs(spans, len(counts), 5000)
    assert f"num_pairs 5000: the training documents gave {len(pairs)} distinct pairs" in caplog.text
    same = spans[pairs[:, 0], 3] == spans[pairs[:, 1], 3]
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert {"same": same.all(), "other": not same.any(), "both": same.any() and not same.all()}[possible]
    assert len(pairs) == sum(counts) * (sum(counts) - 1) // 2


@pytest.mark.parametrize("spans", [np.zeros((0, 4), dtype=int), synthetic_spans([1]), np.array([[0, 1, 2, 0], [0, 1, 2, 1]])])
def test_corpus_without_a_pair_is_an_error(spans):
    with pytest.raises(ValueError, match="pair"):
        draw_pairs(spans, 2, 10)


def view_of(kinds):
    """What `check_pairs` reads of an entity view: one window with a span of each of these types."""
    rows = [[1 + place, 2 + place, kind] for place, kind in enumerate(kinds)]
    return Dataset.from_dict({"spans": [rows] if rows else []})


@pytest.mark.parametrize(
    ("kinds", "sufficient"),
    [
        ([], ""),
        ([0], ""),
        ([0, 0], "dbl multi_similarity"),
        ([0, 1], "dbl multi_similarity"),
        ([0, 0, 1], "dbl multi_similarity supcon"),
        ([0, 0, 1, 1], "dbl multi_similarity supcon n_pairs"),
        ([2, 2], ""),  # O, which is no positive of itself
        ([0, 2, 2], "dbl multi_similarity"),
    ],
)
def test_corpora_that_cannot_be_learnt_from_are_refused(kinds, sufficient):
    for loss in LOSSES:
        if loss in sufficient.split():
            check_pairs(view_of(kinds), view_of([0]), loss, negatives_only=2)
        else:
            with pytest.raises(ViewError, match=f"have {len(kinds)} spans.*loss {loss} needs"):
                check_pairs(view_of(kinds), view_of([0]), loss, negatives_only=2)


def test_an_empty_evaluation_set_is_refused():
    with pytest.raises(ViewError, match="evaluation documents hold no word"):
        check_pairs(view_of([0, 0]), view_of([]))


def test_entity_pair_view(documents, any_encoder):
    tokenizer = load_tokenizer(any_encoder)
    view = entity_view(documents, tokenizer, TYPES)
    known = {(tuple(row["input_ids"]), *span) for row in view for span in row["spans"].reshape(-1, 3).tolist()}
    pairs = entity_pair_view(view, len(TYPES), 60, seed=3)
    again = entity_pair_view(view, len(TYPES), 60, seed=3)
    assert 0 < len(pairs) <= 60
    for row, copy in zip(pairs, again, strict=True):
        kinds = []
        for side in ("first", "second"):
            inside = np.flatnonzero(row[f"{side}_mask"])
            assert (np.diff(inside) == 1).all() and len(row[f"{side}_mask"]) == len(row[f"{side}_input_ids"])
            key = (tuple(row[f"{side}_input_ids"]), inside[0], inside[-1] + 1)
            kinds.append({kind for kind in range(len(TYPES) + 1) if (*key, kind) in known})
            assert kinds[-1]
            assert (copy[f"{side}_mask"] == row[f"{side}_mask"]).all()
        assert (kinds[0] & kinds[1]) if row["same"] else (kinds[0] | kinds[1]) - (kinds[0] & kinds[1]) or len(kinds[0]) > 1
        assert row["length"] == len(row["first_input_ids"]) + len(row["second_input_ids"])


# -- The real corpus ----------------------------------------------------------------------------------------------------


def test_runne_becomes_both_views():
    """Figures of the design, found by a prototype: entities, share of them that 1, 2, 3 levels can hold, sub-words."""
    if not (SHARED / "runne" / "train.jsonl").is_file():
        pytest.skip(f"the RuNNE corpus is not in {SHARED}")
    try:
        tokenizer = load_tokenizer(resolve_encoder("e5-small-ru"))
    except EncoderError as error:
        pytest.skip(str(error))
    corpus = load_documents(SHARED / "runne", split="train")
    types = load_entity_types(SHARED / "runne", corpus)
    truth = gold(corpus["train"])
    total = sum(map(len, truth))
    assert total == 27_727
    for levels, share in ((1, 0.915), (2, 0.992), (3, 0.9988)):
        view = bilou_view(corpus["train"], tokenizer, types, levels)
        lost = sum(lost_counts(view).values())
        assert 1 - lost / total == pytest.approx(share, abs=0.001)
    assert sum(view["length"][:]) == pytest.approx(214_000, rel=0.01)
    missing = sum(len(wanted - got) for wanted, got in zip(truth, recovered(view, len(truth), types), strict=True))
    assert missing == lost
    spans = entity_view(corpus["train"], tokenizer, types)
    assert sum((row[:, 2] < len(types)).sum() for row in spans["spans"][:]) >= total - 40
