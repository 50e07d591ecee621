"""What the card of a data set says: measured on every picture, or not there."""

import io

import numpy as np
import PIL.Image
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from vit_hf.data.sources import load_source
from vit_hf.sharing.data_card import render_data_card
from vit_hf.sharing.data_record import content_of, describe_source, shared_columns


def encode(size=(6, 4), mode="RGB", form="PNG", level=0, **options):
    buffer = io.BytesIO()
    PIL.Image.new(mode, size, level).save(buffer, format=form, **options)
    return buffer.getvalue()


def exif_with(*, place):
    exif = PIL.Image.Exif()
    exif[0x010F] = "a camera"
    if place:
        exif.get_ifd(0x8825)[1] = "N"
    return exif


@pytest.fixture
def saved(tmp_path):
    """Give a function that saves splits of (bytes, label) pairs, and returns the source."""

    def save(*, names=("ant", "bee"), **splits):
        features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
        made = {
            split: Dataset.from_dict(
                {"image": [{"bytes": data, "path": None} for data, _ in pairs], "label": [label for _, label in pairs]},
                features=features,
            )
            for split, pairs in splits.items()
        }
        DatasetDict(made).save_to_disk(tmp_path / "saved")
        return load_source(tmp_path / "saved")

    return save


def test_counts_sizes_and_formats_are_those_of_the_pictures(saved):
    pictures = [encode((6, 4), level=1), encode((10, 5), level=2), encode((7, 40), "L", "JPEG")]
    source = saved(train=[(pictures[0], 0), (pictures[1], 0), (pictures[2], 1)], test=[(encode((8, 8), level=3), 1)])
    record = describe_source(source)
    assert {name: (split["n"], split["per_class"]) for name, split in record["splits"].items()} == {
        "train": (3, [2, 1]),
        "test": (1, [0, 1]),
    }
    found = record["pictures"]
    assert found["formats"] == {"PNG": 3, "JPEG": 1}
    assert found["modes"] == {"RGB": 3, "L": 1}
    assert found["width"] == {"min": 6, "median": 7.5, "max": 10}
    assert found["height"] == {"min": 4, "median": 6.5, "max": 40}
    assert found["total_bytes"] == sum(map(len, pictures)) + len(encode((8, 8), level=3))
    card = render_data_card(record, "me/insects")
    for line in ("| 0 | ant | 2 | 0 |", "| 1 | bee | 1 | 1 |", "| width | 6 | 7.5 | 10 |", "PNG 3, JPEG 1",
                 "- test: 0 to 1 pictures a class; 1 have none", 'load_dataset("me/insects")'):  # fmt: skip
        assert line in card
    assert f"| train | 3 | `{record['splits']['train']['fingerprint']}` |" in card


def test_pictures_that_tell_where_they_were_taken_are_counted(saved):
    pictures = [encode(form="JPEG"), encode(form="JPEG", exif=exif_with(place=False)),
                encode(form="JPEG", exif=exif_with(place=True))]  # fmt: skip
    found = describe_source(saved(train=[(picture, 0) for picture in pictures]))
    assert (found["pictures"]["with_exif"], found["pictures"]["with_gps"]) == (2, 1)
    assert "EXIF in 2, the place (GPS) in 1." in render_data_card(found, "me/insects").replace("\n", " ")


def test_broken_exif_does_not_make_a_picture_damaged(saved):
    found = describe_source(saved(train=[(encode(form="JPEG", exif=b"Exif\0\0nonsense"), 0)]))
    assert (found["pictures"]["with_exif"], found["pictures"]["with_gps"]) == (1, 0)


def test_pictures_that_occur_in_two_splits_are_counted(saved):
    one, two, three = (encode(level=level) for level in (1, 2, 3))
    found = describe_source(saved(train=[(one, 0), (one, 0), (two, 1)], test=[(two, 1), (three, 0)]))["pictures"]
    assert (found["different"], found["in_several_splits"]) == (3, 1)


