"""Every wrong label is listed, where `load_source` stops at the first; what is right stays a class number."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from vit_hf.data.label_check import check_all_labels

NAMES = ["cat", "dog", "eel"]


def split(labels, kind=None) -> Dataset:
    """A split whose values nothing has checked, as in a Parquet file."""
    kind = ClassLabel(names=NAMES) if kind is None else kind
    stored = Value("int64") if isinstance(kind, ClassLabel) else kind
    made = Dataset.from_dict({"label": labels}, features=Features({"label": stored}))
    made.info.features["label"] = kind
    return made


def wrong(report) -> list[tuple]:
    return [(of["split"], of["row"], of["value"], of["problem"]) for of in report.wrong]


def test_all_wrong_labels_are_listed_with_split_row_column_and_value():
    report = check_all_labels(
        {"train": split([0, 3, 1, None, 2]), "test": split([-1, 2, -7, 99])}, "label", train="train"
    )
    assert wrong(report) == [
        ("train", 1, 3, "out of range"),
        ("train", 3, None, "missing"),
        ("test", 0, -1, "negative"),
        ("test", 2, -7, "negative"),
        ("test", 3, 99, "out of range"),
    ]
    assert all(of["column"] == "label" for of in report.wrong)
    assert report.names == tuple(NAMES)
    assert {name: numbers.tolist() for name, numbers in report.numbers.items()} == {
        "train": [0, -1, 1, -1, 2],
        "test": [-1, 2, -1, -1],
    }


def test_right_labels_give_an_empty_report():
    report = check_all_labels({"train": split([0, 1, 2] * 5), "test": split([2, 1, 0] * 5)}, "label", train="train")
    assert (report.wrong, report.unlabelled, report.other_names, report.alike_names) == ([], (), [], [])
    assert report.empty == {"train": [], "test": []}
    assert report.few == {"train": {}, "test": {}}


@pytest.mark.parametrize("labels", [[-1, -1], [None, None]])
def test_a_split_without_any_label_is_one_finding_not_one_a_row(labels):
    report = check_all_labels({"train": split([0, 1]), "test": split(labels)}, "label", train="train")
    assert report.unlabelled == ("test",)
    assert report.wrong == []
    assert report.numbers["test"].tolist() == [-1, -1]
    assert "test" not in report.empty


@pytest.mark.parametrize(
    ("kind", "train", "test", "expected"),
    [
        ("string", ["ant", None, "bee"], ["bee", "cow", None], [("train", 1), ("test", 1), ("test", 2)]),
        ("int64", [7, -3, 10], [10, 8], [("train", 1), ("test", 1)]),
    ],
)
def test_labels_without_names_are_held_to_the_values_of_train(kind, train, test, expected):
    splits = {"train": split(train, Value(kind)), "test": split(test, Value(kind))}
    report = check_all_labels(splits, "label", train="train")
    assert [(of["split"], of["row"]) for of in report.wrong] == expected
    assert len(report.names) == 2
    assert report.names[report.numbers["test"][0]] == str(test[0])


def test_without_a_training_split_all_values_are_known():
    report = check_all_labels({"test": split(["b", "a"], Value("string"))}, "label", train=None)
    assert (report.wrong, report.names, report.numbers["test"].tolist()) == ([], ("a", "b"), [1, 0])


def test_other_names_are_reported_and_matched_by_name():
    other = split([0, 1, 2], ClassLabel(names=["dog", "cat", "fox"]))
    report = check_all_labels({"train": split([0, 1, 2]), "test": other}, "label", train="train")
    assert report.other_names == [{"split": "test", "names": 3, "missing": ["eel"], "more": ["fox"]}]
    assert report.numbers["test"].tolist() == [1, 0, -1]
    assert wrong(report) == [("test", 2, 2, "unknown")]


def test_the_names_of_one_split_are_not_used_for_another():
    """Whole numbers beside a `ClassLabel` whose order differs count as numbers of the training split's classes."""
    splits = {
        "train": split([0, 1, 2]),
        "other": split([0], ClassLabel(names=NAMES[::-1])),
        "plain": split([0, 3], Value("int64")),
    }
    report = check_all_labels(splits, "label", train="train")
    assert report.numbers["other"].tolist() == [2]
    assert report.numbers["plain"].tolist() == [0, -1]


def test_names_that_differ_in_case_spaces_or_hyphens_only_are_reported():
    kind = ClassLabel(names=["Sea_lion", "cat", "sea lion ", "Cat", "dog", "sea-lion", "catdog"])
    report = check_all_labels({"train": split([0], kind)}, "label", train="train")
    assert report.alike_names == [["Sea_lion", "sea lion ", "sea-lion"], ["cat", "Cat"]]


def test_classes_with_no_and_with_few_pictures_are_counted_a_split():
    report = check_all_labels({"train": split([0] * 5 + [1] * 4 + [3]), "test": split([2] * 9)}, "label", train="train")
    assert report.empty == {"train": ["eel"], "test": ["cat", "dog"]}
    assert report.few == {"train": {"dog": 4}, "test": {}}
    assert np.array_equal(report.numbers["test"], [2] * 9)
