"""What a metric needs of a sample, as pure functions from scores and labels: places, hits, loss, confidence, Brier.

The rule for ties, everywhere: a class that scores as high as a right one stands before it. So a model that gives all
classes the same score is right nowhere (not wherever the order of the classes would have it), and no rounding of scores
can raise a result. A set of right classes (a superclass, ReaL's labels) is named when each class with the highest score
belongs to it.

Shapes: N samples, L classes.
"""

from collections.abc import Sequence

import torch

_SAMPLES_AT_ONCE = 1_024  # whose probabilities are held in float64


def check_scores(scores: torch.Tensor) -> None:
    """Raise ValueError unless scores are real numbers of shape (N, L), at least one, none NaN."""
    if scores.ndim != 2 or scores.is_complex() or scores.dtype == torch.bool:
        raise ValueError(
            f"the scores have shape {tuple(scores.shape)} and dtype {scores.dtype}; expected real numbers of shape "
            "(samples, classes): give the logits or probabilities of all classes, not the class predicted"
        )
    if not scores.numel():
        raise ValueError(
            f"the scores have shape {tuple(scores.shape)}: nothing to score; expected at least one sample and one "
            "class: check that the data set and the batch are not empty"
        )
    missing = scores.isnan().any(dim=1)
    if missing.any():
        where = int(missing.nonzero()[0])
        raise ValueError(
            f"the scores of sample {where} hold NaN ({int(missing.sum())} of {len(scores)} samples do); expected "
            "numbers: the model has diverged, or its input holds NaN"
        )


def check_labels(scores: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise ValueError unless labels are class indices (N,) that fit the scores."""
    if labels.shape != scores.shape[:1]:
        raise ValueError(
            f"the labels have shape {tuple(labels.shape)} for scores of shape {tuple(scores.shape)}; expected "
            f"({len(scores)},): one class index a sample"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"the labels have dtype {labels.dtype}; expected integers, the class index of each sample: take the "
            "argmax of one-hot or soft labels"
        )
    outside = (labels < 0) | (labels >= scores.shape[1])
    if outside.any():
        where = int(outside.nonzero()[0])
        raise ValueError(
            f"label {int(labels[where])} of sample {where} is outside the classes; expected 0 to {scores.shape[1] - 1} "
            f"for scores of {scores.shape[1]} classes: check that model and data set have the same classes"
        )


def top_k_correct(scores: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Tell for each sample whether its true class is among the k with the highest scores.

    Args:
        scores: (N, L), real: logits or probabilities; infinities are fine, NaN is not.
        labels: (N,), integer, on the same device: the true class, in [0, L).
        k: how many classes a sample may name, at least 1; with k >= L all samples are correct.

    Returns:
        (N,), bool. A class that ties with the true one stands before it.

    Raises:
        ValueError: no samples, shapes or dtypes that do not fit, labels outside the classes, NaN, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    check_scores(scores)
    check_labels(scores, labels)
    return ranks(scores, labels) <= k


def ranks(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the place of the true class, (N,) int64 from 1 to L, the last of those that share its score."""
    true_score = scores.gather(1, labels.long()[:, None])  # (N, 1)
    return (scores >= true_score).sum(dim=1)


def names_group(scores: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Tell for each sample whether the class with the highest score is of the true class's group.

    Args:
        scores: (N, L), as of `top_k_correct`.
        labels: (N,), integer, the true class.
        groups: (L,), integer, the group of each class.

    Returns:
        (N,), bool.
    """
    allowed = groups[None, :] == groups[labels.long()][:, None]  # (N, L)
    return _names_one_of(scores, allowed)


def names_real(scores: torch.Tensor, real_labels: Sequence[Sequence[int]]) -> torch.Tensor:
    """Tell for each sample whether the class with the highest score is one of its labels.

    Args:
        scores: (N, L), as of `top_k_correct`.
        real_labels: N sets of class indices in [0, L); an empty one where a sample has no label.

    Returns:
        (N,), int64: 1 right, 0 wrong, -1 a sample without labels, which is not counted.

    Raises:
        ValueError: not as many sets as samples, or a class outside [0, L).
    """
    count, classes = scores.shape
    if len(real_labels) != count:
        raise ValueError(
            f"{len(real_labels)} sets of labels for {count} samples; expected one a sample, in their order"
        )
    pairs = [(row, int(label)) for row, labels in enumerate(real_labels) for label in labels]
    wrong = next(((row, label) for row, label in pairs if not 0 <= label < classes), None)
    if wrong is not None:
        raise ValueError(f"label {wrong[1]} of sample {wrong[0]} is outside the classes; expected 0 to {classes - 1}")
    allowed = torch.zeros(count, classes, dtype=torch.bool)
    if pairs:
        rows, columns = torch.tensor(pairs).T
        allowed[rows, columns] = True
    right = _names_one_of(scores, allowed).long()
    return right.masked_fill(~allowed.any(dim=1), -1)


def _names_one_of(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Tell for each row of (N, L) whether no class with the highest score is outside `allowed` (N, L); (N,), bool."""
    return ~((scores >= scores.amax(dim=1, keepdim=True)) & ~allowed).any(dim=1)


def probability_figures(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return what the softmax of logits says of each sample.

    Args:
        logits: (N, L), finite; computed with in float64.
        labels: (N,), int64.

    Returns:
        Three of (N,), float64: the cross-entropy in nats; the confidence, which is the largest probability; the squared
        distance of the probabilities from the truth, summed over classes, from 0 to 2 (Brier 1950).
    """
    parts = []
    for some, truth in zip(logits.split(_SAMPLES_AT_ONCE), labels.long().split(_SAMPLES_AT_ONCE), strict=True):
        log_probabilities = some.double().log_softmax(dim=1)  # (B, L)
        of_truth = log_probabilities.gather(1, truth[:, None])  # (B, 1)
        probabilities = log_probabilities.exp_()
        right = of_truth.exp()
        brier = probabilities.square().sum(dim=1, keepdim=True) - right.square() + (1 - right).square()
        parts.append(torch.cat([-of_truth, probabilities.amax(dim=1, keepdim=True), brier], dim=1))  # (B, 3)
    return torch.cat(parts).unbind(dim=1)
