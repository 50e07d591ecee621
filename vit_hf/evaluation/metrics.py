"""Top-1 and top-5 accuracy as `evaluate.Metric` classes that need no network and leave no files.

`evaluate.load("accuracy")` fetches its code from the Hub; these are ordinary classes. A metric of `evaluate` also
writes what it is given into an Arrow file in the cache folder, with a lock beside it; these keep it in memory unless
told otherwise, so any number of processes can score at once. And they keep of each sample only the place of its true
class, which is all that an accuracy needs; the scores of 1,000 classes would fill 4 kB a sample.

The rule for ties: a sample is correct among the top k when fewer than k *other* classes score at least as high as the
true one. A tie with the true class thus counts against it: a model that gives all classes the same score has top-1
accuracy 0 (not 1 by the order of the classes), and no rounding of scores can raise the result. With k classes or fewer
every sample is correct, so "top5" is 1 for a problem of 5 classes or fewer.

Shapes: N samples, L classes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import torch

_DESCRIPTION = "Share of the samples whose true class is among the {k} with the highest scores; ties count against it."
_INPUTS = """
Args:
    predictions: (N, L), float: a score per class, logits or probabilities of any float type.
    references: (N,), int: the true class, in [0, L).

Returns:
    {{"{name}": accuracy}}, a fraction in [0, 1].
"""


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
    _check(scores, labels)
    return _ranks(scores, labels) <= k


def _ranks(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the place of the true class, (N,) int64 from 1 to L, the last of those that share its score."""
    true_score = scores.gather(1, labels.long()[:, None])  # (N, 1)
    return (scores >= true_score).sum(dim=1)


def _check(scores: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise ValueError unless scores (N, L) and labels (N,) are complete and fit each other."""
    if scores.ndim != 2 or scores.is_complex() or scores.dtype == torch.bool:
        raise ValueError(
            f"the scores have shape {tuple(scores.shape)} and dtype {scores.dtype}; expected real numbers of shape "
            "(samples, classes): give the logits or probabilities of all classes, not the class predicted"
        )
    if labels.shape != scores.shape[:1]:
        raise ValueError(
            f"the labels have shape {tuple(labels.shape)} for scores of shape {tuple(scores.shape)}; expected "
            f"({len(scores)},): one class index a sample"
        )
    if not scores.numel():
        raise ValueError(
            f"the scores have shape {tuple(scores.shape)}: nothing to score; expected at least one sample and one "
            "class: check that the data set and the batch are not empty"
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
    missing = scores.isnan().any(dim=1)
    if missing.any():
        where = int(missing.nonzero()[0])
        raise ValueError(
            f"the scores of sample {where} hold NaN ({int(missing.sum())} of {len(scores)} samples do); expected "
            "numbers: the model has diverged, or its input holds NaN"
        )


def _as_tensor(values: Any, what: str) -> torch.Tensor:
    """Return tensors, arrays and nested sequences as a tensor on the CPU; `what` names them in errors."""
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], torch.Tensor):
        try:
            values = torch.stack(list(values))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"the {what} do not stack ({error}); expected tensors of one shape") from None
    if isinstance(values, torch.Tensor):
        return values.detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"the {what} are not rectangular ({error}); expected as many scores for each sample") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the {what} hold {array.dtype}; expected numbers, as a tensor, array or list")
    return torch.tensor(array)


class _TopK(evaluate.Metric):
    """What `Top1` and `Top5` share: checks at `add_batch`, where the wrong batch is still at hand, and the count."""

    k: ClassVar[int]

    def __init__(self, *args, keep_in_memory: bool = True, **kwargs):
        self._num_classes: int | None = None
        super().__init__(*args, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION.format(k=self.k),
            citation="",
            inputs_description=_INPUTS.format(name=f"top{self.k}"),
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _build_data_dir(self) -> str:
        """Name the cache folder; unlike the parent's, make none where nothing will be written."""
        return "" if self.keep_in_memory else super()._build_data_dir()

    def _infer_feature_from_batch(self, batch) -> datasets.Features:
        """Say what is stored of a batch: not the scores, which are large, but the place of the true class."""
        return datasets.Features({name: datasets.Value("int64") for name in self._feature_names()})

    def add_batch(self, *, predictions=None, references=None, **kwargs) -> None:
        """Add the scores and true classes of some samples; ValueError if they are wrong, and then none is added."""
        if predictions is None or references is None:
            missing = "predictions" if predictions is None else "references"
            raise ValueError(f"{missing} is None; expected both predictions and references, one of each a sample")
        scores, labels = _as_tensor(predictions, "predictions"), _as_tensor(references, "references")
        _check(scores, labels)
        if self._num_classes not in (None, scores.shape[1]):
            raise ValueError(
                f"the predictions have scores of {scores.shape[1]} classes, earlier ones of {self._num_classes}; "
                "expected the same model for all batches: call compute() before scoring another"
            )
        self._num_classes = scores.shape[1]
        super().add_batch(predictions=_ranks(scores, labels).tolist(), references=labels.tolist(), **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs) -> None:
        """Add the scores (L,) and the true class of one sample; ValueError if they are wrong."""
        # The combined object of `evaluate` passes a single sample under the plural names.
        prediction, reference = kwargs.pop("predictions", prediction), kwargs.pop("references", reference)
        one = [None if value is None else [value] for value in (prediction, reference)]
        self.add_batch(predictions=one[0], references=one[1], **kwargs)

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, float] | None:
        """Return the accuracy over all samples added so far and given here, and start anew."""
        if predictions is None and references is None and self.writer is None:
            raise ValueError(
                f"{self.name} has nothing to score; expected predictions and references: call add_batch() or give "
                "them to compute()"
            )
        result = super().compute(predictions=predictions, references=references, **kwargs)
        self._num_classes = None
        return result

    def _compute(self, *, predictions, references) -> dict[str, float]:
        """Count the places, which stand for `predictions` since `add_batch`."""
        return {f"top{self.k}": sum(rank <= self.k for rank in predictions) / len(predictions)}


class Top1(_TopK):
    """Accuracy, `{"top1": fraction}`: the true class scores higher than every other."""

    k = 1


class Top5(_TopK):
    """Top-5 accuracy, `{"top5": fraction}`: at most four other classes score as high as the true one or higher."""

    k = 5


def load_metrics(metrics: Sequence[type[_TopK]] = (Top1, Top5)) -> evaluate.CombinedEvaluations:
    """Return the metrics as one object of `evaluate`: `add_batch` as often as needed, then `compute`.

    >>> metrics = load_metrics()
    >>> metrics.add_batch(predictions=[[0.1, 0.9], [0.8, 0.2]], references=[1, 1])
    >>> metrics.compute()
    {'top1': 0.5, 'top5': 1.0}
    """
    return evaluate.combine([metric() for metric in metrics])


__all__ = ["Top1", "Top5", "load_metrics", "top_k_correct"]
