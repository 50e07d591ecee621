"""CIFAR-100's superclasses: those of the data, by name, and of no other data."""

import json

import pyarrow.parquet
import pytest

from vit_hf.evaluation.superclasses import CIFAR100, superclasses

NAMES = [name for names in CIFAR100.values() for name in names]


def test_there_are_20_superclasses_of_5_different_classes_each():
    assert [len(names) for names in CIFAR100.values()] == [5] * 20
    assert len(set(NAMES)) == 100


def test_the_superclass_of_every_picture_of_the_data_is_that_of_its_class(shared_data):
    rows = 0
    for path in sorted(shared_data("cifar100").glob("cifar100/*.parquet")):
        file = pyarrow.parquet.ParquetFile(path)
        features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        fine, coarse = (features[f"{kind}_label"]["names"] for kind in ("fine", "coarse"))
        found = superclasses(fine)
        for labels in file.read(columns=["fine_label", "coarse_label"]).to_pylist():
            assert found[labels["fine_label"]] == coarse[labels["coarse_label"]]
            rows += 1
    assert rows == 60_000


def test_the_names_are_known_in_any_order_and_spelling():
    assert superclasses(NAMES[::-1]) == tuple(group for group in CIFAR100 for _ in range(5))[::-1]
    spelled = [name.replace("_", " ").title() for name in NAMES]
    assert superclasses(spelled) == superclasses(NAMES)
    spelled = ["cra" if name == "crab" else name.replace("_", "-") for name in NAMES]
    assert superclasses(spelled) == superclasses(NAMES)


@pytest.mark.parametrize(
    "names", [NAMES[:99], [*NAMES, "zebra"], [*NAMES[:99], "zebra"], [*NAMES[:99], NAMES[0]], ["bed", "chair"], []]
)
def test_other_classes_have_none(names):
    assert superclasses(names) is None
