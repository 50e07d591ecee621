"""What all metrics share: checks where the wrong batch is still at hand, and no file, no scores, kept.

A metric of `evaluate` writes what it is given into an Arrow file in the cache folder, with a lock beside it; these keep
it in memory unless told otherwise, so any number of processes can score at once. And they keep of each sample only what
their result is made of, such as the place of its true class; the scores of 1,000 classes would fill 4 kB a sample.

Shapes: N samples, L classes.
"""

from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import torch

from .samples import check_labels, check_scores

INPUTS = """
Args:
    predictions: (N, L), float: a score per class, {scores}.
    references: (N,), int: the true class, in [0, L).

Returns:
    {returns}
"""
ANY_SCORES = "logits or probabilities of any float type"
_SINGULAR = {"prediction": "predictions", "reference": "references"}


class SampleMetric(evaluate.Metric):
    """A metric that is made of a few numbers a sample; a subclass says which, and what to make of them."""

    description: ClassVar[str]
    inputs_text: ClassVar[str]
    citation: ClassVar[str] = ""
    stored: ClassVar[dict[str, Any]] = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
    """What is kept of a sample, under the names of the inputs it is made of."""

    def __init__(self, *args, keep_in_memory: bool = True, **kwargs):
        self._num_classes: int | None = None
        super().__init__(*args, keep_in_memory=keep_in_memory, **kwargs)

    # ------------------------------------------------------------------------------------------ what a subclass says
    def _reduce(self, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """Return what is kept of scores (N, L) and labels (N,) that were checked: a column for each of `stored`."""
        raise NotImplementedError

    def _inputs(self) -> dict[str, Any]:
        """Return the features of what is given, which `evaluate.combine` goes by."""
        scores = datasets.Sequence(datasets.Value("float32"))
        return {"predictions": scores, "references": datasets.Value("int64")}

    def _check(self, scores: torch.Tensor, given: Any) -> Any:
        """Return the checked truth of the scores, here labels (N,)."""
        labels = as_tensor(given, "references")
        check_labels(scores, labels)
        return labels

    # ------------------------------------------------------------------------------------------ evaluate's machinery
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=self.inputs_text,
            features=datasets.Features(self._inputs()),
        )

    def _build_data_dir(self) -> str:
        """Name the cache folder; unlike the parent's, make none where nothing will be written."""
        return "" if self.keep_in_memory else super()._build_data_dir()

    def _infer_feature_from_batch(self, batch) -> datasets.Features:
        """Say what is stored of a batch: not the scores, which are large."""
        return datasets.Features(self.stored)

    def add_batch(self, *, predictions=None, references=None, **kwargs) -> None:
        """Add the scores and the truth of some samples; ValueError if they are wrong, and then none is added."""
        given = {"predictions": predictions, "references": references, **kwargs}
        names = self._feature_names()
        missing = [name for name in names if given.get(name) is None]
        if missing:
            raise ValueError(f"{missing[0]} is None; expected both {' and '.join(names)}, one of each a sample")
        scores = as_tensor(predictions, "predictions")
        check_scores(scores)
        truth = self._check(scores, given.pop(names[1]))
        if self._num_classes not in (None, scores.shape[1]):
            raise ValueError(
                f"the predictions have scores of {scores.shape[1]} classes, earlier ones of {self._num_classes}; "
                "expected the same model for all batches: call compute() before scoring another"
            )
        columns = self._reduce(scores, truth)
        self._num_classes = scores.shape[1]
        super().add_batch(**{name: kwargs[name] for name in kwargs if name not in names}, **columns)

    def add(self, **kwargs) -> None:
        """Add the scores (L,) and the truth of one sample; ValueError if they are wrong."""
        # The combined object of `evaluate` passes a single sample under the plural names.
        given = {_SINGULAR.get(name, name): value for name, value in kwargs.items()}
        self.add_batch(**{name: None if value is None else [value] for name, value in given.items()})

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, Any] | None:
        """Return the result over all samples added so far and given here, and start anew.

        An input that only another metric of a combination takes is passed over.
        """
        names = self._feature_names()
        given = {"predictions": predictions, "references": references, **kwargs}
        if all(given.get(name) is None for name in names) and self.writer is None:
            raise ValueError(
                f"{self.name} has nothing to score; expected {' and '.join(names)}: call add_batch() or give "
                "them to compute()"
            )
        result = super().compute(**{name: given.get(name) for name in names})
        self._num_classes = None
        return result


def as_tensor(values: Any, what: str) -> torch.Tensor:
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
