"""Metrics as `evaluate.Metric` classes that need no network and leave no files.

`evaluate.load("accuracy")` fetches its code from the Hub; these are ordinary classes, and `evaluate.combine` takes any
of them together. All take scores (N, L) as `predictions` and true classes (N,) as `references`, but `RealTop1`, whose
truth is sets of labels and comes in as `real_labels`. Their results have the names of results.json.

`base` holds what they share, `samples` the pure functions they are made of, with the rule for ties.
"""

from collections.abc import Sequence

import evaluate

from .accuracy import BalancedAccuracy, PerClass, RealTop1, SuperclassTop1, Top1, Top5
from .base import SampleMetric
from .probability import Brier, CalibratedError, ExpectedCalibrationError, NegativeLogLikelihood
from .samples import top_k_correct


def load_metrics(metrics: Sequence[type[SampleMetric] | SampleMetric] = (Top1, Top5)) -> evaluate.CombinedEvaluations:
    """Return the metrics as one object of `evaluate`: `add_batch` as often as needed, then `compute`.

    Args:
        metrics: classes, or objects where a class needs to be told something (`SuperclassTop1(label_names)`).

    >>> metrics = load_metrics()
    >>> metrics.add_batch(predictions=[[0.1, 0.9], [0.8, 0.2]], references=[1, 1])
    >>> metrics.compute()
    {'top1': 0.5, 'top5': 1.0}
    """
    return evaluate.combine([metric() if isinstance(metric, type) else metric for metric in metrics])


__all__ = [
    "BalancedAccuracy",
    "Brier",
    "CalibratedError",
    "ExpectedCalibrationError",
    "NegativeLogLikelihood",
    "PerClass",
    "RealTop1",
    "SampleMetric",
    "SuperclassTop1",
    "Top1",
    "Top5",
    "load_metrics",
    "top_k_correct",
]
