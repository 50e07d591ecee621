"""Sources: each origin gives the same kind of result, and each fault in the data is named with its place."""

import collections
import dataclasses
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value

from vit_hf.data import hub_source
from vit_hf.data.images import BadImageError, read_image
from vit_hf.data.sources import fingerprint, load_source, split_off

DATA = Path(__file__).parents[1].parent / "shared" / "data"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """A cache of our own, and no network by switch."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield folder


def png(level):
    buffer = io.BytesIO()
    PIL.Image.new("L", (4, 4), level % 256).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(labels, *, label_type=None, image="image", label="label"):
    images = [{"bytes": png(level), "path": None} for level in range(len(labels))]
    features = Features({image: Image(), label: label_type or ClassLabel(names=["cat", "dog", "eel"])})
    return Dataset.from_dict({image: images, label: labels}, features=features)


def save(folder, **splits):
    DatasetDict(splits).save_to_disk(str(folder))
    return folder


def folder_of(root, *files):
    for level, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(level))
    return root


def real(name):
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"no {path.relative_to(DATA.parents[1])} beside the repository")
    return path


def sizes(source):
    return {name: len(split) for name, split in source.splits.items()}


# The bundled digits


def test_digits_are_split_eighty_to_twenty_within_every_class():
    source = load_source("digits")
    assert sizes(source) == {"train": 1438, "test": 359}
    assert (source.kind, source.label_names) == ("digits", tuple("0123456789"))
    train, test = (collections.Counter(split["label"]) for split in (source.train, source.test))
    assert all(abs(test[digit] / (test[digit] + train[digit]) - 0.2) < 0.005 for digit in range(10))


def test_digits_span_the_full_range_and_keep_every_level():
    from sklearn.datasets import load_digits

    source = load_source("digits")
    images = [np.asarray(read_image(row["image"], where="digits")) for row in source.train]
    assert images[0].shape == (8, 8)
    assert (np.min(images), np.max(images)) == (0, 255)
    restored = {np.rint(image * (16 / 255)).astype(int).tobytes() for image in images}
    assert restored <= {image.astype(int).tobytes() for image in load_digits().images}


def test_digits_are_the_same_data_on_every_machine():
    source = load_source("digits")
    assert fingerprint(source.train, "image", "label") == (
        "34bf3e039db9d092833d80aa823acfa0cf8c1862e2eb999b2aeb70bfa05e5a13"
    )


# Parquet and the Hub's layout


def test_cifar100_in_the_hub_layout_has_its_counts_names_and_fine_labels():
    source = load_source(real("cifar100"))
    assert sizes(source) == {"train": 50_000, "test": 10_000}
    assert (source.image_column, source.label_column, source.kind) == ("img", "fine_label", "parquet")
    assert len(source.label_names) == 100
    assert source.label_names[:2] == ("apple", "aquarium_fish")
    assert np.bincount(source.test["fine_label"]).tolist() == [100] * 100
    row = source.train[0]["img"]
    assert set(row) == {"bytes", "path"}
    assert read_image(row, where="row 0").size == (32, 32)


def test_cifar100_gives_its_coarse_labels_when_asked():
    assert len(load_source(str(real("cifar100")), label_column="coarse_label").label_names) == 20


def test_the_imagenet_sample_tests_on_its_validation_split():
    source = load_source(real("imagenet-1k-sample"))
    assert sizes(source) == {"train": 200, "validation": 100}
    assert (len(source.label_names), source.label_names[0]) == (1000, "tench")
    assert source.test is source.validation
    assert read_image(source.test[0]["image"], where="row 0").width > 32


def test_a_parquet_file_is_one_train_split_with_its_names(tmp_path):
    rows([0, 1, 2]).to_parquet(tmp_path / "a [1].parquet")
    source = load_source(tmp_path / "a [1].parquet")
    assert (sizes(source), source.label_names) == ({"train": 3}, ("cat", "dog", "eel"))


def test_a_parquet_file_without_feature_types_has_its_columns_found(tmp_path):
    table = rows([0, 1, 1]).with_format("arrow")[:].replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = load_source(tmp_path / "a.parquet")
    assert (source.image_column, source.label_names) == ("image", ("0", "1"))
    assert read_image(source.train[2]["image"], where="row 2").getpixel((0, 0)) == 2


def test_a_changed_parquet_file_is_read_again(tmp_path):
    path = tmp_path / "a.parquet"
    rows([0, 1, 2]).to_parquet(path)
    before = load_source(path)
    first = fingerprint(before.train, "image", "label")
    rows([2, 1, 0]).to_parquet(path)
    os.utime(path, (1, 1))
    after = load_source(path)
    assert list(after.train["label"]) == [2, 1, 0]
    assert fingerprint(after.train, "image", "label") != first


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: .*expected readable Parquet files"):
        load_source(tmp_path / "a.parquet")


def test_an_unknown_config_is_named_with_the_option(tmp_path):
    rows([0]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"nope.*--data\.config_name"):
        load_source(tmp_path, config_name="nope")


def test_streaming_gives_undecoded_rows_and_no_fingerprint(tmp_path):
    rows([0, 1, 2]).to_parquet(tmp_path / "a.parquet")
    source = load_source(tmp_path, streaming=True)
    assert isinstance(source.train, IterableDataset)
    assert source.label_names == ("cat", "dog", "eel")
    assert [(type(row["image"]), row["label"]) for row in source.train] == [(dict, 0), (dict, 1), (dict, 2)]
    assert fingerprint(source.train, "image", "label") == "streaming"


def test_streaming_local_rows_works_for_every_kind():
    source = load_source("digits", streaming=True)
    assert next(iter(source.test))["image"]["bytes"].startswith(b"\x89PNG")


def test_streaming_without_label_names_is_refused_with_the_remedy(tmp_path):
    rows([0, 1], label_type=Value("int64")).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"'label' has no names.*ClassLabel; load it without streaming"):
        load_source(tmp_path, streaming=True)


def test_loading_prints_nothing(tmp_path, capfd):
    rows([0, 1]).to_parquet(tmp_path / "a.parquet")
    capfd.readouterr()  # writing the file has printed
    load_source(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


# Folders


def test_class_folders_with_splits_are_read_sorted(tmp_path):
    folder_of(tmp_path, "train/b/0.png", "train/a/1.png", "train/a/0.JPG", "val/b/0.png")
    source = load_source(tmp_path)
    assert (sizes(source), source.label_names) == ({"train": 3, "val": 1}, ("a", "b"))
    assert [Path(row["image"]["path"]).name for row in source.train] == ["0.JPG", "1.png", "0.png"]
    assert list(source.train["label"]) == [0, 0, 1]
    assert list(source.validation["label"]) == [1]
    assert source.test is source.validation is source.split("validation")


def test_class_folders_without_splits_are_all_train(tmp_path):
    source = load_source(folder_of(tmp_path / "we[i]rd *", "a/0.png", "b/deep/er/0.png"))
    assert (source.name, sizes(source), source.label_names) == ("we[i]rd *", {"train": 2}, ("a", "b"))
    with pytest.raises(ValueError, match=r"no split 'test'; expected one of \['train'\]"):
        _ = source.test


def test_words_for_splits_in_class_and_file_names_lose_no_image(tmp_path):
    source = load_source(folder_of(tmp_path, "bus/test_0.png", "train/0.png", "train/val-1.png", "tram/train.png"))
    assert (sizes(source), source.label_names) == ({"train": 4}, ("bus", "train", "tram"))


def test_hidden_and_other_files_are_passed_over(tmp_path):
    folder_of(tmp_path, "a/0.png", "b/0.png", ".git/x/0.png", "a/.hidden.png", "a/.thumbs/0.png")
    (tmp_path / "a" / "notes.txt").write_text("notes")
    (tmp_path / "README.md").write_text("# Pictures")
    assert sizes(load_source(tmp_path)) == {"train": 2}


def test_an_unreadable_image_fails_when_it_is_read(tmp_path):
    folder_of(tmp_path, "a/0.png", "b/0.png")
    (tmp_path / "b" / "1.png").write_bytes(b"")
    source = load_source(tmp_path)
    assert sizes(source) == {"train": 3}
    with pytest.raises(BadImageError, match=r"row 2 of split train \(.*1\.png\)"):
        read_image(source.train[2]["image"], where="row 2 of split train")


def test_capitals_in_the_names_of_splits_do_not_matter(tmp_path):
    root = folder_of(tmp_path, "Train/cat/a.png", "Train/dog/b.png", "TEST/cat/c.png", "TEST/dog/d.png")
    source = load_source(str(root))
    assert (sizes(source), source.label_names) == ({"test": 2, "train": 2}, ("cat", "dog"))


def test_one_split_in_two_ways_of_writing_is_refused(tmp_path):
    root = folder_of(tmp_path, "Train/cat/a.png", "Train/dog/b.png", "train/cat/c.png", "train/dog/d.png")
    if len(list(root.iterdir())) == 1:
        pytest.skip("this file system does not tell capitals apart")
    with pytest.raises(ValueError, match=r"'Train' and 'train' are the same split; expected .* merge or rename them"):
        load_source(str(root))


def test_classes_may_differ_in_capitals_only(tmp_path):
    root = folder_of(tmp_path, "a/0.png", "A/1.png")
    if len(list(root.iterdir())) == 1:
        pytest.skip("this file system does not tell capitals apart")
    assert load_source(str(root)).label_names == ("A", "a")


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("train", "test_images"), ("Train-Set", "val data")])
def test_folders_that_look_like_splits_are_not_taken_for_classes(names, tmp_path):
    root = folder_of(tmp_path, *(f"{name}/{label}/{name}.png" for name in names for label in ("cat", "dog")))
    with pytest.raises(ValueError, match=r"look like splits and hold class folders; expected the names of splits"):
        load_source(str(root))


def test_classes_that_are_called_like_splits_stay_classes(tmp_path):
    root = folder_of(tmp_path, "train/engine.png", "test_images/tube.png")
    assert load_source(str(root)).label_names == ("test_images", "train")


def test_a_link_to_a_folder_above_brings_no_picture_again(tmp_path):
    root = folder_of(tmp_path / "data", "cat/a.png", "cat/old/b.png", "dog/c.png")
    (root / "cat" / "again").symlink_to(root)
    (root / "cat" / "old" / "self").symlink_to(root / "cat" / "old")
    (tmp_path / "more").mkdir()
    shutil.copy(root / "dog" / "c.png", tmp_path / "more" / "d.png")
    (root / "dog" / "more").symlink_to(tmp_path / "more")  # is no way back
    assert len(load_source(str(root)).split("train")) == 4


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_names_of_one_split_are_those_of_the_others(kind, tmp_path):
    names = ["x", "y", "z"]
    pictures = [PIL.Image.new("RGB", (4, 4))] * 3
    typed = Features({"image": Image(), "label": ClassLabel(names=names)})
    train = Dataset.from_dict({"image": pictures, "label": [2, 1, 0]}, features=typed)
    labels = [0, 1, 2] if kind == "int64" else names
    test = Dataset.from_dict({"image": pictures, "label": labels}, Features({"image": Image(), "label": Value(kind)}))
    for name, splits in {"a": {"train": train, "test": test}, "b": {"train": test, "test": train}}.items():
        source = load_source(save(tmp_path / name, **splits))
        assert source.label_names == ("x", "y", "z")
        assert sorted(source.split("test")["label"]) == sorted(source.split("train")["label"]) == [0, 1, 2]


def test_a_changed_folder_is_read_again(tmp_path):
    folder_of(tmp_path, "a/0.png", "b/0.png")
    before = load_source(tmp_path)
    first = fingerprint(before.train, "image", "label")
    folder_of(tmp_path, "c/0.png")
    assert load_source(tmp_path).label_names == ("a", "b", "c")
    assert fingerprint(load_source(tmp_path).train, "image", "label") != first


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["0.png"], "no class folders"),
        (["train/a/0.png", "test/b/0.png"], r"split test has class folders \['b'\] that split train lacks"),
        (["train/a/0.png", "train/b/.hidden.png"], "a class folder without images"),
        (["train/a/0.png", "train/b/0.png", "test/a/0.png", "test/1.png"], "1 images beside the class folders"),
    ],
)
def test_a_folder_that_is_laid_out_wrongly_is_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        load_source(folder_of(tmp_path, *files))


def test_a_test_folder_without_classes_is_left_out_and_named_when_asked_for(tmp_path, caplog):
    source = load_source(folder_of(tmp_path, "train/a/0.png", "train/b/0.png", "test/0.png"))
    assert (sizes(source), source.unlabelled) == ({"train": 2}, ("test",))
    assert "split test is left out" in caplog.text
    with pytest.raises(ValueError, match=r"no split 'test'.*test: left out, no labels"):
        source.split("test")


# Saved data sets


def test_a_saved_dataset_dict_keeps_its_splits(tmp_path):
    source = load_source(save(tmp_path / "s", train=rows([0, 1, 2]), validation=rows([1]), test=rows([2, 2])))
    assert (source.kind, sizes(source)) == ("saved", {"train": 3, "validation": 1, "test": 2})
    assert (len(source.test), len(source.validation)) == (2, 1)


def test_a_saved_dataset_is_one_train_split(tmp_path):
    rows([0, 1]).save_to_disk(str(tmp_path / "s"))
    assert sizes(load_source(tmp_path / "s")) == {"train": 2}


def test_a_damaged_saved_dataset_is_named(tmp_path):
    save(tmp_path / "s", train=rows([0]))
    next((tmp_path / "s" / "train").glob("*.arrow")).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="expected a folder written by save_to_disk"):
        load_source(tmp_path / "s")


# The CIFAR archives


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as in the original archives."""

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}  # noqa: RUF012


