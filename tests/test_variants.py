"""The named variants have the sizes of the papers, counted by hand to the last parameter."""

import re

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError

from vit_hf import VitHfForImageClassification, variant
from vit_hf.variants import VARIANTS


# ---- By hand: a second description of the architecture, by formula, that shares nothing with the model's code ----
def encoder_parameters(layers: int, width: int, mlp: int) -> int:
    """Blocks of two LayerNorms, query, key, value and output with biases, two MLP layers; one LayerNorm at the end."""
    attention = 4 * (width * width + width)
    block = 2 * 2 * width + attention + (width * mlp + mlp) + (mlp * width + width)
    return layers * block + 2 * width


def stem_parameters(blocks: list[int]) -> int:
    """ResNetV2: a 7x7 convolution of 64 channels and its GroupNorm, then bottlenecks; convolutions have no bias."""
    total = 3 * 64 * 7 * 7 + 2 * 64
    channels = 64
    for stage, count in enumerate(blocks):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        for block in range(count):
            total += channels * inner + 2 * inner  # 1x1
            total += inner * inner * 9 + 2 * inner  # 3x3
            total += inner * outer + 2 * outer  # 1x1
            if block == 0:
                total += channels * outer + 2 * outer  # shortcut where channels or stride change
            channels = outer
    return total


