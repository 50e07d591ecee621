"""Nearest neighbours: what a loop over pictures says, what scikit-learn says, and the stated rules for ties."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from vit_hf.evaluation.probes import knn
from vit_hf.evaluation.probes.features import Features


def noise(count: int, width: int, classes: int, seed: int) -> Features:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    vectors = np.random.default_rng(99).normal(size=(classes, width))[labels] + 1.5 * generator.normal(
        size=(count, width)
    )
    return Features((vectors * generator.uniform(0.1, 9, (count, 1))).astype(np.float32), labels)


def by_loops(train: Features, test: Features, classes: int, k: int, temperature: float) -> list[int]:
    """Neighbour by neighbour, in Python's floats."""
    predictions = []
    for query in test.vectors.astype(np.float64):
        similar = []
        for row, vector in enumerate(train.vectors.astype(np.float64)):
            similar.append((-float(query @ vector) / float(np.linalg.norm(query) * np.linalg.norm(vector)), row))
        votes = [0.0] * classes
        for negative, row in sorted(similar)[:k]:
            votes[train.labels[row]] += math.exp(-negative / temperature)
        predictions.append(votes.index(max(votes)))
    return predictions


def test_predictions_are_those_of_a_loop_over_pictures():
    train, test = noise(90, 12, 5, seed=0), noise(40, 12, 5, seed=1)
    found = knn.predict_knn(train, test, 5, neighbours=(20, 1, 90))
    for place, k in enumerate((20, 1, 90)):
        assert found[place].tolist() == by_loops(train, test, 5, k, 0.07)
    assert 0.3 < (found[0] == test.labels).mean() < 1.0
    hot = knn.predict_knn(train, test, 5, neighbours=(90,), temperature=5.0)[0]
    assert hot.tolist() == by_loops(train, test, 5, 90, 5.0)
    assert (hot != found[2]).any()  # the temperature counts


@pytest.mark.parametrize("k", [10, 20, 100])
def test_predictions_are_those_of_scikit_learn(k):
    train, test = noise(400, 16, 7, seed=2), noise(300, 16, 7, seed=3)
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    wanted = model.fit(train.vectors.astype(np.float64), train.labels).predict(test.vectors.astype(np.float64))
    np.testing.assert_array_equal(knn.predict_knn(train, test, 7, neighbours=(k,))[0], wanted)


def test_of_equally_similar_neighbours_the_earlier_is_nearer():
    vectors = np.array([[0, 1], [1, 0], [1, 0], [1, 0], [2, 0]], np.float32)  # rows 1 to 4 are equally similar
    train = Features(vectors, np.array([0, 3, 2, 2, 2]))
    test = Features(np.array([[5, 0]], np.float32), np.array([0]))
    assert knn.predict_knn(train, test, 4, neighbours=(1, 2, 3))[:, 0].tolist() == [3, 2, 2]


def test_of_equally_many_votes_the_first_class_wins():
    train = Features(np.array([[1, 0], [1, 0], [1, 0]], np.float32), np.array([2, 1, 2]))
    test = Features(np.array([[1, 0]], np.float32), np.array([0]))
    assert knn.predict_knn(train, test, 3, neighbours=(1, 2, 3))[:, 0].tolist() == [2, 1, 2]


def test_ties_at_the_last_place_are_settled_like_a_stable_sort():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 6, (200, 60), generator=generator).float()  # ties everywhere
    for most in (1, 7, 59, 60):
        columns, values = knn._nearest(similarity, most)
        wanted, order = similarity.sort(dim=1, descending=True, stable=True)
        assert torch.equal(columns, order[:, :most])
        assert torch.equal(values, wanted[:, :most])


def test_chunks_change_nothing(monkeypatch):
    train, test = noise(60, 8, 4, seed=4), noise(50, 8, 4, seed=5)
    whole = knn.predict_knn(train, test, 4, neighbours=(10, 3))
    monkeypatch.setattr(knn, "_SIMILARITIES_AT_ONCE", 60 * 7)
    np.testing.assert_array_equal(knn.predict_knn(train, test, 4, neighbours=(10, 3)), whole)


def test_more_neighbours_than_pictures_is_an_error():
    train = noise(9, 4, 3, seed=0)
    with pytest.raises(ValueError, match="10 neighbours of 9 training pictures; expected at most 9"):
        knn.predict_knn(train, train, 3, neighbours=(5, 10))
