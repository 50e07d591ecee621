"""The config refuses what cannot be built, says how to mend it, and survives JSON."""

import json
import re
from dataclasses import fields

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from vit_hf import VitHfConfig, VitHfModel
from vit_hf.configuration_vit_hf import SIZE_LIMITS, patch_grid

REFUSED = (ValueError, StrictDataclassError)  # from __post_init__ and from the validators
OURS = [field.name for field in fields(VitHfConfig) if field.name not in {f.name for f in fields(PreTrainedConfig)}]


# ------------------------------------------------------------------------------------------- fields
def documented() -> dict[str, str]:
    """The entries of the class docstring's Args by name, each on one line."""
    args = VitHfConfig.__doc__.split("Args:\n")[1].split("Raises:")[0]
    entries = re.findall(r"^        (\w+): (.*(?:\n            .*)*)", args, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def test_every_field_and_nothing_else_is_documented():
    assert list(documented()) == OURS


@pytest.mark.parametrize("name", ["image_size", "patch_size"])
def test_sizes_in_pixels_say_so(name):
    assert "pixels" in documented()[name]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("hidden_size", "paper, Table 1"),
        ("hidden_dropout_prob", "paper, Table 3"),
        ("drop_path_rate", "1603.09382"),
        ("layer_norm_eps", "official code"),
        ("hidden_act", "official JAX code"),
        ("pooling", "big_vision"),
        ("num_register_tokens", "2309.16588"),
        ("layer_scale_init", "2103.17239"),
        ("qk_norm", "2302.05442"),
        ("position_embedding", "big_vision and MAE"),
        ("position_interpolation", "google"),
        ("resnet_stem_layers", "R50"),
        ("resnet_stem_width", "official `width_factor`"),
        ("embedding_norm", "CLIP"),
        ("class_token", "MAE"),
        ("fc_norm", "timm"),
        ("distilled", "2012.12877"),
        ("prefix_positions", "DeiT III"),
        ("resnet_stem_style", "official code"),
    ],
)
def test_fields_from_the_literature_name_their_source(name, source):
    assert source in documented()[name]


def test_defaults_are_b16_of_the_paper():
    config = VitHfConfig()
    sizes = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads)
    assert sizes == (12, 768, 3072, 12)
    assert config.grid_hw == (14, 14)
    assert config.layer_norm_eps == 1e-6
    assert config.hidden_act == "gelu_pytorch_tanh"


@pytest.mark.parametrize(
    ("image_size", "patch_size", "grid"),
    [(224, 16, (14, 14)), ([224, 96], 16, (14, 6)), ((16, 24), [4, 8], (4, 3)), (32, (16, 8), (2, 4))],
)
def test_sizes_are_an_int_or_height_and_width(image_size, patch_size, grid):
    config = VitHfConfig(image_size=image_size, patch_size=patch_size)
    assert config.grid_hw == grid


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, 1),
        ({"num_register_tokens": 4}, 5),
        ({"pooling": "gap"}, 0),
        ({"pooling": "map", "num_register_tokens": 2}, 2),
        ({"pooling": "gap", "class_token": True}, 1),
        ({"pooling": "map", "class_token": True, "num_register_tokens": 2}, 3),
        ({"pooling": "gap", "class_token": False, "num_register_tokens": 2}, 2),
        ({"pooling": "cls", "class_token": True}, 1),
    ],
)
def test_prefix_tokens_are_the_class_token_and_the_registers(options, prefix):
    assert VitHfConfig(**options).num_prefix_tokens == prefix


@pytest.mark.parametrize(
    ("options", "cls", "none", "all_"),
    [
        ({}, 1, 0, 1),
        ({"num_register_tokens": 3}, 1, 0, 4),
        ({"pooling": "gap"}, 0, 0, 0),
        ({"pooling": "gap", "num_register_tokens": 3}, 0, 0, 3),
        ({"pooling": "map", "class_token": True, "num_register_tokens": 3}, 1, 0, 4),
    ],
)
def test_positions_before_the_grid_are_those_of_the_chosen_tokens(options, cls, none, all_):
    for which, count in (("cls", cls), ("none", none), ("all", all_)):
        assert VitHfConfig(**options, prefix_positions=which).num_prefix_positions == count


@pytest.mark.parametrize(
    ("layers", "stride"), [(None, 1), ([], 4), ([3], 4), ([2, 2], 8), ([3, 4, 9], 16), ([2, 2, 2, 2], 32)]
)
def test_the_stem_halves_once_a_stage_after_the_first(layers, stride):
    assert VitHfConfig(resnet_stem_layers=layers, patch_size=32).stem_stride == stride