def pickled(value, *, original=True):
    buffer = io.BytesIO()
    (Python2Pickler if original else pickle.Pickler)(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar100_files(*, original=True):
    rng = np.random.default_rng(0)
    batch = {
        part: {
            b"data": rng.integers(0, 256, (size, 3072), dtype=np.uint8),
            b"fine_labels": [row % 3 for row in range(size)],
            b"coarse_labels": [row % 2 for row in range(size)],
            b"filenames": [b"x_%d.png" % row for row in range(size)],
            b"batch_label": b"training batch 1 of 1",
        }
        for part, size in (("train", 6), ("test", 3))
    }
    meta = {b"fine_label_names": [b"apple", b"bee", b"crab"], b"coarse_label_names": [b"fruit", b"insect"]}
    return batch, {name: pickled(value, original=original) for name, value in {**batch, "meta": meta}.items()}


def archive(path, files, *, folder="cifar-100-python"):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("original", [True, False], ids=["python2", "python3"])
def test_a_cifar100_archive_gives_its_pixels_labels_and_names(tmp_path, original):
    batch, files = cifar100_files(original=original)
    source = load_source(archive(tmp_path / "cifar-100-python.tar.gz", files))
    assert (source.name, source.kind, sizes(source)) == ("cifar-100-python", "cifar", {"train": 6, "test": 3})
    assert (source.image_column, source.label_column) == ("img", "fine_label")
    assert source.label_names == ("apple", "bee", "crab")
    assert source.train.features["coarse_label"].names == ["fruit", "insect"]
    assert list(source.train["fine_label"]) == batch["train"][b"fine_labels"]
    image = np.asarray(read_image(source.train[4]["img"], where="row 4"))
    np.testing.assert_array_equal(image[..., 0].ravel(), batch["train"][b"data"][4, :1024])
    np.testing.assert_array_equal(image[..., 2].ravel(), batch["train"][b"data"][4, 2048:])


def test_an_extracted_cifar10_folder_joins_its_five_batches(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {b"data": np.full((2, 3072), number, np.uint8), b"labels": [0, 1]}
        (folder / name).write_bytes(pickled(batch))
    (folder / "batches.meta").write_bytes(pickled({b"label_names": [b"airplane", b"truck"], b"num_vis": 3072}))
    source = load_source(folder)
    assert (sizes(source), source.label_names) == ({"train": 10, "test": 2}, ("airplane", "truck"))
    assert [read_image(row["img"], where="row").getpixel((0, 0))[0] for row in source.train][::2] == [0, 1, 2, 3, 4]


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_is_refused_by_name_and_runs_nothing(tmp_path, protocol):
    canary = tmp_path / "canary"
    _, files = cifar100_files()
    files["meta"] = pickle.dumps({"fine_label_names": Touch(str(canary))}, protocol=protocol)
    with pytest.raises(ValueError, match=r"meta: this pickle asks for \S*open, .*nothing was run"):
        load_source(archive(tmp_path / "cifar-100-python.tar.gz", files))
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    ["os system", "builtins eval", "numpy load", "numpy.core.multiarray scalar", "pickle loads", "codecs decode"],
)
def test_only_five_names_are_admitted(tmp_path, name):
    _, files = cifar100_files()
    files["train"] = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n(X\x01\x00\x00\x00atR."
    with pytest.raises(ValueError, match=f"asks for {name.replace(' ', '.')}, which"):
        load_source(archive(tmp_path / "cifar-100-python.tar.gz", files))


def test_a_pickle_cannot_ask_for_memory_beyond_its_size(tmp_path):
    _, files = cifar100_files()
    files["train"] = b"\x80\x02Nr\xff\xff\xff\xff."
    with pytest.raises(ValueError, match="memo index beyond the file"):
        load_source(archive(tmp_path / "cifar-100-python.tar.gz", files))


def test_an_archive_unpacks_nothing_and_looks_at_its_own_members_only(tmp_path):
    _, files = cifar100_files()
    files["../../escaped"] = b"x"
    files["extra/train"] = b"not a pickle"
    folder = tmp_path / "in"
    folder.mkdir()
    load_source(archive(folder / "cifar-100-python.tar.gz", files))
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "cifar-100-python.tar.gz"]


@pytest.mark.parametrize("keep", [40, 400])
def test_a_truncated_archive_is_named(tmp_path, keep):
    _, files = cifar100_files()
    path = archive(tmp_path / "cifar-100-python.tar.gz", files)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((ValueError, FileNotFoundError), match=r"cifar-100-python\.tar\.gz.*download (it|the archive)"):
        load_source(path)


def test_an_archive_without_one_of_its_files_says_which(tmp_path):
    _, files = cifar100_files()
    del files["test"]
    with pytest.raises(FileNotFoundError, match=r": test missing, found meta, train"):
        load_source(archive(tmp_path / "cifar-100-python.tar.gz", files))


# Which is meant: a path or a Hub id


@pytest.mark.parametrize("text", ["./no/such", "/no/such", "~/no-such", "no/such/folder", "no.parquet", "a/b.tar.gz"])
def test_a_missing_path_is_not_looked_for_on_the_hub(text):
    with pytest.raises(FileNotFoundError, match=r"no data at /.*; expected a folder of class folders.*check the path"):
        load_source(text)


def test_a_file_or_folder_of_another_kind_lists_what_is_accepted(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    for path in (tmp_path, tmp_path / "a.csv"):
        with pytest.raises(ValueError, match="expected a folder of class folders"):
            load_source(path)


def test_an_offline_switch_is_honoured_at_once_and_the_mending_commands_are_given():
    start = time.perf_counter()
    with pytest.raises(ConnectionError) as caught:
        load_source("owner/no-such-data")
    assert time.perf_counter() - start < 1.0
    message = str(caught.value)
    assert "'owner/no-such-data'" in message
    assert "HF_HUB_OFFLINE" in message
    assert "`hf download --repo-type dataset owner/no-such-data --local-dir DIR`" in message
    assert "`--data DIR`" in message


def test_both_offline_environment_variables_are_honoured_in_a_fresh_process(tmp_path):
    code = "from vit_hf.data.sources import load_source; load_source('owner/no-such-data', streaming=True)"
    running = []
    for switch in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        rest = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
        rest |= {switch: "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
        running.append(subprocess.Popen([sys.executable, "-c", code], env=rest, stderr=subprocess.PIPE, text=True))
    for process in running:
        errors = process.communicate(timeout=120)[1]
        assert "ConnectionError: data set 'owner/no-such-data'" in errors
        assert "Retrying" not in errors


def test_a_hub_out_of_reach_is_not_retried_for_seconds(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"'owner/no-such-data'.*cannot be reached: \w*ConnectError"):
        load_source("owner/no-such-data")
    assert time.perf_counter() - start < 3.0
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_hub_id_is_pinned_to_its_commit(monkeypatch):
    asked = {}

    def load_dataset(*arguments, **options):
        asked.update(options, arguments=arguments)
        return DatasetDict(train=rows([0, 1]))

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=COMMIT))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = load_source("owner/name", config_name="small", revision="v1")
    assert (source.kind, source.name, source.revision) == ("hub", "owner/name", COMMIT)
    assert (asked["arguments"], asked["revision"]) == (("owner/name", "small"), COMMIT)


def cached_from(tmp_path, cache, name, commit=None):
    """Prepare a cache entry as of a local folder called `name`, or as of the Hub when a commit is given."""
    rows([0, 1, 2]).to_parquet(folder_of(tmp_path / name, "x").joinpath("x").with_suffix(".parquet"))
    load_source(tmp_path / name)
    if commit:
        entry = next((cache / name).glob("*/*/*/dataset_info.json")).parent
        shutil.rmtree(entry.with_name(commit), ignore_errors=True)
        entry.rename(entry.with_name(commit))
    return name


def test_a_cached_hub_copy_is_used_offline_with_its_commit(tmp_path, cache):
    name = cached_from(tmp_path, cache, "cached-one", COMMIT)
    source = load_source(name, revision=COMMIT)
    assert (source.kind, source.revision, len(source.train)) == ("hub", COMMIT, 3)


def test_streaming_offline_reads_the_checked_cached_copy(tmp_path, cache):
    name = cached_from(tmp_path, cache, "cached-stream", COMMIT)
    source = load_source(name, streaming=True)
    assert isinstance(source.train, IterableDataset)
    assert (source.revision, [row["label"] for row in source.train]) == (COMMIT, [0, 1, 2])


def test_a_cached_copy_of_another_commit_is_refused(tmp_path, cache):
    name = cached_from(tmp_path, cache, "cached-two", COMMIT)
    with pytest.raises(ValueError, match=rf"is commit {COMMIT}; expected {'f' * 40}"):
        load_source(name, revision="f" * 40)


def test_the_cache_of_a_local_folder_is_not_taken_for_the_hub(tmp_path, cache):
    name = cached_from(tmp_path, cache, "cached-three")
    with pytest.raises(ValueError, match="made from a local folder of that name"):
        load_source(name)


@pytest.mark.parametrize("name", ["imagefolder", "parquet", "csv"])
def test_a_format_of_datasets_is_not_a_data_set(name):
    with pytest.raises(ValueError, match="is a file format of datasets"):
        load_source(name)


def test_options_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match=r"no config 'x' in a digits source; drop --data\.config_name"):
        load_source("digits", config_name="x")
    with pytest.raises(ValueError, match=r"no revision 'x'.*drop --data\.revision"):
        load_source("digits", revision="x")


