"""How often a model is right: top-1, top-5, by class, by superclass, and by ImageNet's reassessed labels.

With k classes or fewer every sample is among the top k, so "top5" is 1 for a problem of 5 classes or fewer.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import torch

from ..superclasses import superclasses
from .base import ANY_SCORES, INPUTS, SampleMetric
from .samples import names_group, names_real, ranks


class _TopK(SampleMetric):
    k: ClassVar[int]
    inputs_text = INPUTS.format(scores=ANY_SCORES, returns='{"topK": accuracy}, a fraction in [0, 1].')

    def _reduce(self, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        return {"predictions": ranks(scores, labels).tolist(), "references": labels.tolist()}

    def _compute(self, *, predictions, references) -> dict[str, float]:
        """Count the places, which stand for `predictions` since `add_batch`."""
        return {f"top{self.k}": sum(rank <= self.k for rank in predictions) / len(predictions)}


class Top1(_TopK):
    """Accuracy, `{"top1": fraction}`: the true class scores higher than every other."""

    k = 1
    description = "Share of the samples whose true class has the highest score; ties count against it."


class Top5(_TopK):
    """Top-5 accuracy, `{"top5": fraction}`: at most four other classes score as high as the true one or higher."""

    k = 5
    description = "Share of the samples whose true class is among the 5 with the highest scores; ties count against it."


class PerClass(_TopK):
    """Top-1 accuracy of each class, `{"per_class": [fraction or None, ...]}`, None for a class without samples.

    It is the recall of each class.
    """

    k = 1
    description = "Top-1 accuracy of the samples of each class; ties count against the true class."
    inputs_text = INPUTS.format(scores=ANY_SCORES, returns='{"per_class": [L fractions, None where no sample is]}.')

    def _compute(self, *, predictions, references) -> dict[str, Any]:
        return {"per_class": self._shares(predictions, references)}

    def _shares(self, predictions: list[int], references: list[int]) -> list[float | None]:
        classes = self._num_classes or max(references) + 1
        count, correct = [0] * classes, [0] * classes
        for rank, label in zip(predictions, references, strict=True):
            count[label] += 1
            correct[label] += rank <= self.k
        return [right / n if n else None for n, right in zip(count, correct, strict=True)]


class BalancedAccuracy(PerClass):
    """Mean of the top-1 accuracies of the classes that have samples, `{"balanced_accuracy": fraction}`."""

    description = "Mean over the classes that have samples of their top-1 accuracy, whatever their sizes."
    inputs_text = INPUTS.format(scores=ANY_SCORES, returns='{"balanced_accuracy": fraction}.')

    def _compute(self, *, predictions, references) -> dict[str, Any]:
        shares = [share for share in self._shares(predictions, references) if share is not None]
        return {"balanced_accuracy": math.fsum(shares) / len(shares)}


class SuperclassTop1(SampleMetric):
    """How often the class named lies in the superclass of the true one, `{"superclass_top1": fraction}`.

    Args:
        label_names: of the L classes, in the order of the scores; CIFAR-100's are known (see `superclasses`).

    Raises:
        ValueError: the classes have no superclasses.
    """

    description = "Share of the samples for which the highest score is that of a class of the true superclass."
    citation = "Krizhevsky, Learning multiple layers of features from tiny images, 2009 (the superclasses)"
    inputs_text = INPUTS.format(scores=ANY_SCORES, returns='{"superclass_top1": fraction}.')

    def __init__(self, label_names: Sequence[str], *args, **kwargs):
        found = superclasses(label_names)
        if found is None:
            raise ValueError(
                f"there are no superclasses of these {len(label_names)} classes (first: {list(label_names)[:3]}); "
                "expected the 100 classes of CIFAR-100, in any order"
            )
        names = sorted(set(found))
        self._groups = torch.tensor([names.index(name) for name in found])
        super().__init__(*args, **kwargs)

    def _check(self, scores: torch.Tensor, given: Any) -> Any:
        if scores.shape[1] != len(self._groups):
            raise ValueError(f"the scores have {scores.shape[1]} classes; expected {len(self._groups)}, one a name")
        return super()._check(scores, given)

    def _reduce(self, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        hits = names_group(scores, labels, self._groups).long()
        return {"predictions": hits.tolist(), "references": labels.tolist()}

    def _compute(self, *, predictions, references) -> dict[str, float]:
        return {"superclass_top1": sum(predictions) / len(predictions)}


class RealTop1(SampleMetric):
    """Accuracy by ImageNet's reassessed labels (ReaL), `{"real_top1": fraction, "real_n": samples counted}`.

    Beyer et al. 2020, arXiv 2006.07159: a picture may show several classes, and is named rightly by any of them; one
    without any such label is not counted. The labels are an input of their own, `real_labels`, a list of class indices
    a sample, so that they stand beside the samples they belong to, whatever the order of the data, and so that the
    metric combines with the others: `combine([Top1(), RealTop1()]).add_batch(predictions=…, references=…,
    real_labels=…)`. Without any sample that has labels `real_top1` is None.
    """

    description = "Share of the samples, of those with reassessed labels, whose highest score is that of one of them."
    citation = "Beyer et al., Are we done with ImageNet?, 2020, arXiv 2006.07159"
    inputs_text = f"""
Args:
    predictions: (N, L), float: a score per class, {ANY_SCORES}.
    real_labels: N lists of class indices in [0, L), empty where a sample has none.

Returns:
    {{"real_top1": fraction, "real_n": how many samples have labels}}.
"""
    stored: ClassVar[dict[str, Any]] = {"predictions": datasets.Value("int64"), "real_labels": datasets.Value("int64")}

    def _inputs(self) -> dict[str, Any]:
        """Return the features of what is given: sets of labels in the place of labels."""
        scores = datasets.Sequence(datasets.Value("float32"))
        return {"predictions": scores, "real_labels": datasets.Sequence(datasets.Value("int64"))}

    def _check(self, scores: torch.Tensor, given: Any) -> Any:
        return given  # checked where they are used

    def _reduce(self, scores: torch.Tensor, labels: Any) -> dict[str, Any]:
        sizes = [len(entry) for entry in labels]
        return {"predictions": names_real(scores, labels).tolist(), "real_labels": sizes}

    def _compute(self, *, predictions, real_labels) -> dict[str, Any]:
        counted = [hit for hit in predictions if hit >= 0]
        return {"real_top1": sum(counted) / len(counted) if counted else None, "real_n": len(counted)}
