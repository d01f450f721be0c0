"""Temperature and bias of span scores: fitted, measured, and used by the pipeline."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from rule_model import build_rule_model
from scipy.special import expit, logit

from runne_coner.calibration import (
    BIASES,
    TEMPERATURES,
    PredictedSpans,
    calibrate,
    calibration_error,
    cross_fitted_scores,
    fit_scores,
    predicted_spans,
    reliability,
)
from runne_coner.configuration import ModelError
from runne_coner.decoding import OddsScores, PathScores
from runne_coner.documents import Document, Entity
from runne_coner.pipeline import load_pipeline
from runne_coner.tagging import SPECIAL, WHOLE, spans_from_tags
from runne_coner.viterbi import BilouViterbiProcessor

SENTENCE = "Мэр Казани Ольга Калинина и директор департамент мэрии Ижевска."


def drawn_spans(temperature: float, bias: float = 0.0, documents: int = 400, seed: int = 0) -> PredictedSpans:
    """Decoded spans of random logits, right with the probability that their score at `temperature` and `bias` says."""
    generator = torch.Generator().manual_seed(seed)
    viterbi = BilouViterbiProcessor()
    batches, owners = [], []
    for start in range(0, documents, 100):
        logits = 4 * torch.randn((100, 12, 1, 5), generator=generator)
        cases = torch.full((100, 12), WHOLE)
        cases[:, -1] = SPECIAL
        spans = torch.from_numpy(spans_from_tags(viterbi.decode(cases, logits).numpy()))
        batches.append((len(spans), PathScores(viterbi, cases, logits, spans)))
        owners.append(spans[:, 0].numpy() + start)
    total = sum(map(len, owners))
    spans = PredictedSpans(batches, np.zeros(total, dtype=bool), np.concatenate(owners))
    right = np.random.default_rng(seed).random(total) < expit(spans.log_odds(temperature) + bias)
    return PredictedSpans(batches, right, spans.document)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_rule_model(tmp_path_factory.mktemp("rule"))


def with_temperature(folder, target, temperature, bias=0.0):
    """A copy of a model's folder with another temperature and bias."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config |= {"score_temperature": temperature, "score_bias": bias}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(target)


# -- Fitting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "bias"), [(0.6, 0.0), (1.0, 0.0), (2.5, 0.0), (1.0, -1.2), (2.0, 0.8)])
def test_the_temperature_and_the_bias_that_made_spans_right_are_found(temperature, bias):
    spans = drawn_spans(temperature, bias)
    assert len(spans.right) > 1000
    found = fit_scores(spans.log_odds, spans.right)
    assert found == (pytest.approx(temperature, rel=0.12), pytest.approx(bias, abs=0.2))
    before, after = expit(spans.log_odds(1.0)), cross_fitted_scores(spans)
    assert calibration_error(after, spans.right) < 0.04
    if (temperature, bias) != (1.0, 0.0):
        assert calibration_error(before, spans.right) > 2 * calibration_error(after, spans.right)


def test_each_half_is_scored_under_what_the_other_gave():
    spans = drawn_spans(2.0, documents=100)
    even = spans.document % 2 == 0
    # Whatever is right in a half, its own scores do not depend on it.
    other = PredictedSpans(spans.batches, np.where(even, ~spans.right, spans.right), spans.document)
    first, second = cross_fitted_scores(spans), cross_fitted_scores(other)
    assert np.array_equal(first[even], second[even]) and not np.allclose(first[~even], second[~even])


def test_spans_few_or_all_alike():
    def log_odds(number):
        return lambda temperature: np.full(number, logit(math.exp(-0.1 * temperature)))

    assert fit_scores(log_odds(0), np.zeros(0, dtype=bool)) == (1.0, 0.0)
    few = fit_scores(log_odds(3), np.ones(3, dtype=bool))
    many = fit_scores(log_odds(3000), np.ones(3000, dtype=bool))
    wrong = fit_scores(log_odds(3000), np.zeros(3000, dtype=bool))
    assert 0.7 < few[0] < 1.0 and 0.0 < few[1] < 0.3
    assert TEMPERATURES[0] <= many[0] < 0.2 and 9.0 < wrong[0] <= TEMPERATURES[1]
    assert BIASES[0] <= wrong[1] < -3.0 and 2.0 < many[1] <= BIASES[1]
    # Certain and wrong: no infinite cost, and the temperature makes no difference.
    temperature, bias = fit_scores(lambda temperature: np.full(5, np.inf), np.array([True, False, True, True, False]))
    assert temperature == pytest.approx(1.0, abs=0.01) and -3.0 < bias < 0.0