def plain(layers, width, mlp, patch, classes=1000):
    """A plain ViT at 224 px: patch projection with bias, class token, one position a token, classifier."""
    patches = (224 // patch) ** 2
    embeddings = 3 * patch * patch * width + width + width + (1 + patches) * width
    return embeddings + encoder_parameters(layers, width, mlp) + width * classes + classes


def hybrid(layers, width, mlp, blocks, kernel, stride, classes=1000):
    """A hybrid at 224 px: the stem, then patches of kernel x kernel cells of its last feature map."""
    channels = 256 * 2 ** (len(blocks) - 1) if blocks else 64
    patches = (224 // (stride * kernel)) ** 2
    embeddings = channels * kernel * kernel * width + width + width + (1 + patches) * width
    encoder = encoder_parameters(layers, width, mlp)
    return stem_parameters(blocks) + embeddings + encoder + width * classes + classes


TI, S, B = (12, 192, 768), (12, 384, 1536), (12, 768, 3072)
L, H = (24, 1024, 4096), (32, 1280, 5120)
# Name: parameters with 1,000 classes at 224 px, and the same by formula. All but S/8, L/14 and H/16 are also the
# numbers that the official code's own test holds (google-research/vision_transformer, vit_jax/models_test.py).
COUNTS = {
    "Ti/16": (5_717_416, plain(*TI, 16)),
    "S/32": (22_878_952, plain(*S, 32)),
    "S/16": (22_050_664, plain(*S, 16)),
    "S/8": (22_055_272, plain(*S, 8)),
    "B/32": (88_224_232, plain(*B, 32)),
    "B/16": (86_567_656, plain(*B, 16)),
    "B/8": (86_576_872, plain(*B, 8)),
    "L/32": (306_535_400, plain(*L, 32)),
    "L/16": (304_326_632, plain(*L, 16)),
    "L/14": (304_203_752, plain(*L, 14)),
    "H/16": (632_199_400, plain(*H, 16)),
    "H/14": (632_045_800, plain(*H, 14)),
    "R+Ti/16": (6_337_704, hybrid(*TI, [], 8, 4)),
    "R26+S/32": (36_431_912, hybrid(*S, [2, 2, 2, 2], 1, 32)),
    "R26+B/32": (101_383_976, hybrid(*B, [2, 2, 2, 2], 1, 32)),
    "R50+B/16": (98_659_112, hybrid(*B, [3, 4, 9], 1, 16)),
    "R50+L/32": (328_994_856, hybrid(*L, [3, 4, 6, 3], 1, 32)),
}


def built(config) -> int:
    """Parameters of the classifier, built without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VitHfForImageClassification(config).parameters())


def test_the_table_holds_every_variant():
    assert sorted(COUNTS) == sorted(VARIANTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_equal_the_count_by_hand(name):
    literal, formula = COUNTS[name]
    assert built(variant(name)) == formula == literal


def test_b16_by_hand_line_by_line():
    # 768*768 + 768 patches; 768 class token; 197*768 positions; 12 blocks of 7,087,872; norm 1,536; head 769,000
    assert COUNTS["B/16"][0] == 590_592 + 768 + 151_296 + 12 * 7_087_872 + 1_536 + 769_000


def test_the_r50_stem_by_hand_stage_by_stage():
    # root 9,408 + 128; three stages of 3, 4 and 9 bottlenecks with their projected shortcuts
    assert stem_parameters([3, 4, 9]) == 9_536 + 215_808 + 1_219_584 + 10_449_920


def test_h14_with_the_pretraining_head_has_the_published_count():
    config = variant("H/14", representation_size=1280)
    assert built(config) == 633_685_480 == COUNTS["H/14"][0] + 1280 * 1280 + 1280


PEERS = {
    "Ti/16": "vit_tiny_patch16_224",
    "S/32": "vit_small_patch32_224",
    "S/16": "vit_small_patch16_224",
    "S/8": "vit_small_patch8_224",
    "B/32": "vit_base_patch32_224",
    "B/16": "vit_base_patch16_224",
    "B/8": "vit_base_patch8_224",
    "L/32": "vit_large_patch32_224",
    "L/16": "vit_large_patch16_224",
    "L/14": "vit_large_patch14_224",
    "H/14": "vit_huge_patch14_224",
    "R+Ti/16": "vit_tiny_r_s16_p8_224",
    "R26+S/32": "vit_small_r26_s32_224",
    "R26+B/32": "vit_base_r26_s32_224",
    "R50+L/32": "vit_large_r50_s32_224",
    "R50+B/16": "vit_base_r50_s16_224",
}


@pytest.mark.parametrize("name", PEERS)
def test_parameters_equal_those_of_timm(name):
    with torch.device("meta"):
        peer = timm.create_model(PEERS[name], num_classes=1000)
    assert sum(parameter.numel() for parameter in peer.parameters()) == COUNTS[name][0]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_heads_of_64_or_80_and_a_mlp_four_times_the_width(name):
    config = variant(name)
    assert config.hidden_size // config.num_attention_heads == (80 if name.startswith("H/") else 64)
    assert config.intermediate_size == 4 * config.hidden_size


@pytest.mark.parametrize(
    ("name", "grid"), [("R+Ti/16", 7), ("R26+S/32", 7), ("R26+B/32", 7), ("R50+B/16", 14), ("R50+L/32", 7)]
)
def test_hybrids_have_the_grid_of_the_official_code(name, grid):
    assert variant(name).grid_hw == (grid, grid)


def test_another_patch_size_of_a_known_size_is_accepted():
    assert variant("S/4", image_size=32).grid_hw == (8, 8)


def test_overrides_change_fields_and_labels():
    config = variant("B/16", image_size=384, id2label={0: "cat", 1: "dog"}, pooling="gap")
    assert (config.grid_hw, config.num_labels, config.pooling) == ((24, 24), 2, "gap")
    assert variant("B/16", num_labels=100).num_labels == 100
    assert variant("B/16").num_labels == 1000


@pytest.mark.parametrize(
    "name", ["XL/16", "B", "B/", "b/16", "B/x", "R51+B/16", "B-16", "", "+B/16x", "R50+S/16", "R50+B/32", "B/16/8"]
)
def test_unknown_names_raise_and_list_the_known_ones(name):
    with pytest.raises(ValueError, match=re.escape(f"unknown variant {name!r}; expected one of {', '.join(VARIANTS)}")):
        variant(name)


def test_a_near_miss_is_answered_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"\(did you mean .*B/16.*\?\)"):
        variant("B16")


def test_an_unknown_field_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="unknown config field 'hiden_size'; did you mean hidden_size"):
        variant("B/16", hiden_size=10)
    with pytest.raises(ValueError, match=r"unknown config field 'zzz'; see help\(vit_hf.VitHfConfig\)"):
        variant("B/16", zzz=10)


def test_values_that_do_not_fit_raise():
    with pytest.raises(
        StrictDataclassError, match=r"image_size 230 \(height\) is not divisible by patch_size 16; use 224"
    ):
        variant("B/16", image_size=230)
