"""Checkpoints of timm: every family against timm's own forward pass, all its architectures by their attributes."""

import io
import json
import re
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vit_hf import VitHfForImageClassification
from vit_hf.checkpoints import timm as layout
from vit_hf.checkpoints.export import export_checkpoint
from vit_hf.checkpoints.facts import Facts
from vit_hf.checkpoints.files import Checkpoint
from vit_hf.checkpoints.load import load_checkpoint
from vit_hf.checkpoints.preprocessing import RECTANGLES
from vit_hf.checkpoints.receipt import CheckpointError
from vit_hf.image_processing_vit_hf import VitHfImageProcessorPil

timm = pytest.importorskip("timm")
from timm.data import create_transform, resolve_data_config  # noqa: E402
from timm.layers import HybridEmbed, PatchEmbed, RmsNorm, SwiGLUPacked  # noqa: E402
from timm.models._hub import save_config_for_hf, save_for_hf  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import (  # noqa: E402
    ParallelScalingBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_hybrid import _resnetv2  # noqa: E402

# Largest difference allowed, outputs being of order 1. Both compute the same sums in float32, in other orders: 1e-6 was
# measured, and the smallest fault of the conventions (the other GELU) makes 2e-4.
CLOSE = 1e-5
STEM_CLOSE = 5e-5  # through the 26 convolutions of R26; 1.4e-5 was measured
LOW = 1e-3  # scale of what feeds the residual stream, so that its variance is that of eps

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 2, "num_classes": 7}
CLIP_NORM = partial(nn.LayerNorm, eps=1e-5)
CLIP = {"pre_norm": True, "norm_layer": CLIP_NORM, "act_layer": "quick_gelu"}
SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 4}
NO_CLASS = {"class_token": False, "global_pool": "avg"}
GIVE_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}

