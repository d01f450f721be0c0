"""Copies of windows with other mentions: offsets are exact, annotations come along, and cases agree where they are known."""

import numpy as np
import pytest
from conftest import TYPES, make_documents
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from runne_coner.documents import FEATURES, Document, Entity, from_row, marked_text, to_row, validate
from runne_coner.entity_swap import (
    Mention,
    MentionPool,
    Replacement,
    SwapSettings,
    replace_mentions,
    swap_mentions,
    swappable,
    swapped_documents,
)
from runne_coner.morphology import UNKNOWN, CaseReader, Readings
from runne_coner.preprocessing import ViewError, bilou_view, load_tokenizer
from runne_coner.sampling import mention_counts, window_copies

# A document as a tree: pieces of text, and mentions `(types, tree)`. Every mention holds a word of its own, so that no two of
# the tree have one span by chance.
words = st.sampled_from(["дом ", "лес, ", "«сад» ", "😀 ", "и", "9-й "])


def mentions(trees):
    return st.tuples(
        st.sets(st.sampled_from("AB"), min_size=1).map(sorted), st.tuples(words, trees).map(lambda x: [x[0], *x[1]])
    )


trees = st.recursive(
    st.lists(words, max_size=3), lambda inner: st.lists(st.one_of(words, mentions(inner)), max_size=4), max_leaves=12
)


def flattened(tree, start=0):
    """Text and entities of a tree."""
    text, entities = "", []
    for part in tree:
        if isinstance(part, str):
            text += part
        else:
            inner, found = flattened(part[1], start + len(text))
            entities += [Entity(start + len(text), start + len(text) + len(inner), name) for name in part[0]] + found
            text += inner
    return text, entities


def document_of(tree, id=1):
    text, entities = flattened(tree)
    return Document(id, text, tuple(sorted(entities, key=lambda e: (e.start, -e.end, e.type))))


def swapped_tree(tree, places, start=0):
    """The tree with other subtrees at the characters `{(start, end): mention}`."""
    new = []
    for part in tree:
        length = len(part) if isinstance(part, str) else len(flattened(part[1])[0])
        if isinstance(part, str):
            new.append(part)
        elif (start, start + length) in places:
            new.append(places[start, start + length])
        else:
            new.append((part[0], swapped_tree(part[1], places, start)))
        start += length
    return new


@given(trees, st.lists(mentions(trees), min_size=1, max_size=3), st.integers(0, 2**31))
def test_replacing_is_replacing_subtrees(tree, others, seed):
    """The oracle never computes an offset from another one: it writes the new tree out."""
    document, rng = document_of(tree), np.random.default_rng(seed)
    spans = sorted({(e.start, e.end) for e in document.entities}, key=lambda span: (span[0], -span[1]))
    places = {}
    for span in spans:
        if rng.random() < 0.5 and all(span[0] >= end for _, end in places):
            places[span] = others[rng.integers(len(others))]
    replacements = []
    for span, other in places.items():
        text, entities = flattened([other])
        replacements.append(Replacement(*span, Mention(text, tuple(entities))))
    assert replace_mentions(document, replacements) == document_of(swapped_tree(tree, places))


@given(trees)
def test_swappable_mentions_are_the_text_with_all_it_holds(tree):
    document = document_of(tree)
    for start, end, mention in swappable(document):
        assert document.text[start:end] == mention.text and mention.kind
        held = Document(1, mention.text, mention.entities)
        assert marked_text(held) == marked_text(document, start, end)
    # Nothing changes if every mention is replaced by itself.
    outermost = []
    for place in swappable(document):
        if not outermost or outermost[-1].end <= place.start:
            outermost.append(place)
    assert replace_mentions(document, outermost) == document


@given(st.lists(trees, min_size=1, max_size=4), st.floats(0.1, 1.0), st.integers(0, 2**31))
def test_swapped_documents_hold_mentions_of_the_pool(drawn, probability, seed):
    documents = [document_of(tree, number) for number, tree in enumerate(drawn)]
    pool = MentionPool(documents)
    for document in documents:
        new = swap_mentions(document, pool, probability, np.random.default_rng(seed))
        if new is None:
            continue
        validate(new)
        assert marked_text(new) != marked_text(document)
        assert new == swap_mentions(document, pool, probability, np.random.default_rng(seed))
        # Outermost mentions keep their types and order, and what lies between them stays.
        assert between_outermost(new) == between_outermost(document)


