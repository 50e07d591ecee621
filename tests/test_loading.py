"""Saving and loading: bit-equal, strict, openly to other sizes, labels and classes, with and without the package."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

from vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfImageProcessor, VitHfModel
from vit_hf.configuration_vit_hf import POSITION_INTERPOLATIONS
from vit_hf.modeling_vit_hf import resample_patch_kernel, resample_positions, sincos2d_positions

EVERY_CLASS = pytest.mark.parametrize(
    "model_class", [VitHfModel, VitHfForImageClassification, VitHfForMaskedImageModeling]
)
MANY_OPTIONS = {
    "plain": {},
    "all_options": {"num_register_tokens": 2, "qk_norm": True, "layer_scale_init": 0.1, "representation_size": 12},
    "map": {"pooling": "map"},
    "sincos_gap": {"position_embedding": "sincos2d", "pooling": "gap"},
    "stem": {"resnet_stem_layers": [1]},
    "timm_stem": {"resnet_stem_layers": [], "resnet_stem_width": 32, "resnet_stem_style": "timm"},
    "mae": {"pooling": "gap", "class_token": True, "fc_norm": True},
    "deit": {"distilled": True, "num_register_tokens": 1, "prefix_positions": "all"},
    "deit3": {"prefix_positions": "none", "layer_scale_init": 0.1},
    "clip": {"embedding_norm": True, "patch_bias": False, "hidden_act": "quick_gelu"},
    "dino": {"hidden_act": "swiglu", "num_register_tokens": 2, "position_interpolation": "dino"},
}
ALL_OPTIONS = MANY_OPTIONS["all_options"]
NAMES = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}


@pytest.fixture
def tiny_names(tiny):
    """The small config with names of its five classes."""

    def config(**overrides):
        return tiny(**{"num_labels": None, "id2label": NAMES, **overrides})

    return config


@pytest.fixture
def saved(tiny_names, randomise, tmp_path):
    """Give a function that saves a model with random weights; returns the folder and the model."""

    def save(model_class=VitHfForImageClassification, **options) -> tuple[Path, torch.nn.Module]:
        model = randomise(model_class(tiny_names(**options)))
        model.save_pretrained(tmp_path / "saved")
        return tmp_path / "saved", model

    return save


def images(batch: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same_weights(found, expected, *, but: tuple[str, ...] = ()) -> None:
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        if not name.startswith(but or ("\0",)):
            assert torch.equal(found[name], expected[name]), name


def rewrite(folder: Path, change) -> None:
    """Pass the weights on disk through a function; as when they are replaced on purpose, without the manifest."""
    (folder / "manifest.json").unlink()
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def rewrite_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ------------------------------------------------------------------------------------------- round trips
@EVERY_CLASS
@pytest.mark.parametrize("options", MANY_OPTIONS.values(), ids=MANY_OPTIONS)
def test_loading_gives_back_the_saved_weights_bit_by_bit(model_class, options, saved, settled):
    folder, model = saved(model_class, **options)
    loaded, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert_same_weights(loaded, model)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert not loaded.training
    loaded, model = settled(loaded), settled(model)
    assert torch.equal(loaded.encoder(images()).last_hidden_state, model.encoder(images()).last_hidden_state)
    assert torch.equal(loaded(images())[0], model(images())[0])  # logits, tokens or pixels


@EVERY_CLASS
def test_names_on_disk_are_those_of_the_modules(model_class, saved):
    folder, model = saved(model_class, **ALL_OPTIONS)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_a_saved_folder_holds_weights_config_code_and_their_manifest_only(saved):
    folder, _ = saved()
    code = {"configuration", "files", "inference", "masked", "modeling"}
    code = {f"{name}_vit_hf.py" for name in code}
    files = {"config.json", "model.safetensors", "manifest.json"}
    assert {file.name for file in folder.iterdir()} == files | code


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, VitHfModel),
        (AutoModelForImageClassification, VitHfForImageClassification),
        (AutoModelForMaskedImageModeling, VitHfForMaskedImageModeling),
    ],
    ids=lambda value: value.__name__,
)
def test_auto_classes_load_without_the_trust_flag_once_the_package_is_imported(auto_class, model_class, saved):
    folder, model = saved(model_class)
    for trust in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
        loaded = auto_class.from_pretrained(folder, **trust)
        assert type(loaded) is model_class
        assert_same_weights(loaded, model)


def test_sharded_weights_load_bit_by_bit(saved, tmp_path):
    _, model = saved()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 3
    loaded, info = VitHfForImageClassification.from_pretrained(tmp_path / "shards", output_loading_info=True)
    assert_same_weights(loaded, model)
    assert not info["missing_keys"]


@pytest.mark.parametrize(
    "options", [{"device_map": "cpu"}, {"device_map": {"": "cpu"}}, {"attn_implementation": "eager"}]
)
def test_load_options_of_transformers_keep_the_weights(options, saved):
    folder, model = saved(position_embedding="sincos2d")
    loaded = VitHfForImageClassification.from_pretrained(str(folder), **options)
    assert_same_weights(loaded, model)
    assert torch.equal(loaded.vit.embeddings.position_embeddings, model.vit.embeddings.position_embeddings)
    assert loaded.config._attn_implementation == options.get("attn_implementation", "sdpa")


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_weights_load_in_another_dtype(dtype, saved):
    folder, model = saved()
    loaded = VitHfForImageClassification.from_pretrained(folder, dtype=dtype)
    assert_same_weights(loaded, model.bfloat16())
    assert torch.equal(loaded(images()).logits, model(images()).logits)


def test_weights_saved_in_half_precision_come_back_so(saved, tmp_path):
    _, model = saved()
    model.bfloat16().save_pretrained(tmp_path / "half")
    loaded = VitHfForImageClassification.from_pretrained(tmp_path / "half")
    assert loaded.dtype == torch.bfloat16
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fixed_position_table_is_right_after_loading(dtype, saved):
    """No file holds it, and transformers leaves its memory as it finds it."""
    folder, _ = saved(position_embedding="sincos2d")
    loaded = VitHfForImageClassification.from_pretrained(folder, dtype=dtype)
    expected = sincos2d_positions((4, 3), 32, num_prefix=1).to(dtype)
    assert loaded.vit.embeddings.position_embeddings.dtype == dtype
    assert torch.equal(loaded.vit.embeddings.position_embeddings, expected)
    assert loaded(images()).logits.dtype == dtype


def test_attention_maps_by_default_are_saved_with_the_model(saved, tmp_path):
    _, model = saved()
    model.config.output_attentions = True
    model.save_pretrained(tmp_path / "maps")
    assert len(VitHfForImageClassification.from_pretrained(tmp_path / "maps")(images()).attentions) == 3
    folder, _ = saved()
    assert len(VitHfForImageClassification.from_pretrained(folder, output_attentions=True)(images()).attentions) == 3


def test_a_state_dict_and_a_config_make_a_model(saved):
    _, model = saved()
    made = VitHfForImageClassification.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert_same_weights(made, model)


# ------------------------------------------------------------------------------------------- other image sizes
@pytest.mark.parametrize("load", [VitHfForImageClassification, AutoModelForImageClassification])
@pytest.mark.parametrize("method", POSITION_INTERPOLATIONS)
def test_another_image_size_at_load_resamples_the_positions_and_reports_it(load, method, saved, caplog):
    folder, model = saved(position_interpolation=method)
    loaded = load.from_pretrained(folder, image_size=[32, 16])
    expected = resample_positions(
        model.vit.embeddings.position_embeddings, num_prefix=1, source=(4, 3), target=(8, 2), method=method
    )
    assert torch.equal(loaded.vit.embeddings.position_embeddings, expected)
    assert_same_weights(loaded.vit, model.vit, but=("embeddings.position_embeddings",))
    assert loaded.config.image_size == loaded.vit.config.image_size == [32, 16]
    assert f"position embeddings resampled from a 4x3 to a 8x2 grid ({method})" in caplog.messages
    picture = images(2, 32, 16)
    assert torch.equal(loaded(picture).logits, model(picture, interpolate_pos_encoding=True).logits)


@EVERY_CLASS
def test_all_classes_load_to_another_rectangle(model_class, saved):
    folder, model = saved(model_class)
    loaded = model_class.from_pretrained(folder, image_size=(8, 40))
    picture = images(2, 8, 40)
    expected = model.encoder(picture, interpolate_pos_encoding=True).last_hidden_state
    assert torch.equal(loaded.encoder(picture).last_hidden_state, expected)


def test_fixed_positions_are_computed_for_the_size_at_load(saved, caplog):
    folder, _ = saved(position_embedding="sincos2d")
    loaded = VitHfForImageClassification.from_pretrained(folder, image_size=[32, 16])
    expected = sincos2d_positions((8, 2), 32, num_prefix=1)
    assert torch.equal(loaded.vit.embeddings.position_embeddings, expected)
    assert "resampled from a 4x3 to a 8x2 grid (sincos2d, computed anew)" in caplog.text


def test_the_stored_image_size_changes_and_reports_nothing(saved, caplog):
    folder, model = saved()
    assert_same_weights(VitHfForImageClassification.from_pretrained(folder, image_size=(16, 24)), model)
    assert caplog.messages == []


def test_a_resized_model_is_saved_with_its_new_size(saved, tmp_path):
    folder, _ = saved()
    resized = VitHfForImageClassification.from_pretrained(folder, image_size=[32, 16])
    resized.save_pretrained(tmp_path / "resized")
    again = VitHfForImageClassification.from_pretrained(tmp_path / "resized")
    assert again.config.image_size == [32, 16]
    assert_same_weights(again, resized)


def test_a_size_at_load_that_does_not_divide_raises(saved):
    folder, _ = saved()
    with pytest.raises(
        StrictDataclassError, match=r"image_size 225 \(height\) is not divisible by patch_size 4; use 224"
    ):
        VitHfForImageClassification.from_pretrained(folder, image_size=225)


# ------------------------------------------------------------------------------------------- other patch sizes
KERNEL = "embeddings.patch_embeddings.projection.weight"
POSITIONS = "embeddings.position_embeddings"


@pytest.mark.parametrize("load", [VitHfForImageClassification, AutoModelForImageClassification])
def test_another_patch_size_at_load_resamples_kernel_and_positions_once_and_reports_it(load, saved, caplog):
    folder, model = saved()
    loaded = load.from_pretrained(folder, patch_size=8)
    vit, weights = loaded.vit, model.vit.state_dict()
    assert torch.equal(vit.get_parameter(KERNEL), resample_patch_kernel(weights[KERNEL], (8, 8)))
    expected = resample_positions(weights[POSITIONS], num_prefix=1, source=(4, 3), target=(2, 3), method="google")
    assert torch.equal(vit.get_parameter(POSITIONS), expected)
    assert_same_weights(vit, model.vit, but=(KERNEL, POSITIONS))
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert (loaded.config.patch_hw, loaded.config.image_hw) == ((8, 8), (16, 24))
    assert caplog.messages == [
        "patch kernel resampled from 4x8 to 8x8 pixels by the pseudo-inverse of image resizing",
        "position embeddings resampled from a 4x3 to a 2x3 grid (google)",
    ]
    assert loaded(images()).logits.shape == (2, 5)


def test_image_and_patch_size_that_grow_together_resample_the_kernel_alone(saved, caplog):
    folder, model = saved(num_register_tokens=2, prefix_positions="all")
    loaded = VitHfForImageClassification.from_pretrained(folder, image_size=(32, 36), patch_size=(8, 12))
    assert_same_weights(loaded.vit, model.vit, but=(KERNEL,))
    assert torch.equal(
        loaded.vit.get_parameter(KERNEL), resample_patch_kernel(model.vit.get_parameter(KERNEL), (8, 12))
    )
    assert caplog.messages == ["patch kernel resampled from 4x8 to 8x12 pixels by the pseudo-inverse of image resizing"]
    patches = images(2, 16, 24).unflatten(2, (4, 4)).unflatten(4, (3, 8)).permute(0, 2, 4, 1, 3, 5)  # (B, h, w, C, ...)
    larger = torch.nn.functional.interpolate(patches.flatten(0, 2), size=(8, 12), mode="bilinear")
    larger = larger.unflatten(0, (2, 4, 3)).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 32, 36)
    # 1e-5: the kernel is rounded to float32 once more
    torch.testing.assert_close(loaded(larger).logits, model(images(2, 16, 24)).logits, atol=1e-5, rtol=1e-5)


def test_image_and_patch_size_may_change_the_grid_together(saved, caplog):
    folder, model = saved(VitHfModel)
    loaded = VitHfModel.from_pretrained(folder, image_size=[24, 16], patch_size=[3, 4])
    weights = model.state_dict()
    assert torch.equal(loaded.get_parameter(KERNEL), resample_patch_kernel(weights[KERNEL], (3, 4)))
    expected = resample_positions(weights[POSITIONS], num_prefix=1, source=(4, 3), target=(8, 4), method="google")
    assert torch.equal(loaded.get_parameter(POSITIONS), expected)
    assert len(caplog.messages) == 2


def test_the_stored_patch_size_changes_and_reports_nothing(saved, caplog):
    folder, model = saved()
    assert_same_weights(VitHfForImageClassification.from_pretrained(folder, patch_size=(4, 8)), model)
    assert caplog.messages == []


def test_a_model_of_another_patch_size_is_saved_with_it(saved, tmp_path, caplog):
    folder, _ = saved(patch_bias=False)
    changed = VitHfForImageClassification.from_pretrained(folder, patch_size=8)
    changed.save_pretrained(tmp_path / "changed")
    caplog.clear()
    again = VitHfForImageClassification.from_pretrained(tmp_path / "changed")
    assert again.config.patch_hw == (8, 8)
    assert_same_weights(again, changed)
    assert caplog.messages == []


def test_the_kernel_behind_a_stem_is_resampled_in_cells_of_its_feature_map(saved):
    folder, model = saved(resnet_stem_layers=[], resnet_stem_width=32)  # stride 4: a kernel of 1x2 cells
    loaded = VitHfForImageClassification.from_pretrained(folder, image_size=[16, 32], patch_size=[8, 16])
    assert torch.equal(loaded.vit.get_parameter(KERNEL), resample_patch_kernel(model.vit.get_parameter(KERNEL), (2, 4)))
    assert loaded(images(2, 16, 32)).logits.shape == (2, 5)


def test_a_model_for_masked_images_refuses_another_patch_size(saved):
    folder, model = saved(VitHfForMaskedImageModeling)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = re.escape(
        "patch_size 8 cannot replace [4, 8] in a model for masked images, whose decoder predicts whole patches; load "
        "the weights as VitHfForImageClassification"
    )
    with pytest.raises(ValueError, match=message):
        VitHfForMaskedImageModeling.from_pretrained(folder, patch_size=8)
    with pytest.raises(ValueError, match=message):
        model.set_image_size((32, 32), patch_size=8)
    assert (model.config.image_hw, model.config.patch_hw) == ((16, 24), (4, 8))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    classifier = VitHfForImageClassification.from_pretrained(folder, patch_size=8)
    assert torch.equal(classifier.vit.get_parameter(KERNEL), resample_patch_kernel(before[f"vit.{KERNEL}"], (8, 8)))


def test_a_patch_size_at_load_that_does_not_divide_raises(saved):
    folder, _ = saved()
    with pytest.raises(
        StrictDataclassError, match=r"image_size 16 \(height\) is not divisible by patch_size 5; use 15 or 20"
    ):
        VitHfForImageClassification.from_pretrained(folder, patch_size=5)


# ------------------------------------------------------------------------------------------- other labels
@pytest.mark.parametrize("load", [VitHfForImageClassification, AutoModelForImageClassification])
@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"id2label": {0: "fox", 1: "gnu"}}, ["fox", "gnu"]),
        ({"id2label": {"0": "fox", "1": "gnu"}, "label2id": {"fox": 0, "gnu": 1}}, ["fox", "gnu"]),
        ({"id2label": {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "emu"}}, ["ant", "bee", "cat", "dog", "emu"]),
    ],
    ids=["count", "names", "names_as_json", "one_other_name"],
)
def test_other_labels_at_load_replace_the_head_by_zeros_and_say_so(load, given, names, saved, caplog):
    folder, model = saved()
    loaded = load.from_pretrained(folder, **given)
    assert loaded.config.id2label == loaded.vit.config.id2label == dict(enumerate(names))
    assert loaded.config.label2id == {name: index for index, name in enumerate(names)}
    assert loaded.classifier.weight.shape == (len(names), 32)
    assert (loaded.classifier.weight == 0).all()
    assert (loaded.classifier.bias == 0).all()
    assert_same_weights(loaded.vit, model.vit)
    assert f"classifier replaced: 5 classes before, {len(names)} new ones, all zeros" in caplog.messages


def test_other_labels_replace_both_classifiers_of_a_distilled_model(saved, caplog):
    folder, model = saved(**MANY_OPTIONS["deit"])
    loaded = VitHfForImageClassification.from_pretrained(folder, id2label={0: "fox", 1: "gnu"})
    for classifier in (loaded.classifier, loaded.distillation_classifier):
        assert classifier.weight.shape == (2, 32)
        assert (classifier.weight == 0).all()
        assert (classifier.bias == 0).all()
    assert loaded.classifier is not loaded.distillation_classifier
    assert_same_weights(loaded.vit, model.vit)
    assert caplog.messages == ["classifier replaced: 5 classes before, 2 new ones, all zeros"]


@pytest.mark.parametrize("given", [{}, {"num_labels": 5}, {"id2label": NAMES}, {"num_labels": None}], ids=str)
def test_the_stored_labels_keep_the_head(given, saved, caplog):
    folder, model = saved()
    assert_same_weights(VitHfForImageClassification.from_pretrained(folder, **given), model)
    assert caplog.messages == []


def test_labels_with_gaps_at_load_raise(saved):
    folder, _ = saved()
    with pytest.raises(StrictDataclassError, match=r"id2label has the indices \[1, 2\]; expected 0 to 1, each once"):
        VitHfForImageClassification.from_pretrained(folder, id2label={1: "fox", 2: "gnu"})


def test_size_and_labels_may_change_together(saved):
    folder, _ = saved()
    loaded = AutoModelForImageClassification.from_pretrained(folder, image_size=32, num_labels=3)
    assert loaded(images(1, 32, 32)).logits.shape == (1, 3)


@pytest.mark.parametrize("model_class", [VitHfModel, VitHfForMaskedImageModeling])
def test_models_without_a_classifier_take_other_labels_into_the_config(model_class, saved):
    folder, model = saved(model_class)
    loaded = model_class.from_pretrained(folder, id2label={0: "fox"})
    assert loaded.config.id2label == {0: "fox"}
    assert loaded.config.label2id == {"fox": 0}
    assert_same_weights(loaded, model)


def test_a_config_object_says_what_is_wanted_and_stays_as_it_is(saved, tiny):
    folder, model = saved()
    config = tiny(image_size=32, id2label={0: "fox", 1: "gnu"}, num_labels=None, drop_path_rate=0.1)
    before = config.to_dict()
    loaded = VitHfForImageClassification.from_pretrained(folder, config=config)
    assert config.to_dict() == before
    assert loaded.config.num_labels == 2
    assert loaded.config.image_size == 32
    assert loaded.vit.layers[2].scale1.drop_path_rate == 0.1
    assert_same_weights(loaded.vit, model.vit, but=("embeddings.position_embeddings",))


def test_a_config_may_be_named_by_its_folder(saved, tmp_path):
    folder, model = saved()
    model.config.save_pretrained(tmp_path / "config")
    assert_same_weights(VitHfForImageClassification.from_pretrained(folder, config=tmp_path / "config"), model)


# ------------------------------------------------------------------------------------------- other classes
def test_a_classifier_loads_as_base_model(saved):
    folder, model = saved(**ALL_OPTIONS)
    base, info = VitHfModel.from_pretrained(folder, output_loading_info=True)
    assert_same_weights(base, model.vit)
    assert info["unexpected_keys"] == {"classifier.weight", "classifier.bias"}
    assert torch.equal(base(images()).pooler_output, model.vit(images()).pooler_output)


def test_a_base_model_loads_as_distilled_classifier_with_two_heads_of_zeros(saved):
    folder, base = saved(VitHfModel, **MANY_OPTIONS["deit"])
    model = VitHfForImageClassification.from_pretrained(folder)
    assert_same_weights(model.vit, base)
    assert (model.classifier.weight == 0).all()
    assert (model.distillation_classifier.weight == 0).all()


def test_a_masked_model_without_a_last_norm_gains_that_of_the_pooler(saved):
    folder, masked = saved(VitHfForMaskedImageModeling, **MANY_OPTIONS["mae"])
    model = VitHfForImageClassification.from_pretrained(folder)
    assert (model.vit.pooler.norm.weight == 1).all()
    assert torch.equal(model.vit(images()).last_hidden_state, masked.vit(images()).last_hidden_state)


def test_a_base_model_loads_as_classifier_with_a_head_of_zeros(saved):
    folder, base = saved(VitHfModel)
    model, info = VitHfForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert_same_weights(model.vit, base)
    assert (model.classifier.weight == 0).all()
    assert (model.classifier.bias == 0).all()


@pytest.mark.parametrize(
    "options", [{}, {"representation_size": 12}, {"pooling": "map"}], ids=["cls", "pre_logits", "map"]
)
def test_a_masked_model_loads_as_classifier_with_a_new_initialised_head(options, saved):
    folder, masked = saved(VitHfForMaskedImageModeling, **options)
    model = VitHfForImageClassification.from_pretrained(folder)
    weights = masked.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith(("classifier.", "vit.pooler.")):
            assert torch.equal(value, weights[name]), name
    assert (model.classifier.weight == 0).all()
    for name, value in model.vit.pooler.state_dict().items():
        if name.endswith("bias") and "fc" not in name:
            assert (value == 0).all(), name
        elif name.endswith("weight") and "norm" not in name:
            fan_in, fan_out = value.shape[1], value.shape[0]
            if "pre_logits" in name:
                assert 0.7 < value.std() * fan_in**0.5 < 1.3, name
            else:  # the fused key and value have the bound of a square layer
                bound = (6 / (fan_in + (fan_in if "key_value" in name else fan_out))) ** 0.5
                assert 0.9 * bound < value.abs().max() <= bound, name


def test_a_classifier_loads_as_masked_model_with_a_new_decoder_and_mask_token(saved):
    folder, model = saved()
    masked, info = VitHfForMaskedImageModeling.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {"decoder.weight", "decoder.bias", "vit.embeddings.mask_token"}
    tokens = model.vit(images()).last_hidden_state
    assert torch.equal(masked.vit(images()).last_hidden_state, tokens)
    bound = (6 / (32 + 96)) ** 0.5
    assert 0.95 * bound < masked.decoder.weight.abs().max() <= bound
    assert 0 < masked.vit.embeddings.mask_token.abs().max() < 0.1


def test_a_masked_model_loads_as_base_model(saved):
    folder, masked = saved(VitHfForMaskedImageModeling)
    base = VitHfModel.from_pretrained(folder)
    assert torch.equal(base(images()).last_hidden_state, masked.vit(images()).last_hidden_state)


def test_the_base_model_loads_without_its_pooler(saved):
    folder, model = saved()
    base = VitHfModel.from_pretrained(folder, add_pooling_layer=False)
    outputs = base(images())
    assert outputs.pooler_output is None
    assert torch.equal(outputs.last_hidden_state, model.vit(images()).last_hidden_state)


# ------------------------------------------------------------------------------------------- weights that do not fit
def refused(folder, *parts: str, model_class=VitHfForImageClassification, **options) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the weights in {folder} do not fit a")) as caught:
        model_class.from_pretrained(folder, **options)
    for part in (*parts, "load them with that class and the config.json beside them"):
        assert part in str(caught.value)


def test_missing_extra_reshaped_and_infinite_weights_are_listed_together(saved):
    folder, _ = saved()

    def spoil(weights):
        del weights["vit.norm.bias"]
        weights["vit.extra"] = torch.zeros(3)
        weights["vit.layers.0.mlp.fc1.weight"] = torch.zeros(60, 32)
        weights["vit.layers.1.norm1.weight"][3] = float("nan")
        weights["vit.layers.2.norm1.weight"][3] = float("inf")
        return weights

    rewrite(folder, spoil)
    refused(
        folder,
        "missing: vit.norm.bias",
        "unexpected: vit.extra",
        "other shape: vit.layers.0.mlp.fc1.weight (60, 32), expected (64, 32)",
        "NaN or infinite: vit.layers.1.norm1.weight",
        "NaN or infinite: vit.layers.2.norm1.weight",
        "They were saved by VitHfForImageClassification",
    )


@pytest.mark.parametrize("lost", ["classifier.weight", "vit.embeddings.cls_token"])
def test_a_weight_that_the_saving_class_had_must_be_there(lost, saved):
    folder, _ = saved()
    rewrite(folder, lambda weights: {name: value for name, value in weights.items() if name != lost})
    refused(folder, f"missing: {lost}")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"num_hidden_layers": 4}, "missing: vit.layers.3.attention.output.bias"),
        ({"num_hidden_layers": 2}, "unexpected: vit.layers.2.attention.output.bias"),
        ({"hidden_size": 64}, "other shape: classifier.weight (5, 32), expected (5, 64)"),
        ({"pooling": "gap"}, "unexpected: vit.embeddings.cls_token"),
        ({"num_register_tokens": 2}, "missing: vit.embeddings.register_tokens"),
        ({"layer_scale_init": 0.1}, "missing: vit.layers.0.scale1.scale"),
        ({"representation_size": 8}, "missing: vit.pooler.pre_logits.weight"),
        ({"num_channels": 1}, "other shape: vit.embeddings.patch_embeddings.projection.weight (32, 3, 4, 8)"),
        ({"patch_bias": False}, "unexpected: vit.embeddings.patch_embeddings.projection.bias"),
        ({"embedding_norm": True}, "missing: vit.embeddings.norm.weight"),
        ({"fc_norm": True}, "unexpected: vit.norm.weight"),
        ({"hidden_act": "swiglu"}, "other shape: vit.layers.0.mlp.fc1.weight (64, 32), expected (128, 32)"),
        ({"prefix_positions": "none"}, "other shape: vit.embeddings.position_embeddings (1, 13, 32)"),
        ({"distilled": True, "num_register_tokens": 1}, "missing: distillation_classifier.weight"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_architecture_than_the_stored_one_raises(options, part, saved):
    folder, _ = saved()
    refused(folder, part, **options)


@EVERY_CLASS
def test_another_class_excuses_only_the_heads(model_class, saved):
    folder, _ = saved(VitHfForMaskedImageModeling if model_class is VitHfModel else VitHfModel)
    prefix = "vit." if model_class is VitHfModel else ""
    rewrite(folder, lambda weights: {name: weights[name] for name in weights if name != f"{prefix}norm.bias"})
    prefix = "" if model_class is VitHfModel else "vit."
    refused(folder, f"missing: {prefix}norm.bias", model_class=model_class)


def test_a_long_list_is_cut_with_its_count(saved):
    folder, _ = saved()
    refused(folder, "and 4 more)", num_hidden_layers=4)


def test_other_shapes_are_accepted_when_asked_for(saved):
    folder, model = saved()
    loaded = VitHfForImageClassification.from_pretrained(folder, intermediate_size=48, ignore_mismatched_sizes=True)
    assert loaded.vit.layers[0].mlp.fc1.weight.shape == (48, 32)
    assert torch.equal(loaded.vit.norm.weight, model.vit.norm.weight)


def test_a_stock_vit_raises_with_its_type(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    message = f"{tmp_path} holds a model of type 'vit'; expected a config.json with model_type 'vit_hf'"
    with pytest.raises(ValueError, match=re.escape(message)):
        VitHfForImageClassification.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------- files that cannot be read
def header(weights: bytes) -> int:
    return 8 + int.from_bytes(weights[:8], "little")


UNREADABLE = {
    "empty": lambda weights: b"",
    "cut_in_the_header": lambda weights: weights[: header(weights) // 2],
    "cut_after_the_header": lambda weights: weights[: header(weights)],
    "cut_in_half": lambda weights: weights[: len(weights) // 2],
    "last_byte_gone": lambda weights: weights[:-1],
    "web_page": lambda weights: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "lfs_pointer": lambda weights: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 121644\n",
    "huge_header": lambda weights: (10**15).to_bytes(8, "little") + b"{}",
    "bytes_left_over": lambda weights: weights + b"\0" * 8,
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_damaged_weights_raise_with_place_and_remedy(damage, saved):
    folder, _ = saved()
    file = folder / "model.safetensors"
    file.write_bytes(UNREADABLE[damage](file.read_bytes()))
    message = (
        re.escape(f"the weights of {folder} cannot be read (")
        + ".*"
        + re.escape(
            "); expected model.safetensors, or its shards and their index, whole, and not a web page or Git-LFS "
            "pointer of that name: save the model or copy its files anew"
        )
    )
    with pytest.raises(OSError, match=message):
        VitHfForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize("load", [VitHfForImageClassification, AutoModelForImageClassification])
def test_a_folder_without_weights_raises_with_their_name(load, saved):
    folder, _ = saved()
    (folder / "model.safetensors").unlink()
    message = rf"the weights of {re.escape(str(folder))} cannot be read \(.*no file named model\.safetensors.*save the"
    with pytest.raises(OSError, match=message):
        load.from_pretrained(folder)


def test_a_lost_shard_raises_with_its_name(saved, tmp_path):
    _, model = saved()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    lost = sorted((tmp_path / "shards").glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(
        OSError, match=rf"cannot be read \(.*{lost.name}.*\); expected model.safetensors, or its shards"
    ):
        VitHfForImageClassification.from_pretrained(tmp_path / "shards")


class _Canary:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_the_weights_is_not_read(saved, tmp_path):
    folder, _ = saved()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Canary(tmp_path / "canary")))
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        VitHfForImageClassification.from_pretrained(folder)
    assert not (tmp_path / "canary").exists()


def test_a_folder_without_a_config_raises(saved):
    folder, _ = saved()
    (folder / "config.json").unlink()
    with pytest.raises(
        ValueError, match=re.escape(f"{folder} holds no config.json; expected a config.json with model_")
    ):
        VitHfForImageClassification.from_pretrained(folder)


def test_the_folder_of_an_adapter_is_told_from_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere"}')
    with pytest.raises(ValueError, match=r"holds an adapter and no model; load its base .*PeftModel.from_pretrained"):
        VitHfForImageClassification.from_pretrained(tmp_path)


def test_a_broken_config_raises_with_its_path(saved):
    folder, _ = saved()
    (folder / "config.json").write_text('{"model_type": "vit_hf",')
    with pytest.raises(OSError, match=re.escape(str(folder / "config.json"))):
        VitHfForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 10**12),
        ("num_hidden_layers", 10**9),
        ("image_size", 0),
        ("patch_size", [4, 7]),
        ("pooling", "x"),
    ],
)
def test_a_hostile_config_fails_before_anything_is_built(field, value, saved):
    folder, _ = saved()
    rewrite_config(folder, **{field: value})
    with pytest.raises(StrictDataclassError, match=field):
        VitHfForImageClassification.from_pretrained(folder)


def test_label_names_that_do_not_fit_the_head_raise(saved):
    folder, _ = saved()
    rewrite_config(folder, id2label={"0": "ant", "1": "bee"}, label2id={"ant": 0, "bee": 1})
    refused(folder, "other shape: classifier.weight (5, 32), expected (2, 32)")


def test_label_names_with_a_wrong_inverse_raise(saved):
    folder, _ = saved()
    rewrite_config(folder, label2id={"ant": 1, "bee": 0, "cat": 2, "dog": 3, "elk": 4})
    with pytest.raises(StrictDataclassError, match="label2id and id2label do not match"):
        VitHfForImageClassification.from_pretrained(folder)


# ------------------------------------------------------------------------------------------- a process of its own
FRESH_PROCESS = """
import json, sys
from PIL import Image
from transformers import (
    AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling, pipeline,
)