def test_a_hub_id_has_one_slash_at_most():
    assert hub_source.is_hub_id("owner/name-1.0_a")
    assert not any(hub_source.is_hub_id(text) for text in ("a/b/c", "../a", "a b", "", "a/", "a\\b", "hf://a/b"))


# Columns


def test_several_label_columns_are_listed_with_the_fix(tmp_path):
    both = rows([0, 1], label="kind").add_column("place", np.array([0, 1]), feature=ClassLabel(names=["in", "out"]))
    with pytest.raises(ValueError, match=r"2 label columns \['kind', 'place'\].*--data\.label_column NAME"):
        load_source(save(tmp_path / "s", train=both))
    assert load_source(tmp_path / "s", label_column="place").label_names == ("in", "out")


def test_the_column_called_label_is_preferred(tmp_path):
    both = rows([0, 1]).add_column("place", np.array([0, 1]), feature=ClassLabel(names=["in", "out"]))
    assert load_source(save(tmp_path / "s", train=both)).label_column == "label"


def test_several_image_columns_are_listed_with_the_fix(tmp_path):
    both = rows([0, 1]).add_column("mask", [{"bytes": png(9), "path": None}] * 2, feature=Image())
    with pytest.raises(ValueError, match=r"2 image columns \['image', 'mask'\].*--data\.image_column NAME"):
        load_source(save(tmp_path / "s", train=both))
    assert load_source(tmp_path / "s", image_column="mask").image_column == "mask"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "nope"}, r"no column 'nope'; found \{image: Image, label: ClassLabel\}"),
        ({"image_column": "nope"}, "no column 'nope'"),
        ({"image_column": "label"}, "'label' is ClassLabel; expected images"),
        ({"label_column": "image"}, "'image' is Image; expected a ClassLabel"),
    ],
)
def test_a_wrong_choice_of_column_is_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_source(save(tmp_path / "s", train=rows([0, 1])), **options)