# ------------------------------------------------------------------------------------------- JSON
def test_a_json_round_trip_keeps_every_field(tmp_path):
    changed = {
        "image_size": (32, 48),
        "patch_size": (16, 16),
        "num_channels": 4,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 56,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.2,
        "drop_path_rate": 0.3,
        "layer_norm_eps": 1e-5,
        "qkv_bias": False,
        "patch_bias": False,
        "embedding_norm": True,
        "pooling": "map",
        "class_token": True,
        "fc_norm": True,
        "distilled": False,  # needs what other fields here exclude: below
        "representation_size": 24,
        "num_register_tokens": 2,
        "prefix_positions": "all",
        "layer_scale_init": 1e-4,
        "qk_norm": True,
        "position_embedding": "sincos2d",
        "position_interpolation": "timm",
        "resnet_stem_layers": (1, 2),
        "resnet_stem_width": 32,
        "resnet_stem_style": "timm",
        "decoder_num_hidden_layers": 0,  # likewise
        "decoder_hidden_size": 64,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 96,
        "norm_pix_loss": False,
    }
    assert list(changed) == OURS
    same = [name for name in OURS if changed[name] == getattr(VitHfConfig(), name)]
    assert same == ["distilled", "decoder_num_hidden_layers", "norm_pix_loss"]
    config = VitHfConfig(**changed, id2label={0: "cat", 1: "dog", 2: "newt"})
    config.save_pretrained(tmp_path)
    loaded = VitHfConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in OURS} == {name: getattr(config, name) for name in OURS}
    assert loaded.id2label == config.id2label == {0: "cat", 1: "dog", 2: "newt"}
    assert loaded.label2id == {"cat": 0, "dog": 1, "newt": 2}
    assert loaded.to_dict() == config.to_dict()
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_a_distilled_config_survives_json(tmp_path):
    VitHfConfig(distilled=True, num_register_tokens=1).save_pretrained(tmp_path)
    assert VitHfConfig.from_pretrained(tmp_path).distilled is True


def test_a_config_with_a_decoder_survives_json(tmp_path):
    VitHfConfig(decoder_num_hidden_layers=2, norm_pix_loss=True).save_pretrained(tmp_path)
    loaded = VitHfConfig.from_pretrained(tmp_path)
    assert (loaded.decoder_num_hidden_layers, loaded.norm_pix_loss) == (2, True)


def test_numbers_in_json_exponent_form_are_read():
    assert VitHfConfig.from_dict(json.loads('{"layer_norm_eps": 1e-6, "drop_path_rate": 0}')).layer_norm_eps == 1e-6


def test_json_names_the_code_files_for_all_auto_classes():
    assert VitHfConfig().to_dict()["auto_map"] == {
        "AutoConfig": "configuration_vit_hf.VitHfConfig",
        "AutoModel": "modeling_vit_hf.VitHfModel",
        "AutoModelForImageClassification": "modeling_vit_hf.VitHfForImageClassification",
        "AutoModelForMaskedImageModeling": "modeling_vit_hf.VitHfForMaskedImageModeling",
    }


def test_auto_config_finds_the_class_by_model_type(tmp_path, tiny):
    tiny().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is VitHfConfig
    assert type(AutoConfig.for_model("vit_hf")) is VitHfConfig


def test_overrides_at_load_are_checked_like_fields(tmp_path, tiny):
    tiny().save_pretrained(tmp_path)
    assert VitHfConfig.from_pretrained(tmp_path, drop_path_rate=0.5).drop_path_rate == 0.5
    with pytest.raises(REFUSED, match=r"drop_path_rate is 5; expected a probability in \[0, 1\)"):
        VitHfConfig.from_pretrained(tmp_path, drop_path_rate=5)


def test_unused_keywords_come_back_from_loading(tmp_path, tiny):
    tiny().save_pretrained(tmp_path)
    config, unused = VitHfConfig.from_pretrained(tmp_path, qk_norm=True, something=3, return_unused_kwargs=True)
    assert config.qk_norm
    assert unused == {"something": 3}


def test_attention_maps_may_be_the_default_with_any_backend(tmp_path, tiny):
    config = tiny(output_attentions=True)
    config._attn_implementation = "sdpa"
    config.validate()
    config.output_attentions = False
    config.output_attentions = True
    config.save_pretrained(tmp_path)
    assert VitHfConfig.from_pretrained(tmp_path).output_attentions is True


