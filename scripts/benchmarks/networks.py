"""The same network with the same weights in four libraries: ours, timm, transformers' own ViT and torchvision.

Shapes: B batch, C channels, H x W pixels, h x w patch grid, N tokens (class token and patches), D width, M width of the
MLP, L classes.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionVisionTransformer
from transformers import ViTConfig, ViTForImageClassification

from vit_hf import VitHfConfig, VitHfForImageClassification, variant
from vit_hf.checkpoints.links import Link
from vit_hf.checkpoints.load import LIBRARIES

OURS, PREPARED = "vit_hf", "vit_hf, prepared"
PEERS = ("timm", "transformers", "torchvision")
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Network:
    """One library's network."""

    library: str
    module: nn.Module
    links: list[Link] | None
    """Where its parameters lie among ours; None for our own."""

    def forward(self) -> Forward:
        """Return the function from pixels (B, C, H, W) to logits (B, L)."""
        module = self.module
        if self.library in PEERS and self.library != "transformers":
            return module
        return lambda pixels: module(pixels).logits


def network_config(name: str) -> VitHfConfig:
    """Return the config of "B/16" at 224 pixels with 1,000 classes, or of "Ti/4@32" at 32 pixels with 100.

    The activation is the exact GELU, which all four libraries have; there is no dropout.
    """
    size, _, pixels = name.partition("@")
    if pixels and not pixels.isdecimal():
        raise ValueError(
            f"unknown network {name!r}; expected a variant such as B/16, or with its pixels such as Ti/4@32"
        )
    edge = int(pixels or 224)
    return variant(size, image_size=edge, num_labels=100 if edge < 100 else 1000, hidden_act="gelu")


@torch.no_grad()
def fill(model: nn.Module, seed: int = 0) -> None:
    """Fill all parameters with noise, so that no zero or one makes two different networks agree."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        std = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + offset)


def build(config: VitHfConfig, libraries: tuple[str, ...] = (OURS, *PEERS)) -> dict[str, Network]:
    """Return the networks, float32 on the CPU, in eval mode, with the same noise as weights."""
    ours = VitHfForImageClassification(config).eval()
    fill(ours)
    makers = {"timm": _timm, "transformers": _transformers, "torchvision": _torchvision}
    networks = {OURS: Network(OURS, ours, None)}
    for library in PEERS:
        if library in libraries:
            module = makers[library](config).eval()
            links = LIBRARIES[library].links(config)
            module.load_state_dict(_in_their_names(ours, links, library), strict=True)
            networks[library] = Network(library, module, links)
    if PREPARED in libraries:
        networks[PREPARED] = Network(PREPARED, copy.deepcopy(ours), None)  # `place` prepares it, on its device
    return {library: networks[library] for library in libraries}


def their_name(name: str, library: str) -> str:
    """Return the name in the whole module of a name in a library's map, which leaves a base model's prefix out."""
    return f"vit.{name}" if library == "transformers" and not name.startswith("classifier.") else name


def _in_their_names(model: nn.Module, links: list[Link], library: str) -> dict[str, torch.Tensor]:
    ours = model.state_dict()
    state: dict[str, torch.Tensor] = {}
    for link in links:
        for name, tensor in zip(link.theirs, link.form.write(ours[link.ours]), strict=True):
            state[their_name(name, library)] = tensor
    return state


def _timm(config: VitHfConfig) -> nn.Module:
    """timm's `vit_*_patch16_224` are this class with these arguments."""
    return TimmVisionTransformer(
        img_size=config.image_hw,
        patch_size=config.patch_hw[0],
        num_classes=int(config.num_labels or 0),
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
    )


def _transformers(config: VitHfConfig) -> nn.Module:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
             "layer_norm_eps", "image_size", "patch_size", "num_labels")  # fmt: skip
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "sdpa"}
    return ViTForImageClassification(ViTConfig(**settings))


def _torchvision(config: VitHfConfig) -> nn.Module:
    return TorchvisionVisionTransformer(
        image_size=config.image_hw[0],
        patch_size=config.patch_hw[0],
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        hidden_dim=config.hidden_size,
        mlp_dim=config.intermediate_size,
        num_classes=int(config.num_labels or 0),
    )


# ---------------------------------------------------------------------------------------------- work
def forward_flops(config: VitHfConfig) -> int:
    """Return the multiplications and additions of the matrix products for one picture, as the paper's network has them.

    Attention's two products are counted; shortcuts that a library takes are not, so that it stands for the task.
    """
    width, mlp, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    patches = math.prod(config.grid_hw)
    tokens = patches + 1
    block = tokens * (4 * width * width + 2 * width * mlp) + 2 * tokens * tokens * width
    patch = patches * width * config.num_channels * math.prod(config.patch_hw)
    return 2 * (depth * block + patch + width * int(config.num_labels or 0))


def block_products(
    config: VitHfConfig, batch: int, *, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Callable[[], None]], int]:
    """Return ways to run the matrix products of all blocks and nothing else, and how many operations that is.

    Each block has its four (query, key and value; output; the MLP's two) with weights of its own, as a network does.
    One way is torch's plain product; on a CPU another is oneDNN's on weights that were laid out for it before.
    """
    width, mlp = config.hidden_size, config.intermediate_size
    rows = batch * (math.prod(config.grid_hw) + 1)
    shapes = [(width, 3 * width), (width, width), (width, mlp), (mlp, width)] * config.num_hidden_layers
    inputs = {into: torch.randn(rows, into, dtype=dtype, device=device) for into in (width, mlp)}
    outputs = {out: torch.empty(rows, out, dtype=dtype, device=device) for _, out in shapes}
    weights = [torch.randn(out, into, dtype=dtype, device=device) for into, out in shapes]

    @torch.no_grad()
    def plain() -> None:
        for weight in weights:
            torch.mm(inputs[weight.shape[1]], weight.T, out=outputs[weight.shape[0]])

    ways = {"torch.mm": plain}
    takes = torch.backends.mkldnn.is_available() and (
        dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    if device.type == "cpu" and takes:
        laid_out = [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in weights]

        @torch.no_grad()
        def packed() -> None:
            for (into, _), weight in zip(shapes, laid_out, strict=True):
                torch.ops.mkldnn._linear_pointwise(inputs[into], weight, None, "none", [], "")

        ways["oneDNN, packed"] = packed
    return ways, 2 * rows * sum(into * out for into, out in shapes)