def test_a_split_without_the_label_column_is_named(tmp_path):
    folder = save(tmp_path / "s", train=rows([0, 1]), test=rows([0]).remove_columns("label"))
    with pytest.raises(ValueError, match="split test: no column 'label'"):
        load_source(folder)


def test_data_without_images_is_named(tmp_path):
    folder = save(tmp_path / "s", train=Dataset.from_dict({"text": ["a"], "label": [0]}))
    with pytest.raises(ValueError, match=r"no image column in \{text: string, label: int64\}"):
        load_source(folder)


# Labels


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([7, 3, 10, 3], "int64", ("3", "7", "10")),
        (["dog", "ant", "dog", "bee"], "string", ("ant", "bee", "dog")),
        ([True, False, True, True], "bool", ("False", "True")),
    ],
)
def test_labels_without_names_are_named_by_their_sorted_values(tmp_path, labels, kind, names):
    train, test = rows(labels, label_type=Value(kind)), rows(labels[:1], label_type=Value(kind))
    source = load_source(save(tmp_path / "s", train=train, test=test))
    assert source.label_names == names
    assert [source.label_names[label] for label in source.train["label"]] == [str(label) for label in labels]
    assert source.train.features == source.test.features
    assert source.train.column_names == ["image", "label"]


def test_a_label_that_train_does_not_have_is_named(tmp_path):
    train, test = rows(["ant", "bee"], label_type=Value("string")), rows(["bee", "cow"], label_type=Value("string"))
    with pytest.raises(
        ValueError, match=r"row 1 of split test has label 'cow' in column 'label'; expected one of the 2"
    ):
        load_source(save(tmp_path / "s", train=train, test=test))


