"""The model gives the outputs of the official code, timm, torchvision and the stock transformers ViT.

Weights are copied by hand here: the maps are written from the layout of each library, not taken from the package.
"""

import json
import re

import numpy as np
import pytest
import timm
import torch
import torchvision
from transformers import ViTConfig, ViTForImageClassification
from transformers import ViTForMaskedImageModeling as StockMaskedImageModeling

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfForMaskedImageModeling

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
        (r"^reg_token$", "vit.embeddings.register_tokens"),
        (r"^pos_embed$", "vit.embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
        (r"^blocks\.", "vit.layers."),
        (r"^norm\.", "vit.norm."),
        (r"^head\.", "classifier."),
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


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"qkv_bias": False, "init_values": 0.1}, {"qkv_bias": False, "layer_scale_init": 0.1}),
        ({"qk_norm": True}, {"qk_norm": True}),
        ({"global_pool": "map", "class_token": False}, {"pooling": "map"}),
        ({"reg_tokens": 4, "no_embed_class": True, "class_token": False, "global_pool": "avg", "fc_norm": False},
         {"num_register_tokens": 4, "pooling": "gap"}),
    ],
    ids=["layer_scale_no_qkv_bias", "qk_norm", "map_pooling", "registers_gap"],
)  # fmt: skip
def test_timm_descendants_with_rectangular_images_agree(theirs, ours, randomise):
    size = {"img_size": (16, 24), "patch_size": (4, 8)}
    peer = timm.models.VisionTransformer(
        embed_dim=48, depth=3, num_heads=4, mlp_ratio=2, num_classes=7, **size, **theirs
    )
    randomise(peer)
    config = VitHfConfig(**SIZES, image_size=[16, 24], patch_size=[4, 8], hidden_act="gelu", **ours)
    model = load(VitHfForImageClassification(config), from_timm(peer.state_dict()))
    images = torch.randn(3, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, peer(images), atol=TOLERANCE, rtol=0)


def test_timm_resnet_hybrid_agrees_up_to_its_other_epsilons(randomise):
    """timm standardises by var + 1e-8 and normalises with eps 1e-5, the official code by std + 1e-5 and with 1e-6."""
    from timm.models.vision_transformer_hybrid import _resnetv2

    backbone = randomise(_resnetv2(layers=(2, 1)))
    config = VitHfConfig(**SIZES, image_size=32, patch_size=8, resnet_stem_layers=[2, 1])
    from vit_hf.modeling_vit_hf import VitHfResNetStem

    stem = VitHfResNetStem(config)
    rules = (
        (r"^stem\.conv\.", "root_conv."),
        (r"^stem\.norm\.", "root_norm."),
        (r"\.blocks\.", "."),
        (r"\.downsample\.conv\.", ".conv_proj."),
        (r"\.downsample\.norm\.", ".norm_proj."),
    )
    load(stem, rename(backbone.state_dict(), rules))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images)
        expected = expected[-1] if isinstance(expected, (list, tuple)) else expected
        found = stem(images)
    assert found.shape == expected.shape == (2, 512, 4, 4)
    # 5e-4: measured 1e-4 from the epsilons; another padding or stride would be of the order of the values, about 1
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=1e-3)
