"""Find the image and the label column by feature type, give every label a name, and check every label.

Rules, in this order. Image: the one column of type `Image` (or an untyped struct of `bytes` and `path`, as in Parquet
files written without `datasets`). Label: the one `ClassLabel`; of several, `fine_label` beside `coarse_label` only, or
the one called `label` or `labels`; without any, the one column of whole numbers or text with a usual name. What these
rules do not settle is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value

_LABEL_NAMES = ("label", "labels", "fine_label", "target", "targets", "class", "category", "y")


def find_image_column(features: Features, *, where: str, wanted: str | None = None) -> str:
    """The column that holds the images.

    Args:
        features: columns and their types.
        where: the data set's name, for error texts.
        wanted: the caller's choice; it is only checked.

    Raises:
        ValueError: missing, of another type, none found, or several and no choice made.
    """
    candidates = [name for name, feature in features.items() if _is_image(feature)]
    if wanted is not None:
        _check_present(features, wanted, where=where, option="image_column")
        if wanted not in candidates:
            raise ValueError(
                f"{where}: column {wanted!r} is {_kind(features[wanted])}; expected images; "
                f"{_choose('image_column', candidates)}"
            )
        return wanted
    if len(candidates) != 1:
        found = (
            f"{len(candidates)} image columns {candidates}" if candidates else f"no image column in {_show(features)}"
        )
        raise ValueError(f"{where}: {found}; expected one column of type Image; {_choose('image_column', candidates)}")
    return candidates[0]


def find_label_column(features: Features, *, where: str, wanted: str | None = None) -> str:
    """The column that holds the labels, by the module's rules; arguments and errors as in `find_image_column`."""
    usable = [name for name, feature in features.items() if _is_label(feature)]
    if wanted is not None:
        _check_present(features, wanted, where=where, option="label_column")
        if wanted not in usable:
            raise ValueError(
                f"{where}: column {wanted!r} is {_kind(features[wanted])}; expected a ClassLabel, whole numbers or "
                f"text; {_choose('label_column', usable)}"
            )
        return wanted
    candidates = _label_candidates(features)
    if set(candidates) == {"fine_label", "coarse_label"}:
        return "fine_label"
    conventional = [name for name in candidates if name in ("label", "labels")]
    chosen = candidates if len(candidates) == 1 else conventional
    if len(chosen) == 1:
        return chosen[0]
    found = f"{len(candidates)} label columns {candidates}" if candidates else f"no label column in {_show(features)}"
    raise ValueError(f"{where}: {found}; expected one ClassLabel; {_choose('label_column', candidates or usable)}")


def _label_candidates(features: Features) -> list[str]:
    """Columns that are labels by their type, or else by their name."""
    typed = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return typed or [name for name, feature in features.items() if _is_label(feature) and name in _LABEL_NAMES]


def has_labels(dataset: Dataset, *, where: str, wanted: str | None = None) -> bool:
    """Whether there is a label column, and a label in it; ValueError when there are several and no choice is made."""
    if wanted not in dataset.features and not _label_candidates(dataset.features):
        return False
    return not is_unlabelled(dataset, find_label_column(dataset.features, where=where, wanted=wanted))


def label_values(dataset: Dataset, column: str) -> pa.Array:
    """All values of one column in row order, without touching the others (nor decoding images)."""
    table = dataset.select_columns([column]).with_format("arrow")[:]
    return pa.concat_arrays(table[column].chunks) if table[column].num_chunks else pa.array([], type=pa.int64())


def is_unlabelled(dataset: Dataset, column: str) -> bool:
    """Whether no row has a label: all are missing or -1, as on ImageNet's test split."""
    values = label_values(dataset, column)
    if len(values) == 0:
        return False
    if pa.types.is_integer(values.type) and not pa.types.is_unsigned_integer(values.type):
        return bool(pc.all(pc.equal(pc.fill_null(values, -1), -1)).as_py())
    return values.null_count == len(values)


def name_labels(splits: dict[str, Dataset], column: str, *, where: str, train: str | None) -> dict[str, Dataset]:
    """Turn labels without names (whole numbers or text) into `ClassLabel` on all splits; leave a `ClassLabel` as it is.

    Where a split has one, it names the labels of the others: their numbers are its indices, their text its names.
    Otherwise the names are the values of the train split, sorted: numbers by size, text by code point.

    Raises:
        ValueError: no train split to take names from, a missing (also empty text) or negative label, or a value that
            train lacks.
    """
    if all(isinstance(dataset.features[column], ClassLabel) for dataset in splits.values()):
        return splits
    first = [*([train] if train else []), *splits]  # whose names count
    features = [splits[split].features[column] for split in first]
    named = next((feature for feature in features if isinstance(feature, ClassLabel)), None)
    if named is not None:
        return {
            split: _take_names(dataset, column, named, where=where, split=split) for split, dataset in splits.items()
        }
    if train is None:
        raise ValueError(
            f"{where}: column {column!r} has no names and there is no train split to find them in, only "
            f"{list(splits)}; expected a ClassLabel; save the data with cast_column(..., ClassLabel(names=...))"
        )
    columns = {split: label_values(dataset, column) for split, dataset in splits.items()}
    for split, values in columns.items():
        missing = pc.is_null(values)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), ""), True))
        if pc.any(missing).as_py():
            row = pc.index(missing, True).as_py()
            raise ValueError(_bad_label(where, split, row, None, column, "a number or text"))
        if pa.types.is_signed_integer(values.type) and pc.min(values).as_py() < 0:
            row = pc.index(pc.less(values, 0), True).as_py()
            raise ValueError(_bad_label(where, split, row, values[row].as_py(), column, "0 or more"))
    known = sorted(pc.unique(columns[train]).to_pylist())
    expected = f"one of the {len(known)} values of split {train}, such as {known[:5]}"
    options: dict[str, Any] = {"where": where, "expected": expected}
    return {split: _with_classes(dataset, column, known, split=split, **options) for split, dataset in splits.items()}