# name: arguments of timm's VisionTransformer, what must be given, some config fields that are expected
FAMILIES = {
    "plain": ({}, {}, {"pooling": "cls", "prefix_positions": "cls", "layer_norm_eps": 1e-6, "hidden_act": "gelu"}),
    "fc_norm": ({"global_pool": "avg"}, {}, {"pooling": "gap", "fc_norm": True, "has_cls_token": True}),
    "gap": (NO_CLASS, {}, {"pooling": "gap", "fc_norm": True, "has_cls_token": False, "num_prefix_positions": 0}),
    "gap, norm first": ({**NO_CLASS, "fc_norm": False}, {}, {"pooling": "gap", "fc_norm": False}),
    "gap beside a class token": (
        {"global_pool": "avg", "fc_norm": False},
        {"pooling": "gap"},
        {"fc_norm": False, "has_cls_token": True},
    ),
    "class token after fc_norm": ({"fc_norm": True}, {"pooling": "cls"}, {"fc_norm": True, "pooling": "cls"}),
    "DeiT III": ({"no_embed_class": True, "init_values": 1e-4}, {}, {"prefix_positions": "none"}),
    "LayerScale": ({"init_values": 1e-5}, {}, {"prefix_positions": "cls"}),
    "registers": ({"reg_tokens": 4, "no_embed_class": True}, {}, {"num_register_tokens": 4, "num_prefix_positions": 0}),
    "registers with positions": ({"reg_tokens": 3}, {}, {"prefix_positions": "all", "num_prefix_positions": 4}),
    "registers, no class token": (
        {"reg_tokens": 4, "no_embed_class": True, **NO_CLASS},
        {},
        {"num_register_tokens": 4, "has_cls_token": False, "pooling": "gap"},
    ),
    "QK-norm": ({"qk_norm": True}, {}, {"qk_norm": True}),
    "no QKV bias": ({"qkv_bias": False}, {}, {"qkv_bias": False}),
    "map": ({"global_pool": "map", "class_token": False}, {}, {"pooling": "map", "has_cls_token": False}),
    "map beside a class token": ({"global_pool": "map"}, {}, {"pooling": "map", "has_cls_token": True}),
    "map with registers": (
        {"global_pool": "map", "class_token": False, "reg_tokens": 2, "no_embed_class": True},
        {},
        {"pooling": "map", "num_register_tokens": 2},
    ),
    "CLIP": (CLIP, GIVE_CLIP, {"embedding_norm": True, "patch_bias": False, **GIVE_CLIP}),
    "CLIP, GELU": (
        {"pre_norm": True, "norm_layer": CLIP_NORM},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-5},
        {"embedding_norm": True},
    ),
    "CLIP, map": ({**CLIP, "global_pool": "map"}, GIVE_CLIP, {"pooling": "map"}),
    "SwiGLU": (SWIGLU, {}, {"hidden_act": "swiglu", "intermediate_size": 96}),
    "GELU tanh": ({"act_layer": "gelu_tanh"}, {"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "gelu_pytorch_tanh"}),
    "rectangle": (
        {"img_size": (16, 24), "patch_size": (4, 8)},
        {"image_size": [16, 24]},
        {"image_hw": (16, 24), "patch_hw": (4, 8), "grid_hw": (4, 3)},
    ),
    "square grid of rectangles": ({"img_size": (16, 32), "patch_size": (4, 8)}, {}, {"image_hw": (16, 32)}),
    "five channels": ({"in_chans": 5}, {}, {"num_channels": 5}),
    "one channel": ({"in_chans": 1}, {}, {"num_channels": 1}),
    "hybrid": ({"stem": (2, 1), "img_size": 64, "patch_size": 1}, {}, {"resnet_stem_layers": [2, 1], "patch_size": 8}),
    "hybrid, root block": (
        {"stem": (), "img_size": 64, "patch_size": 2},
        {},
        {"resnet_stem_layers": [], "resnet_stem_style": "timm", "patch_size": 8, "resnet_stem_width": 64},
    ),
    "hybrid, one channel": ({"stem": (1,), "img_size": 32, "patch_size": 2, "in_chans": 1}, {}, {"num_channels": 1}),
    "headless": ({"num_classes": 0}, {}, {"num_labels": 2}),
    "distilled": ({"cls": VisionTransformerDistilled}, {}, {"distilled": True, "prefix_positions": "all"}),
}


def build(cls=VisionTransformer, stem=None, **arguments):
    merged = {**SMALL, **arguments}
    if stem is not None:
        backbone = _resnetv2(stem, in_chans=merged.get("in_chans", 3))
        merged["embed_layer"] = partial(HybridEmbed, backbone=backbone)
    return cls(**merged)


def damp(model):
    """Bring the residual stream, the queries, the keys and the stem's filters down to the variance of eps."""
    small = r"patch_embed|cls_token|pos_embed|(reg|dist)_token|attn\.(proj|qkv)\.|mlp\.fc2|attn_pool\.(proj|kv)\."
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(small, name) and ".norm" not in name:
                parameter.mul_(LOW)
    return model


def compare(theirs, ours, scale=1.0):
    """Return the largest differences of logits and tokens on random images."""
    pixels = torch.randn(2, ours.config.num_channels, *ours.config.image_hw) * scale
    with torch.no_grad():
        tokens = (theirs.forward_features(pixels) - ours.vit(pixels).last_hidden_state).abs().max().item()
        expected, found = theirs(pixels), ours(pixels).logits
        if theirs.num_classes == 0:
            found = ours.vit(pixels).pooler_output
    assert expected.shape == found.shape
    assert expected.std() > (1e-6 if scale < 1 else 1e-2)  # nothing was compared that could not differ
    return (expected - found).abs().max().item(), tokens


def same_weights(first, second):
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def facts_of(model):
    return {fact.field: fact for fact in model.receipt.facts}


# ---------------------------------------------------------------------------------------------- families
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_of_a_bare_file_are_those_of_timm(family, tmp_path, randomise):
    arguments, give, expected = FAMILIES[family]
    for level in (1.0, LOW):
        theirs = randomise(build(**arguments))
        if level < 1:
            damp(theirs)
        path = tmp_path / f"{level}.safetensors"
        save_file(theirs.state_dict(), path)
        ours = load_checkpoint(path, num_attention_heads=4, **give)
        assert max(compare(theirs, ours, level)) < CLOSE
    for field, value in expected.items():
        assert getattr(ours.config, field) == value, field
    assert not ours.training
    counts = ours.receipt.counts()
    assert counts["exact"] == len(theirs.state_dict())
    assert set(counts) <= {"exact", "re-initialised"}


@pytest.mark.parametrize("family", ["plain", "fc_norm", "QK-norm", "map", "CLIP", "hybrid"])
def test_low_variance_exposes_another_eps(family, tmp_path, randomise):
    arguments, give, _ = FAMILIES[family]
    theirs = damp(randomise(build(**arguments)))
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    wrong = 1e-6 if family == "CLIP" else 1e-5
    ours = load_checkpoint(tmp_path / "a.safetensors", num_attention_heads=4, **{**give, "layer_norm_eps": wrong})
    assert max(compare(theirs, ours, LOW)) > 1e-2  # a thousand times `CLOSE`


@pytest.mark.parametrize("family", ["hybrid", "hybrid, root block"])
def test_low_variance_exposes_the_other_stem_style(family, tmp_path, randomise):
    theirs = damp(randomise(build(**FAMILIES[family][0])))
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    ours = load_checkpoint(tmp_path / "a.safetensors", num_attention_heads=4, resnet_stem_style="google")
    assert compare(theirs, ours, LOW)[1] > 1e-2


def test_what_the_tensors_do_not_tell_is_in_the_receipt(tmp_path, randomise):
    save_file(randomise(build(init_values=1e-5)).state_dict(), tmp_path / "a.safetensors")
    facts = facts_of(load_checkpoint(tmp_path / "a.safetensors", num_attention_heads=4))
    told = {name: (fact.value, fact.how) for name, fact in facts.items()}
    assert told["num_attention_heads"] == (4, "given")
    assert told["hidden_act"] == ("gelu", "timm's default, no side file")
    assert told["layer_norm_eps"] == (1e-6, "timm's code")
    assert told["pooling"] == ("cls", "a class token, and no fc_norm")
    assert told["position_interpolation"] == ("timm", "as in the code of timm")
    assert told["image_size"] == (32, "16 positions are a square grid")
    assert {"layer_scale_init", "image_processor"} <= told.keys()


def test_heads_of_published_sizes_are_derived(tmp_path, randomise):
    theirs = randomise(build(embed_dim=192, depth=12, num_heads=3, mlp_ratio=4))
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    ours = load_checkpoint(tmp_path / "a.safetensors")
    assert max(compare(theirs, ours)) < CLOSE
    assert facts_of(ours)["num_attention_heads"].how == "the published ViTs of width 192 with 12 layers have it"


@pytest.mark.parametrize(
    ("arguments", "given", "field"),
    [
        ({}, {}, "num_attention_heads"),
        (CLIP, {"num_attention_heads": 4, "layer_norm_eps": 1e-5}, "hidden_act"),
        (CLIP, {"num_attention_heads": 4, "hidden_act": "quick_gelu"}, "layer_norm_eps"),
        ({"img_size": (16, 24)}, {"num_attention_heads": 4}, "image_size"),
        # 4 registers and 21 positions: 16 + 5 of all tokens; 25 positions would be a 5 x 5 grid or 16 + 9
        ({"reg_tokens": 8}, {"num_attention_heads": 4}, "prefix_positions"),
        # 20 positions: a 4 x 4 grid after 4 registers, or the 4 x 5 that is asked for
        (
            {"reg_tokens": 4, "no_embed_class": True, "img_size": (32, 40), **NO_CLASS},
            {"num_attention_heads": 4, "image_size": [32, 40]},
            "prefix_positions",
        ),
    ],
)
def test_what_cannot_be_known_is_asked_for_by_name(arguments, given, field, tmp_path, randomise):
    theirs = randomise(build(**arguments))
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"Give: {field}=\.\.\.$"):
        load_checkpoint(tmp_path / "a.safetensors", **given)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ({"reg_tokens": 8}, {"prefix_positions": "all"}),
        (
            {"reg_tokens": 4, "no_embed_class": True, "img_size": (32, 40), **NO_CLASS},
            {"prefix_positions": "none", "image_size": [32, 40]},
        ),
    ],
)
def test_given_prefix_positions_settle_two_readings(arguments, given, tmp_path, randomise):
    theirs = randomise(build(**arguments))
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    ours = load_checkpoint(tmp_path / "a.safetensors", num_attention_heads=4, **given)
    assert max(compare(theirs, ours)) < CLOSE


