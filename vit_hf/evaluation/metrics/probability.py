"""How far the probabilities of a model can be believed: cross-entropy, Brier score, calibration error.

These take logits: the probabilities are their softmax. Who has probabilities gives their logarithm, whose softmax they
are.
"""

import math
import warnings
from typing import Any, ClassVar

import datasets
import numpy as np
import torch

from ..calibration import calibrate, calibrate_after_temperature
from .base import INPUTS, SampleMetric
from .samples import probability_figures, ranks

_LOGITS = "logits of any float type"


class _OfProbabilities(SampleMetric):
    """Checks that what is given are logits, as far as this can be seen."""

    def _check(self, scores: torch.Tensor, given: Any) -> Any:
        labels = super()._check(scores, given)
        if not scores.isfinite().all():
            raise ValueError("some scores are infinite; expected finite logits, whose softmax the probabilities are")
        if scores.shape[1] > 1 and scores.amin() >= 0 and ((scores.float().sum(dim=1) - 1).abs() < 1e-3).all():
            warnings.warn(
                f"{self.name} takes logits, and these scores look like probabilities, each row adding up to 1; give "
                "their logarithm if they are",
                stacklevel=3,
            )
        return labels


class NegativeLogLikelihood(_OfProbabilities):
    """Mean cross-entropy, `{"loss": nats}`."""

    description = "Mean negative logarithm of the probability of the true class, in nats."
    inputs_text = INPUTS.format(scores=_LOGITS, returns='{"loss": nats}.')
    stored: ClassVar[dict[str, Any]] = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}

    def _reduce(self, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        return {"predictions": probability_figures(scores, labels)[0].tolist(), "references": labels.tolist()}

    def _compute(self, *, predictions, references) -> dict[str, float]:
        return {"loss": math.fsum(predictions) / len(predictions)}


class Brier(_OfProbabilities):
    """Mean squared distance of the probabilities from the truth, summed over classes, `{"brier": 0 to 2}`."""

    description = "Mean over samples of the squared distance of the probabilities from the truth, summed over classes."
    citation = "Brier, Verification of forecasts expressed in terms of probability, 1950"
    inputs_text = INPUTS.format(scores=_LOGITS, returns='{"brier": from 0, perfect, to 2}.')
    stored = NegativeLogLikelihood.stored

    def _reduce(self, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        return {"predictions": probability_figures(scores, labels)[2].tolist(), "references": labels.tolist()}

    def _compute(self, *, predictions, references) -> dict[str, float]:
        return {"brier": math.fsum(predictions) / len(predictions)}


class ExpectedCalibrationError(_OfProbabilities):
    """Mean distance of confidence and accuracy over 15 bins of confidence, `{"expected_calibration_error": 0 to 1}`."""

    description = "Mean distance of confidence and accuracy over 15 equal bins of confidence, weighted by count."
    citation = "Guo et al., On calibration of modern neural networks, 2017, arXiv 1706.04599"
    inputs_text = INPUTS.format(scores=_LOGITS, returns='{"expected_calibration_error": fraction}.')
    stored = NegativeLogLikelihood.stored  # the confidence, and whether it was right

    def _reduce(self, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        right = (ranks(scores, labels) <= 1).long()
        return {"predictions": probability_figures(scores, labels)[1].tolist(), "references": right.tolist()}

    def _compute(self, *, predictions, references) -> dict[str, float]:
        found = calibrate(np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64))
        return {"expected_calibration_error": found["expected_calibration_error"]}


class CalibratedError(_OfProbabilities):
    """The calibration error after a temperature, `{"temperature": of all samples, "calibrated_error": 0 to 1}`.

    The logits of one half of the samples are divided by the temperature that fits the other half best, both ways (see
    `calibrate_after_temperature`), so nothing is scored with what was fitted to it. It keeps all logits, as float32.
    """

    description = "Expected calibration error after temperature scaling, each half of the samples by the other half."
    citation = ExpectedCalibrationError.citation
    inputs_text = INPUTS.format(scores=_LOGITS, returns='{"temperature": T, "calibrated_error": fraction}.')
    stored: ClassVar[dict[str, Any]] = {
        "predictions": datasets.Sequence(datasets.Value("float32")),
        "references": datasets.Value("int64"),
    }

    def _reduce(self, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        return {"predictions": scores.float().tolist(), "references": labels.tolist()}

    def _compute(self, *, predictions, references) -> dict[str, float]:
        logits, labels = torch.tensor(predictions, dtype=torch.float32), torch.tensor(references)
        found = calibrate_after_temperature(logits, labels)
        return {name: found[name] for name in ("temperature", "calibrated_error")}
