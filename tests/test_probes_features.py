"""Frozen features: the right vector of each kind of model, computed once, never read from a file that is not theirs."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.numpy import save_file

from vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfImageProcessor, load_checkpoint
from vit_hf.evaluation.probes import cache, features
from vit_hf.evaluation.probes.features import freeze, load_frozen, split_features

PROCESSOR = VitHfImageProcessor(size={"height": 16, "width": 24})


@pytest.fixture(scope="module")
def split():
    """A split of 11 noise pictures, undecoded."""
    pixels = np.random.default_rng(0).integers(0, 255, (11, 20, 30, 3), dtype=np.uint8)
    kinds = Features({"image": Image(), "label": ClassLabel(names=["ant", "bee", "cat"])})
    data = Dataset.from_dict({"image": list(pixels), "label": [row % 3 for row in range(11)]}, features=kinds)
    return data.cast_column("image", Image(decode=False))


@pytest.fixture
def frozen(tiny, randomise):
    return freeze(randomise(VitHfForImageClassification(tiny())), PROCESSOR, name="model")


@pytest.fixture
def forwards(monkeypatch):
    """A list that grows by the batch size whenever an encoder runs."""
    counts = []
    original = features.FeatureEncoder.forward
    monkeypatch.setattr(
        features.FeatureEncoder, "forward", lambda self, pixels: (counts.append(len(pixels)), original(self, pixels))[1]
    )
    return counts


def of(frozen, split, folder, **options):
    accelerator = Accelerator(cpu=True)
    columns = {"image_column": "image", "label_column": "label"}
    return split_features(frozen, split, accelerator, **columns, name="test", batch_size=4, cache=folder, **options)


def pixels_of(split) -> torch.Tensor:
    pictures = [row["image"].convert("RGB") for row in split.cast_column("image", Image())]
    return PROCESSOR(pictures, return_tensors="pt")["pixel_values"]


# ---------------------------------------------------------------------------------------------- what they are
@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "cls"},
        {"pooling": "gap"},
        {"pooling": "gap", "fc_norm": True, "class_token": False},
        {"pooling": "map", "num_register_tokens": 2},
        {"pooling": "cls", "representation_size": 12},
    ],
    ids=str,
)
def test_features_are_what_the_classifier_gets(tiny, randomise, split, tmp_path, options):
    model = randomise(VitHfForImageClassification(tiny(**options)))
    seen = []
    model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(pixels_of(split))
    found = of(freeze(model, PROCESSOR, name="model"), split, tmp_path)
    np.testing.assert_allclose(found.vectors, seen[0].numpy(), atol=1e-5)
    assert found.vectors.shape == (11, options.get("representation_size", 32))
    assert found.vectors.dtype == np.float32
    assert found.labels.tolist() == split["label"]


def test_a_distilled_model_gives_what_both_classifiers_get(tiny, randomise, split, tmp_path):
    model = randomise(VitHfForImageClassification(tiny(distilled=True, num_register_tokens=1, prefix_positions="all")))
    seen = []
    for classifier in (model.classifier, model.distillation_classifier):
        classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(pixels_of(split))
    frozen = freeze(model, PROCESSOR, name="model")
    found = of(frozen, split, tmp_path)
    np.testing.assert_allclose(found.vectors, torch.cat(seen, dim=1).numpy(), atol=1e-5)
    assert found.vectors.shape == (11, 64)
    assert frozen.identity["kind"] == "inputs of both classifiers"


def test_a_model_for_masked_images_gives_the_mean_of_its_patch_tokens(tiny, randomise, split, tmp_path):
    model = randomise(VitHfForMaskedImageModeling(tiny(num_register_tokens=2)))
    model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        tokens = model.vit(pixels_of(split)).last_hidden_state
    frozen = load_frozen(tmp_path / "model")
    found = of(frozen, split, tmp_path)
    np.testing.assert_allclose(found.vectors, tokens[:, 3:].mean(dim=1).numpy(), atol=1e-5)
    assert frozen.identity["kind"] == "mean of the patch tokens"


def test_a_saved_classifier_gives_the_features_of_the_one_in_memory(tiny, randomise, split, tmp_path, forwards):
    model = randomise(VitHfForImageClassification(tiny()))
    model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    first = of(freeze(model, PROCESSOR, name="memory"), split, tmp_path)
    assert sum(forwards) >= 11
    forwards.clear()
    second = of(load_frozen(tmp_path / "model"), split, tmp_path)
    assert not forwards  # the same weights, wherever they lie
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_files_of_other_libraries_are_taken_as_they_are():
    path = Path(__file__).parent / "data" / "google" / "big_vision_map_representation.npz"
    frozen, model = load_frozen(path), load_checkpoint(path)
    pixels = torch.randn(2, 3, *model.config.image_hw)
    with torch.no_grad():
        assert torch.equal(model.classifier(frozen.encoder(pixels)), model(pixels).logits)


# ---------------------------------------------------------------------------------------------- computed once
def test_the_second_time_costs_no_forward_pass_and_shows_no_progress(frozen, split, tmp_path, forwards):
    progress = []
    first = of(frozen, split, tmp_path, on_batch=lambda done, total: progress.append((done, total)))
    assert progress == [(4, 11), (8, 11), (11, 11)]
    assert sum(forwards) >= 11
    progress.clear(), forwards.clear()
    second = of(frozen, split, tmp_path, on_batch=lambda done, total: progress.append((done, total)))
    assert not progress
    assert not forwards
    np.testing.assert_array_equal(first.vectors, second.vectors)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert len(list(tmp_path.iterdir())) == 1


def test_whatever_the_features_depend_on_makes_another_file(tiny, randomise, split, tmp_path, forwards):
    model = randomise(VitHfForImageClassification(tiny()))
    other_weights = randomise(VitHfForImageClassification(tiny()), 1)
    other_config = randomise(VitHfForImageClassification(tiny(hidden_act="quick_gelu")))
    other_processor = VitHfImageProcessor(size={"height": 16, "width": 24}, image_mean=[0.1] * 3)
    changes = {
        "weights": (other_weights, PROCESSOR, split),
        "config": (other_config, PROCESSOR, split),
        "processor": (model, other_processor, split),
        "pictures": (model, PROCESSOR, split.select([1, 0, *range(2, 11)])),
    }
    first = of(freeze(model, PROCESSOR, name=""), split, tmp_path)
    for number, (name, (network, processor, pictures)) in enumerate(changes.items(), start=2):
        forwards.clear()
        found = of(freeze(network, processor, name=""), pictures, tmp_path)
        assert not np.array_equal(found.vectors, first.vectors), name
        assert forwards, name
        assert len(list(tmp_path.iterdir())) == number, name


def test_other_class_names_in_the_model_share_the_features(tiny, randomise, split, tmp_path, forwards):
    for names in ({0: "a", 1: "b"}, {0: "x", 1: "y", 2: "z"}):
        model = randomise(VitHfForImageClassification(tiny(num_labels=None, id2label=names)))
        with torch.no_grad():  # the same encoder
            randomise(model.vit)
        of(freeze(model, PROCESSOR, name=""), split, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------------------------------------- files
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_value(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in the tensors' bytes
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def with_no_note(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in ("vectors", "labels")}
    save_file(tensors, path)


def of_another_model(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["vit_hf.features"])
        tensors = {name: file.get_tensor(name) for name in ("vectors", "labels")}
    header["about"]["weights"] = "0" * 64
    save_file(tensors, path, metadata={"vit_hf.features": json.dumps(header)})


def with_rows_missing(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["vit_hf.features"])
        tensors = {name: file.get_tensor(name)[:-1] for name in ("vectors", "labels")}
    header["sha256"] = cache._digest(**tensors)
    save_file(tensors, path, metadata={"vit_hf.features": json.dumps(header)})


@pytest.mark.parametrize(
    "change", [cut, flip_a_value, empty, with_no_note, of_another_model, with_rows_missing], ids=lambda f: f.__name__
)
def test_a_damaged_or_foreign_file_is_reported_and_computed_again(frozen, split, tmp_path, forwards, caplog, change):
    first = of(frozen, split, tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    change(path)
    forwards.clear()
    with caplog.at_level(logging.WARNING):
        second = of(frozen, split, tmp_path)
    assert forwards
    assert "computed again" in caplog.text
    assert str(path) in caplog.text
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert path.read_bytes() == good  # mended, and the same bytes


def test_a_file_that_cannot_be_written_leaves_nothing_behind(frozen, split, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(OSError, match=r"bytes of features cannot be written to .*No space left.*VIT_HF_CACHE"):
        of(frozen, split, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said_before_any_work(frozen, split, tmp_path, forwards):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cache of features .*file.* cannot be made .*VIT_HF_CACHE"):
        of(frozen, split, tmp_path / "file" / "below")
    assert not forwards


def test_the_cache_lies_beside_the_other_caches_or_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.delenv("VIT_HF_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    assert cache.default_folder() == tmp_path / "home" / "vit-hf" / "features"
    monkeypatch.setenv("VIT_HF_CACHE", str(tmp_path / "mine"))
    assert cache.default_folder() == tmp_path / "mine" / "features"


def test_a_streamed_split_is_an_error(frozen, split, tmp_path):
    with pytest.raises(ValueError, match=r"split test is streamed.*load it without streaming"):
        of(frozen, split.to_iterable_dataset(), tmp_path)


# ---------------------------------------------------------------------------------------------- several processes
LAUNCHED = """
import sys
from accelerate import Accelerator
from vit_hf.data.sources import load_source
from vit_hf.evaluation.probes.features import load_frozen, split_features

