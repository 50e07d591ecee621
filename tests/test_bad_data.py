"""Labels, splits and sizes that are wrong or extreme, in every kind of source: one error that names them, or a run."""

import io
import itertools
import json
import pickle
import tarfile

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from vit_hf import VitHfImageProcessor, get_recipe, train
from vit_hf.cli import main
from vit_hf.data.columns import name_labels
from vit_hf.data.label_check import check_all_labels
from vit_hf.data.loading import build_train_loader
from vit_hf.data.sources import load_source
from vit_hf.data.transforms import Augmentation, TrainTransform

NAMES = ["cat", "dog", "eel"]


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("L", (8, 8), 20 * level % 256).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels: list, kind: pa.DataType, *, named: bool) -> pa.Table:
    """Return what a Parquet file may hold, whose values no one has checked; named: as a `ClassLabel` of three."""
    images = [{"bytes": png(row), "path": None} for row in range(len(labels))]
    structs = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    found = pa.table({"image": structs, "label": pa.array(labels, kind)})
    if not named:
        return found
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(folder, labels, kind=None, *, named=True):
    kind = kind or pa.int64()
    pyarrow.parquet.write_table(table(labels, kind, named=named), folder / "train.parquet")
    return folder


def saved(folder, labels):
    """Write a saved data set whose labels are not those that its features promise."""
    images = [{"bytes": png(row), "path": None} for row in range(len(labels))]
    plain = Dataset.from_dict({"image": images, "label": labels}).cast_column("image", Image(decode=False))
    plain.info.features["label"] = ClassLabel(names=NAMES)
    DatasetDict(train=plain).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def archive(folder, labels):
    """Write an archive of CIFAR-100's layout."""
    batch = {"data": np.zeros((len(labels), 3072), np.uint8), "fine_labels": labels, "coarse_labels": [0] * len(labels)}
    files = {"train": batch, "test": {**batch, "fine_labels": [0] * len(labels)}}
    files["meta"] = {"fine_label_names": NAMES, "coarse_label_names": ["animal"]}
    with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as tar:
        for name, value in files.items():
            data = pickle.dumps(value, protocol=2).replace(b"numpy._core", b"numpy.core")
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder / "cifar-100-python.tar.gz"


def first_batch(source):
    transform = TrainTransform(Augmentation(), VitHfImageProcessor(size={"height": 8, "width": 8}))
    columns = {"image_column": source.image_column, "label_column": source.label_column}
    options = {"batch_size": 4, "accumulation": 1, "num_steps": 1, "seed": 0, "workers": 0}
    loader, _ = build_train_loader(source.train, **columns, transform=transform, **options)
    return next(itertools.islice(loader, 1))


# ---------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize(("value", "said"), [(7, "label 7"), (-1, "label -1"), (None, "(no label|label None)")])
@pytest.mark.parametrize("kind", ["parquet", "streamed", "saved", "cifar"])
def test_a_wrong_label_names_row_value_column_and_range(tmp_path, monkeypatch, kind, value, said):
    # `datasets` waits 5 s after each pass over a streamed file, for threads of pyarrow
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.0, raising=False)
    labels = [0, 1, value, 2]
    write = {"saved": saved, "cifar": archive}.get(kind, parquet)
    place = r"sample \d of epoch 0 of the training stream" if kind == "streamed" else r"row 2( of split train)?"
    column = "fine_labels" if kind == "cifar" else "label"
    message = rf"{place} has {said} in (column )?'{column}'; expected 0 to 2"
    if kind == "cifar" and value is None:
        message = "train: 'fine_labels' is not a list of 4 integers"
    with pytest.raises(ValueError, match=message):
        first_batch(load_source(write(tmp_path, labels), streaming=kind == "streamed"))


