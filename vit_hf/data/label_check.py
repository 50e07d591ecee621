"""List everything that is wrong with the labels of a data set, where `load_source` stops at the first.

Nothing is changed or left out. The rules are those of `columns`: a label is missing, below 0, beyond the names of its
`ClassLabel`, or, for labels without names, a value that the training split does not have.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from .columns import is_unlabelled, label_values

FEW = 5
"""A class with fewer pictures than this in a split is named."""


@dataclass(frozen=True)
class LabelReport:
    """What is wrong with the labels of a data set, and the labels as far as they are right."""

    names: tuple[str, ...]
    """Of the classes: those of the training split, or of the first split."""
    numbers: dict[str, np.ndarray]
    """For each split, (rows,) int64: the class, -1 where it is wrong or missing."""
    wrong: list[dict[str, Any]]
    """split, row, column, value (as it stands), problem: "missing", "negative", "out of range" or "unknown"."""
    unlabelled: tuple[str, ...]
    """Splits in which no row has a label."""
    other_names: list[dict[str, Any]]
    """split, names (how many), missing, more: splits whose `ClassLabel` has other names, or another order of them."""
    alike_names: list[list[str]]
    """Names that differ in case, spaces, hyphens and underscores only."""
    empty: dict[str, list[str]]
    """For each labelled split, the classes without pictures."""
    few: dict[str, dict[str, int]]
    """For each labelled split, the number of pictures of the classes that have 1 to 4."""


def check_all_labels(splits: Mapping[str, Dataset], column: str, *, train: str | None) -> LabelReport:
    """Look at every label of every split.

    Args:
        splits: as they were read, with the label column as `find_label_column` found it.
        column: name of that column.
        train: the split whose names and values are those of the classes; None for the first (of labels without names:
            all splits).
    """
    leader = train if train is not None else next(iter(splits))
    unlabelled = tuple(name for name, split in splits.items() if is_unlabelled(split, column))
    labelled = {name: split for name, split in splits.items() if name not in unlabelled}
    values = {name: label_values(split, column).to_pylist() for name, split in labelled.items()}
    feature = splits[leader].features[column]
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
        classes: dict[Any, int] = {number: number for number in range(len(names))}
    else:
        sources = [leader] if train in labelled else list(labelled)
        kept = {value for name in sources for value in values[name] if _problem(value, None) is None}
        ordered = sorted(kept)
        names, classes = tuple(map(str, ordered)), {value: number for number, value in enumerate(ordered)}
    numbers = {name: np.full(len(split), -1, np.int64) for name, split in splits.items()}
    wrong: list[dict[str, Any]] = []
    for name, split in labelled.items():
        own, known = getattr(split.features[column], "names", None), classes
        if own is not None:
            known = {number: names.index(word) for number, word in enumerate(own) if word in names}
        for row, value in enumerate(values[name]):
            problem = _problem(value, own)
            if problem is None and value not in known:
                problem = "unknown"
            if problem is None:
                numbers[name][row] = known[value]
            else:
                wrong.append({"split": name, "row": row, "column": column, "value": value, "problem": problem})
    counts = {name: np.bincount(numbers[name][numbers[name] >= 0], minlength=len(names)) for name in labelled}
    return LabelReport(
        names=names,
        numbers=numbers,
        wrong=wrong,
        unlabelled=unlabelled,
        other_names=_other_names(labelled, column, names),
        alike_names=_alike(names),
        empty={name: [names[i] for i in np.flatnonzero(count == 0)] for name, count in counts.items()},
        few={
            name: {names[i]: int(count[i]) for i in np.flatnonzero((count > 0) & (count < FEW))}
            for name, count in counts.items()
        },
    )


def _problem(value: Any, names: list[str] | None) -> str | None:
    """Say what is wrong with a label, by itself; names are those of a `ClassLabel`."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "missing"
    if not isinstance(value, str) and value < 0:
        return "negative"
    return "out of range" if names is not None and value >= len(names) else None


def _other_names(splits: Mapping[str, Dataset], column: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    found = []
    for name, split in splits.items():
        own = getattr(split.features[column], "names", None)
        if own is not None and tuple(own) != names:
            missing, more = sorted(set(names) - set(own)), sorted(set(own) - set(names))
            found.append({"split": name, "names": len(own), "missing": missing, "more": more})
    return found


def _alike(names: tuple[str, ...]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"[\s_-]+", " ", name).strip().casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


__all__ = ["FEW", "LabelReport", "check_all_labels"]