def test_what_is_given_may_not_contradict_the_file(tmp_path, randomise):
    save_file(randomise(build(global_pool="avg")).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="fc_norm is True in the file, not False"):
        load_checkpoint(tmp_path / "a.safetensors", num_attention_heads=4, fc_norm=False)


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_an_activation_that_the_model_lacks_is_refused(act, tmp_path, randomise):
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **SMALL, act_layer=act))
    save_for_hf(theirs, tmp_path / "m", safe_serialization=True)
    with pytest.raises(CheckpointError, match=r"the activation is .*; expected gelu, gelu_tanh or quick_gelu"):
        load_checkpoint(tmp_path / "m")


# ---------------------------------------------------------------------------------------------- containers
@pytest.mark.parametrize("wrap", ["safetensors", "pth", "state_dict", "module.", "state_dict of module."])
def test_every_container_gives_the_same_model(wrap, tmp_path, randomise):
    theirs = randomise(build())
    state = theirs.state_dict()
    if "module." in wrap:
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if wrap == "safetensors":
        save_file(state, tmp_path / "a.safetensors")
    else:
        torch.save(
            {"state_dict": state, "epoch": 3, "arch": "x"} if "state_dict" in wrap else state, tmp_path / "a.pth"
        )
    ours = load_checkpoint(next(tmp_path.iterdir()), num_attention_heads=4)
    assert max(compare(theirs, ours)) < CLOSE
    assert facts_of(ours)["position_interpolation"].value == "timm"


def test_the_research_names_of_layer_scale_are_known(tmp_path, randomise):
    theirs = randomise(build(no_embed_class=True, init_values=1e-4))
    state = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): value for name, value in theirs.state_dict().items()}
    assert "blocks.0.gamma_1" in state
    torch.save({"model": state}, tmp_path / "deit3.pth")
    ours = load_checkpoint(tmp_path / "deit3.pth", num_attention_heads=4)
    assert max(compare(theirs, ours)) < CLOSE
    assert facts_of(ours)["rotary positions"].value == "none"  # timm's rope_ape has the same tensors
    assert facts_of(ours)["position_interpolation"].value == "transformers"


