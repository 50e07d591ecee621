"""The named variants have the sizes of the papers, counted by hand to the last parameter."""

import re

import pytest
import timm
import torch

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
COUNTS = {  # name: exact count with 1,000 classes at 224 px, and the same by formula
    "Ti/16": (5_717_416, plain(*TI, 16)),
    "S/32": (22_878_952, plain(*S, 32)),
    "S/16": (22_050_664, plain(*S, 16)),
    "S/8": (22_050_664 - 3 * 192 * 384 + 588 * 384, plain(*S, 8)),
    "B/32": (88_224_232, plain(*B, 32)),
    "B/16": (86_567_656, plain(*B, 16)),
    "B/8": (86_567_656 - 3 * 192 * 768 + 588 * 768, plain(*B, 8)),
    "L/32": (306_535_400, plain(*L, 32)),
    "L/16": (304_326_632, plain(*L, 16)),
    "L/14": (304_326_632 - 3 * 60 * 1024 + 60 * 1024, plain(*L, 14)),
    "H/16": (632_045_800 + 3 * 60 * 1280 - 60 * 1280, plain(*H, 16)),
    "H/14": (632_045_800, plain(*H, 14)),
    "R+Ti/16": (0, hybrid(*TI, [], 4, 4)),
    "R26+S/32": (0, hybrid(*S, [2, 2, 2, 2], 1, 32)),
    "R50+B/16": (0, hybrid(*B, [3, 4, 9], 1, 16)),
    "R50+L/32": (0, hybrid(*L, [3, 4, 9], 2, 16)),
}
if __name__ == "__main__":
    for k, (a, b) in COUNTS.items(): print(k, f"{a:_}", f"{b:_}", a == b)
