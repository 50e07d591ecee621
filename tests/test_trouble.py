"""Labels that a model disputes: by a hand count, by what cleanlab gives, and by planted wrong labels."""

import pytest
import torch

from vit_hf.evaluation.predictions import Predictions
from vit_hf.evaluation.scoring import Scores
from vit_hf.evaluation.trouble import find_disputed

CLEANLAB = [12, 24, 11, 9, 18, 33, 49, 44, 0, 38, 30, 43, 42, 50, 13, 5, 39, 47, 48]
NAMES = ("cat", "dog", "eel", "fox")


def said(probabilities, labels) -> list[dict]:
    logits = torch.tensor(probabilities).log()
    return find_disputed(Predictions(Scores(logits, torch.tensor(labels)), NAMES, "animals", "test", "ab"))


def test_a_hand_count():
    """Average probability of cat on cats 0.5, of dog on dogs 0.5, of eel on eels 0.9; no fox."""
    rows = [
        ([0.90, 0.05, 0.03, 0.02], 0),
        ([0.10, 0.60, 0.20, 0.10], 0),  # sure of dog (0.6 >= 0.5): disputed, margin -0.5
        ([0.05, 0.90, 0.03, 0.02], 1),
        ([0.60, 0.10, 0.20, 0.10], 1),  # sure of cat: disputed, margin -0.5, after the row before it
        ([0.02, 0.03, 0.90, 0.05], 2),
        ([0.50, 0.50, 1e-9, 1e-9], 1),  # as sure of cat, but the label is the prediction as well: margin 0
        ([1e-9, 1e-9, 0.10, 0.90], 0),  # the likeliest is fox, of which no sample tells how sure is sure
        ([0.01, 0.01, 0.89, 0.09], 0),  # not quite sure of eel
    ]
    # cats: (0.9 + 0.1 + 0 + 0.01) / 4 = 0.2525; dogs: (0.9 + 0.1 + 0.5) / 3 = 0.5
    found = said(*zip(*rows, strict=True))
    assert [(of["row"], of["label"], of["suggested"]) for of in found] == [(1, "cat", "dog"), (3, "dog", "cat")]
    assert [of["margin"] for of in found] == pytest.approx([-0.5, -0.5])
    assert found[0]["probability_of_label"] == pytest.approx(0.1)
    assert found[0]["probability"] == pytest.approx(0.6)


def test_the_same_as_cleanlab_found():
    """`find_label_issues(filter_by="confident_learning", return_indices_ranked_by="normalized_margin")`, 2.9.0."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(4, (60,), generator=generator)
    logits = 2 * torch.randn(60, 4, generator=generator, dtype=torch.float64)
    logits += 3 * torch.nn.functional.one_hot((labels + (torch.arange(60) % 6 == 0)) % 4, 4)
    found = find_disputed(Predictions(Scores(logits, labels), NAMES, "animals", "test", "ab"))
    assert [of["row"] for of in found] == CLEANLAB


def test_planted_wrong_labels_are_found_first():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (500,), generator=generator)
    logits = torch.randn(500, 4, generator=generator) + 6 * torch.nn.functional.one_hot(truth, 4)
    labels = truth.clone()
    planted = torch.randperm(500, generator=generator)[:25]
    labels[planted] = (labels[planted] + 1) % 4
    found = find_disputed(Predictions(Scores(logits, labels), NAMES, "animals", "test", "ab"))
    first = {of["row"] for of in found[:25]}
    assert len(first & set(planted.tolist())) >= 24
    assert all(of["suggested"] == NAMES[truth[of["row"]]] for of in found[:20])
    assert [of["margin"] for of in found] == sorted(of["margin"] for of in found)


def test_a_model_that_is_right_disputes_nothing():
    assert said([[0.9, 0.05, 0.03, 0.02], [0.1, 0.8, 0.05, 0.05]], [0, 1]) == []
