"""The model gives the outputs of the official code, timm, torchvision and the stock transformers ViT.

Weights are copied by hand here: the maps are written from the layout of each library, not taken from the package.
"""

import json
import re
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.layers import SwiGLUPacked
from timm.layers.patch_embed import resample_patch_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer_hybrid import HybridEmbed, _resnetv2
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers import ViTForMaskedImageModeling as StockMaskedImageModeling

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfModel
from vit_hf.modeling_vit_hf import VitHfResNetStem, resample_patch_kernel

TOLERANCE = 1e-5  # float32, logits of order 1: only the order of sums differs


def rename(weights, rules) -> dict[str, torch.Tensor]:
    """Apply all (pattern, replacement) rules to each key, in order."""
    renamed = {}
    for key, value in weights.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def load(model, weights):
    model.load_state_dict(weights, strict=True)
    return model.eval()


# ------------------------------------------------------------------------------------------- official JAX code
def from_google(npz, layers: int) -> dict[str, torch.Tensor]:
    """Rename and transpose an official checkpoint: kernels (in, out), convolutions (height, width, in, out)."""
    array = {name: torch.from_numpy(npz[name]) for name in npz.files}
    width = array["embedding/bias"].shape[0]

    def conv(name):
        return array[name].permute(3, 2, 0, 1)

    weights = {
        "vit.embeddings.patch_embeddings.projection.weight": conv("embedding/kernel"),
        "vit.embeddings.patch_embeddings.projection.bias": array["embedding/bias"],
        "vit.embeddings.position_embeddings": array["Transformer/posembed_input/pos_embedding"],
        "vit.norm.weight": array["Transformer/encoder_norm/scale"],
        "vit.norm.bias": array["Transformer/encoder_norm/bias"],
        "classifier.weight": array["head/kernel"].T,
        "classifier.bias": array["head/bias"],
    }
    if "cls" in array:
        weights["vit.embeddings.cls_token"] = array["cls"]
    if "pre_logits/kernel" in array:
        weights["vit.pooler.pre_logits.weight"] = array["pre_logits/kernel"].T
        weights["vit.pooler.pre_logits.bias"] = array["pre_logits/bias"]
    if "conv_root/kernel" in array:
        stem = "vit.embeddings.patch_embeddings.stem."
        weights[stem + "root_conv.weight"] = conv("conv_root/kernel")
        weights[stem + "root_norm.weight"] = array["gn_root/scale"].flatten()
        weights[stem + "root_norm.bias"] = array["gn_root/bias"].flatten()
    for i in range(layers):
        block, ours = f"Transformer/encoderblock_{i}/", f"vit.layers.{i}."
        attention = block + "MultiHeadDotProductAttention_1/"
        parts = ("query", "key", "value")
        weights[ours + "attention.qkv.weight"] = torch.cat(
            [array[attention + part + "/kernel"].reshape(width, width).T for part in parts]
        )
        weights[ours + "attention.qkv.bias"] = torch.cat(
            [array[attention + part + "/bias"].flatten() for part in parts]
        )
        weights[ours + "attention.output.weight"] = array[attention + "out/kernel"].reshape(width, width).T
        weights[ours + "attention.output.bias"] = array[attention + "out/bias"]
        for theirs, name in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            weights[ours + name + ".weight"] = array[block + theirs + "/scale"]
            weights[ours + name + ".bias"] = array[block + theirs + "/bias"]
        for theirs, name in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            weights[f"{ours}mlp.{name}.weight"] = array[f"{block}MlpBlock_3/{theirs}/kernel"].T
            weights[f"{ours}mlp.{name}.bias"] = array[f"{block}MlpBlock_3/{theirs}/bias"]
    return weights


GOOGLE_CASES = ["jax_vit_token", "jax_vit_prelogits", "jax_vit_gap", "jax_resize_up", "jax_hybrid_stem"]