SHRUNK = {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 32, "num_classes": 7}
HUB = [  # architecture, arguments, expected fields; nothing is given at the load
    ("vit_base_patch16_224", {"patch_size": 8}, {"layer_norm_eps": 1e-6, "hidden_act": "gelu"}),
    ("vit_base_patch16_224", {"patch_size": 8, "global_pool": "avg"}, {"pooling": "gap", "fc_norm": True}),
    ("vit_base_patch16_224", {"patch_size": 8, "global_pool": "avg", "fc_norm": False}, {"fc_norm": False}),
    ("vit_base_patch16_224", {"patch_size": 8, "fc_norm": True}, {"fc_norm": True, "pooling": "cls"}),
    ("vit_base_patch16_224", {"patch_size": 8, "in_chans": 1}, {"num_channels": 1}),
    ("vit_base_patch16_224", {"patch_size": [4, 8], "img_size": [16, 24]}, {"image_hw": (16, 24)}),
    ("vit_base_patch16_224", {"patch_size": 8, "reg_tokens": 8}, {"prefix_positions": "all"}),
    ("deit3_small_patch16_224", {"patch_size": 8}, {"prefix_positions": "none"}),
    ("deit_tiny_distilled_patch16_224", {"patch_size": 8}, {"distilled": True}),
    ("vit_base_patch16_reg4_gap_256", {"patch_size": 8}, {"num_register_tokens": 4, "pooling": "gap"}),
    ("vit_base_patch16_siglip_256", {"patch_size": 8}, {"pooling": "map", "hidden_act": "gelu"}),
    ("vit_so400m_patch16_siglip_256", {"patch_size": 8}, {"pooling": "map", "hidden_act": "gelu_pytorch_tanh"}),
    ("vit_base_patch16_clip_224", {"patch_size": 8}, {"layer_norm_eps": 1e-5, "hidden_act": "gelu"}),
    ("vit_base_patch16_clip_224", {"patch_size": 8, "norm_layer": "layernorm"}, {"layer_norm_eps": 1e-6}),
    ("vit_base_patch16_clip_quickgelu_224", {"patch_size": 8}, {"hidden_act": "quick_gelu"}),
    ("vit_giant_patch14_dinov2", {"patch_size": 8, "mlp_ratio": 4}, {"hidden_act": "swiglu"}),
    ("vit_tiny_r_s16_p8_224", {"patch_size": 2}, {"resnet_stem_layers": [], "patch_size": 8}),
    pytest.param(
        "vit_small_r26_s32_224",
        {"img_size": 64},
        {"resnet_stem_layers": [2, 2, 2, 2], "patch_size": 32},
        marks=pytest.mark.slow,
    ),
    ("test_vit", {"embed_dim": 64, "num_heads": 2, "img_size": 160}, {}),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), HUB, ids=lambda value: str(value)[:40])
def test_a_hub_folder_needs_nothing_given(name, arguments, expected, tmp_path, randomise):
    theirs = damp(randomise(timm.create_model(name, **{**SHRUNK, **arguments})))
    save_for_hf(theirs, tmp_path / "m", safe_serialization=True)
    ours = load_checkpoint(tmp_path / "m")
    assert max(compare(theirs, ours, LOW)) < (STEM_CLOSE if "_r26_" in name else CLOSE)
    for field, value in expected.items():
        assert getattr(ours.config, field) == value, field
    assert ours.image_processor.image_mean[0] == pytest.approx(theirs.pretrained_cfg["mean"][0])


def test_label_names_of_the_hub_become_the_classes(tmp_path, randomise):
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **SHRUNK))
    names = [f"class {index}" for index in range(7)]
    save_for_hf(theirs, tmp_path / "m", safe_serialization=True, model_config={"label_names": names})
    assert load_checkpoint(tmp_path / "m").config.id2label == dict(enumerate(names))


@pytest.mark.parametrize(("tag", "classes", "named"), [("augreg2_in21k_ft_in1k", 1000, True), ("dino", 1000, False),
                                                       ("a1_in1k", 10, False)])  # fmt: skip
def test_a_tag_of_imagenet_names_the_classes(tag, classes, named, tmp_path, randomise):
    arguments = {**SHRUNK, "patch_size": 8, "num_classes": classes}
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **arguments))
    theirs.pretrained_cfg = {**theirs.pretrained_cfg, "tag": tag, "num_classes": classes}
    save_for_hf(theirs, tmp_path / "m", model_args=arguments, safe_serialization=True)
    ours = load_checkpoint(tmp_path / "m")
    assert ("id2label" in facts_of(ours)) == named
    assert ours.config.id2label[1 if named else 0] == ("goldfish" if named else "LABEL_0")
    if named:  # the order of torchvision's list is timm's
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        assert [ours.config.id2label[i].lower() for i in (0, 281, 999)] == [
            info.index_to_description(i).split(",")[0].lower() for i in (0, 281, 999)
        ]


def test_other_channels_than_three_are_said_of_the_processor(tmp_path, randomise):
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **{**SHRUNK, "patch_size": 8, "in_chans": 1}))
    save_for_hf(theirs, tmp_path / "m", safe_serialization=True)
    ours = load_checkpoint(tmp_path / "m")
    assert "it makes RGB, the model takes 1 channels" in facts_of(ours)["image_processor"].how
    compare(theirs, ours)


