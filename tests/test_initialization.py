"""Where the heads of stage 2 start."""

import pytest
import torch
from conftest import TYPES

from runne_coner.collators import BilouCollator
from runne_coner.configuration import CoNERConfig
from runne_coner.documents import CorpusError
from runne_coner.initialization import (
    Centroids,
    at_label_names,
    start_at_centroids,
    take_heads,
    type_centroids,
    words_of_types,
)
from runne_coner.modeling import CoNERForTokenClassification
from runne_coner.preprocessing import bilou_view, load_tokenizer

ALL_TYPES = [*TYPES, "LAW"]  # LAW is never mentioned


def network(encoder, types=ALL_TYPES, **options):
    torch.manual_seed(1)
    return CoNERForTokenClassification.from_encoder(encoder, CoNERConfig(entity_types=types, **{"levels": 2, **options}))


@pytest.fixture(scope="module")
def view(documents, wordpiece_encoder):
    return bilou_view(documents, load_tokenizer(wordpiece_encoder), ALL_TYPES, 2)


def test_centroids_are_those_of_a_loop_over_tokens(view, wordpiece_encoder):
    model = network(wordpiece_encoder).train()
    centroids = type_centroids(model, view, len(ALL_TYPES), BilouCollator(load_tokenizer(wordpiece_encoder)), batch_size=2)
    assert model.training
    model.eval()
    of_type, everything = {name: [] for name in ALL_TYPES}, []
    for row in view:
        with torch.no_grad():
            hidden = model.encoder(torch.as_tensor(row["input_ids"])[None].long()).last_hidden_state[0]
        for token, labels in zip(hidden, row["labels"], strict=True):
            if labels[0] != -100:
                everything.append(token)
                for index, name in enumerate(ALL_TYPES):
                    if labels[index] > 0 or labels[index + len(ALL_TYPES)] > 0:
                        of_type[name].append(token)
    assert centroids.counts.tolist() == [len(tokens) for tokens in of_type.values()] and centroids.counts[-1] == 0
    torch.testing.assert_close(centroids.center, torch.stack(everything).mean(0), rtol=1e-4, atol=1e-5)
    for index, name in enumerate(TYPES):
        torch.testing.assert_close(centroids.types[index], torch.stack(of_type[name]).mean(0), rtol=1e-4, atol=1e-5)


def test_heads_point_to_their_centroid(view, wordpiece_encoder):
    model = network(wordpiece_encoder)
    centroids = type_centroids(model, view, len(ALL_TYPES), BilouCollator(load_tokenizer(wordpiece_encoder)))
    with torch.no_grad():
        before = [model.classifier(x).unflatten(-1, (-1, 5)) for x in (centroids.center, centroids.types)]
        heads = [head for head in range(len(model.config.heads)) if head != 1]
        start_at_centroids(model, centroids, margin=3.0, heads=heads)
        center, types = (model.classifier(x).unflatten(-1, (-1, 5)) for x in (centroids.center, centroids.types))
    torch.testing.assert_close(center, before[0], rtol=1e-4, atol=1e-4)
    for head, name in enumerate(model.config.heads):
        index = head % len(ALL_TYPES)
        gain = (types - before[1])[index, head]
        expected = 0.0 if head == 1 or name.startswith("LAW") else 3.0
        assert gain.tolist() == pytest.approx([0.0, *[expected] * 4], abs=1e-3), name


def test_heads_of_known_types_are_kept_by_name(wordpiece_encoder, tmp_path):
    saved = network(wordpiece_encoder, ["CITY", "LAW", "PERSON"], levels=3)
    torch.nn.init.normal_(saved.encoder.embeddings.word_embeddings.weight)
    saved.save_pretrained(tmp_path)
    torch.manual_seed(7)
    config = CoNERConfig(entity_types=["AGE", "PERSON", "CITY"], levels=2)
    model = CoNERForTokenClassification.from_encoder(str(tmp_path), config)
    # Only the encoder comes from the folder until the heads are taken.
    embeddings = [x.encoder.embeddings.word_embeddings.weight for x in (model, saved)]
    assert torch.equal(*embeddings)
    kept = take_heads(model, saved)
    assert [model.config.heads[head] for head in kept] == ["PERSON", "CITY", "PERSON@2", "CITY@2"]
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        new, old = (dict(zip(x.config.heads, x(ids).logits.unbind(2), strict=True)) for x in (model, saved))
    for name in ("PERSON", "CITY", "PERSON@2", "CITY@2"):
        torch.testing.assert_close(new[name], old[name])


def test_the_scorer_of_spans_is_kept_with_the_types_it_knows(wordpiece_encoder, tmp_path):
    saved = network(wordpiece_encoder, ["CITY", "EVENT", "PERSON"], candidate_paths=2)
    model = network(wordpiece_encoder, ["LAW", "PERSON", "CITY"], candidate_paths=3)
    for parameter in saved.span_scorer.parameters():
        torch.nn.init.normal_(parameter)
    fresh = model.span_scorer.output.weight[0].clone()
    take_heads(model, saved)
    new, old = model.span_scorer, saved.span_scorer
    assert torch.equal(new.project.weight, old.project.weight) and torch.equal(new.widths.weight, old.widths.weight)
    for of_new, of_old in zip(new.output.parameters(), old.output.parameters(), strict=True):
        assert torch.equal(of_new[[1, 2]], of_old[[2, 0]])
    assert torch.equal(new.output.weight[0], fresh)
    take_heads(network(wordpiece_encoder, ["CITY"]), saved)  # a model without one takes none


def test_words_of_labels():
    words = words_of_types(["WORK_OF_ART", "PERSON", "ОРГАН-ВЛАСТИ", "_"], {"PERSON": "человек"})
    assert words == ["work of art", "человек", "орган власти", "_"]


@pytest.mark.parametrize(
    "given, named", [({"PERSONN": "человек"}, "PERSONN"), ({"PERSON": " "}, "PERSON"), ({"PERSON": 1}, "PERSON")]
)
def test_words_that_stand_for_no_type_are_refused(given, named):
    with pytest.raises(CorpusError, match=named):
        words_of_types(["PERSON"], given)


def test_label_names_lie_around_the_mean_token_as_to_each_other(wordpiece_encoder):
    model, tokenizer = network(wordpiece_encoder).train(), load_tokenizer(wordpiece_encoder)
    words = ["мэр", "закон о мэре", "Пермь", "мэрия Перми"]
    center = torch.linspace(-1.0, 1.0, model.config.hidden_size)
    found = at_label_names(Centroids(torch.zeros(4, len(center)), center, torch.zeros(4)), model, tokenizer, words)
    assert model.training
    model.eval()
    alone = []
    for name in words:  # one by one: padding must not matter
        with torch.no_grad():
            hidden = model.encoder(**tokenizer(name, return_tensors="pt")).last_hidden_state[0]
        alone.append(hidden[1:-1].mean(0))  # between [CLS] and [SEP]
    alone = torch.stack(alone)
    assert alone.std(dim=0).max() > 1e-3
    torch.testing.assert_close(found.types, center + alone - alone.mean(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.center, center) and found.counts.tolist() == [1] * 4