@pytest.mark.parametrize("name", GOOGLE_CASES)
def test_official_outputs_are_reproduced(name, shared_data, tmp_path):
    folder = shared_data("google-reference")
    case = next(entry for entry in json.loads((folder / "manifest.json").read_text()) if entry["name"] == name)
    arch = case["arch"]
    resnet = arch["resnet"]
    stem_stride = 1 if resnet is None else 4
    config = VitHfConfig(
        **{key: arch[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
        image_size=case["checkpoint_image_size"],
        patch_size=arch["patch_size"] * stem_stride,
        num_labels=arch["num_labels"],
        representation_size=arch["representation_size"],
        pooling={"token": "cls", "gap": "gap"}[arch["classifier"]],
        resnet_stem_layers=None if resnet is None else resnet["num_layers"],
        resnet_stem_width=64 if resnet is None else int(64 * resnet["width_factor"]),
    )
    model = VitHfForImageClassification(config)
    load(model, from_google(np.load(folder / case["file"]), arch["num_hidden_layers"]))
    reference = np.load(folder / case["io"])
    images = torch.from_numpy(reference["images"])
    resized = case["image_size"] != case["checkpoint_image_size"]
    if resized:  # at run time here, at load by the same call below
        model.save_pretrained(tmp_path)
        loaded = VitHfForImageClassification.from_pretrained(tmp_path, image_size=case["image_size"])
        torch.testing.assert_close(
            loaded.vit.embeddings.position_embeddings.detach(),
            torch.from_numpy(reference["pos_embedding"]),
            atol=1e-6,
            rtol=0,
        )
    with torch.no_grad():
        encoded = model.vit(images, interpolate_pos_encoding=resized)
        logits = model(images, interpolate_pos_encoding=resized).logits
    torch.testing.assert_close(encoded.last_hidden_state, torch.from_numpy(reference["tokens"]), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(encoded.pooler_output, torch.from_numpy(reference["features"]), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits, torch.from_numpy(reference["logits"]), atol=TOLERANCE, rtol=0)
    assert (logits - torch.from_numpy(reference["logits_exact_gelu"])).abs().max() > 1e-4


# ------------------------------------------------------------------------------------------- stock transformers
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "num_labels": 7}


def from_stock(stock) -> dict[str, torch.Tensor]:
    """Rename the modules of the stock ViT (the names in memory) and fuse query, key and value."""
    weights = dict(stock.state_dict())
    renamed = {}
    rules = (
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("vit.layernorm", "vit.norm"),
        ("attention.o_proj", "attention.output"),
    )
    for key, value in weights.items():
        if ".q_proj." in key:
            parts = [weights[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            renamed[key.replace("q_proj", "qkv")] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", key):
            for theirs, ours in rules:
                key = key.replace(theirs, ours)
            renamed[key] = value
    return renamed


def stock_pair(randomise, **options):
    """Return a stock ViT with random weights and ours with the same."""
    stock = randomise(ViTForImageClassification(ViTConfig(**SIZES, layer_norm_eps=1e-6, **options)))
    options.setdefault("image_size", 224)
    config = VitHfConfig(**SIZES, hidden_act="gelu", position_interpolation="transformers", **options)
    return stock, load(VitHfForImageClassification(config), from_stock(stock))


def test_stock_vit_with_the_same_weights_gives_the_same_outputs(randomise):
    stock, ours = stock_pair(randomise, image_size=32, patch_size=8)
    images = torch.randn(3, 3, 32, 32)
    labels = torch.tensor([0, 6, 3])
    with torch.no_grad():
        expected = stock(images, labels=labels, output_hidden_states=True)
        found = ours(images, labels=labels, output_hidden_states=True)
        assert len(found.hidden_states) == len(expected.hidden_states) == 4
        for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(found.logits, expected.logits, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(found.loss, expected.loss, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(ours(images).logits, expected.logits, atol=TOLERANCE, rtol=0)


def test_stock_vit_and_ours_agree_at_another_image_size_at_run_time(randomise):
    stock, ours = stock_pair(randomise, image_size=32, patch_size=8)
    images = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        expected = stock(images, interpolate_pos_encoding=True).logits
        found = ours(images, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_gradients_equal_those_of_the_stock_vit(randomise):
    stock, ours = stock_pair(randomise, image_size=32, patch_size=8)
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 6, 3])
    stock(images, labels=labels).loss.backward()
    ours(images, labels=labels).loss.backward()
    theirs = dict(stock.named_parameters())
    key = "vit.layers.{}.attention.{}.weight"
    for i in range(3):
        fused = torch.cat([theirs[key.format(i, part)].grad for part in ("q_proj", "k_proj", "v_proj")])
        torch.testing.assert_close(ours.get_parameter(key.format(i, "qkv")).grad, fused, atol=TOLERANCE, rtol=1e-4)
    name = "vit.embeddings.position_embeddings"
    torch.testing.assert_close(ours.get_parameter(name).grad, theirs[name].grad, atol=TOLERANCE, rtol=1e-4)


def test_masked_image_modelling_agrees_with_stock_simmim(randomise):
    stock = randomise(
        StockMaskedImageModeling(ViTConfig(**SIZES, image_size=32, patch_size=8, encoder_stride=8, layer_norm_eps=1e-6))
    )
    ours = VitHfForMaskedImageModeling(VitHfConfig(**SIZES, hidden_act="gelu", image_size=32, patch_size=8))
    weights = from_stock(stock)
    # stock: 1x1 convolution to (channel, row, column), then pixel shuffle; ours: Linear to (row, column, channel)
    weight, bias = weights.pop("decoder.0.weight"), weights.pop("decoder.0.bias")
    weights["decoder.weight"] = weight.view(3, 8, 8, 48).permute(1, 2, 0, 3).reshape(-1, 48)
    weights["decoder.bias"] = bias.view(3, 8, 8).permute(1, 2, 0).flatten()
    load(ours, weights)
    images, mask = torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.5
    with torch.no_grad():
        expected, found = stock(images, bool_masked_pos=mask), ours(images, bool_masked_pos=mask)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found.loss, expected.loss, atol=TOLERANCE, rtol=1e-5)


# ------------------------------------------------------------------------------------------- torchvision, timm
def from_torchvision(weights) -> dict[str, torch.Tensor]:
    rules = (
        (r"^class_token$", "vit.embeddings.cls_token"),
        (r"^conv_proj\.", "vit.embeddings.patch_embeddings.projection."),
        (r"^encoder\.pos_embedding$", "vit.embeddings.position_embeddings"),
        (r"^encoder\.ln\.", "vit.norm."),
        (r"^heads\.pre_logits\.", "vit.pooler.pre_logits."),
        (r"^heads\.head\.", "classifier."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"vit.layers.\1."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attention.qkv."),
        (r"\.self_attention\.out_proj\.", ".attention.output."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    )
    return rename(weights, rules)


def test_torchvision_vit_with_a_representation_layer_agrees(randomise):
    theirs = randomise(
        torchvision.models.VisionTransformer(
            image_size=32,
            patch_size=8,
            num_layers=3,
            num_heads=4,
            hidden_dim=48,
            mlp_dim=96,
            num_classes=7,
            representation_size=40,
        )
    )
    config = VitHfConfig(**SIZES, image_size=32, patch_size=8, hidden_act="gelu", representation_size=40)
    ours = load(VitHfForImageClassification(config), from_torchvision(theirs.state_dict()))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs(images), atol=TOLERANCE, rtol=0)


def from_timm(weights) -> dict[str, torch.Tensor]:
    rules = (
        (r"^cls_token$", "vit.embeddings.cls_token"),
        (r"^(reg|dist)_token$", "vit.embeddings.register_tokens"),
        (r"^pos_embed$", "vit.embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
        (r"^blocks\.", "vit.layers."),
        (r"^norm_pre\.", "vit.embeddings.norm."),
        (r"^norm\.", "vit.norm."),
        (r"^fc_norm\.", "vit.pooler.norm."),
        (r"^head\.", "classifier."),
        (r"^head_dist\.", "distillation_classifier."),
        (r"\.attn\.proj\.", ".attention.output."),
        (r"\.attn\.", ".attention."),
        (r"\.ls(\d)\.gamma$", r".scale\1.scale"),
        (r"^attn_pool\.latent$", "vit.pooler.attention_pooling.probe"),
        (r"^attn_pool\.q\.", "vit.pooler.attention_pooling.query."),
        (r"^attn_pool\.kv\.", "vit.pooler.attention_pooling.key_value."),
        (r"^attn_pool\.proj\.", "vit.pooler.attention_pooling.output."),
        (r"^attn_pool\.", "vit.pooler.attention_pooling."),
    )
    return rename(weights, rules)


TOKENS = r"(cls|reg|dist|mask|distillation|register)_tokens?$|pos(ition)?_embed|patch_embed"
BRANCHES = r"\.(attn\.proj|attn_pool\.proj|attention\.(o_proj|output\.dense)|mlp\.(fc2|down_proj|weights_out))\."


def faint(model, factor: float) -> None:
    """Scale the tokens and whatever is added to them, so that a wrong eps in any norm shows in the outputs."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(f"{TOKENS}|{BRANCHES}", f".{name}"):
                parameter.mul_(factor)


REGISTERS = {"reg_tokens": 2}
CLIP_NORM = partial(torch.nn.LayerNorm, eps=1e-5)
DESCENDANTS = {
    "no_qkv_bias": ({"qkv_bias": False, "init_values": 0.1}, {"qkv_bias": False, "layer_scale_init": 0.1}),
    "qk_norm": ({"qk_norm": True}, {"qk_norm": True}),
    "map_pooling": ({"global_pool": "map", "class_token": False}, {"pooling": "map"}),
    "map_pooling_class_token_registers": (
        {"global_pool": "map", **REGISTERS, "no_embed_class": True},
        {"pooling": "map", "class_token": True, "num_register_tokens": 2, "prefix_positions": "none"},
    ),
    "map_pooling_registers": (
        {"global_pool": "map", "class_token": False, **REGISTERS},
        {"pooling": "map", "num_register_tokens": 2, "prefix_positions": "all"},
    ),
    "registers_gap": (
        {**REGISTERS, "no_embed_class": True, "class_token": False, "global_pool": "avg", "fc_norm": False},
        {"num_register_tokens": 2, "pooling": "gap"},
    ),
    "mae": (
        {"global_pool": "avg"},  # fc_norm by default
        {"pooling": "gap", "class_token": True, "fc_norm": True},
    ),
    "fc_norm_of_the_class_token": ({"fc_norm": True}, {"fc_norm": True}),
    "deit3": (
        {"no_embed_class": True, "init_values": 0.1},
        {"prefix_positions": "none", "layer_scale_init": 0.1},
    ),
    "registers_with_positions": (REGISTERS, {"num_register_tokens": 2, "prefix_positions": "all"}),
    "deit": (
        {"peer_class": VisionTransformerDistilled},
        {"distilled": True, "num_register_tokens": 1, "prefix_positions": "all"},
    ),
    "clip": (
        {"pre_norm": True, "norm_layer": CLIP_NORM, "act_layer": "quick_gelu"},
        {"embedding_norm": True, "patch_bias": False, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
    ),
    "dinov2_giant": (
        {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 4, "init_values": 0.1},
        {"hidden_act": "swiglu", "layer_scale_init": 0.1},
    ),
}


def timm_pair(name, randomise, scale=1.0, **both):
    """Return a net of timm with random weights, its tokens scaled, and ours with the same."""
    theirs, ours = DESCENDANTS[name]
    options = {"img_size": (16, 24), "patch_size": (4, 8), "mlp_ratio": 2, **theirs, **both}
    peer_class = options.pop("peer_class", timm.models.VisionTransformer)
    peer = randomise(peer_class(embed_dim=48, depth=3, num_heads=4, num_classes=7, **options))
    faint(peer, scale)
    config = VitHfConfig(**{**SIZES, "image_size": [16, 24], "patch_size": [4, 8], "hidden_act": "gelu", **ours})
    return peer, load(VitHfForImageClassification(config), from_timm(peer.state_dict()))


def assert_timm_agrees(peer, model, images, **options):
    with torch.no_grad():
        tokens, logits = model.vit(images, **options).last_hidden_state, model(images, **options).logits
        torch.testing.assert_close(tokens, peer.forward_features(images), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(logits, peer(images), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["", "faint"])
@pytest.mark.parametrize("name", DESCENDANTS)
def test_timm_descendants_with_rectangular_images_agree(name, scale, randomise):
    peer, model = timm_pair(name, randomise, scale)
    assert_timm_agrees(peer, model, torch.randn(3, 3, 16, 24))


@pytest.mark.parametrize("name", ["mae", "deit3", "registers_with_positions", "deit"])
def test_timm_descendants_at_another_rectangle_at_run_time_agree(name, randomise):
    peer, model = timm_pair(name, randomise, dynamic_img_size=True)
    model.config.position_interpolation = model.vit.config.position_interpolation = "timm"
    assert_timm_agrees(peer, model, torch.randn(2, 3, 32, 16), interpolate_pos_encoding=True)


def test_gradients_of_a_distilled_model_equal_those_of_timm(randomise):
    peer, model = timm_pair("deit", randomise)
    images, labels = torch.randn(3, 3, 16, 24), torch.tensor([0, 6, 3])
    torch.nn.functional.cross_entropy(peer(images), labels).backward()
    model(images, labels=labels).loss.backward()
    expected = from_timm({name: parameter.grad for name, parameter in peer.named_parameters()})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("target", [(8, 16), (6, 10), (3, 5), (4, 4), (4, 8)], ids=str)
def test_patch_kernels_resampled_by_timm_agree(target):
    kernel = torch.randn(6, 3, 4, 8)
    expected = resample_patch_embed(kernel, list(target), interpolation="bilinear", antialias=False)
    torch.testing.assert_close(resample_patch_kernel(kernel, target), expected, atol=TOLERANCE, rtol=1e-5)


# ------------------------------------------------------------------------------------------- hybrids
STEM = (
    (r"^stem\.|^(?=conv|norm)", "root_"),
    (r"\.blocks\.", "."),
    (r"\.downsample\.(conv|norm)\.", r".\1_proj."),
)


def thin(backbone, factor: float):
    """Scale all filters, so that what is added to their variance shows in the outputs."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 4:
                parameter.mul_(factor)


@pytest.mark.parametrize("factor", [1.0, 1e-4], ids=["", "thin_filters"])
@pytest.mark.parametrize("light", [1.0, 1e-3], ids=["", "faint_images"])
@pytest.mark.parametrize("layers", [(2, 1), ()], ids=["stages", "root_alone"])
def test_timm_resnet_stems_agree(layers, light, factor, randomise):
    backbone = randomise(_resnetv2(layers=layers))
    thin(backbone, factor)
    config = VitHfConfig(
        **SIZES, image_size=[32, 48], patch_size=8, resnet_stem_layers=layers, resnet_stem_style="timm"
    )
    stem = load(VitHfResNetStem(config), rename(backbone.state_dict(), STEM))
    images = torch.randn(2, 3, 32, 48).double() * light
    with torch.no_grad():  # in float64, as the kernels of some machines round by more than the tolerance
        expected, found = backbone.double()(images), stem.double()(images)
    expected = expected[-1] if isinstance(expected, (list, tuple)) else expected
    assert found.shape == expected.shape == ((2, 512, 4, 6) if layers else (2, 64, 8, 12))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    if factor == light == 1:  # the official epsilons give about the same, so paddings and strides are the same too
        config.resnet_stem_style = "google"
        official = load(VitHfResNetStem(config), stem.state_dict()).double()
        with torch.no_grad():
            difference = (official(images) - expected).abs().max()
        assert 2 * TOLERANCE < difference < 5e-4


@pytest.mark.parametrize(("layers", "patch"), [((1, 1), (1, 2)), ((), (4, 2))], ids=["stages", "root_alone"])
def test_timm_resnet_hybrids_agree(layers, patch, randomise):
    backbone, stride = _resnetv2(layers=layers), 8 if layers else 4
    embed = partial(HybridEmbed, backbone=backbone)
    size = {"img_size": (32, 48), "patch_size": patch, "embed_layer": embed}
    peer = timm.models.VisionTransformer(embed_dim=48, depth=3, num_heads=4, mlp_ratio=2, num_classes=7, **size)
    randomise(peer)
    weights, prefix = peer.state_dict(), "patch_embed.backbone."
    stem = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    rest = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    ours = "vit.embeddings.patch_embeddings.stem."
    stem = {ours + name: value for name, value in rename(stem, STEM).items()}
    config = VitHfConfig(
        **SIZES,
        image_size=[32, 48],
        patch_size=[size * stride for size in patch],
        hidden_act="gelu",
        resnet_stem_layers=layers,
        resnet_stem_style="timm",
    )
    model = load(VitHfForImageClassification(config), {**stem, **from_timm(rest)})
    assert_timm_agrees(peer, model, torch.randn(2, 3, 32, 48))


# ------------------------------------------------------------------------------------------- transformers DeiT, DINOv2
def fused(weights, parts, whole) -> dict[str, torch.Tensor]:
    """Stack the projections named by `parts` under the name `whole`."""
    joined = {}
    for key, value in weights.items():
        if f".{parts[0]}." in key:
            pieces = [weights[key.replace(parts[0], part)] for part in parts]
            joined[key.replace(parts[0], whole)] = torch.cat(pieces)
        elif not any(f".{part}." in key for part in parts):
            joined[key] = value
    return joined


OLDER_DINOV2 = (  # names in the memory of transformers 5.17 and those of 5.23
    (r"\.attention\.attention\.(q|k|v)(uery|ey|alue)\.", r".attention.\1_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.weights_in\.", ".fc1."),
    (r"\.weights_out\.", ".fc2."),
)
QKV = (("q_proj", "k_proj", "v_proj"), "qkv")
GATED = (("gate_proj", "up_proj"), "fc1")


@pytest.mark.parametrize("size", [(32, 32), (48, 16)], ids=["stored_size", "run_time"])
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["", "faint"])
def test_deit_of_transformers_agrees(scale, size, randomise):
    options = {**SIZES, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-12}
    peer = randomise(DeiTForImageClassificationWithTeacher(DeiTConfig(**options)))
    faint(peer, scale)
    rules = (
        (r"^deit\.layernorm\.", "vit.norm."),
        (r"^deit\.", "vit."),
        (r"^cls_classifier", "classifier"),
        (r"distillation_token$", "register_tokens"),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.o_proj\.", ".output."),
    )
    config = VitHfConfig(
        **options,
        hidden_act="gelu",
        distilled=True,
        num_register_tokens=1,
        prefix_positions="all",
        position_interpolation="transformers",
    )
    ours = load(VitHfForImageClassification(config), rename(fused(peer.state_dict(), *QKV), rules))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = peer(images, interpolate_pos_encoding=True, output_hidden_states=True)
        found = ours(images, interpolate_pos_encoding=True, output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits, atol=TOLERANCE, rtol=0)
    for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0)


def dinov2_pair(randomise, scale=1.0, *, registers=0, swiglu=False):
    """Return a DINOv2 of transformers with random weights and our encoder with the same, mask token included."""
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    options = {**sizes, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
    theirs = {**options, "mlp_ratio": 4, "use_swiglu_ffn": swiglu}
    if registers:
        peer = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**theirs, num_register_tokens=registers))
    else:
        peer = Dinov2Model(Dinov2Config(**theirs))
    faint(randomise(peer), scale)
    rules = (
        (r"^layernorm\.", "norm."),
        (r"^encoder\.layer\.", "layers."),
        (r"\.layer_scale(\d)\.lambda1$", r".scale\1.scale"),
        (r"\.o_proj\.", ".output."),
        (r"\.down_proj\.", ".fc2."),
    )
    theirs_now = rename(peer.state_dict(), OLDER_DINOV2)
    weights = rename(fused(fused(theirs_now, *QKV), *GATED), rules)
    weights["embeddings.mask_token"] = weights["embeddings.mask_token"][None]
    config = VitHfConfig(
        **options,
        intermediate_size=128 if swiglu else 192,  # two thirds of 4 * 48
        hidden_act="swiglu" if swiglu else "gelu",
        layer_scale_init=1.0,
        num_register_tokens=registers,
        position_interpolation="timm" if registers else "transformers",  # with registers: with antialias
    )
    return peer.eval(), load(VitHfModel(config, use_mask_token=True), weights)


@pytest.mark.parametrize("size", [(32, 32), (48, 16), (16, 64)], ids=["stored_size", "run_time", "same_count"])
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["", "faint"])
@pytest.mark.parametrize(
    "options",
    [{}, {"swiglu": True}, {"registers": 4}, {"registers": 4, "swiglu": True}],
    ids=["plain", "swiglu", "registers", "registers_swiglu"],
)
def test_dinov2_of_transformers_agrees_also_at_another_rectangle_and_masked(options, scale, size, randomise):
    peer, ours = dinov2_pair(randomise, scale, **options)
    images, mask = torch.randn(2, 3, *size), torch.rand(2, size[0] * size[1] // 64) < 0.5
    with torch.no_grad():
        for masked in (None, mask):
            expected = peer(images, bool_masked_pos=masked)
            found = ours(images, bool_masked_pos=masked, interpolate_pos_encoding=True)
            torch.testing.assert_close(
                found.last_hidden_state, expected.last_hidden_state, atol=TOLERANCE, rtol=TOLERANCE
            )
            torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=TOLERANCE, rtol=TOLERANCE)