def between_outermost(document):
    parts, position = [], 0
    for entity in sorted(document.entities, key=lambda e: (e.start, -e.end, e.type)):
        if entity.start >= position:
            kind = [e.type for e in document.entities if e[:2] == entity[:2]]
            parts += [document.text[position : entity.start], sorted(kind)]
            position = entity.end
    return [*parts, document.text[position:]]


def entity(text, surface, name):
    return Entity(text.index(surface), text.index(surface) + len(surface), name)


def named(text, *found):
    return Document(text, text, tuple(entity(text, *pair) for pair in found))


def test_crossing_mentions_and_parts_of_words_are_never_swapped():
    text = "Банк Москвы и области ждёт 45-летнего"
    document = named(text, ("Банк Москвы", "A"), ("Москвы и области", "B"), ("45-летн", "C"), ("и области ждёт", "A"))
    assert swappable(document) == []
    # One that holds others whole may hold them crossing.
    around = Document(1, text, (*document.entities, Entity(0, 26, "A")))
    assert [(start, end) for start, end, _ in swappable(around)] == [(0, 26)]
    assert len(swappable(around)[0].mention.entities) == 4


def test_mentions_never_grow_together_with_their_neighbours():
    glued = named("клуб«Заря»ждёт", ("«Заря»", "A"))
    rng = np.random.default_rng(0)
    assert swap_mentions(glued, MentionPool([glued, named("Луч света", ("Луч", "A"))]), 1.0, rng) is None
    other = swap_mentions(glued, MentionPool([glued, named("Луч «Юг»", ("«Юг»", "A"))]), 1.0, rng)
    assert other.text == "клуб«Юг»ждёт"
    # Neighbours that are both new as well.
    pair = Document(1, "«Заря»«Юг»", (Entity(0, 6, "A"), Entity(6, 10, "A")))
    pool = MentionPool([pair, named("Луч", ("Луч", "A")), named("Дон", ("Дон", "A"))])
    for seed in range(20):
        text = swap_mentions(pair, pool, 1.0, np.random.default_rng(seed)).text
        assert "«" in text or "»" in text


def test_spans_of_two_types_are_replaced_by_such():
    both = Document(1, "Пермь ждёт", (Entity(0, 5, "CITY"), Entity(0, 5, "ORGANIZATION")))
    pool = MentionPool([both, named("Томск", ("Томск", "CITY"))])
    assert swap_mentions(both, pool, 1.0, np.random.default_rng(0)) is None
    other = Document(2, "Омск", (Entity(0, 4, "CITY"), Entity(0, 4, "ORGANIZATION")))
    new = swap_mentions(both, MentionPool([both, other]), 1.0, np.random.default_rng(0))
    assert marked_text(new) == "[CITY [ORGANIZATION Омск]] ждёт"


# -- agreement ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    pytest.importorskip("pymorphy3")
    return CaseReader()


@pytest.mark.parametrize(
    ("mention", "possible", "impossible"),
    [
        ("президенту страны", ("datv", "sing"), ("gent", "sing")),  # the first noun decides
        ("новым министром иностранных дел", ("ablt", "sing"), ("gent", "plur")),
        ("Ижевске", ("loct", "sing"), ("nomn", "sing")),
        ("вице-премьеров", ("gent", "plur"), ("nomn", "sing")),
        ("45-летнему", ("datv", "sing"), ("nomn", "sing")),  # without a noun, a word with a case
        ("20 лет", ("gent", "plur"), ("datv", "plur")),
    ],
)
def test_the_head_word_decides(reader, mention, possible, impossible):
    readings = reader(mention)
    assert possible in readings.likely <= readings.possible and impossible not in readings.likely


def test_readings_admit_those_of_the_same_case_and_number(reader):
    assert reader("Ольги").admit(reader("Ивана")) and not reader("Ольги").admit(reader("Ивану"))
    # "Ивана" may be an accusative, "Ольги" may not.
    assert not reader("Ивана").admit(reader("Ольги")) and reader("Ивана").admit(reader("Петра"))
    assert not reader("министр").admit(reader("министры"))
    assert reader("Москве").admit(reader("евро"))  # which has one form for all cases
    assert reader("Apple") == reader("2007") == reader("") == UNKNOWN
    assert UNKNOWN.admit(UNKNOWN) and not UNKNOWN.admit(reader("Москве")) and not reader("Москве").admit(UNKNOWN)
    assert Readings(frozenset([("gent", "sing")]), frozenset([("gent", "sing")])).admit(reader("Москвы"))