def _take_names(dataset: Dataset, column: str, named: ClassLabel, *, where: str, split: str) -> Dataset:
    """Give labels without names those of another split."""
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return dataset
    if "string" in feature.dtype:
        return match_labels(dataset, column, named.names, where=where, split=split)
    expected = f"0 to {len(named.names) - 1} ({len(named.names)} names)"
    numbers = list(range(len(named.names)))
    numbered = _with_classes(dataset, column, numbers, where=where, split=split, expected=expected)
    return numbered.cast_column(column, named)


def match_labels(
    dataset: Dataset | IterableDataset, column: str, names: list[str], *, where: str, split: str
) -> Dataset | IterableDataset:
    """Turn labels without names (whole numbers or text) into a `ClassLabel` of these names: each into that of its name.

    Raises:
        ValueError: a label is missing, or none of the names; of a streamed set when it is read.
    """
    expected = f"the name of one of the model's {len(names)} classes, such as {names[:5]}"
    if isinstance(dataset, IterableDataset):
        numbers = {name: number for number, name in enumerate(names)}

        def number(row: dict[str, Any]) -> dict[str, int]:
            if (value := row[column]) is None or str(value) not in numbers:
                raise ValueError(
                    f"{where}: split {split} has label {value!r} in column {column!r}; expected {expected}"
                )
            return {column: numbers[str(value)]}

        return dataset.map(number, features=Features({**dataset.features, column: ClassLabel(names=names)}))
    return _with_classes(dataset, column, names, where=where, split=split, expected=expected)


def _with_classes(dataset: Dataset, column: str, known: list[Any], *, where: str, split: str, expected: str) -> Dataset:
    """Turn each label into its place in `known`, and name the classes so."""
    values, names = label_values(dataset, column).to_pylist(), [str(value) for value in known]
    index = {name: position for position, name in enumerate(names)}
    numbers = np.array([-1 if value is None else index.get(str(value), -1) for value in values], dtype=np.int64)
    if (numbers < 0).any():
        row = int(np.argmax(numbers < 0))
        raise ValueError(_bad_label(where, split, row, values[row], column, expected))
    changed = dataset.remove_columns(column).add_column(column, numbers, feature=ClassLabel(names=names))
    return changed.select_columns(dataset.column_names)


def check_labels(splits: dict[str, Dataset], column: str, *, where: str) -> tuple[str, ...]:
    """Check that every label of every split is in range, and return the label names.

    Raises:
        ValueError: a missing, negative or too large label (with its row), or splits that name their labels differently.
    """
    names_of = {split: tuple(dataset.features[column].names) for split, dataset in splits.items()}
    first, names = next(iter(names_of.items()))
    for split, dataset in splits.items():
        if names_of[split] != names:
            raise ValueError(
                f"{where}: column {column!r} of split {split} has {len(names_of[split])} names that differ from the "
                f"{len(names)} of split {first}; expected the same names in the same order; save "
                "the splits with one ClassLabel"
            )
        values = label_values(dataset, column)
        wrong = pc.fill_null(pc.or_(pc.less(values, 0), pc.greater_equal(values, len(names))), True)
        if pc.any(wrong).as_py():
            row = pc.index(wrong, True).as_py()
            expected = f"0 to {len(names) - 1} ({len(names)} names)"
            raise ValueError(_bad_label(where, split, row, values[row].as_py(), column, expected))
    return names


def _bad_label(where: str, split: str, row: int, value: Any, column: str, expected: str) -> str:
    found = "no label" if value is None else f"label {value!r}"
    return (
        f"{where}: row {row} of split {split} has {found} in column {column!r}; expected {expected}; "
        "correct or remove that row"
    )


def _is_image(feature: Any) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"} and "binary" in str(getattr(feature["bytes"], "dtype", ""))
    return isinstance(feature, Image)


def _is_label(feature: Any) -> bool:
    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "string", "large_string", "bool"))


def _check_present(features: Features, name: str, *, where: str, option: str) -> None:
    if name not in features:
        raise ValueError(
            f"{where}: no column {name!r}; found {_show(features)}; name one of them with --data.{option} NAME "
            f"({option}=NAME in Python)"
        )


def _choose(option: str, candidates: list[str]) -> str:
    if candidates:
        return f"choose with --data.{option} NAME ({option}=NAME in Python) from {candidates}"
    return "save the data with that type (datasets' cast_column)"


def _show(features: Features) -> str:
    return "{" + ", ".join(f"{name}: {_kind(feature)}" for name, feature in features.items()) + "}"


def _kind(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__
