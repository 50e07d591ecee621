"""Two models on the same samples: tests and intervals against references and simulation, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
import torch

from vit_hf.evaluation.bootstrap import resample_means
from vit_hf.evaluation.paired import _interval, compare, find_predictions, holm, mcnemar, verdict
from vit_hf.evaluation.predictions import Predictions, write_predictions
from vit_hf.evaluation.scoring import Scores

NAMES = ("cat", "dog", "fish", "owl", "pig", "rat", "yak")


def predictions(labels, right, *, seed: int = 0, names=NAMES, sha256: str = "ab") -> Predictions:
    """Random logits in which the label comes first where `right` says so, and last elsewhere."""
    labels, right = torch.as_tensor(labels), torch.as_tensor(right)
    logits = torch.rand(len(labels), len(names), generator=torch.Generator().manual_seed(seed))
    logits.scatter_(1, labels[:, None], torch.where(right, 1.5, -0.5)[:, None])
    return Predictions(Scores(logits, labels), names, "animals", "test", sha256)


def pair(n: int = 200, seed: int = 0, **changes) -> tuple[Predictions, Predictions]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(NAMES) - 1, n)  # no yak
    a, b = (predictions(labels, generator.random(n) < share, seed=seed + i) for i, share in enumerate((0.6, 0.7)))
    return a, dataclasses.replace(b, **changes)


def reordered(given: Predictions, order: list[int]) -> Predictions:
    """The same predictions with the classes in another order."""
    place = torch.tensor(order).argsort()
    scores = Scores(given.scores.logits[:, order], place[given.scores.labels])
    return dataclasses.replace(given, scores=scores, label_names=tuple(given.label_names[i] for i in order))


# ------------------------------------------------------------------------------------------- the test
def test_mcnemar_equals_the_published_example_and_the_hand_count():
    """Of 25 discordant pairs 5 on one side: 2 * sum of C(25, i) for i <= 5, over 2^25 = 0.0041."""
    assert mcnemar(5, 20) == pytest.approx(2 * sum(math.comb(25, i) for i in range(6)) / 2**25, rel=1e-12)
    assert mcnemar(20, 5) == mcnemar(5, 20)
    assert mcnemar(150, 86) == pytest.approx(3.716e-05, rel=1e-4)  # approval ratings (Agresti 1990), R's mcnemar.exact
    assert mcnemar(59, 121) == pytest.approx(4.4344492637551645e-06, rel=1e-12)  # statsmodels 0.15
    assert [mcnemar(*counts) for counts in ((0, 0), (1, 0), (3, 3))] == [1, 1, 1]


def test_holms_correction_equals_the_hand_count():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_equal_models_are_told_apart_in_at_most_five_of_a_hundred_comparisons():
    """Two models of one accuracy, 300 pictures, 400 comparisons: at most 5% but for chance (p = 0.001)."""
    generator = np.random.default_rng(0)
    hard = generator.random((400, 300)) * 0.6 + 0.2  # what is hard is hard for both
    a, b = (generator.random(hard.shape) < hard for _ in "ab")
    found = sum(mcnemar(*pair) < 0.05 for pair in zip((a & ~b).sum(1), (b & ~a).sum(1), strict=True))
    assert scipy.stats.binomtest(found, 400, 0.05, alternative="greater").pvalue > 0.001
    assert found > 0  # it can be wrong


def test_a_real_difference_is_found():
    """Half the errors mended and a few made: 60 only B, 15 only A."""
    n, labels = 400, np.arange(400) % 6
    right_a, right_b = np.arange(n) >= 120, np.arange(n) >= 60
    right_b[-15:] = False
    result = compare(predictions(labels, right_a), predictions(labels, right_b, seed=1))
    assert (result["mcnemar"]["only_a"], result["mcnemar"]["only_b"]) == (15, 60)
    assert result["mcnemar"]["p"] < 1e-6
    assert result["scores"]["top1"]["interval"][0] > 0
    assert verdict(result).startswith("B is right more often")


def test_the_interval_holds_the_true_difference_in_95_of_100_cases():
    """400 data sets of 300 pairs whose true difference is known: 95% but for chance (p = 0.001) and the percentile's
    small lack for so few samples (1 point)."""
    generator, held = np.random.default_rng(1), 0
    for _ in range(400):
        difference = generator.choice([-1.0, 0.0, 1.0], 300, p=[0.08, 0.8, 0.12])
        low, high = _interval(resample_means(difference[:, None], resamples=500)[:, 0])
        held += low <= 0.04 <= high
    assert scipy.stats.binomtest(held, 400, 0.94, alternative="less").pvalue > 0.001
    assert scipy.stats.binomtest(held, 400, 0.96, alternative="greater").pvalue > 0.001


# ------------------------------------------------------------------------------------------- all numbers
def test_scores_counts_and_classes_equal_a_plain_count():
    a, b = pair()
    result, labels = compare(a, b), a.scores.labels
    said = [p.scores.logits.argmax(1) for p in (a, b)]
    right = [(s == labels).numpy() for s in said]
    test = result["mcnemar"]
    pairs = list(zip(*right, strict=True))
    for name, cell in {"both_right": (1, 1), "only_a": (1, 0), "only_b": (0, 1), "both_wrong": (0, 0)}.items():
        assert test[name] == pairs.count(cell)
    assert result["agreement"] == (said[0] == said[1]).double().mean().item()
    assert result["errors"]["overlap"] == test["both_wrong"] / (test["both_wrong"] + test["only_a"] + test["only_b"])
    assert result["errors"]["same_class"] == int(((said[0] == said[1]).numpy() & ~right[0]).sum())
    for letter, p, r in zip("ab", (a, b), right, strict=True):
        measured = p.scores.measure()
        for name in ("top1", "top5", "loss"):
            assert result["scores"][name][letter] == pytest.approx(measured[name], rel=1e-12)
        per_class = [r[labels.numpy() == c].mean() for c in range(6)]
        assert result["scores"]["balanced_accuracy"][letter] == pytest.approx(np.mean(per_class), rel=1e-12)
    assert [row["name"] for row in result["per_class"]] == list(NAMES[:6])  # no yak, no division by its zero pictures
    for place, row in enumerate(result["per_class"]):
        of = labels.numpy() == place
        assert (row["n"], row["a"], row["b"]) == (of.sum(), right[0][of].sum(), right[1][of].sum())
        assert row["only_b"] - row["only_a"] == row["b"] - row["a"]
        assert row["p"] == mcnemar(row["only_a"], row["only_b"]) <= row["p_holm"]
    for score in result["scores"].values():
        assert score["interval"][0] <= score["difference"] <= score["interval"][1]


def test_intervals_equal_those_of_a_plain_paired_bootstrap_but_for_its_other_draws():
    a, b = pair(500)
    result, labels = compare(a, b)["scores"], a.scores.labels
    loss = [torch.nn.functional.cross_entropy(p.scores.logits, labels, reduction="none").numpy() for p in (a, b)]
    right = [(p.scores.logits.argmax(1) == labels).double().numpy() for p in (a, b)]
    draws = np.random.default_rng(9).integers(500, size=(4000, 500))
    for name, (first, second) in {"loss": loss, "top1": right}.items():
        reference = np.quantile(second[draws].mean(1) - first[draws].mean(1), [0.025, 0.975])
        np.testing.assert_allclose(result[name]["interval"], reference, atol=0.08 * np.ptp(reference))

    def balanced(draw):
        return np.mean([(right[1] - right[0])[draw][labels.numpy()[draw] == c].mean() for c in range(6)])

    generator = np.random.default_rng(5)
    reference = np.quantile([balanced(generator.integers(500, size=500)) for _ in range(1000)], [0.025, 0.975])
    np.testing.assert_allclose(result["balanced_accuracy"]["interval"], reference, atol=0.08 * np.ptp(reference))


@pytest.mark.parametrize("order", [range(7), [3, 1, 0, 6, 5, 4, 2]])
def test_swapping_the_models_mirrors_every_number_exactly(order):
    a, b = pair(333, seed=4)
    b = reordered(b, list(order))
    one, other = compare(a, b), compare(b, a)
    for name, score in one["scores"].items():
        mirror, (low, high) = other["scores"][name], score["interval"]
        assert (score["a"], score["b"]) == (mirror["b"], mirror["a"])
        assert (score["difference"], [low, high]) == (-mirror["difference"], [-x for x in mirror["interval"][::-1]])
    for name, swapped in {"both_right": "both_right", "only_a": "only_b", "both_wrong": "both_wrong", "p": "p"}.items():
        assert one["mcnemar"][name] == other["mcnemar"][swapped]
    assert one["agreement"] == other["agreement"]
    swap = {"a": "b", "b": "a", "only_a": "only_b", "only_b": "only_a"}
    assert one["per_class"] == [{k: row[swap.get(k, k)] for k in row} for row in other["per_class"]]
    assert one["samples"] == [
        {**row, "difference": -row["difference"], "a": row["b"], "b": row["a"]} for row in other["samples"]
    ]
    assert {**one["errors"], "a": one["errors"]["b"], "b": one["errors"]["a"]} == other["errors"]


def test_classes_in_another_order_change_nothing():
    a, b = pair()
    plain, other = compare(a, b), compare(a, reordered(b, [6, 5, 4, 3, 2, 1, 0]))
    for name in ("mcnemar", "agreement", "errors", "per_class"):
        assert plain[name] == other[name]
    assert [row["row"] for row in plain["samples"]] == [row["row"] for row in other["samples"]]


def test_the_samples_are_those_with_the_most_different_losses():
    a, b = pair()
    labels = a.scores.labels
    loss = [torch.nn.functional.cross_entropy(p.scores.logits.double(), labels, reduction="none") for p in (a, b)]
    difference = (loss[1] - loss[0]).numpy()
    samples = compare(a, b)["samples"]
    assert len(samples) == 20
    assert sorted(np.abs(difference))[::-1][:20] == pytest.approx([abs(s["difference"]) for s in samples])
    for sample in samples:
        row = sample["row"]
        assert sample["difference"] == pytest.approx(difference[row])
        assert sample["label"] == NAMES[labels[row]]
        probabilities = b.scores.logits[row].double().softmax(0)
        assert sample["b"]["predicted"] == NAMES[probabilities.argmax()]
        assert sample["b"]["probability"] == pytest.approx(probabilities.max().item())
        assert sample["b"]["probability_of_label"] == pytest.approx(probabilities[labels[row]].item())


def test_a_model_equals_itself():
    a, _ = pair()
    result = compare(a, a)
    assert result["mcnemar"]["p"] == 1
    assert all(score["interval"] == [0, 0] for score in result["scores"].values())
    assert result["samples"] == []
    assert "right on the same" in verdict(result)


def test_a_model_without_errors_has_no_overlap_of_errors():
    labels = np.arange(12) % 6
    perfect = predictions(labels, np.ones(12, bool))
    assert compare(perfect, perfect)["errors"]["overlap"] is None


def test_what_is_not_shown_is_not_said():
    labels = np.arange(100) % 6
    a, b = (predictions(labels, np.arange(100) >= k) for k in (30, 32))
    assert verdict(compare(a, b)).startswith("No difference is shown at the 5% level (-2.00 points")


# ------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "cd"}, r"A was scored on animals, split test, 200 samples \(fingerprint ab\), B on .* \(cd\)"),
        ({"label_names": (*NAMES[:6], "zebu")}, r"only in A \['yak'\], only in B \['zebu'\]"),
        ({"label_names": ("cat", "dog", "cat", *NAMES[3:])}, "not the same"),
    ],
)
def test_other_pictures_and_other_classes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        compare(*pair(**changes))


def test_another_number_of_samples_or_another_label_is_refused_even_where_the_split_was_streamed():
    a, b = pair(sha256="streaming")
    cut = dataclasses.replace(b, scores=Scores(b.scores.logits[:-1], b.scores.labels[:-1]))
    with pytest.raises(ValueError, match="200 samples, B on animals, split test, 199 samples"):
        compare(a, cut)
    labels = b.scores.labels.clone()
    labels[7] = (labels[7] + 1) % 6
    with pytest.raises(ValueError, match="differ in the labels of 1 samples, first in row 7"):
        compare(a, dataclasses.replace(b, scores=Scores(b.scores.logits, labels)))
    assert compare(a, b)["matched_by"] == "labels"
    assert compare(*pair())["matched_by"] == "fingerprint"


def test_two_classes_of_one_name_in_another_order_are_refused_and_in_the_same_order_taken():
    twins = ("crane", "crane", *NAMES[2:])
    a, b = (dataclasses.replace(p, label_names=twins) for p in pair())
    assert len(compare(a, b)["per_class"]) == 6
    with pytest.raises(ValueError, match="two classes of one name"):
        compare(a, reordered(b, [6, 5, 4, 3, 2, 1, 0]))


def test_predictions_are_found_in_a_folder_and_in_a_file(tmp_path):
    a, _ = pair(10)
    write_predictions(tmp_path / "predictions.parquet", a)
    for path in (tmp_path, tmp_path / "predictions.parquet"):
        assert torch.equal(find_predictions(path).scores.logits, a.scores.logits)
    with pytest.raises(FileNotFoundError, match="there is no"):
        find_predictions(tmp_path / "nothing")
