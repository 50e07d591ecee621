"""Pictures: what is trained, validated and tested on never overlaps, is stratified, and is the same every time."""

import io
from collections import Counter

import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset

from vit_hf.data.images import read_image
from vit_hf.data.pictures import DataFields, num_rows, open_pictures, save_examples
from vit_hf.data.sources import load_source

NAMES = ["zebra", "ant", "n/a ../up"]  # neither sorted nor fit for file names
SIZES = {"zebra": 30, "ant": 20, "n/a ../up": 10}


def png(level: int, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    picture = PIL.Image.new("L", (4, 4), level % 256).convert(mode)
    picture.save(buffer, format="TIFF" if mode == "CMYK" else "PNG")
    return buffer.getvalue()


def rows(first: int, sizes: dict[str, int] = SIZES, mode: str = "L") -> Dataset:
    """Return pictures that differ from those of any other `first`, classes interleaved."""
    labels = sorted(range(sum(sizes.values())), key=lambda row: row * 7 % 11)
    names = [name for name, size in sizes.items() for _ in range(size)]
    labels = [NAMES.index(names[row]) for row in labels]
    images = [{"bytes": png(first + row, mode), "path": None} for row in range(len(labels))]
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Give a function that saves splits of those names and returns the folder."""

    def save(*names: str, **given: Dataset) -> str:
        folder = tmp_path_factory.mktemp("data") / "animals"
        splits = {name: rows(80 * place) for place, name in enumerate(names)}
        DatasetDict({**splits, **given}).save_to_disk(str(folder))
        return str(folder)

    return save


def levels(split: Dataset) -> list[int]:
    """Return the grey level of each picture, which tells it from all others."""
    return [read_image(sample["image"], where="test").getpixel((0, 0)) for sample in split]


def classes(split: Dataset) -> Counter:
    return Counter(NAMES[label] for label in split["label"])


# ---------------------------------------------------------------------------------------------- which splits
def test_train_validation_and_test_are_found_by_their_names(saved):
    pictures = open_pictures(DataFields(source=saved("train", "valid", "test")))
    assert [levels(split)[0] for split in (pictures.train, pictures.validation, pictures.test)] == [0, 80, 160]
    assert pictures.test_name == "test"
    assert pictures.columns == {"image_column": "image", "label_column": "label"}


def test_without_a_test_split_the_validation_split_is_tested_on_and_none_validates(saved):
    pictures = open_pictures(DataFields(source=saved("train", "validation")))
    assert pictures.test_name == "validation"
    assert pictures.validation is None
    assert levels(pictures.test) == list(range(80, 140))


def test_without_any_other_split_a_fifth_of_each_class_is_held_out_with_a_warning(saved, caplog):
    source = saved("train")
    pictures = open_pictures(DataFields(source=source))
    assert "animals has no test split: 20% of its training pictures are held out" in caplog.text
    assert classes(pictures.test) == {"zebra": 6, "ant": 4, "n/a ../up": 2}
    assert sorted(levels(pictures.train) + levels(pictures.test)) == list(range(60))
    assert pictures.validation is None
    assert pictures.test_name == "held out of train"
    assert levels(open_pictures(DataFields(source=source)).test) == levels(pictures.test)


def test_named_splits_win(saved):
    data = DataFields(source=saved("train", "extra", "test", "other"), train_split="extra", test_split="other")
    pictures = open_pictures(data)
    assert (levels(pictures.train)[0], levels(pictures.test)[0], pictures.test_name) == (80, 240, "other")


def test_training_on_the_validation_split_leaves_nothing_to_validate_on(saved):
    pictures = open_pictures(DataFields(source=saved("train", "val", "test"), train_split="validation"))
    assert levels(pictures.train)[0] == 80
    assert pictures.validation is None


def test_testing_on_the_training_split_is_an_error(saved):
    with pytest.raises(
        ValueError, match=r"split 'train' is both trained and tested on; expected two splits.*test_split"
    ):
        open_pictures(DataFields(source=saved("train", "test"), test_split="train"))


def test_an_unknown_split_names_those_there_are(saved):
    with pytest.raises(ValueError, match=r"no split 'trian'; expected one of \['test', 'train'\]"):
        open_pictures(DataFields(source=saved("train", "test"), train_split="trian"))


# ---------------------------------------------------------------------------------------------- held out and shortened
def test_the_held_out_validation_set_is_stratified_disjoint_and_always_the_same(saved):
    data = DataFields(source=saved("train", "validation", "test"), validation_fraction=0.1)
    pictures = open_pictures(data)
    assert classes(pictures.validation) == {"zebra": 3, "ant": 2, "n/a ../up": 1}
    assert sorted(levels(pictures.train) + levels(pictures.validation)) == list(range(60))
    assert levels(open_pictures(data).validation) == levels(pictures.validation)


@pytest.mark.parametrize("limit", [1, 7, 12, 30, 59])
def test_a_shortened_split_has_exactly_so_many_pictures_each_class_by_its_share(saved, limit):
    source = saved("train", "test")
    pictures = open_pictures(DataFields(source=source, max_train_images=limit, max_test_images=limit))
    for split in (pictures.train, pictures.test):
        assert len(split) == limit
        assert all(abs(classes(split)[name] - limit * size / 60) <= 1 for name, size in SIZES.items())
        assert levels(split) == sorted(levels(split))  # in their old order
    again = open_pictures(DataFields(source=source, max_train_images=limit))
    assert levels(again.train) == levels(pictures.train)
    assert len(again.test) == 60


def test_a_limit_above_the_size_changes_nothing(saved):
    pictures = open_pictures(DataFields(source=saved("train", "test"), max_train_images=61, max_test_images=60))
    assert (len(pictures.train), len(pictures.test)) == (60, 60)


def test_shortening_the_training_set_leaves_the_validation_set_as_it_is(saved):
    source = saved("train", "test")
    whole = open_pictures(DataFields(source=source, validation_fraction=0.1))
    short = open_pictures(DataFields(source=source, validation_fraction=0.1, max_train_images=20))
    assert levels(short.validation) == levels(whole.validation)
    assert set(levels(short.train)) < set(levels(whole.train))


# ---------------------------------------------------------------------------------------------- names and records
def test_the_order_of_the_labels_is_that_of_the_data(saved):
    assert open_pictures(DataFields(source=saved("train", "test"))).id2label == dict(enumerate(NAMES))


def test_the_record_tells_sizes_and_content(saved):
    source = saved("train", "test")

    def described(**fields):
        return open_pictures(DataFields(source=source, **fields)).describe()

    record = described(validation_fraction=0.1)
    assert {name: split["n"] for name, split in record["splits"].items()} == {"train": 54, "validation": 6, "test": 60}
    assert (record["source"], record["kind"], record["revision"], record["num_labels"]) == ("animals", "saved", None, 3)
    assert len({split["sha256"] for split in record["splits"].values()}) == 3
    assert described(validation_fraction=0.1) == record
    assert described(validation_fraction=0.2)["splits"]["train"] != record["splits"]["train"]


def test_one_changed_picture_changes_the_fingerprint_of_its_split(saved):
    changed = rows(0)
    changed = Dataset.from_list(
        [{"image": {"bytes": png(255), "path": None}, "label": changed[0]["label"]}, *list(changed)[1:]],
        features=changed.features,
    )
    one, other = saved("train", "test"), saved("train", "test", train=changed)
    first, second = (open_pictures(DataFields(source=source)).describe()["splits"] for source in (one, other))
    assert first["train"]["sha256"] != second["train"]["sha256"]
    assert first["test"] == second["test"]


def test_the_bundled_digits_are_the_same_for_everyone():
    record = open_pictures(DataFields(source="digits", validation_fraction=0.1)).describe()
    assert {name: split["n"] for name, split in record["splits"].items()} == {
        "train": 1295,
        "validation": 143,
        "test": 359,
    }
    direct = load_source("digits")
    assert open_pictures(DataFields(source="digits")).test[:]["label"] == direct.test[:]["label"]


# ---------------------------------------------------------------------------------------------- streams
def test_a_streamed_source_has_no_length_and_no_hash_and_is_shortened_from_the_front(saved):
    data = DataFields(source=saved("train", "val", "test"), streaming=True, max_train_images=7, max_test_images=5)
    pictures = open_pictures(data)
    assert all(isinstance(split, IterableDataset) for split in (pictures.train, pictures.validation, pictures.test))
    assert [num_rows(split) for split in (pictures.train, pictures.test, None)] == [None] * 3
    assert levels(pictures.train) == list(range(7))
    assert levels(pictures.test) == list(range(160, 165))
    assert pictures.describe()["splits"]["train"] == {"n": None, "sha256": "streaming"}


def test_holding_out_of_a_stream_is_an_error(saved):
    with pytest.raises(
        ValueError,
        match=r"cannot hold out 0\.\d+ of a streamed set, .*data\.validation_fraction 0, or data\.streaming false",
    ):
        open_pictures(DataFields(source=saved("train", "test"), streaming=True, validation_fraction=0.1))


# ---------------------------------------------------------------------------------------------- examples
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_examples_are_png_files_in_the_folder_whatever_class_names_and_modes_are(saved, tmp_path, mode):
    few = rows(80, {"n/a ../up": 3}, mode)
    pictures = open_pictures(DataFields(source=saved("train", test=few)))
    paths = save_examples(pictures, tmp_path / "examples")
    assert [path.name for path in paths] == [f"test_{row}_is_n_a_.._up.png" for row in range(3)]
    assert sorted((tmp_path / "examples").iterdir()) == paths
    assert {read_image(path, where="test").mode for path in paths} == {"RGB"}