@pytest.mark.parametrize(
    ("labels", "found"),
    [([0, 1, 3], "row 2 .* label 3"), ([0, -1, 1], "row 1 .* label -1"), ([None, 1], "row 0 .* no label")],
)
def test_a_label_out_of_range_is_named_with_row_split_column_and_range(tmp_path, labels, found):
    names = ClassLabel(names=["cat", "dog", "eel"])
    bad = rows(labels, label_type=Value("int64"))
    bad.info.features["label"] = names  # as in a Parquet file, where nothing checks the values
    folder = save(tmp_path / "s", train=rows([0, 1]), test=bad)
    found = found.replace(" .* ", " of split test has ")
    with pytest.raises(ValueError, match=rf"{found} in column 'label'; expected 0 to 2 \(3 names\); correct or remove"):
        load_source(folder)


@pytest.mark.parametrize("labels", [[-1, 0], [None, 0]])
def test_whole_numbers_below_zero_or_missing_are_not_made_into_classes(tmp_path, labels):
    folder = save(tmp_path / "s", train=rows(labels, label_type=Value("int64")))
    with pytest.raises(ValueError, match="row 0 of split train has"):
        load_source(folder)


def test_a_split_without_any_label_is_left_out_and_never_replaced_by_another(tmp_path, caplog):
    folder = save(tmp_path / "s", train=rows([0, 1]), validation=rows([1]), test=rows([-1, -1]))
    source = load_source(folder)
    assert (sizes(source), source.unlabelled) == ({"train": 2, "validation": 1}, ("test",))
    assert "split test is left out: none of its rows has a label" in caplog.text
    assert source.test is source.validation
    with pytest.raises(ValueError, match="test: left out, no labels"):
        source.split("test")


