"""Embeddings of words against a forward pass by hand, the words of entities, and projections."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import TYPES, make_documents
from transformers import AutoConfig, AutoModel

from runne_coner.configuration import CoNERConfig
from runne_coner.documents import Document, Entity, from_row
from runne_coner.embeddings import count_entity_words, load_encoder, project, word_embeddings, word_membership
from runne_coner.modeling import CoNERForTokenClassification
from runne_coner.preprocessing import load_tokenizer, split_words
from runne_coner.windows import WindowSettings

DOCUMENTS = [from_row(row) for row in make_documents()]
TEXTS = [document.text for document in DOCUMENTS]


def test_words_are_means_of_their_sub_words(any_encoder):
    encoder, tokenizer = load_encoder(any_encoder)
    words = word_embeddings(encoder, tokenizer, TEXTS, windows=WindowSettings(max_sentences=0), batch_size=2)
    spans = [split_words(text) for text in TEXTS]
    kept = {(d, tuple(s)) for d, s in zip(words.document.tolist(), words.spans.tolist(), strict=True)}
    assert len(kept) == len(words.vectors) and kept <= {(d, tuple(s)) for d, found in enumerate(spans) for s in found.tolist()}
    assert words.vectors.shape[1] == 32 and words.vectors.dtype == np.float32
    for number, (text, found) in enumerate(zip(TEXTS, spans, strict=True)):
        batch = tokenizer([[text[start:end] for start, end in found]], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**batch).last_hidden_state[0]
        ids = np.array([-1 if index is None else index for index in batch.word_ids(0)])
        mine = words.vectors[words.document == number]
        expected = [hidden[ids == index].mean(dim=0).numpy() for index in range(len(found)) if (ids == index).any()]
        np.testing.assert_allclose(mine, np.array(expected), atol=1e-5)


def test_each_word_counts_once_however_texts_are_cut(wordpiece_encoder):
    encoder, tokenizer = load_encoder(wordpiece_encoder)
    text = " ".join(TEXTS)
    for windows in (WindowSettings(), WindowSettings(max_length=12, stride=4), WindowSettings(max_length=30, max_sentences=2)):
        words = word_embeddings(encoder, tokenizer, ["", text, "Пермь"], windows=windows, batch_size=3)
        assert words.spans.tolist() == [*split_words(text).tolist(), [0, 5]]
        assert words.document.tolist() == [1] * len(split_words(text)) + [2]
    assert word_embeddings(encoder, tokenizer, [""]).vectors.shape == (0, 32)


def test_windows_are_no_longer_than_the_positions_of_an_encoder(wordpiece_encoder):
    tokenizer = load_tokenizer(wordpiece_encoder)
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.from_pretrained(wordpiece_encoder, max_position_embeddings=24)).eval()
    text = " ".join(TEXTS).replace(".", "")
    words = word_embeddings(encoder, tokenizer, [text])
    expected = word_embeddings(encoder, tokenizer, [text], windows=WindowSettings(max_length=24, stride=6))
    assert words.spans.tolist() == split_words(text).tolist()
    np.testing.assert_array_equal(words.vectors, expected.vectors)


def test_the_encoder_of_a_model_is_taken_without_its_heads(wordpiece_encoder, tmp_path):
    model = CoNERForTokenClassification.from_encoder(wordpiece_encoder, CoNERConfig(entity_types=["A"]))
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight.mul_(1.5)
    model.save_pretrained(tmp_path)
    load_tokenizer(wordpiece_encoder).save_pretrained(tmp_path)
    encoder, tokenizer = load_encoder(str(tmp_path))
    bare = AutoModel.from_pretrained(wordpiece_encoder).embeddings.word_embeddings.weight
    assert torch.equal(encoder.embeddings.word_embeddings.weight, 1.5 * bare)
    assert not encoder.training and tokenizer.is_fast


def by_hand(document, span, name):
    return any(e.type == name and e.start < span[1] and e.end > span[0] for e in document.entities)


def test_words_of_entities():
    # In reverse, and with an entity that starts and ends inside words.
    documents = [*DOCUMENTS, Document("cut", "Санкт-Петербург", (Entity(2, 8, "CITY"),))]
    spans = [split_words(document.text) for document in documents]
    index = np.repeat(np.arange(len(documents)), [len(found) for found in spans])
    membership = word_membership(index, np.concatenate(spans), documents, TYPES)
    expected = [
        [by_hand(document, span, name) for name in TYPES]
        for document, found in zip(documents, spans, strict=True)
        for span in found
    ]
    assert membership.tolist() == expected and membership.any(axis=0).all()
    assert membership[-3:, TYPES.index("CITY")].tolist() == [True, True, True]
    assert count_entity_words(documents, TYPES).tolist() == membership.sum(axis=0).tolist()
    # A word inside three nested organizations counts once; types that are not asked for do not count.
    assert count_entity_words(DOCUMENTS[1:2], ["ORGANIZATION"]).tolist() == [4]


def test_projection_on_principal_components():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(40, 2)) @ random.normal(size=(2, 6))
    plane, method = project(vectors, method="pca")
    assert method == "pca" and plane.shape == (40, 2)
    # Points in a plane keep their distances.
    distances = [np.linalg.norm(points[:, None] - points[None], axis=-1) for points in (vectors, plane)]
    np.testing.assert_allclose(*distances, atol=1e-9)


def test_without_umap_components_are_used(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(40, 3))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "umap" else find(name))
    assert project(vectors)[1] == "pca"
    with pytest.raises(ValueError, match="needs umap-learn"):
        project(vectors, method="umap")


def test_projections_that_cannot_be_made():
    with pytest.raises(ValueError, match="at least 3"):
        project(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="'tsne'"):
        project(np.zeros((9, 4)), method="tsne")
    assert project(np.random.default_rng(0).normal(size=(9, 4)))[1] == "pca"  # too few for UMAP's neighbours


def test_umap_separates_what_lies_apart_and_is_seeded(monkeypatch):
    # Compiling UMAP takes half a minute, and forty points a few seconds without.
    monkeypatch.setattr(pytest.importorskip("numba").config, "DISABLE_JIT", True)
    pytest.importorskip("umap")
    random = np.random.default_rng(0)
    vectors = np.concatenate([random.normal(size=(20, 5)), random.normal(size=(20, 5)) + 20]).astype(np.float32)
    plane, method = project(vectors, seed=1)
    again, _ = project(vectors, seed=1)
    assert method == "umap" and np.array_equal(plane, again)
    centres = plane[:20].mean(axis=0), plane[20:].mean(axis=0)
    own, other = (np.linalg.norm(plane[:20] - centre, axis=1) for centre in centres)
    assert (own < other).all()