def test_damaged_pictures_are_all_named_by_row(saved):
    source = saved(train=[(encode(), 0), (encode()[:40], 0)], test=[(b"GIF", 0)])
    with pytest.raises(ValueError, match="2 of 3 pictures are damaged") as caught:
        describe_source(source)
    assert [line.partition(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "row 1 of split train",
        "row 0 of split test",
    ]


def test_a_streamed_source_is_refused(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["ant"])})
    images = [{"bytes": encode(), "path": None}]
    Dataset.from_dict({"image": images, "label": [0]}, features=features).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(ValueError, match=r"split train is streamed, so it cannot be counted; load it whole"):
        describe_source(load_source(tmp_path / "set.parquet", streaming=True))


def test_a_split_without_labels_and_other_columns_are_named_as_left_out(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["ant"]), "who": Value("string")})
    image = {"bytes": encode(), "path": None}
    splits = {split: Dataset.from_dict({"image": [image], "label": [label], "who": ["Ann"]}, features=features)
              for split, label in (("train", 0), ("test", -1))}  # fmt: skip
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    source = load_source(tmp_path / "saved")
    card = render_data_card(describe_source(source), "me/ants")
    assert "Left out of the source: split `test` has no labels, column `who`." in card
    assert shared_columns(source) == ["image", "label"]


def test_many_classes_are_abridged_and_few_are_not(saved):
    cards = {}
    for count in (40, 41):
        names = [f"class {number}" for number in range(count)]
        cards[count] = render_data_card(describe_source(saved(train=[(encode(), count - 1)], names=names)), "me/many")
    assert "| 39 | class 39 | 1 |" in cards[40]
    assert "more; all names" not in cards[40]
    assert "| 19 | class 19 | 0 |" in cards[41]
    assert "| 20 |" not in cards[41]
    assert "… and 21 more; all names are in the features of `label`." in cards[41]


def test_class_names_stay_in_their_cell(saved):
    card = render_data_card(describe_source(saved(train=[(encode(), 0)], names=["a|b\n<b>`", "bee"])), "me/odd")
    assert "| 0 | a&#124;b &lt;b>&#96; | 1 |" in card


@pytest.mark.parametrize(
    ("total", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (1_281_167, "1M<n<10M"), (3 * 10**8, "100M<n<1B")],
)
def test_the_size_category_is_the_hubs(saved, total, category):
    record = describe_source(saved(train=[(encode(), 0)]))
    record["splits"]["train"]["n"] = total
    assert yaml.safe_load(render_data_card(record, "me/x").split("---\n")[1])["size_categories"] == [category]


@pytest.mark.parametrize("change", ["picture", "label", "names", "order", "split"])
def test_the_content_differs_by_whatever_differs(change, saved):
    pairs = [(encode(level=1), 0), (encode(level=2), 1), (encode(level=3), 0)]
    before = content_of(describe_source(saved(train=pairs)))
    assert content_of(describe_source(saved(train=pairs))) == before
    changed = {
        "picture": {"train": [*pairs[:2], (encode(level=4), 0)]},
        "label": {"train": [*pairs[:2], (pairs[2][0], 1)]},
        "names": {"train": pairs, "names": ("ant", "wasp")},
        "order": {"train": pairs[::-1]},
        "split": {"test": pairs},
    }[change]
    assert content_of(describe_source(saved(**changed))) != before


def test_the_processes_that_look_at_many_pictures_agree_with_one(saved, monkeypatch):
    pairs = [(encode(level=level), level % 2) for level in range(12)]
    source = saved(train=pairs)
    alone = describe_source(source)
    monkeypatch.setattr("vit_hf.sharing.data_record._ROWS_PER_PROCESS", 6)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert describe_source(source) == alone
    assert np.sum(alone["splits"]["train"]["per_class"]) == 12