def test_splits_that_name_their_labels_differently_are_refused(tmp_path):
    folder = save(tmp_path / "s", train=rows([0]), test=rows([0], label_type=ClassLabel(names=["dog", "cat", "eel"])))
    info = tmp_path / "s" / "test" / "dataset_info.json"
    assert json.loads(info.read_text())["features"]["label"]["names"][0] == "dog"
    with pytest.raises(ValueError, match="split test has 3 names that differ"):
        load_source(folder)


def test_an_empty_split_is_named(monkeypatch):
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: DatasetDict(train=rows([0]), test=rows([]).select([]))
    )
    with pytest.raises(ValueError, match="split test has 0 rows; expected at least 1"):
        load_source("owner/name")


def test_a_file_of_no_rows_is_refused_with_the_expectation(tmp_path):
    table = rows([0]).with_format("arrow")[:]
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    pyarrow.parquet.write_table(table.slice(1), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="each split with at least 1 row"):
        load_source(tmp_path)


# Splits and fingerprints


def test_a_source_cannot_be_changed_and_lists_its_splits():
    source = load_source("digits")
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.name = "other"
    with pytest.raises(ValueError, match=r"digits: no split 'nope'; expected one of \['test', 'train'\]"):
        source.split("nope")
    assert (source.find("test"), source.find("validation")) == ("test", None)


