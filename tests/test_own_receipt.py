"""The receipt of a classifier that starts from weights of this package: what is the file's, and what is not."""

import pytest
import torch

from vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfImageProcessor, VitHfModel
from vit_hf.checkpoints.load import load_model
from vit_hf.checkpoints.own import note_changes, own_receipt

HEAD = ("classifier.weight", "classifier.bias")
POSITIONS = "vit.embeddings.position_embeddings"
KERNEL = "vit.embeddings.patch_embeddings.projection.weight"


@pytest.fixture
def saved(tiny, randomise, tmp_path):
    """Give a function that saves a model of a class with noise as weights."""

    def save(kind: type, **options):
        model = randomise(kind(tiny(**options)))
        model.save_pretrained(tmp_path)
        VitHfImageProcessor(size={"height": 16, "width": 24}).save_pretrained(tmp_path)
        return tmp_path, model

    return save


def actions(receipt) -> dict[str, str]:
    return {entry.model or entry.file[0]: entry.action for entry in receipt.tensors}


def test_a_classifier_as_it_was_is_exact(saved):
    folder, model = saved(VitHfForImageClassification)
    loaded, _ = load_model(folder, to_train=True)
    receipt = vars(loaded)["receipt"]
    assert actions(receipt) == dict.fromkeys(model.state_dict(), "exact")
    assert receipt.files[0].bytes == (folder / "model.safetensors").stat().st_size
    assert "receipt" not in vars(load_model(folder)[0])  # which nothing asks for in an evaluation


def test_a_weight_that_is_not_the_file_s_is_not_called_exact(saved):
    folder, model = saved(VitHfForImageClassification)
    with torch.no_grad():
        model.vit.norm.weight[0] += 1e-6
    found = actions(own_receipt(folder, model))
    assert {name for name, action in found.items() if action != "exact"} == {"vit.norm.weight"}


def test_other_sizes_are_resampled_and_other_classes_new(saved):
    folder, _ = saved(VitHfForImageClassification)
    loaded, _ = load_model(folder, to_train=True, image_size=[32, 24], patch_size=8, num_labels=7)
    found = actions(vars(loaded)["receipt"])
    others = {name: action for name, action in found.items() if action != "exact"}
    resampled = dict.fromkeys((KERNEL,), "resampled")
    assert others == resampled | dict.fromkeys(HEAD, "re-initialised")
    again, _ = load_model(folder, to_train=True, image_size=[32, 48])
    others = {name: action for name, action in actions(vars(again)["receipt"]).items() if action != "exact"}
    assert others == {POSITIONS: "resampled"}


def test_names_without_a_prefix_are_those_of_a_bare_encoder(saved):
    folder, base = saved(VitHfModel)
    found = actions(vars(load_model(folder, to_train=True)[0])["receipt"])
    assert found == {f"vit.{name}": "exact" for name in base.state_dict()} | dict.fromkeys(HEAD, "re-initialised")


def test_what_masked_images_needed_is_dropped(saved):
    folder, _ = saved(VitHfForMaskedImageModeling)
    found = actions(vars(load_model(folder, to_train=True)[0])["receipt"])
    dropped = {name for name, action in found.items() if action == "dropped"}
    assert dropped == {"decoder.weight", "decoder.bias", "vit.embeddings.mask_token"}


def test_what_changes_after_the_load_is_noted(saved):
    """Another pooling takes the place of the last norm, another set of classes that of the classifier."""
    folder, model = saved(VitHfForImageClassification)
    loaded, _ = load_model(folder, to_train=True)
    receipt, before = vars(loaded)["receipt"], loaded.state_dict()
    loaded.set_labels({0: "cat", 1: "dog"})
    after = {name: tensor for name, tensor in loaded.state_dict().items() if not name.startswith("vit.norm.")}
    after["vit.pooler.norm.weight"] = torch.ones(32)
    note_changes(receipt, before, after)
    expected = dict.fromkeys(model.state_dict(), "exact") | dict.fromkeys(HEAD, "re-initialised")
    expected |= {"vit.norm.weight": "dropped", "vit.norm.bias": "dropped", "vit.pooler.norm.weight": "re-initialised"}
    assert actions(receipt) == expected
    assert "new classifier of 2 classes: zeros" in str(receipt)