def test_calibration_error_by_hand():
    scores = np.array([0.95, 0.91, 1.0, 0.15, 0.25, 0.25])
    right = np.array([True, False, True, False, True, False])
    assert reliability(scores, right) == [
        (0.1, 0.2, 1, pytest.approx(0.15), 0.0),
        (0.2, 0.3, 2, pytest.approx(0.25), 0.5),
        (0.9, 1.0, 3, pytest.approx(2.86 / 3), pytest.approx(2 / 3)),
    ]
    assert calibration_error(scores, right) == pytest.approx((0.15 + 2 * 0.25 + 3 * (2.86 / 3 - 2 / 3)) / 6)
    assert calibration_error(np.zeros(0), np.zeros(0, dtype=bool)) == 0.0


# -- What a model finds -------------------------------------------------------------------------------------------------


def test_predicted_spans_are_those_of_the_pipeline(folder):
    recognize = load_pipeline(str(folder))
    gold = (Entity(0, 10, "PROFESSION"), Entity(4, 10, "CITY"), Entity(4, 10, "PERSON"))
    documents = [Document("a", SENTENCE * 3, gold), Document("b", "", ()), Document("c", "Казани", (Entity(0, 6, "CITY"),))]
    spans = predicted_spans(recognize, documents, batch_size=2)
    answers = recognize([document.text for document in documents])
    assert (
        np.bincount(spans.document, minlength=3).tolist() == [len(entities) for entities in answers] and spans.right.sum() == 3
    )
    for number, entities in enumerate(answers):
        scores = expit(spans.log_odds(1.0, spans.document == number))
        assert sorted(scores) == pytest.approx(sorted(entity["score"] for entity in entities), abs=1e-5)
    found = calibrate(recognize, documents)
    # Most of its spans are not in the gold, and it is sure of them.
    assert found.score_temperature > 1.0 and found.score_bias < 0.0
    assert found.ece_before == pytest.approx(calibration_error(expit(spans.log_odds(1.0)), spans.right), abs=1e-5)
    assert (recognize.model.config.score_temperature, recognize.model.config.score_bias) == (1.0, 0.0)


def test_documents_without_entities_leave_the_scores_alone(folder):
    found = calibrate(load_pipeline(str(folder)), [Document("a", "и в", ()), Document("b", "", ())])
    assert (found.score_temperature, found.score_bias, found.ece_before, found.ece_after) == (1.0, 0.0, 0.0, 0.0)
    assert calibrate(load_pipeline(str(folder)), []).score_temperature == 1.0


def test_a_temperature_is_a_division_of_logits():
    _, scores = drawn_spans(1.0, documents=100).batches[0]
    cooler = replace(scores, logits=scores.logits / 2.5)
    torch.testing.assert_close(scores.log_odds(2.5), cooler.log_odds(1.0))
    odds = torch.tensor([0.1, 2.0, 30.0])
    torch.testing.assert_close(OddsScores(odds).log_odds(2.5), odds / 2.5)


def test_the_pipeline_scores_under_what_was_saved(folder, tmp_path):
    plain = load_pipeline(str(folder))(SENTENCE)
    recognize = load_pipeline(with_temperature(folder, tmp_path / "warm", 4.0, -0.5))
    entities = recognize(SENTENCE)
    bare = [
        [{key: value for key, value in entity.items() if key != "score"} for entity in found] for found in (plain, entities)
    ]
    assert bare[0] == bare[1]
    spans = predicted_spans(recognize, [Document("a", SENTENCE, ())])
    scores = sorted(entity["score"] for entity in entities)
    assert scores == pytest.approx(sorted(expit(spans.log_odds(4.0) - 0.5)), abs=1e-5)
    assert max(scores) < min(entity["score"] for entity in plain)
    # The threshold means the calibrated score; saving keeps both numbers.
    middle = (scores[0] + scores[-1]) / 2
    assert recognize(SENTENCE, threshold=middle) == [entity for entity in entities if entity["score"] >= middle] != entities
    recognize.save_pretrained(tmp_path / "again")
    config = load_pipeline(str(tmp_path / "again")).model.config
    assert (config.score_temperature, config.score_bias) == (4.0, -0.5)


@pytest.mark.parametrize("temperature", [0, -1.5, math.nan, "hot"])
def test_a_saved_temperature_that_cannot_be_meant(folder, tmp_path, temperature):
    with pytest.raises(ModelError, match="config.json.*score_temperature"):
        load_pipeline(with_temperature(folder, tmp_path / "broken", temperature))