def test_holding_out_is_stratified_complete_ordered_and_repeatable():
    whole = rows([0] * 50 + [1] * 30 + [2] * 3)
    rest, held_out = split_off(whole, "label", 0.1, seed=1)
    assert collections.Counter(held_out["label"]) == {0: 5, 1: 3, 2: 1}
    levels = [[read_image(r["image"], where="row").getpixel((0, 0)) for r in part] for part in (rest, held_out)]
    assert all(part == sorted(part) for part in levels)
    assert sorted(levels[0] + levels[1]) == list(range(83))
    again = split_off(whole, "label", 0.1, seed=1)[1]
    assert fingerprint(again, "image", "label") == fingerprint(held_out, "image", "label")
    other = split_off(whole, "label", 0.1, seed=2)[1]
    assert fingerprint(other, "image", "label") != fingerprint(held_out, "image", "label")


def test_holding_out_does_not_depend_on_any_library_version():
    held_out = split_off(rows([0] * 10), "label", 0.3, seed=0)[1]
    assert [read_image(row["image"], where="row").getpixel((0, 0)) for row in held_out] == [4, 7, 9]


def test_holding_out_leaves_a_row_of_every_class_in_the_rest():
    rest, held_out = split_off(rows([0, 0, 1, 1, 2]), "label", 0.9, seed=0)
    assert (sorted(rest["label"]), sorted(held_out["label"])) == ([0, 1, 2], [0, 1])