# ------------------------------------------------------------------------------------------- wrong values
@pytest.mark.parametrize(
    ("options", "message"),
    [
        # divisibility
        ({"image_size": 225}, "image_size 225 (height) is not divisible by patch_size 16; use 224 or 240"),
        ({"image_size": [224, 230]}, "image_size 230 (width) is not divisible by patch_size 16; use 224 or 240"),
        ({"image_size": 8}, "image_size 8 (height) is not divisible by patch_size 16; use 16 or 32"),
        ({"patch_size": [16, 15]}, "image_size 224 (width) is not divisible by patch_size 15; use 210 or 225"),
        (
            {"hidden_size": 770},
            "hidden_size 770 is not divisible by num_attention_heads 12; use hidden_size 768 or 780",
        ),
        ({"hidden_size": 6}, "hidden_size 6 is not divisible by num_attention_heads 12; use hidden_size 12"),
        (
            {"position_embedding": "sincos2d", "hidden_size": 66, "num_attention_heads": 11},
            "hidden_size 66 is not divisible by 4, which position_embedding 'sincos2d' needs (sine and cosine of two "
            "axes); use a multiple of 4, or position_embedding 'learned'",
        ),
        (
            {"resnet_stem_layers": [3, 4, 9], "patch_size": 8},
            "patch_size 8 is not divisible by the stride 16 of a ResNet stem with 3 stages; use 16 or a multiple of it",
        ),
        ({"resnet_stem_layers": [1], "resnet_stem_width": 48}, "resnet_stem_width is 48; expected a positive multiple"),
        # sizes
        ({"image_size": 0}, "image_size is 0; expected 1 to 65,536"),
        ({"image_size": [224, -16]}, "image_size is -16; expected 1 to 65,536"),
        ({"patch_size": -16}, "patch_size is -16; expected 1 to 65,536"),
        ({"image_size": [224]}, "image_size has 1 numbers ([224]); give one int or (height, width)"),
        ({"patch_size": [1, 2, 3]}, "patch_size has 3 numbers ([1, 2, 3]); give one int or (height, width)"),
        ({"num_channels": 0}, "num_channels is 0; expected 1 to"),
        ({"hidden_size": 0}, "hidden_size is 0; expected 1 to"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected 1 to"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected 1 to"),
        ({"intermediate_size": -1}, "intermediate_size is -1; expected 1 to"),
        ({"representation_size": 0}, "representation_size is 0; expected 1 to"),
        ({"num_register_tokens": -1}, "num_register_tokens is -1; expected 0 to"),
        ({"resnet_stem_layers": [3, 0]}, "resnet_stem_layers is [3, 0]; expected 0 to 8 stages of 1 or more blocks"),
        # probabilities and numbers
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0; expected a probability in [0, 1)"),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is -0.1; expected a probability"),
        ({"drop_path_rate": float("nan")}, "drop_path_rate is nan; expected a probability in [0, 1)"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0; expected a small positive number such as 1e-6"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; expected a small positive number"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf; expected a small positive number"),
        ({"layer_scale_init": float("nan")}, "layer_scale_init is nan; expected a finite number such as 1e-4"),
        # known values
        (
            {"hidden_act": "relu"},
            "hidden_act is 'relu'; expected one of gelu, gelu_pytorch_tanh, quick_gelu, swiglu",
        ),
        ({"pooling": "mean"}, "pooling is 'mean'; expected one of cls, gap, map"),
        ({"position_embedding": "rope"}, "position_embedding is 'rope'; expected one of learned, sincos2d"),
        ({"position_interpolation": "nearest"}, "expected one of google, timm, torchvision, transformers, dino"),
        ({"prefix_positions": "registers"}, "prefix_positions is 'registers'; expected one of cls, none, all"),
        ({"resnet_stem_style": "torch"}, "resnet_stem_style is 'torch'; expected one of google, timm"),
        # values that exclude each other
        (
            {"class_token": False},
            "pooling is 'cls' and class_token False; use pooling 'gap' or 'map', or a class token",
        ),
        (
            {"distilled": True},
            "distilled needs num_register_tokens of at least 1 (found 0), pooling 'cls' (found 'cls'), no fc_norm "
            "(found False) and no representation_size (found None)",
        ),
        (
            {"distilled": True, "num_register_tokens": 1, "pooling": "gap", "class_token": True},
            "distilled needs num_register_tokens of at least 1 (found 1), pooling 'cls' (found 'gap')",
        ),
        ({"distilled": True, "num_register_tokens": 1, "fc_norm": True}, "no fc_norm (found True)"),
        (
            {"distilled": True, "num_register_tokens": 1, "representation_size": 8},
            "no representation_size (found 8)",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_values_raise_with_what_is_expected(options, message):
    with pytest.raises(REFUSED, match=re.escape(message)):
        VitHfConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": True},
        {"hidden_size": "768"},
        {"hidden_size": 768.0},
        {"hidden_size": None},
        {"image_size": "224"},
        {"image_size": 224.0},
        {"image_size": [True, 224]},
        {"qkv_bias": 1},
        {"drop_path_rate": "0.1"},
        {"pooling": None},
        {"resnet_stem_layers": 3},
    ],
    ids=str,
)
def test_wrong_types_raise_and_name_the_field(options):
    with pytest.raises(REFUSED, match=f"'{next(iter(options))}'"):
        VitHfConfig(**options)


@pytest.mark.parametrize("name", SIZE_LIMITS)
def test_a_hostile_size_fails_in_the_config(name):
    with pytest.raises(REFUSED, match=rf"{name} is 1000000000000; expected [01] to [\d,]+$"):
        VitHfConfig(**{name: 10**12})


def test_a_hostile_stem_fails_in_the_config():
    for layers in ([10**9], [1] * 40):
        with pytest.raises(REFUSED, match=r"resnet_stem_layers is .*; expected 0 to 8 stages"):
            VitHfConfig(resnet_stem_layers=layers)


def test_the_largest_published_vit_is_within_the_limits():
    # ViT-22B (arXiv 2302.05442), Table 1
    VitHfConfig(hidden_size=6144, num_hidden_layers=48, intermediate_size=24576, num_attention_heads=48)


def test_a_config_changed_after_it_was_made_is_checked_when_the_model_is_built(tiny):
    config = tiny()
    config.hidden_size = 30
    with pytest.raises(REFUSED, match="hidden_size 30 is not divisible by num_attention_heads 4"):
        VitHfModel(config)


def test_patch_grid_keeps_height_and_width_apart():
    assert patch_grid((32, 96), (8, 16)) == (4, 6)


def test_an_image_without_a_patch_has_no_grid():
    with pytest.raises(ValueError, match=r"image_size 0 \(width\) is not divisible by patch_size 16; use 16 or 32"):
        patch_grid((32, 0), (8, 16))


# ------------------------------------------------------------------------------------------- labels
def test_label2id_follows_from_id2label():
    config = VitHfConfig(id2label={0: "cat", 1: "dog", 2: "newt"})
    assert config.num_labels == 3
    assert config.label2id == {"cat": 0, "dog": 1, "newt": 2}


def test_indices_as_json_text_become_ints():
    assert VitHfConfig(id2label={"0": "cat", "1": "dog"}).id2label == {0: "cat", 1: "dog"}


def test_two_classes_may_share_a_name():
    """ImageNet has two classes "crane"; the inverse then holds one of the two."""
    config = VitHfConfig(id2label={0: "crane", 1: "dog", 2: "crane"})
    assert config.num_labels == 3
    assert VitHfConfig.from_dict(config.to_dict()).id2label == config.id2label


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 0}, "num_labels is 0; expected 1 to 1,000,000"),
        ({"num_labels": -1}, "num_labels is -1; expected 1 to 1,000,000"),
        ({"num_labels": "3"}, "num_labels is '3'; expected an int"),
        ({"num_labels": True}, "num_labels is True; expected an int"),
        ({"id2label": {}}, "num_labels is 0; expected 1 to"),
        (
            {"id2label": {0: "cat", 1: "dog"}, "num_labels": 3},
            "num_labels is 3 but id2label names 2 classes; give id2label only, num_labels follows from it",
        ),
        ({"id2label": {1: "cat", 2: "dog"}}, "id2label has the indices [1, 2]; expected 0 to 1, each once"),
        (
            {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "fox": 1}},
            "label2id and id2label do not match (first differing name: 'fox'); give id2label only",
        ),
        (
            {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0}},
            "label2id and id2label do not match (first differing name: 'missing names')",
        ),
    ],
    ids=str,
)
def test_label_names_that_do_not_fit_raise(options, message):
    with pytest.raises(REFUSED, match=re.escape(message)):
        VitHfConfig(**options)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["a", "b", "c"]),
        ({"num_labels": 3}, ["a", "b", "c"]),
        ({"num_labels": None}, ["a", "b", "c"]),
        ({"num_labels": 2}, ["LABEL_0", "LABEL_1"]),
        ({"id2label": {0: "x", 1: "y"}}, ["x", "y"]),
        ({"id2label": {"0": "x", "1": "y", "2": "z"}, "num_labels": 3}, ["x", "y", "z"]),
        ({"id2label": {0: "x"}, "label2id": {"x": 0}}, ["x"]),
    ],
    ids=str,
)
def test_labels_given_at_load_replace_the_stored_ones(given, names, tmp_path):
    VitHfConfig(id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(tmp_path)
    config = VitHfConfig.from_pretrained(tmp_path, **given)
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: index for index, name in enumerate(names)}


# ------------------------------------------------------------------------------------------- sharding
def test_the_fsdp_plan_names_modules_that_exist(tiny):
    names = {name for name, _ in VitHfModel(tiny()).named_modules()}
    for pattern in VitHfConfig.base_model_fsdp_plan:
        assert pattern.replace("*", "0") in names
