"""Find the samples whose label a model disputes with confidence: where to look for wrong labels.

Confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning", JAIR 70, arXiv 1911.00068), in its plainest
form. The model is sure of a class where it gives it at least as much probability as it gives, on the average, to that
class on the samples that are labelled so; so a class the model is modest about needs less. A sample is disputed when
the model is sure of a class other than its label (of several, the likeliest) and the label is not what it predicts.
Disputed samples are ranked by normalised margin, the probability of the label less the largest of the others, the
lowest first.

The model must not have learned the labels that it judges: predictions on training data dispute little, for what is
wrong there was learned by heart. A disputed label is not a wrong one: a weak model disputes mostly by mistake.

Shapes: N samples, L classes.
"""

from typing import Any

import torch

from .predictions import Predictions


def find_disputed(predictions: Predictions) -> list[dict[str, Any]]:
    """Return the samples whose label the model disputes, the most confidently disputed first.

    Args:
        predictions: of N samples.

    Returns:
        row, label, suggested (class names), probability_of_label, probability (of the suggested class), margin (from -1
        to 0).
    """
    probabilities = predictions.scores.logits.double().softmax(dim=1)  # (N, L)
    labels, names = predictions.scores.labels, predictions.label_names
    numbers = predictions.scores.rows
    of_label = probabilities.gather(1, labels[:, None])[:, 0]  # (N,)
    count = torch.bincount(labels, minlength=len(names)).double()
    # A class without samples has no average, and the model is never sure of it.
    sure = torch.zeros(len(names), dtype=torch.float64).index_add(0, labels, of_label) / count  # (L,)
    candidates = probabilities.where(probabilities >= sure, 0.0)  # (N, L); nan compares as false
    suggested = candidates.argmax(dim=1)
    margin = of_label - probabilities.scatter(1, labels[:, None], -1.0).amax(dim=1)
    disputed = (candidates.amax(dim=1) > 0) & (suggested != labels) & (margin < 0)
    rows = disputed.nonzero()[:, 0]
    rows = rows[margin[rows].argsort(stable=True)]
    return [
        {
            "row": int(numbers[row]),
            "label": names[labels[row]],
            "suggested": names[suggested[row]],
            "probability_of_label": of_label[row].item(),
            "probability": probabilities[row, suggested[row]].item(),
            "margin": margin[row].item(),
        }
        for row in rows.tolist()
    ]