@pytest.mark.parametrize(
    ("labels", "fraction", "message"),
    [
        ([0, 1, 2], 0.5, "no class in column 'label' has two rows"),
        ([0, 0], 0.0, "more than 0"),
        ([0, 0], 1.0, "more than 0"),
    ],
)
def test_an_impossible_hold_out_is_named(labels, fraction, message):
    with pytest.raises(ValueError, match=message):
        split_off(rows(labels), "label", fraction, seed=0)


def test_the_fingerprint_is_of_the_content_not_of_place_or_form(tmp_path):
    folder_of(tmp_path / "one", "a/0.png", "b/1.png")
    shutil.copytree(tmp_path / "one", tmp_path / "two" / "moved")
    one, two = load_source(tmp_path / "one").train, load_source(tmp_path / "two" / "moved").train
    expected = fingerprint(one, "image", "label")
    assert fingerprint(two, "image", "label") == expected
    one.save_to_disk(str(tmp_path / "saved"))
    assert fingerprint(load_source(tmp_path / "saved").train, "image", "label") == expected
    assert fingerprint(one.select([1, 0]), "image", "label") != expected


@pytest.mark.parametrize("change", ["label", "name", "pixel", "row"])
def test_the_fingerprint_changes_with_every_part_of_the_content(change):
    before, labels = rows([0, 1, 2]), [0, 1, 1] if change == "label" else [0, 1, 2]
    after = rows(labels, label_type=ClassLabel(names=["cat", "dog", "fox" if change == "name" else "eel"]))
    if change == "pixel":
        after = Dataset.from_list(
            [*list(before)[:2], {"image": PIL.Image.new("L", (4, 4), 9), "label": 2}], before.features
        )
    if change == "row":
        after = after.select([0, 1])
    assert fingerprint(after, "image", "label") != fingerprint(before, "image", "label")