@pytest.mark.parametrize("text", ["", "   ", "\t"])
def test_a_text_of_nothing_is_no_class(tmp_path, text):
    folder = parquet(tmp_path, ["ant", "bee", text, "cow"], pa.string(), named=False)
    with pytest.raises(ValueError, match=r"row 2 of split train has no label in column 'label'; expected a number or"):
        load_source(folder)
    split = Dataset.from_dict({"label": ["ant", "bee", text, None]})
    report = check_all_labels({"train": split}, "label", train="train")
    assert [(entry["row"], entry["problem"]) for entry in report.wrong] == [(2, "missing"), (3, "missing")]
    assert report.names == ("ant", "bee")
    with pytest.raises(ValueError, match="row 0 of split test has no label"):
        name_labels(
            {"train": Dataset.from_dict({"label": ["ant"]}), "test": Dataset.from_dict({"label": [text]})},
            "label",
            where="here",
            train="train",
        )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("labels", [[0.0, 1.0, 1.5, 2.0], [[0], [1], [1], [2]]], ids=["fractions", "lists"])
def test_labels_of_another_type_are_refused_with_the_columns_there_are(tmp_path, labels, streaming):
    folder = parquet(tmp_path, labels, pa.array(labels).type, named=False)
    with pytest.raises(ValueError, match=r"no label column in \{image: .*, label: .*\}; expected one ClassLabel"):
        load_source(folder, streaming=streaming)


# ---------------------------------------------------------------------------------------------- sizes
def save(folder, **splits: list[int]):
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=sorted({*"ab"} if splits else {}))})
    made = {
        name: Dataset.from_dict(
            {"image": [{"bytes": png(row), "path": None} for row in range(len(labels))], "label": labels},
            features=features,
        )
        for name, labels in splits.items()
    }
    DatasetDict(made).save_to_disk(str(folder))
    return str(folder)


def run(source: str, output, **changes):
    small = {
        "data.source": source,
        "data.validation_fraction": 0.0,
        "keep": "last",
        "model.num_hidden_layers": 1,
        "model.image_size": 8,
        "optimization.max_steps": 2,
        "optimization.batch_size": 4,
        "optimization.warmup_steps": 1,
        "trackers": [],
    }
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return train(get_recipe("digits").override({**small, **changes}), output=output, quiet=True)


@pytest.mark.parametrize("labels", [[0], [0, 1, 0]])
def test_fewer_pictures_than_a_batch_fill_it_more_than_once(tmp_path, labels):
    done = run(save(tmp_path / "data", train=labels, test=[0, 1]), tmp_path / "run")
    assert (done.results["n"], done.results["steps"]) == (2, 2)


def test_one_class_is_trained_and_scored(tmp_path):
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["only"])})
    rows = {"image": [{"bytes": png(row), "path": None} for row in range(6)], "label": [0] * 6}
    split = Dataset.from_dict(rows, features=features)
    DatasetDict(train=split, test=split).save_to_disk(str(tmp_path / "data"))
    done = run(str(tmp_path / "data"), tmp_path / "run")
    assert (done.results["n"], done.results["top1"], done.results["loss"]) == (6, 1.0, 0.0)


def test_a_split_without_rows_is_refused_before_anything_is_written(tmp_path):
    empty = pa.table({"image": pa.array([], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    empty = empty.append_column("label", pa.array([], pa.int64()))
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(empty, tmp_path / "data" / "train.parquet")
    with pytest.raises(ValueError, match="at least 1 row"):
        run(str(tmp_path / "data"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------- offline
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (
            ["train", "digits", "--data", "owner/pictures"],
            "`hf download --repo-type dataset owner/pictures --local",
        ),
        (["evaluate", "owner/model", "--data", "digits"], "`hf download owner/model --local-dir DIR`"),
        (["train", "digits", "--model.init_from", "owner/model"], "`hf download owner/model --local-dir DIR`"),
    ],
)
def test_offline_without_a_cache_the_command_that_mends_it_is_given(tmp_path, monkeypatch, capsys, words, remedy):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert remedy in capsys.readouterr().err