def test_swapped_mentions_agree(reader):
    texts = ["Она живёт в Томске", "Мэр Казани болен", "Томск велик", "Они выехали из Перми", "О городе Ижевске", "В Acme"]
    surfaces = ["Томске", "Казани", "Томск", "Перми", "Ижевске", "Acme"]
    documents = [named(text, (surface, "CITY")) for text, surface in zip(texts, surfaces, strict=True)]
    pool = MentionPool(documents, reader)
    assert pool.counts() == (6, 5)
    new = {
        document.text: {
            made.text
            for seed in range(30)
            if (made := swap_mentions(document, pool, 1.0, np.random.default_rng(seed))) is not None
        }
        for document in documents
    }
    assert "Она живёт в Ижевске" in new["Она живёт в Томске"] and "Она живёт в Томск" not in new["Она живёт в Томске"]
    assert new["Мэр Казани болен"] == {"Мэр Перми болен"}
    assert new["Томск велик"] == new["В Acme"] == set()


# -- windows ------------------------------------------------------------------------------------------------------------


def view_of(documents, encoder, levels=2):
    return bilou_view(documents, load_tokenizer(encoder), TYPES, levels)


def test_copies_are_those_of_rare_windows(wordpiece_encoder, capsys):
    documents = make_documents(copies=3)
    view = view_of(documents, wordpiece_encoder)
    settings = SwapSettings(share=4, probability=0.5)
    copies = swapped_documents(documents, view, len(TYPES), settings, seed=3)
    wanted = window_copies(view, len(TYPES), 4, seed=3) - 1
    assert 0 < len(copies) <= wanted.sum() and f"{len(copies)} copies" in capsys.readouterr().out
    assert len(set(copies["id"])) == len(copies) and copies.features == FEATURES
    texts = {document["text"] for document in documents}
    for row in copies:
        validate(from_row(row), TYPES)
        assert row["text"] not in texts
    # Same arguments, same copies; another seed makes others.
    assert copies[:] == swapped_documents(documents, view, len(TYPES), settings, seed=3)[:]
    assert copies["text"][:] != swapped_documents(documents, view, len(TYPES), settings, seed=4)["text"][:]
    # A view of them goes beside that of the documents, and has more mentions of rare types.
    swapped = view_of(copies, wordpiece_encoder)
    assert swapped.features == view.features
    counts = mention_counts(swapped, len(TYPES)).sum(axis=0)
    assert counts.sum() > 0 and (counts[[TYPES.index("PERSON"), TYPES.index("PROFESSION")]] > 0).all()


def test_the_chance_of_a_mention_to_be_replaced(wordpiece_encoder):
    cities = [f"Город{chr(1072 + number)}" for number in range(30)]
    text = " ".join(cities)
    pool = MentionPool([named(text, *((city, "CITY") for city in cities))])
    document = named(text, *((city, "CITY") for city in cities))
    for probability, low, high in ((0.2, 0.15, 0.25), (0.8, 0.75, 0.85), (1.0, 1.0, 1.0)):
        changed = [
            np.mean([a != b for a, b in zip(swap_mentions(document, pool, probability, rng).text.split(), cities, strict=True)])
            for rng in map(np.random.default_rng, range(30))
        ]
        assert low <= np.mean(changed) <= high


def test_a_corpus_in_which_nothing_can_be_swapped(wordpiece_encoder):
    documents = Dataset.from_list([to_row(named("Пермь", ("Пермь", "CITY"))), to_row(named("Нет"))], features=FEATURES)
    copies = swapped_documents(documents, view_of(documents, wordpiece_encoder), len(TYPES), SwapSettings(300), seed=0)
    assert len(copies) == 0
    assert len(view_of(copies, wordpiece_encoder)) == 0


def test_agreement_is_refused_where_no_case_is_known(wordpiece_encoder):
    pytest.importorskip("pymorphy3")
    documents = Dataset.from_list([to_row(named("Leeds and York", ("Leeds", "CITY"), ("York", "CITY")))], features=FEATURES)
    view = view_of(documents, wordpiece_encoder)
    with pytest.raises(ViewError, match="case of none of the 2 mentions.*swap_agreement none"):
        swapped_documents(documents, view, len(TYPES), SwapSettings(300, agreement="pymorphy3"), seed=0)
    assert len(swapped_documents(documents, view, len(TYPES), SwapSettings(300), seed=0)) > 0