pixels, found = torch.load("pixels.pt", weights_only=True), {}

# without the flag nothing runs
refusals = []
for load in (AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling):
    for flag in ({}, {"trust_remote_code": False}):
        try:
            load.from_pretrained("saved", **flag)
        except Exception as error:
            refusals.append("trust_remote_code" in str(error))
try:
    pipeline("image-classification", model="saved")
except Exception as error:
    refusals.append("trust_remote_code" in str(error))
found["refusals"] = refusals
found["run_unasked"] = [name for name in sys.modules if name.startswith("transformers_modules.")]

trust = {"trust_remote_code": True}
found["config"] = AutoConfig.from_pretrained("saved", **trust).to_dict()
with torch.no_grad():
    classifier = AutoModelForImageClassification.from_pretrained("saved", **trust)
    base = AutoModel.from_pretrained("saved", **trust)
    masked = AutoModelForMaskedImageModeling.from_pretrained("saved", **trust)
    other = AutoModelForImageClassification.from_pretrained("saved", image_size=[32, 16], num_labels=3, **trust)
    outputs = {
        "logits": classifier(pixels).logits,
        "tokens": base(pixels).last_hidden_state,
        "masked_tokens": masked.vit(pixels).last_hidden_state,
        "positions": other.vit.embeddings.position_embeddings,
        "other_logits": other(torch.zeros(1, 3, 32, 16)).logits,
    }
    classifier.save_pretrained("again")
    again = AutoModelForImageClassification.from_pretrained("again", **trust)
    outputs["again"] = again(pixels).logits