def test_an_image_that_patches_do_not_fill_is_cut_as_timm_cuts_it(tmp_path, randomise):
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **{**SHRUNK, "img_size": 38, "patch_size": 8}))
    save_for_hf(theirs, tmp_path / "m", safe_serialization=True)
    ours = load_checkpoint(tmp_path / "m")
    assert ours.config.image_size == 32
    assert "38x38" in facts_of(ours)["image_size"].how
    pixels = torch.randn(2, 3, 38, 38)
    with torch.no_grad():
        assert (theirs(pixels) - ours(pixels[..., :32, :32]).logits).abs().max() < CLOSE


# ---------------------------------------------------------------------------------------------- what is refused
def embed_with_norm(**arguments):
    return PatchEmbed(**{**arguments, "norm_layer": nn.LayerNorm})


REFUSED = {
    "RmsNorm": ({"norm_layer": RmsNorm}, r"missing: blocks\.0\.norm1\.bias"),
    "norm in attention": ({"scale_attn_norm": True}, r"no rule explains: blocks\.0\.attn\.norm\.weight"),
    "norm in MLP": ({"scale_mlp_norm": True}, r"no rule explains: blocks\.0\.mlp\.norm\.weight"),
    "no bias after attention": ({"proj_bias": False}, r"missing: blocks\.0\.attn\.proj\.bias"),
    "parallel blocks": ({"block_fn": ParallelScalingBlock}, r"lacks .*blocks\.0\.attn\.qkv\.weight"),
    "no final norm": ({"final_norm": False}, r"missing: norm\.weight"),
    "norm of patches": ({"embed_layer": embed_with_norm}, r"no rule explains: patch_embed\.norm\.weight"),
    "no positions": ({"pos_embed": "none"}, "lacks pos_embed"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_cannot_be_expressed_are_refused(kind, tmp_path, randomise):
    arguments, message = REFUSED[kind]
    save_file(randomise(build(**arguments)).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.safetensors", num_attention_heads=4)


REFUSED_FOLDERS = [  # those whose tensors alone look like a plain ViT
    ("vit_base_patch16_rpn_224", {"patch_size": 8}, "normalises after each branch"),
    ("vit_base_patch16_rope_ape_224", {"patch_size": 8}, "has rotary positions"),
    ("vit_pe_core_tiny_patch16_384", {"patch_size": 8}, "has rotary positions"),
    ("test_vit3", {}, "pools over the registers too"),
    ("vit_small_resnet26d_224", {"img_size": 64}, "another network before its patches"),
    ("vit_tiny_patch16_224", {"patch_size": 8, "pool_include_prefix": True, "global_pool": "avg"}, "pool_include_pre"),
    ("vit_tiny_patch16_224", {"patch_size": 8, "global_pool": "prr"}, "global_pool is 'prr'; expected one of"),
    ("vit_tiny_patch16_224", {"patch_size": 8, "global_pool": "avgmax"}, "global_pool is 'avgmax'; expected one of"),
    ("vit_tiny_patch16_224", {"patch_size": 8, "class_token": False, "global_pool": "max"}, "global_pool is 'max'"),
    ("vit_tiny_patch16_224", {"patch_size": 8, "norm_layer": "rmsnorm"}, "norm_layer is 'rmsnorm'"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED_FOLDERS, ids=lambda value: str(value)[:40])
def test_folders_that_name_another_computation_are_refused(name, arguments, message, tmp_path):
    theirs = timm.create_model(name, **{**SHRUNK, **arguments})
    save_for_hf(theirs, tmp_path / "m", safe_serialization=True)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"block_fn": ResPostBlock, "qkv_bias": False, **NO_CLASS}, "blocks"),
        ({"pool_include_prefix": True, "global_pool": "map"}, "attention pooling"),
    ],
)
def test_what_a_bare_file_leaves_to_trust_is_said(arguments, fact, tmp_path, randomise):
    save_file(randomise(build(**arguments)).state_dict(), tmp_path / "a.safetensors")
    assert fact in facts_of(load_checkpoint(tmp_path / "a.safetensors", num_attention_heads=4))


