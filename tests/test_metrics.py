"""Metrics: agreement with scikit-learn, ties and odd sizes by hand, errors, and no files left behind."""

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)

from vit_hf.evaluation.calibration import calibrate
from vit_hf.evaluation.metrics import (
    BalancedAccuracy,
    Brier,
    CalibratedError,
    ExpectedCalibrationError,
    NegativeLogLikelihood,
    PerClass,
    RealTop1,
    SuperclassTop1,
    Top1,
    Top5,
    load_metrics,
    top_k_correct,
)
from vit_hf.evaluation.superclasses import CIFAR100

NAMES = [name for names in CIFAR100.values() for name in names]  # 5 of a superclass in a row
OF_LABELS = (
    Top1,
    Top5,
    PerClass,
    BalancedAccuracy,
    NegativeLogLikelihood,
    Brier,
    ExpectedCalibrationError,
    CalibratedError,
)


def _scores(samples: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 scores without ties, and labels that are right more often than by chance."""
    labels = torch.randint(classes, (samples,))
    scores = torch.randn(samples, classes, dtype=torch.float64)
    scores[torch.arange(samples), labels] += 1.0
    return scores, labels


# ---------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_top1_equals_scikit_learn(classes):
    scores, labels = _scores(500, classes)
    expected = accuracy_score(labels.numpy(), scores.argmax(1).numpy())
    assert Top1().compute(predictions=scores, references=labels) == {"top1": expected}


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn(k):
    scores, labels = _scores(500, 20)
    expected = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k, labels=np.arange(20))
    assert top_k_correct(scores, labels, k).double().mean().item() == pytest.approx(expected, abs=1e-12)


def test_classes_without_samples_change_nothing():
    scores, labels = _scores(200, 30)
    labels = labels % 3  # 27 classes have no sample
    expected = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=5, labels=np.arange(30))
    assert Top5().compute(predictions=scores, references=labels)["top5"] == pytest.approx(expected, abs=1e-12)


def test_a_tie_counts_against_the_true_class():
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.5, 0.4, 0.4], [0.2, 0.2, 0.2]])
    labels = torch.tensor([0, 1, 2, 0])
    assert top_k_correct(scores, labels, 1).tolist() == [False, False, False, False]
    assert top_k_correct(scores, labels, 2).tolist() == [True, True, False, False]
    assert top_k_correct(scores, labels, 3).tolist() == [True, True, True, True]


def test_a_model_that_scores_all_classes_alike_gets_nothing():
    result = load_metrics().compute(predictions=torch.zeros(8, 10), references=torch.zeros(8, dtype=torch.int64))
    assert result == {"top1": 0.0, "top5": 0.0}


def test_scores_that_differ_in_float64_only_are_no_tie():
    scores = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert Top1().compute(predictions=scores, references=[1]) == {"top1": 1.0}


def test_with_one_class_every_sample_is_correct():
    result = load_metrics().compute(predictions=torch.randn(3, 1), references=[0, 0, 0])
    assert result == {"top1": 1.0, "top5": 1.0}


def test_top5_of_five_classes_is_one():
    scores, labels = _scores(50, 5)
    assert Top5().compute(predictions=scores, references=labels) == {"top5": 1.0}


def test_infinite_scores_are_ordered():
    scores = torch.tensor([[-torch.inf, 0.0, torch.inf], [-torch.inf, 0.0, torch.inf]])
    assert top_k_correct(scores, torch.tensor([2, 0]), 1).tolist() == [True, False]


@pytest.mark.parametrize("classes", [2, 7, 100])
def test_accuracies_of_classes_and_their_mean_equal_scikit_learn(classes):
    scores, labels = _scores(2_000, classes)
    named = scores.argmax(1).numpy()
    expected = recall_score(labels.numpy(), named, average=None, labels=np.arange(classes), zero_division=0)
    np.testing.assert_allclose(PerClass().compute(predictions=scores, references=labels)["per_class"], expected)
    balanced = BalancedAccuracy().compute(predictions=scores, references=labels)["balanced_accuracy"]
    assert balanced == pytest.approx(balanced_accuracy_score(labels.numpy(), named), abs=1e-12)


def test_a_class_without_samples_has_no_accuracy_and_does_not_count_in_the_mean():
    scores = torch.tensor([[9.0, 1.0, 2.0], [9.0, 1.0, 2.0], [1.0, 0.0, 5.0], [9.0, 1.0, 2.0]])
    labels = torch.tensor([0, 2, 2, 0])
    assert PerClass().compute(predictions=scores, references=labels) == {"per_class": [1.0, None, 0.5]}
    assert BalancedAccuracy().compute(predictions=scores, references=labels) == {"balanced_accuracy": 0.75}


@pytest.mark.parametrize("classes", [2, 7, 100])
def test_cross_entropy_and_brier_score_equal_scikit_learn(classes):
    scores, labels = _scores(1_000, classes)
    probabilities, every = scores.softmax(dim=1).numpy(), np.arange(classes)
    found = load_metrics((NegativeLogLikelihood, Brier)).compute(predictions=scores, references=labels)
    assert found["loss"] == pytest.approx(log_loss(labels.numpy(), probabilities, labels=every), abs=1e-12)
    of_classes = [brier_score_loss(labels.numpy() == place, probabilities[:, place]) for place in every]
    assert found["brier"] == pytest.approx(sum(of_classes), abs=1e-12)


def test_a_loss_is_finite_where_a_probability_is_below_all_numbers():
    found = load_metrics((NegativeLogLikelihood, Brier)).compute(predictions=[[0.0, 5000.0]], references=[0])
    assert found == {"loss": 5000.0, "brier": 2.0}


def test_the_calibration_error_is_that_of_the_confidences():
    scores, labels = _scores(1_000, 10)
    confidence, named = (values.numpy() for values in scores.softmax(dim=1).max(dim=1))
    expected = calibrate(confidence, (named == labels.numpy()).astype(float))["expected_calibration_error"]
    found = ExpectedCalibrationError().compute(predictions=scores, references=labels)
    assert found == {"expected_calibration_error": pytest.approx(expected, abs=1e-12)}


def test_a_wrong_temperature_is_found_and_taken_out():
    logits = 2 * torch.randn(6_000, 10)
    labels = logits.softmax(dim=1).multinomial(1)[:, 0]
    metrics = load_metrics((ExpectedCalibrationError, CalibratedError))
    found = metrics.compute(predictions=4 * logits, references=labels)
    assert found["temperature"] == pytest.approx(4, rel=0.1)
    assert found["calibrated_error"] < 0.03 < 0.2 < found["expected_calibration_error"]


def test_a_superclass_is_named_by_any_of_its_classes_but_not_by_a_tie_with_another():
    scores = torch.zeros(5, 100)
    scores[0, 3] = 1  # of superclass 0, as the label 1 is
    scores[1, 5] = 1  # of superclass 1, as the label 1 is not
    scores[2, [0, 4]] = 1  # a tie within superclass 0
    scores[3, [0, 5]] = 1  # a tie of superclasses 0 and 1; in row 4 of all
    metrics = load_metrics((SuperclassTop1(NAMES), Top1))
    found = metrics.compute(predictions=scores, references=[1, 1, 1, 0, 0])
    assert found == {"superclass_top1": 2 / 5, "top1": 0.0}


def test_superclasses_of_other_classes_are_an_error():
    with pytest.raises(ValueError, match=r"no superclasses of these 2 classes \(first: \['cat', 'dog'\]\)"):
        SuperclassTop1(["cat", "dog"])
    with pytest.raises(ValueError, match="the scores have 10 classes; expected 100"):
        SuperclassTop1(NAMES).compute(predictions=torch.randn(2, 10), references=[0, 1])


def test_a_picture_is_named_rightly_by_any_of_its_real_labels_and_not_counted_without():
    scores = torch.tensor(
        [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 3.0, 2.0], [3.0, 3.0, 2.0], [0.0, 0.0, 0.0]]
    )
    real = [[2, 0], [1, 2], [], [0, 1], [0], [2, 1, 0]]  # right, wrong, none, a tie within, a tie without, all
    assert RealTop1().compute(predictions=scores, real_labels=real) == {"real_top1": 3 / 5, "real_n": 5}
    assert RealTop1().compute(predictions=scores[:1], real_labels=[[]]) == {"real_top1": None, "real_n": 0}


def test_real_labels_of_one_class_each_give_the_top1():
    scores, labels = _scores(300, 10)
    scores[:50] = scores[:50].round()  # ties
    found = RealTop1().compute(predictions=scores, real_labels=[[int(label)] for label in labels])
    assert found == {"real_top1": Top1().compute(predictions=scores, references=labels)["top1"], "real_n": 300}


@pytest.mark.parametrize(
    ("real", "message"),
    [
        ([[0], [3]], "label 3 of sample 1 is outside the classes; expected 0 to 2"),
        ([[-1], [0]], "label -1 of sample 0 is outside"),
        ([[0]], "1 sets of labels for 2 samples"),
        (None, "real_labels is None; expected both predictions and real_labels"),
    ],
)
def test_real_labels_that_do_not_fit_raise(real, message):
    with pytest.raises(ValueError, match=message):
        RealTop1().add_batch(predictions=torch.randn(2, 3), real_labels=real)


# ---------------------------------------------------------------------------------------------- use
def all_metrics() -> evaluate.CombinedEvaluations:
    return evaluate.combine([*(metric() for metric in OF_LABELS), SuperclassTop1(NAMES), RealTop1()])


def test_all_metrics_combine_whole_in_batches_and_sample_by_sample():
    scores, labels = _scores(60, 100)
    scores = scores.float()
    real = [[int(label), 3] if label % 2 else [] for label in labels]
    whole = all_metrics().compute(predictions=scores, references=labels, real_labels=real)
    assert set(whole) == {
        *("top1", "top5", "per_class", "balanced_accuracy", "loss", "brier", "expected_calibration_error"),
        *("temperature", "calibrated_error", "superclass_top1", "real_top1", "real_n"),
    }
    batches, singles = all_metrics(), all_metrics()
    for rows in (slice(0, 25), slice(25, 26), slice(26, 60)):
        batches.add_batch(predictions=scores[rows], references=labels[rows], real_labels=real[rows])
    for row in range(60):
        singles.add(prediction=scores[row], reference=labels[row], real_labels=real[row])
    assert batches.compute() == singles.compute() == whole
    alone = {}
    for metric in OF_LABELS:
        alone |= metric().compute(predictions=scores, references=labels)
    assert {name: whole[name] for name in alone} == alone


def test_the_order_of_the_samples_changes_nothing():
    """But for the halves of the temperature, which take turns in their order."""
    scores, labels = _scores(500, 10)
    order, metrics = torch.randperm(500), load_metrics(OF_LABELS[:-1])
    whole = metrics.compute(predictions=scores, references=labels)
    assert metrics.compute(predictions=scores[order], references=labels[order]) == whole


def test_what_is_kept_of_a_sample_is_not_its_scores():
    """Fixed width, so that the bytes are known: 2 numbers a sample, and the bits that say that they are there."""
    scores, labels = _scores(1_000, 100)
    for metric in (*(kind() for kind in OF_LABELS[:-1]), SuperclassTop1(NAMES)):
        metric.add_batch(predictions=scores, references=labels)
        metric._finalize()
        assert metric.data.data.nbytes <= 1_000 * 16 + 500


def test_probabilities_where_logits_are_meant_are_pointed_out():
    probabilities = torch.randn(20, 4).softmax(dim=1)
    labels = torch.zeros(20, dtype=torch.int64)
    with pytest.warns(UserWarning, match="negative_log_likelihood takes logits, and these scores look like probab"):
        NegativeLogLikelihood().compute(predictions=probabilities, references=labels)
    expected = -probabilities[:, 0].log().mean().item()
    found = NegativeLogLikelihood().compute(predictions=probabilities.log(), references=labels)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    Top1().compute(predictions=probabilities, references=labels)


def test_infinite_logits_have_no_probabilities():
    with pytest.raises(ValueError, match="some scores are infinite; expected finite logits"):
        Brier().compute(predictions=[[0.0, float("inf")]], references=[1])


def test_batches_of_any_size_give_the_result_of_the_whole():
    scores, labels = _scores(103, 10)
    whole = load_metrics().compute(predictions=scores, references=labels)
    metrics = load_metrics()
    for start, stop in ((0, 50), (50, 51), (51, 103)):
        metrics.add_batch(predictions=scores[start:stop], references=labels[start:stop])
    assert metrics.compute() == whole


def test_single_samples_give_the_result_of_the_batch():
    scores, labels = _scores(20, 10)
    metrics, top1 = load_metrics(), Top1()
    for row, label in zip(scores, labels, strict=True):
        metrics.add(prediction=row, reference=label)
        top1.add(prediction=row.tolist(), reference=int(label))
    expected = load_metrics().compute(predictions=scores, references=labels)
    assert metrics.compute() == expected
    assert top1.compute() == {"top1": expected["top1"]}


def test_computing_starts_anew_also_with_other_classes():
    metrics = load_metrics()
    metrics.compute(predictions=torch.randn(4, 6), references=[0, 1, 2, 3])
    assert metrics.compute(predictions=[[0.1, 0.9]], references=[1]) == {"top1": 1.0, "top5": 1.0}


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.tolist,
        torch.Tensor.numpy,
        list,
        lambda scores: list(scores.numpy()),
        lambda scores: scores.bfloat16(),
        lambda scores: scores.half().requires_grad_(),
    ],
    ids=["lists", "numpy", "tensors", "arrays", "bfloat16", "half"],
)
def test_scores_are_taken_in_every_form(convert):
    scores = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.0, 0.25]])  # exact in bfloat16
    assert Top1().compute(predictions=convert(scores), references=[1, 1]) == {"top1": 0.5}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_are_taken_in_every_integer_type(dtype):
    labels = torch.tensor([1, 0], dtype=dtype)
    assert top_k_correct(torch.eye(2), labels, 1).tolist() == [False, False]


# ---------------------------------------------------------------------------------------------- files
def test_scoring_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    real = [[0], [], [1, 2], [99]]
    all_metrics().compute(predictions=torch.randn(4, 100), references=[0, 1, 2, 3], real_labels=real)
    assert list(tmp_path.iterdir()) == []


def test_metrics_that_run_at_once_do_not_mix():
    first, second = Top1(), Top1()
    first.add_batch(predictions=[[0.1, 0.9]], references=[1])
    second.add_batch(predictions=[[0.1, 0.9]], references=[0])
    assert (first.compute(), second.compute()) == ({"top1": 1.0}, {"top1": 0.0})


def test_the_cache_file_of_evaluate_can_be_asked_for(tmp_path):
    metric = Top1(keep_in_memory=False, cache_dir=str(tmp_path))
    metric.add_batch(predictions=[[0.1, 0.9]], references=[1])
    assert list(tmp_path.rglob("*.arrow"))
    assert metric.compute() == {"top1": 1.0}
    assert not list(tmp_path.rglob("*.arrow"))


# ---------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.eye(3), torch.tensor([0, 1, 3]), "label 3 of sample 2 is outside the classes; expected 0 to 2"),
        (torch.eye(3), torch.tensor([0, -100, 2]), "label -100 of sample 1 is outside"),
        (torch.eye(3), torch.tensor([0, 1]), r"labels have shape \(2,\) for scores of shape \(3, 3\)"),
        (torch.zeros(3), torch.tensor([0, 1, 2]), r"scores have shape \(3,\) and dtype torch.float32; expected real"),
        (torch.eye(3).bool(), torch.tensor([0, 1, 2]), "dtype torch.bool"),
        (torch.eye(3), torch.tensor([0.0, 1.0, 2.0]), "labels have dtype torch.float32; expected integers"),
        (torch.eye(3), torch.eye(3), r"labels have shape \(3, 3\)"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "nothing to score"),
        (torch.zeros(2, 0), torch.tensor([0, 0]), "nothing to score"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]), torch.tensor([0, 1]), "sample 1 hold NaN"),
    ],
)
def test_wrong_input_raises_the_same_error_in_function_and_metric(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        top_k_correct(scores, labels, 1)
    with pytest.raises(ValueError, match=message):
        load_metrics().add_batch(predictions=scores, references=labels)


def test_k_below_one_raises():
    with pytest.raises(ValueError, match="k is 0; expected at least 1"):
        top_k_correct(torch.eye(2), torch.tensor([0, 1]), 0)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[0.1, 0.9], [1.0]], [0, 0], "predictions are not rectangular"),
        ([torch.zeros(2), torch.zeros(3)], [0, 0], "predictions do not stack"),
        ([["a", "b"]], [0], "predictions hold <U1; expected numbers"),
        ([[0.1, 0.9]], None, "references is None"),
    ],
)
def test_predictions_that_are_no_array_raise(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        Top1().add_batch(predictions=predictions, references=references)


def test_computing_without_samples_raises():
    with pytest.raises(ValueError, match=r"top1 has nothing to score; .* call add_batch"):
        load_metrics().compute()


def test_batches_of_different_models_raise():
    metrics = load_metrics()
    metrics.add_batch(predictions=torch.eye(3), references=[0, 1, 2])
    with pytest.raises(ValueError, match="scores of 4 classes, earlier ones of 3"):
        metrics.add_batch(predictions=torch.eye(4), references=[0, 1, 2, 3])


def test_a_wrong_batch_leaves_the_samples_before_it():
    metrics = load_metrics()
    metrics.add_batch(predictions=torch.eye(6), references=range(6))
    with pytest.raises(ValueError, match="outside"):
        metrics.add_batch(predictions=torch.eye(6), references=[9] * 6)
    assert metrics.compute() == {"top1": 1.0, "top5": 1.0}