torch.save(outputs, "outputs.pt")
found["pipeline"] = pipeline("image-classification", model="saved", **trust)(Image.open("picture.png"), top_k=5)
found["modules"] = sorted({type(model).__module__.split(".")[0] for model in (classifier, base, masked, other)})
with open("found.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory, tiny, randomise, run_without_package):
    """What a process without the package finds in a saved folder; returns the answers, outputs, model and folder."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("fresh")
    model = randomise(VitHfForImageClassification(tiny(**ALL_OPTIONS, num_labels=None, id2label=NAMES)))
    model.save_pretrained(folder / "saved")
    VitHfImageProcessor(size=(16, 24)).save_pretrained(folder / "saved")
    torch.save(images(), folder / "pixels.pt")
    colours = torch.randint(0, 255, (20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    Image.fromarray(colours.numpy()).save(folder / "picture.png")
    run_without_package(FRESH_PROCESS, folder)
    outputs = torch.load(folder / "outputs.pt", weights_only=True)
    return json.loads((folder / "found.json").read_text()), outputs, model, folder


def test_without_the_trust_flag_a_fresh_process_refuses_and_runs_nothing(fresh_process):
    found = fresh_process[0]
    assert found["refusals"] == [True] * 9
    assert found["run_unasked"] == []


@torch.no_grad()
def test_all_auto_classes_give_bit_equal_outputs_in_a_fresh_process(fresh_process):
    found, outputs, model, folder = fresh_process
    assert found["modules"] == ["transformers_modules"]
    assert torch.equal(outputs["logits"], model(images()).logits)
    tokens = model.vit(images()).last_hidden_state
    assert torch.equal(outputs["tokens"], tokens)
    assert torch.equal(outputs["masked_tokens"], tokens)
    here = json.loads(AutoConfig.from_pretrained(folder / "saved").to_json_string(use_diff=False))
    assert {**found["config"], "_name_or_path": ""} == {**here, "_name_or_path": ""}


def test_a_fresh_process_resamples_positions_and_replaces_the_head(fresh_process):
    _, outputs, model, _ = fresh_process
    expected = resample_positions(
        model.vit.embeddings.position_embeddings, num_prefix=1, source=(4, 3), target=(8, 2), method="google"
    )
    assert torch.equal(outputs["positions"], expected)
    assert torch.equal(outputs["other_logits"], torch.zeros(1, 3))


@torch.no_grad()
def test_a_model_saved_by_a_fresh_process_is_whole(fresh_process):
    _, outputs, model, folder = fresh_process
    assert torch.equal(outputs["again"], outputs["logits"])
    assert {"modeling_vit_hf.py", "configuration_vit_hf.py"} <= {file.name for file in (folder / "again").iterdir()}
    assert_same_weights(VitHfForImageClassification.from_pretrained(folder / "again"), model)
    configs = [json.loads((folder / name / "config.json").read_text()) for name in ("saved", "again")]
    assert configs[0] == configs[1]


def test_the_pipeline_classifies_with_and_without_the_package(fresh_process):
    from PIL import Image

    found, _, _, folder = fresh_process
    classify = pipeline("image-classification", model=str(folder / "saved"))
    here = classify(Image.open(folder / "picture.png"), top_k=5)
    assert [answer["label"] for answer in found["pipeline"]] == [answer["label"] for answer in here]
    scores = [[answer["score"] for answer in answers] for answers in (found["pipeline"], here)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert sum(scores[1]) == pytest.approx(1, abs=1e-5)
    assert {answer["label"] for answer in here} == set(NAMES.values())


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_auto_and_short_names_of_a_dtype_are_taken_as_by_transformers(name, tiny, tmp_path):
    VitHfForImageClassification(tiny()).bfloat16().save_pretrained(tmp_path)
    for value, expected in (("auto", torch.bfloat16), ("half", torch.float16), (torch.float64, torch.float64)):
        for made in (VitHfForImageClassification, VitHfModel):
            model = made.from_pretrained(tmp_path, **{name: value})
            assert {tensor.dtype for tensor in model.parameters()} == {expected}
            assert model.config.dtype == expected