model, folder = sys.argv[1:]
source = load_source("digits")
accelerator = Accelerator(cpu=True)
columns = {"image_column": source.image_column, "label_column": source.label_column}
for _ in range(2):  # computed, then from the cache
    found = split_features(
        load_frozen(model), source.test, accelerator, **columns, name="test", batch_size=16, cache=folder
    )
    assert (found is None) == (not accelerator.is_main_process)
assert found is None or found.vectors.shape == (359, 32)
print("processes", accelerator.num_processes)
"""


@pytest.mark.slow
def test_one_and_two_processes_write_the_same_bytes(tiny, randomise, tmp_path):
    randomise(VitHfForImageClassification(tiny(image_size=8, patch_size=4))).save_pretrained(tmp_path / "model")
    VitHfImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    (tmp_path / "script.py").write_text(LAUNCHED)
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    files = []
    for count in (1, 2):
        launcher = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            root / "scripts/launch/ddp.yaml",
        ]
        words = ["--num_processes", count, tmp_path / "script.py", tmp_path / "model", tmp_path / f"cache{count}"]
        done = subprocess.run(
            list(map(str, [*launcher, *words])), env=environment, capture_output=True, text=True, timeout=170
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"processes {count}" in done.stdout
        (path,) = (tmp_path / f"cache{count}").iterdir()
        files.append((path.name, path.read_bytes()))
    assert files[0] == files[1]
