"""Nearest neighbours with the weighting of DINO (Caron et al. 2021, arXiv 2104.14294; its `eval_knn.py`).

The k training pictures whose features have the largest cosine similarity s to that of a test picture each give exp(s/T)
votes to their class, T = 0.07; most votes win. Two rules that the original leaves to its sort: of equally similar
neighbours the earlier in the training split is nearer, of classes with equally many votes the first wins.

Shapes: N training pictures, M test pictures, W width of a feature, K neighbours, L classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from .features import Features

NEIGHBOURS, TEMPERATURE = (10, 20, 100, 200), 0.07
_SIMILARITIES_AT_ONCE = 32_000_000  # float32, 128 MB; their order takes three times as much


def predict_knn(
    train: Features,
    test: Features,
    num_classes: int,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """Return the class of every test picture for each number of neighbours.

    Args:
        train: N features that vote.
        test: M features to classify.
        num_classes: L.
        neighbours: each at most N.
        temperature: T.

    Returns:
        (len(neighbours), M), int64.

    Raises:
        ValueError: more neighbours than training pictures.
    """
    most, n = max(neighbours), len(train.labels)
    if most > n:
        raise ValueError(f"{most} neighbours of {n} training pictures; expected at most {n}; ask for fewer")
    gallery = F.normalize(torch.from_numpy(train.vectors), dim=1)  # (N, W)
    queries = F.normalize(torch.from_numpy(test.vectors), dim=1)  # (M, W)
    labels = torch.from_numpy(train.labels)
    found = []
    for chunk in queries.split(max(_SIMILARITIES_AT_ONCE // n, 1)):
        nearest, similarity = _nearest(chunk @ gallery.T, most)  # (m, K)
        votes = (similarity.double() / temperature).exp()
        classes = labels[nearest]  # (m, K)
        totals = torch.zeros(len(chunk), num_classes, dtype=torch.float64)
        predictions, counted = {}, 0
        for k in sorted(set(neighbours)):
            totals.scatter_add_(1, classes[:, counted:k], votes[:, counted:k])
            predictions[k], counted = totals.argmax(dim=1), k
        found.append(torch.stack([predictions[k] for k in neighbours]))  # (len(neighbours), m)
    return torch.cat(found, dim=1).numpy()


def _nearest(similarity: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the columns of the `most` largest values of each row, the largest first, of equal ones the first column.

    `topk` is quick but free in its choice among equal values: it is asked for one more, and rows where the last place
    is disputed are sorted whole.

    Args:
        similarity: (m, N), float.
        most: K, at most N.

    Returns:
        Columns (m, K), int64, and their values (m, K).
    """
    values, columns = similarity.topk(min(most + 1, similarity.shape[1]), dim=1)
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if values.shape[1] > most:
        for row in (values[:, most - 1] == values[:, most]).nonzero()[:, 0].tolist():
            whole, order = similarity[row].sort(descending=True, stable=True)
            values[row], columns[row] = whole[: most + 1], order[: most + 1]
    return columns[:, :most], values[:, :most]