# ---------------------------------------------------------------------------------------------- all architectures
def truth(model):
    """Return what an instance of timm's says of itself, in our words; None for a kind that we cannot express."""
    if not isinstance(model, VisionTransformer) or not hasattr(model.blocks[0], "norm1"):
        return None
    block, distilled = model.blocks[0], isinstance(model, VisionTransformerDistilled)
    acts = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "SiLU": "swiglu"}
    extra = {
        name for name in model.state_dict() if re.search(r"lambda|attn\.norm|mlp\.norm|backbone.*(bn|\.se\.)", name)
    }
    unlike = type(block).__name__ != "Block" or type(block.norm1).__name__ == "RmsNorm" or model.pool_include_prefix
    normless = isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity)
    if extra or unlike or normless or type(getattr(model.patch_embed, "backbone", None)).__name__ == "ConvStem":
        return None
    image, grid = model.patch_embed.img_size, model.patch_embed.grid_size
    patch = (image[0] // grid[0], image[1] // grid[1])
    stem = getattr(model.patch_embed, "backbone", None)
    stages = None if stem is None else [len(stage.blocks) for stage in getattr(stem, "stages", [])]
    return {
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": acts[type(block.mlp.act).__name__],
        "layer_norm_eps": block.norm1.eps,
        "pooling": {"token": "cls", "avg": "gap", "map": "map"}[model.global_pool],
        "has_cls_token": model.has_class_token,
        "num_register_tokens": 1 if distilled else model.num_reg_tokens,
        "num_prefix_positions": 0 if model.no_embed_class else model.num_prefix_tokens,
        "fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "scaled": not isinstance(block.ls1, nn.Identity),
        "image_hw": (grid[0] * patch[0], grid[1] * patch[1]),  # timm leaves what whole patches do not cover
        "patch_hw": patch,
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "distilled": distilled,
        "embedding_norm": not isinstance(model.norm_pre, nn.Identity),
        "num_labels": model.num_classes or 2,
        "num_channels": model.in_chans,
        "resnet_stem_layers": stages,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "intermediate_size": block.mlp.fc2.in_features,
    }


def describe(tensors, settings):
    """Read meta tensors as `load_checkpoint` would; raises where tensors are missing, left over or of other shapes."""
    checkpoint = Checkpoint("x", [], dict(tensors), side={"config.json": settings} if settings else {})
    known, _, dropped = layout.canonical(checkpoint)
    assert not dropped
    facts = Facts({})
    layout.describe(known, checkpoint, facts)
    config = facts.config("x")
    table = layout.links(config)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in VitHfForImageClassification(config).state_dict().items()}
    headless = "head.weight" not in known
    for link in table:
        if headless and link.ours.startswith("classifier."):
            continue
        if any(name not in known or known[name].shape != shapes[link.ours] for name in link.theirs):
            raise CheckpointError(f"missing or of another shape: {link.theirs}")
    if left := set(known) - {name for link in table for name in link.theirs}:
        raise CheckpointError(f"no rule explains: {sorted(left)}")
    return config


def survey(names):
    """Compare all; returns what was wrong, and the names that loaded with config.json and without it."""
    wrong, loaded, bare = [], set(), set()
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        expected = truth(model)
        with tempfile.TemporaryDirectory() as folder:
            save_config_for_hf(model, folder + "/config.json")
            settings = json.loads(Path(folder, "config.json").read_text())
        older = {key: value for key, value in settings.items() if key != "model_args"}  # as before timm 1.0.2x
        for kind in (settings, older, None):
            try:
                config = describe(model.state_dict(), kind)
            except CheckpointError as error:
                if expected is not None and kind is not None:
                    wrong.append(f"{name}: refused: {error}")
                continue
            (bare if kind is None else loaded).add(name)
            if expected is None:
                if kind is not None or "rope_ape" not in name:  # the receipt says so, see above
                    wrong.append(f"{name}: loaded, but cannot be expressed")
                continue
            found = {key: getattr(config, key, None) for key in expected}
            found["scaled"] = config.layer_scale_init is not None
            wrong += [f"{name}: {key} {found[key]}, {expected[key]}" for key in expected if found[key] != expected[key]]
    return wrong, loaded, bare


FEW = """vit_tiny_patch16_224 vit_base_patch32_siglip_256 vit_xsmall_patch16_clip_224 vit_small_patch14_reg4_dinov2
vit_wee_patch16_reg1_gap_256 deit3_small_patch16_224 deit_tiny_distilled_patch16_224 flexivit_small
vit_tiny_r_s16_p8_224 test_vit test_vit2 vit_medium_patch16_gap_240 vit_small_resnet26d_224 vit_base_patch16_rpn_224
vit_small_patch16_rope_ape_224 vit_pe_core_tiny_patch16_384 test_vit3 test_vit4 vit_dwee_patch16_reg1_gap_256
vit_pwee_patch16_reg1_gap_256 vit_small_patch16_dinov3 vit_relpos_small_patch16_224"""


def test_architectures_of_timm_are_described_as_they_are():
    wrong, loaded, bare = survey(FEW.split())
    assert wrong == []
    assert len(loaded) == 12
    assert loaded - bare == {"vit_base_patch32_siglip_256", "vit_xsmall_patch16_clip_224", "test_vit", "test_vit2"}


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("vit_so400m_patch16_siglip_gap_256", True),
        ("vit_so400m_patch14_siglip_gap_224", False),
    ],
)
def test_a_bare_siglip_asks_for_its_gelu_where_sizes_do_not_tell(name, asks):
    with torch.device("meta"):
        tensors = timm.create_model(name).state_dict()
    if asks:
        with pytest.raises(CheckpointError, match=r"Give: hidden_act=\.\.\.$"):
            describe(tensors, None)
    else:
        assert describe(tensors, None).hidden_act == "gelu"


