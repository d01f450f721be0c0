"""Silhouettes of one blockwise pass, against those of scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from runne_coner.silhouette import silhouette, type_silhouettes


@pytest.fixture(params=[np.float32, np.float64])
def points(request):
    rng = np.random.default_rng(0)
    found = rng.normal(size=(300, 16)) + 2 * rng.integers(0, 2, size=(300, 1))
    found[7] = found[3]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(request.param)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "manhattan"])
@pytest.mark.parametrize("block_size", [1, 64, 1000])
def test_types_against_the_rest_agree_with_sklearn(points, metric, block_size):
    rng = np.random.default_rng(1)
    membership = rng.random((300, 6)) < [0.5, 0.2, 0.05, 0.9, 0.5, 0.5]
    membership[:, 4] = np.arange(300) == 5
    membership[:, 5] = np.arange(300) != 5
    found = type_silhouettes(points, membership, metric=metric, block_size=block_size)
    expected = [silhouette_score(points.astype(np.float64), column, metric=metric) for column in membership.T]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_labels_agree_with_sklearn(points):
    labels = np.random.default_rng(2).choice(["a", "b", "c", "d"], 300, p=[0.5, 0.3, 0.15, 0.05]).astype(object)
    labels[11] = "single"
    found = silhouette(points, labels, block_size=70)
    assert found == pytest.approx(silhouette_score(points.astype(np.float64), labels), abs=1e-5)


def test_separate_clusters_have_a_silhouette_worked_by_hand():
    # On a line: 0, 1 | 10. Of 0: a = 1, b = 10; of 1: a = 1, b = 9; the single point counts as 0.
    line = np.array([[0.0], [1.0], [10.0]])
    assert silhouette(line, np.array([0, 0, 1])) == pytest.approx((0.9 + 8 / 9 + 0) / 3)


def test_what_is_undefined_is_nan_and_equal_points_are_zero(points):
    membership = np.column_stack([np.zeros(300), np.ones(300), np.arange(300) < 9]).astype(bool)
    found = type_silhouettes(points, membership)
    assert np.isnan(found[:2]).all() and np.isfinite(found[2])
    assert np.isnan(silhouette(points, np.zeros(300)))
    assert np.isnan(silhouette(points[:4], np.arange(4)))
    assert np.isnan(silhouette(np.zeros((0, 3)), np.zeros(0)))
    assert np.isnan(type_silhouettes(points[:2], membership[:2])).all()
    assert type_silhouettes(np.zeros((0, 3)), np.zeros((0, 2), dtype=bool)).shape == (2,)
    assert silhouette(np.ones((4, 2)), np.array([0, 0, 1, 1])) == 0.0


def test_errors_name_what_is_wrong(points):
    with pytest.raises(ValueError, match=r"membership \(N, T\), got \(300, 16\) and \(299, 1\)"):
        type_silhouettes(points, np.zeros((299, 1), dtype=bool))
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        silhouette(points, np.arange(300) % 2, block_size=0)
    broken = points.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        silhouette(broken, np.arange(300) % 2)


def test_progress_is_shown_when_asked_for(points, capsys):
    silhouette(points, np.arange(300) % 2, block_size=100)
    assert capsys.readouterr().err == ""
    silhouette(points, np.arange(300) % 2, block_size=100, progress=True)
    assert "3/3" in capsys.readouterr().err
