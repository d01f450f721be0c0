"""What evaluation says about spans, against scikit-learn and plain loops."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score, silhouette_score

from runne_coner.span_metrics import defined_span_metrics, span_metrics, write_projection

NAMES = ["A", "B", "C", "absent", "O"]


@pytest.fixture
def spans():
    """Embeddings, types and identities of 80 spans, two of which are the same words under two types."""
    rng = np.random.default_rng(0)
    types = rng.choice([0, 1, 2, 4], 80)
    points = rng.normal(size=(80, 6)) + 2 * np.eye(6)[types]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    # Not quite equal, or which of them is the nearer would be left open.
    types[:2], points[1] = (0, 1), points[0] + 1e-4 * points[2]
    identity = np.arange(80)
    identity[1] = 0
    return points.astype(np.float32), types, identity


@pytest.mark.parametrize("block_size", [7, 1000])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_values_are_those_of_plain_loops(spans, block_size, form):
    points, types, identity = spans
    found = span_metrics(form(points), types, identity, NAMES, neighbours=5, block_size=block_size)
    distance, same = [], []
    for i in range(80):
        for j in range(i + 1, 80):
            if identity[i] != identity[j]:
                distance.append(np.linalg.norm(points[i] - points[j]))
                same.append(types[i] == types[j])
    distance, same = np.array(distance), np.array(same)
    assert found["pair_auc"] == pytest.approx(roc_auc_score(same, -distance), abs=1e-4)
    assert found["positive_distance"] == pytest.approx(distance[same].mean(), abs=1e-5)
    assert found["negative_distance"] == pytest.approx(distance[~same].mean(), abs=1e-5)
    assert found["silhouette"] == pytest.approx(silhouette_score(points, types), abs=1e-5)
    for kind in (0, 1, 2, 4):
        assert found[f"silhouette_{NAMES[kind]}"] == pytest.approx(silhouette_score(points, types == kind), abs=1e-5)
    correct = []
    for i in range(80):
        others = [j for j in range(80) if identity[j] != identity[i]]
        near = sorted(others, key=lambda j: np.linalg.norm(points[i] - points[j]))[:5]
        votes = {kind: [j for j in near if types[j] == kind] for kind in types[near]}
        most = max(len(members) for members in votes.values())
        tied = [kind for kind, members in votes.items() if len(members) == most]
        nearest = min(tied, key=lambda kind: sum(np.linalg.norm(points[i] - points[j]) for j in votes[kind]))
        correct.append(nearest == types[i])
    assert found["neighbour_accuracy"] == pytest.approx(np.mean(correct))
    assert "silhouette_absent" not in found
    assert list(found) == defined_span_metrics(types, identity, NAMES)


@pytest.mark.parametrize(
    ("types", "identity", "expected"),
    [
        ([], [], set()),
        ([0], [0], set()),
        ([0, 1], [0, 0], set()),
        ([0, 0], [0, 1], {"positive_distance", "neighbour_accuracy"}),
        ([0, 1], [0, 1], {"negative_distance", "neighbour_accuracy"}),
        ([0, 0, 0], [0, 1, 2], {"positive_distance", "neighbour_accuracy"}),
    ],
)
def test_what_is_undefined_is_left_out(types, identity, expected):
    points = np.eye(3, dtype=np.float32)[: len(types)].reshape(-1, 3)
    found = span_metrics(points, np.array(types, dtype=int), np.array(identity, dtype=int), ["A", "B"])
    assert found.keys() == expected and np.isfinite(list(found.values())).all()


def test_embeddings_that_are_not_finite_say_nothing(spans):
    points, types, identity = spans
    points[4] = np.nan
    assert span_metrics(points, types, identity, NAMES) == {}


@pytest.mark.parametrize("number", [1, 2, 3, 80])
def test_a_picture_is_left_whole(spans, tmp_path, number):
    pytest.importorskip("matplotlib")
    points, types, _ = spans
    write_projection(tmp_path / "new" / "picture.png", points[:number], types[:number], NAMES, "title")
    write_projection(tmp_path / "dollars.png", points[:number], types[:number], [f"$a^${name}" for name in NAMES], "title")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
    assert (tmp_path / "new" / "picture.png").read_bytes()[:4] == b"\x89PNG"
    write_projection(tmp_path / "equal.png", sparse.csr_matrix(np.ones((number, 4))), types[:number], NAMES, "title")