@pytest.mark.slow  # all 271 take 100 s
def test_all_architectures_of_timm_are_described_as_they_are():
    names = timm.list_models(["vit_*", "deit*", "flexivit*", "test_vit*", "eva*", "beit*", "samvit*"])
    wrong, loaded, bare = survey(names)
    assert wrong == []
    assert (len(loaded), len(bare)) == (153, 104)


# ---------------------------------------------------------------------------------------------- preprocessing
@pytest.fixture(scope="module")
def pictures():
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(array) for array in load_sample_images().images]  # 640 x 427
    return [*photos, photos[0].resize((333, 501)), photos[1].resize((100, 77))]


MODES = [(pct, mode, resample) for pct in (0.9, 1.0, 0.95) for mode in ("center", "squash")
         for resample in ("bilinear", "bicubic")]  # fmt: skip


def processors(size, *, input_size=224, **cfg):
    """Return timm's transform and both of our processors for (height, width)."""
    cfg = {"mean": (0.48, 0.45, 0.4), "std": (0.22, 0.23, 0.25), **cfg}
    settings = {"pretrained_cfg": {**cfg, "input_size": (3, input_size, input_size)}}
    read = layout.preprocessing(Checkpoint("x", [], {}, side={"config.json": settings}))
    ours = read.processor(size)
    kept = {name: value for name, value in ours.to_dict().items() if name not in ("image_processor_type", "auto_map")}
    theirs = create_transform(**resolve_data_config({"input_size": (3, *size)}, pretrained_cfg=cfg))
    return theirs, ours, VitHfImageProcessorPil(**kept)


def levels(theirs, processor, pictures):
    """Return the largest difference of `processor` and timm's transform in levels of 8 bits."""
    std = torch.tensor(list(processor.image_std)).view(3, 1, 1)
    pairs = ((theirs(image), processor(image, return_tensors="pt")["pixel_values"][0]) for image in pictures)
    return max(((expected - found).abs() * std * 255).max().item() for expected, found in pairs)


@pytest.mark.parametrize(
    ("size", "crop_pct", "mode", "resample"),
    [((224, 224), *mode) for mode in MODES] + [((384, 384), *mode) for mode in MODES[::5]],
)
def test_pictures_are_prepared_as_timm_does(size, crop_pct, mode, resample, pictures):
    theirs, ours, pil = processors(size, crop_pct=crop_pct, crop_mode=mode, interpolation=resample)
    assert levels(theirs, pil, pictures) < 1e-3  # on Pillow the same pixels
    # torchvision rounds its filters to other integers than Pillow: measured 1 level, 5 at the overshoots of bicubic
    assert levels(theirs, ours, pictures) < (1.01 if resample == "bilinear" else 5.01)


@pytest.mark.parametrize(("crop_pct", "mode", "resample"), MODES[::3])
def test_a_rectangle_that_is_squashed_is_prepared_as_timm_does(crop_pct, mode, resample, pictures):
    theirs, _, pil = processors((224, 320), crop_pct=crop_pct, crop_mode="squash", interpolation=resample)
    assert levels(theirs, pil, pictures) < 1e-3


def test_a_rectangle_under_a_central_crop_is_squashed_and_the_receipt_says_so(tmp_path, randomise, pictures):
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **{**SHRUNK, "patch_size": 8, "img_size": [32, 48]}))
    save_for_hf(theirs, tmp_path / "m", safe_serialization=True)
    ours = load_checkpoint(tmp_path / "m")
    assert RECTANGLES in facts_of(ours)["image_processor"].how
    pixels = ours.image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (4, 3, 32, 48)
    squash, _, pil = processors((32, 48), crop_pct=0.9, crop_mode="squash", interpolation="bicubic")
    center, *_ = processors((32, 48), crop_pct=0.9, crop_mode="center", interpolation="bicubic")
    kept = {name: value for name, value in ours.image_processor.to_dict().items() if name in ("size", "crop_size")}
    assert kept == {name: pil.to_dict()[name] for name in kept}
    assert (squash(pictures[2]) - center(pictures[2])).abs().max() > 1  # what is given up


def test_an_image_size_given_at_the_load_reaches_the_processor(tmp_path, randomise, pictures):
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **{**SHRUNK, "patch_size": 8}))
    save_for_hf(theirs, tmp_path / "m", safe_serialization=True)
    ours = load_checkpoint(tmp_path / "m", image_size=64)
    assert ours.image_processor(pictures, return_tensors="pt")["pixel_values"].shape == (4, 3, 64, 64)
    assert ours.image_processor.to_dict()["size"] == {"shortest_edge": 71}  # 64 / 0.9, rounded down as timm does


@pytest.mark.parametrize(
    ("cfg", "said"),
    [({"crop_mode": "border"}, "'border' replaced"), ({"interpolation": "random"}, "'random' replaced")],
)
def test_preprocessing_that_cannot_be_expressed_is_replaced_and_said(cfg, said):
    settings = {"pretrained_cfg": {"crop_pct": 0.9, **cfg}}
    read = layout.preprocessing(Checkpoint("x", [], {}, side={"config.json": settings}))
    assert said in read.how
    assert read.processor((32, 32)).to_dict()["crop_size"] == {"height": 32, "width": 32}


def test_a_missing_mean_is_that_of_timm():
    read = layout.preprocessing(Checkpoint("x", [], {}, side={"config.json": {"pretrained_cfg": {"crop_pct": 0.9}}}))
    expected = resolve_data_config({}, pretrained_cfg={"crop_pct": 0.9})
    assert (read.mean, read.std, read.resample) == (expected["mean"], expected["std"], expected["interpolation"])


def test_imagenet_pictures_are_prepared_as_timm_does(shared_data):
    import pyarrow.parquet

    folder = shared_data("imagenet-1k-sample") / "data"
    rows = pyarrow.parquet.ParquetFile(next(folder.glob("validation*"))).iter_batches(batch_size=12, columns=["image"])
    found = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in next(rows).to_pylist()]
    for mode, resample in (("center", "bicubic"), ("squash", "bilinear")):
        theirs, ours, pil = processors((224, 224), crop_pct=0.9, crop_mode=mode, interpolation=resample)
        assert levels(theirs, pil, found) < 1e-3
        assert levels(theirs, ours, found) < (1.01 if resample == "bilinear" else 5.01)


# ---------------------------------------------------------------------------------------------- out again
@pytest.mark.parametrize("family", FAMILIES)
def test_out_and_in_again_is_bit_equal(family, tmp_path, randomise):
    arguments, give, _ = FAMILIES[family]
    theirs = randomise(build(**arguments))
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    ours = load_checkpoint(tmp_path / "a.safetensors", num_attention_heads=4, **give)
    for suffix in (".pth", "") if family in ("plain", "distilled", "hybrid") else (".safetensors", ""):
        path = export_checkpoint(ours, tmp_path / f"out{suffix}", target="timm")
        bare = suffix == ".pth" or (suffix == "" and not (path / "config.json").exists())
        again = load_checkpoint(path, **({"num_attention_heads": 4, **give} if bare else {}))
        assert same_weights(ours, again)
        before, after = ours.config.to_dict(), again.config.to_dict()
        changed = {name for name in before if before[name] != after[name]}
        assert changed <= {"layer_scale_init"}, (suffix, changed)
    if family.startswith("hybrid"):
        return  # timm has registered no hybrid of these stages
    built = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    if family != "headless":  # ours has a classifier of zeros, which timm then has too
        assert max(compare(built, ours)) < CLOSE
        assert all(torch.equal(built.state_dict()[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize(
    "name", ["vit_tiny_r_s16_p8_224", pytest.param("vit_small_r26_s32_224", marks=pytest.mark.slow)]
)
def test_timm_builds_an_exported_hybrid(name, tmp_path, randomise):
    theirs = randomise(timm.create_model(name, **{**SHRUNK, "img_size": 64}))
    save_for_hf(theirs, tmp_path / "m", safe_serialization=True)
    ours = load_checkpoint(tmp_path / "m")
    export_checkpoint(ours, tmp_path / "out", target="timm")
    built = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert same_weights(theirs, built)
    assert max(compare(built, ours)) < (CLOSE if name.startswith("vit_tiny") else STEM_CLOSE)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, it needs 1e-06"),
        ({"representation_size": 8}, "representation_size is 8, it needs none"),
        ({"patch_bias": False}, "patch_bias is False"),
        ({"num_register_tokens": 2}, "prefix_positions is 'cls', it needs 'all' or 'none'"),
        (
            {"resnet_stem_layers": [1], "image_size": 16, "patch_size": 4},
            "resnet_stem_style is 'google', it needs 'timm'",
        ),
        ({"distilled": True, "num_register_tokens": 2, "prefix_positions": "all"}, "num_register_tokens is 2, it need"),
    ],
)
def test_what_timm_cannot_express_is_named(fields, named, tiny, tmp_path, randomise):
    model = randomise(VitHfForImageClassification(tiny(**fields)))
    with pytest.raises(CheckpointError, match=re.escape(named)):
        export_checkpoint(model, tmp_path / "a.safetensors", target="timm")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- real sizes
REAL = ["vit_base_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2",
        "vit_tiny_r_s16_p8_224", "vit_base_r50_s16_224"]  # fmt: skip


@pytest.mark.slow  # 40 s for all
@pytest.mark.parametrize("name", REAL)
def test_real_sizes_need_nothing_given(name, tmp_path, randomise):
    theirs = randomise(timm.create_model(name))
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    ours = load_checkpoint(tmp_path / "a.safetensors")
    assert ours.config.num_attention_heads == theirs.blocks[0].attn.num_heads
    assert max(compare(theirs, ours)) < 1e-4  # the sums are longer than those of the small nets
