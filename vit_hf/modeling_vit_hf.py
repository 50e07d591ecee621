"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): the encoder and the image classifier.

Masked image modelling stands in `masked_vit_hf.py`.

Follows the official code, google-research/vision_transformer `vit_jax/models_vit.py` and `models_resnet.py`, in maths,
initialisation and order of operations; the descendants' additions (registers, LayerScale, QK-norm, attention pooling,
fixed positions) are switched by the config. Two things differ in form, not in value: query, key and value are one fused
projection, and where only the class token is asked for, the last block computes that one token and no keys or values.

Shapes: B batch, C channels, H x W pixels, h x w patch grid, P tokens before the patches (class token, registers),
N tokens (P + h*w), Q query tokens, D width, A heads, K head dim (A*K = D), L classes, R representation size.
"""

import copy
import inspect
import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import is_peft_available, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_vit_hf import DECODER_FIELDS, VitHfConfig, patch_grid
from .files_vit_hf import (
    MANIFEST,
    WEIGHT_FILES,
    Shapes,
    beside,
    check_against_manifest,
    commit_of,
    find_weights,
    readable,
    shapes_in,
    update_manifest,
)

logger = logging.get_logger(__name__)
Module = TypeVar("Module", bound=nn.Module)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


# ---------------------------------------------------------------------------------------------- initialisation
def _init_by(module: Module, **rules: Callable[[torch.Tensor], object]) -> Module:
    """Give a layer initialisation rules of its own by parameter name, for `_init_weights` to follow.

    They stand at the layer, not in `_init_weights` by the parent's type: transformers leaves out modules without
    parameters of their own when the code is not its own.
    """
    vars(module)["init_rules"] = rules
    return module


def _lecun_normal_(weight: torch.Tensor) -> None:
    """Fill with flax's `lecun_normal`: normal cut at two standard deviations, variance 1/fan_in after the cut."""
    std = weight[0].numel() ** -0.5 / 0.87962566103423978
    init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def _xavier_uniform_fused_(weight: torch.Tensor) -> None:
    """Fill a fused projection (parts*D, D) with the bound that each of its square parts has alone."""
    bound = math.sqrt(6 / (2 * weight.shape[1]))
    init.uniform_(weight, -bound, bound)


def _tiny_normal_(bias: torch.Tensor) -> None:
    """Fill with normal(0, 1e-6), the biases of the official MLP."""
    init.normal_(bias, std=1e-6)


# ---------------------------------------------------------------------------------------------- positions
def resample_positions(
    positions: torch.Tensor, *, num_prefix: int, source: tuple[int, int], target: tuple[int, int], method: str
) -> torch.Tensor:
    """Resample position embeddings from one patch grid to another; the rows before the grid stay untouched.

    Args:
        positions: (1, num_prefix + h*w, D), float.
        num_prefix: rows before the grid (1 with a class token).
        source: grid (h, w) of `positions`, in patches.
        target: grid wanted, in patches.
        method: one of `POSITION_INTERPOLATIONS`; see `VitHfConfig.position_interpolation`.

    Returns:
        (1, num_prefix + target h * target w, D), same dtype.
    """
    if source == target:
        return positions
    return _interpolate_positions(positions, num_prefix=num_prefix, source=source, target=target, method=method)


def _interpolate_positions(
    positions: torch.Tensor, *, num_prefix: int, source: tuple[int, int], target: tuple[int, int], method: str
) -> torch.Tensor:
    """Resample positions without asking whether the grids differ, which a traced graph for any size must not ask."""
    prefix, grid = positions[:, :num_prefix], positions[:, num_prefix:]
    factors = tuple((new + 0.1) / old for new, old in zip(target, source, strict=True))
    options: dict = {
        "google": {"size": target, "mode": "bilinear", "align_corners": True},
        "timm": {"size": target, "mode": "bicubic", "antialias": True, "align_corners": False},
        "torchvision": {"size": target, "mode": "bicubic", "align_corners": True},
        "transformers": {"size": target, "mode": "bicubic", "align_corners": False},
        "dino": {"scale_factor": factors, "mode": "bicubic", "align_corners": False},
    }[method]
    grid = grid.reshape(1, *source, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    grid = F.interpolate(grid.float(), **options).to(positions.dtype)  # (1, D, h', w')
    return torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)  # (1, P + h'*w', D)


def resample_patch_kernel(kernel: torch.Tensor, target: tuple[int, int]) -> torch.Tensor:
    """Resize the kernel of a patch projection by the pseudo-inverse of image resizing (FlexiViT, arXiv 2212.08013).

    Where the patch grows, a patch of the old size and its bilinear enlargement give the same token under the old and
    the new kernel (section 3.4; big_vision `models/proj/flexi/vit.py`).

    Args:
        kernel: (D, C, patch height, patch width), float.
        target: (patch height, patch width) wanted, in cells of what the projection sees.

    Returns:
        (D, C, target height, target width), same dtype and device; worked out in float64 on the CPU.
    """
    source = (kernel.shape[-2], kernel.shape[-1])
    if source == target:
        return kernel
    cells = torch.eye(math.prod(source), dtype=torch.float64, device="cpu")
    cells = cells.view(-1, 1, *source)  # each an image of one bright cell
    resized = F.interpolate(cells, size=target, mode="bilinear", align_corners=False)
    resize = resized.flatten(1).T  # (target cells, source cells): enlarges a flattened patch
    inverse = torch.linalg.pinv(resize.T)  # (target cells, source cells)
    flat = kernel.flatten(2).to("cpu", torch.float64) @ inverse.T  # (D, C, target cells)
    return flat.unflatten(-1, target).to(kernel)


def sincos2d_positions(
    grid: tuple[int, int],
    width: int,
    num_prefix: int = 0,
    *,
    dtype: torch.dtype = torch.float64,
    endpoint: bool = True,
) -> torch.Tensor:
    """Return the fixed 2-D sine-cosine table of big_vision's `posemb_sincos_2d`, zeros for the rows before the grid.

    The width is four quarters: sine and cosine of the column, sine and cosine of the row, at frequencies from 1 to
    1/10,000. Returns float32 (1, num_prefix + h*w, width); width is a multiple of 4. Angles are of `dtype`. Without
    `endpoint` the frequencies end one step before 1/10,000 (facebookresearch/mae `util/pos_embed.py`).
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")  # (h, w)
    exponent = torch.arange(width // 4, dtype=torch.float64) / max(width // 4 - endpoint, 1)
    frequency = (1.0 / 10_000.0**exponent).to(dtype)  # (D/4,)
    row_angle = rows.flatten()[:, None] * frequency  # (h*w, D/4)
    column_angle = columns.flatten()[:, None] * frequency
    table = torch.cat([column_angle.sin(), column_angle.cos(), row_angle.sin(), row_angle.cos()], dim=1)
    return torch.cat([table.new_zeros(num_prefix, width), table])[None].float()  # (1, P + h*w, D)


# ---------------------------------------------------------------------------------------------- ResNetV2 stem
def _pad_same(x: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Pad (B, C, H, W) as TensorFlow's and JAX's SAME does: the odd row and column come after."""
    padding = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value)


class VitHfStdConv2d(nn.Conv2d):
    """Convolution without bias, SAME padding, each filter standardised: (w - mean) / (std + 1e-5).

    In the style of timm the divisor is sqrt(variance + 1e-8).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, style: str = "google"):
        super().__init__(in_channels, out_channels, kernel, stride=stride, bias=False)
        self.style = style
        _init_by(self, weight=_lecun_normal_)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        divisor = std + 1e-5 if self.style == "google" else (std.square() + 1e-8).sqrt()
        weight = (self.weight - mean) / divisor
        return F.conv2d(_pad_same(x, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


def _group_norm(channels: int, style: str) -> nn.GroupNorm:
    """GroupNorm of 32 groups; eps 1e-6 in the official code, 1e-5 in timm."""
    return nn.GroupNorm(32, channels, eps=1e-6 if style == "google" else 1e-5)


class VitHfResidualUnit(nn.Module):
    """Bottleneck 1x1, 3x3, 1x1 with GroupNorm and a projected shortcut where shapes change."""

    def __init__(self, in_channels: int, channels: int, stride: int, style: str):
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = VitHfStdConv2d(in_channels, channels, 1, style=style)
        self.norm1 = _group_norm(channels, style)
        self.conv2 = VitHfStdConv2d(channels, channels, 3, stride, style)
        self.norm2 = _group_norm(channels, style)
        self.conv3 = VitHfStdConv2d(channels, out_channels, 1, style=style)
        self.norm3 = _init_by(_group_norm(out_channels, style), weight=init.zeros_)
        projected = in_channels != out_channels or stride != 1
        self.conv_proj = VitHfStdConv2d(in_channels, out_channels, 1, stride, style) if projected else None
        self.norm_proj = _group_norm(out_channels, style) if projected else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x
        if self.conv_proj is not None and self.norm_proj is not None:
            residual = self.norm_proj(self.conv_proj(x))
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(residual + self.norm3(self.conv3(x)))


class VitHfResNetStem(nn.Module):
    """ResNetV2 before the patches: root block of stride 4, then stages, each but the first of stride 2."""

    def __init__(self, config: VitHfConfig):
        super().__init__()
        width, style = config.resnet_stem_width, config.resnet_stem_style
        self.root_conv = VitHfStdConv2d(config.num_channels, width, 7, 2, style)
        self.root_norm = _group_norm(width, style)
        self.stages = nn.ModuleList()
        channels = width
        for index, count in enumerate(config.resnet_stem_layers or ()):
            units = []
            for unit in range(count):
                stride = 2 if unit == 0 and index > 0 else 1
                units.append(VitHfResidualUnit(channels, width * 2**index, stride, style))
                channels = 4 * width * 2**index
            self.stages.append(nn.Sequential(*units))
        self.out_channels = channels

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.root_norm(self.root_conv(pixel_values)))  # (B, width, H/2, W/2)
        x = F.max_pool2d(_pad_same(x, 3, 2, value=-math.inf), 3, 2)  # (B, width, H/4, W/4)
        for stage in self.stages:
            x = stage(x)
        return x  # (B, out_channels, H/stride, W/stride)


# ---------------------------------------------------------------------------------------------- embeddings
class VitHfPatchEmbeddings(nn.Module):
    """Cut the image into patches and project each to a token: a convolution whose stride is its kernel."""

    def __init__(self, config: VitHfConfig):
        super().__init__()
        self.num_channels, self.patch_hw = config.num_channels, config.patch_hw
        self.takes_uint8 = False  # whether the image processor's normalisation is part of the projection
        self.stem = None if config.resnet_stem_layers is None else VitHfResNetStem(config)
        channels = config.num_channels if self.stem is None else self.stem.out_channels
        kernel = (self.patch_hw[0] // config.stem_stride, self.patch_hw[1] // config.stem_stride)
        projection = nn.Conv2d(channels, config.hidden_size, kernel, stride=kernel, bias=config.patch_bias)
        self.projection = _init_by(projection, weight=_lecun_normal_)

    def set_patch_size(self, config: VitHfConfig) -> None:
        """Resample the projection's kernel to the patch size of another config."""
        old = self.projection
        kernel = (config.patch_hw[0] // config.stem_stride, config.patch_hw[1] // config.stem_stride)
        new = nn.Conv2d(old.in_channels, old.out_channels, kernel, stride=kernel, bias=False)
        weight = resample_patch_kernel(old.weight, kernel)
        new.weight, new.bias = nn.Parameter(weight, requires_grad=old.weight.requires_grad), old.bias
        logger.warning(
            f"patch kernel resampled from {'x'.join(map(str, self.patch_hw))} to {'x'.join(map(str, config.patch_hw))} "
            "pixels by the pseudo-inverse of image resizing"
        )
        self.projection, self.patch_hw = _init_by(new, weight=_lecun_normal_), config.patch_hw

    def forward(self, pixel_values: torch.Tensor, visible_patches: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tokens (B, h*w, D) of the patches of (B, C, H, W), or those (B, V, D) of `visible_patches`."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, {self.num_channels}, height, "
                "width): prepare images with the model's image processor"
            )
        if (pixel_values.dtype == torch.uint8) != self.takes_uint8:
            expected = "uint8, as the model was prepared" if self.takes_uint8 else "float, from the image processor"
            raise ValueError(f"pixel_values are {pixel_values.dtype}; expected {expected}")
        if self.takes_uint8:
            pixel_values = (pixel_values ^ 128).view(torch.int8)  # 128 less: sums of small numbers round less
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        if visible_patches is not None:
            return self._project(pixel_values, visible_patches)
        if self.stem is not None:
            pixel_values = self.stem(pixel_values)
        return self.projection(pixel_values).flatten(2).transpose(1, 2)  # (B, h*w, D)

    def _project(self, pixel_values: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Return the tokens (B, V, D) of the patches numbered (B, V): the convolution, where it is asked for."""
        if self.stem is not None:
            raise ValueError(
                "visible_patches needs a model without ResNet stem, whose convolutions see hidden pixels too"
            )
        (patch_h, patch_w), width = self.patch_hw, pixel_values.shape[3] // self.patch_hw[1]
        cut = pixel_values.unflatten(3, (-1, patch_w)).unflatten(2, (-1, patch_h))  # (B, C, h, patch_h, w, patch_w)
        picture = torch.arange(len(patches), device=patches.device)[:, None]  # (B, 1)
        chosen = cut[picture, :, patches // width, :, patches % width]  # (B, V, C, patch_h, patch_w)
        if _is_watched(self.projection):  # what is hooked to it must see a call
            return self.projection(chosen.flatten(0, 1)).flatten(1).unflatten(0, patches.shape)  # (B, V, D)
        return F.linear(chosen.flatten(2), self.projection.weight.flatten(1), self.projection.bias)  # (B, V, D)


class VitHfEmbeddings(nn.Module):
    """Patch tokens, class token, registers and positions (paper, equation 1)."""

    def __init__(self, config: VitHfConfig, use_mask_token: bool = False):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.patch_embeddings = VitHfPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.has_cls_token else None
        num_registers = config.num_register_tokens
        self.register_tokens = nn.Parameter(torch.empty(1, num_registers, width)) if num_registers else None
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if use_mask_token else None
        if config.position_embedding == "learned":
            num_positions = config.num_prefix_positions + math.prod(config.grid_hw)
            self.position_embeddings = nn.Parameter(torch.empty(1, num_positions, width))
        else:
            self.register_buffer("position_embeddings", self.fixed_positions(config.grid_hw), persistent=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.embedding_norm else None

    def fixed_positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the sine-cosine table for a patch grid, (1, prefix + h*w, D), in the default dtype."""
        table = sincos2d_positions(grid, self.config.hidden_size, self.config.num_prefix_positions)
        return table.to(torch.get_default_dtype())  # that of the parameters while the model is built

    def resampled_positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return positions (1, prefix + h*w, D) for another grid: learned ones resampled, fixed ones computed anew."""
        if self.config.position_embedding == "sincos2d":
            return self.fixed_positions(grid).to(self.position_embeddings)
        return resample_positions(
            self.position_embeddings,
            num_prefix=self.config.num_prefix_positions,
            source=self.config.grid_hw,
            target=grid,
            method=self.config.position_interpolation,
        )

    def positions(self, image_hw: tuple[int, int], interpolate: bool) -> torch.Tensor:
        """Return positions (1, prefix + h*w, D) for an image of (height, width) pixels, resampled if `interpolate`."""
        if image_hw == self.config.image_hw:
            return self.position_embeddings
        if not interpolate:
            expected = "x".join(map(str, self.config.image_hw))
            raise ValueError(
                f"the image is {image_hw[0]}x{image_hw[1]} pixels, the model takes {expected}; resize it with the "
                "model's image processor, pass interpolate_pos_encoding=True, or load with image_size="
                f"{list(image_hw)}"
            )
        return self.resampled_positions(patch_grid(image_hw, self.config.patch_hw))

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        visible_patches: torch.Tensor | None = None,
    ) -> torch.Tensor:
        positions = self.positions((pixel_values.shape[-2], pixel_values.shape[-1]), interpolate_pos_encoding)
        patches = self.patch_embeddings(pixel_values, visible_patches)  # (B, h*w, D), or (B, V, D)
        batch = patches.shape[0]
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("this model has no mask token; mask patches with VitHfForMaskedImageModeling")
            if bool_masked_pos.shape != patches.shape[:2]:
                raise ValueError(
                    f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}; expected {tuple(patches.shape[:2])}: "
                    "one value a patch, row by row"
                )
            patches = torch.where(bool_masked_pos[..., None].bool(), self.mask_token.to(patches.dtype), patches)
        placed = self.config.num_prefix_positions
        grid = positions[:, placed:]  # (1, h*w, D)
        tokens = patches + (grid if visible_patches is None else F.embedding(visible_patches, grid[0]))
        before: list[torch.Tensor] = [token for token in (self.cls_token, self.register_tokens) if token is not None]
        if before:
            prefix = torch.cat(before, dim=1)  # (1, P, D)
            prefix = torch.cat([prefix[:, :placed] + positions[:, :placed], prefix[:, placed:]], dim=1)
            tokens = torch.cat([prefix.expand(batch, -1, -1), tokens], dim=1)  # (B, N, D)
        tokens = self.dropout(tokens)
        return tokens if self.norm is None else self.norm(tokens)


# ---------------------------------------------------------------------------------------------- encoder
def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention written out, softmax in float32; the backend that returns attention maps.

    Args:
        module: the attention module, for its training flag.
        query: (B, A, Q, K).
        key: (B, A, N, K).
        value: (B, A, N, K).
        attention_mask: added to the scores, broadcastable to (B, A, Q, N), or None.
        scaling: factor on the scores; 1/sqrt(K) when None.
        dropout: probability of dropping an attention weight in training.
        kwargs: arguments that other backends take; unused.

    Returns:
        The mixed values (B, Q, A, K) and the attention weights (B, A, Q, N).
    """
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scaling is None else scaling)  # (B, A, Q, N)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights  # (B, Q, A, K), (B, A, Q, N)


_SCORES = 2**22  # that `_attend_by_products` forms at once, 8 MiB


def _multiplies_bfloat16_without_amx() -> bool:
    """Whether this is a CPU with AVX512-BF16 and no AMX, where `_attend_by_products` is the faster way."""
    features = torch.cpu.get_capabilities()  # torch looks once
    return bool(features.get("avx512_bf16") and not features.get("amx_tile"))


def _attend_by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attend by oneDNN's products and a softmax, some heads at a time; for inference in bfloat16.

    Takes 0.5 to 0.65 of the time of torch's fused kernel (65 to 2,305 tokens, AMD EPYC), a sixth of B/16's. Scores are
    rounded to bfloat16, as in `eager_attention_forward` and in torch's own fast path of `nn.MultiheadAttention`: logits
    of two nets trained on CIFAR-100, with scores of up to 22 and 70, are then 0.0105 and 0.0103 (RMS) from those in
    float32, with the fused kernel 0.0099 and 0.0100.

    Args:
        query: (B, A, Q, K).
        key: (B, A, N, K).
        value: (B, A, N, K).
        scaling: factor on the scores.

    Returns:
        The mixed values (B, Q, A, K).
    """
    size = max(_SCORES // (query.shape[2] * key.shape[2]), 1)  # heads
    pieces = zip(*(part.flatten(0, 1).split(size) for part in (query, key, value)), strict=True)  # each (size, N, K)
    mixed = []
    with torch.autocast(query.device.type, enabled=False):  # whose softmax is in float32
        for q, k, v in pieces:
            scores = torch.baddbmm(q.new_zeros(()), q, k.mT, beta=0, alpha=scaling)  # (size, Q, N)
            mixed.append(scores.softmax(-1) @ v)  # (size, Q, K)
    whole = mixed[0] if len(mixed) == 1 else torch.cat(mixed)  # (B*A, Q, K)
    return whole.unflatten(0, query.shape[:2]).transpose(1, 2)  # (B, Q, A, K)


class _WrittenOutBackward(torch.autograd.Function):
    """Attention by torch's fused kernel, whose gradients are taken from the weights, written out again in float32.

    For bfloat16 on a CPU, where the kernel's own backward pass takes 1.5 to 4 times as long (AMD EPYC with
    AVX512-BF16, 197 and 65 tokens) and is as far from the gradients in float64. Differentiable twice.
    """

    generate_vmap_rule = True
    NUMBERS = 2**18  # weights that are written out at once for each thread: they stay in its cache

    @staticmethod
    def forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=scaling)  # (B, A, Q, K)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: torch.Tensor) -> None:
        *parts, ctx.scaling = inputs
        ctx.save_for_backward(*parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors  # once: checkpointing computes them anew
        size = query.shape[0]  # pictures
        if not torch.compiler.is_compiling():  # which fuses what it can, and cannot ask for the threads
            weights = math.prod(query.shape[1:3]) * key.shape[2]  # of a picture
            size = max(_WrittenOutBackward.NUMBERS * torch.get_num_threads() // weights, 1)
        pieces = zip(*(part.split(size) for part in (query, key, value, gradient)), strict=True)
        with torch.autocast(query.device.type, enabled=False):
            gradients = [_attention_gradients(*piece, scaling=ctx.scaling) for piece in pieces]
        return (*(part[0] if len(part) == 1 else torch.cat(part) for part in zip(*gradients, strict=True)), None)


def _attention_gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor, *, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return those of query, key and value, for that of the mixed values; scores and weights in float32 or wider."""
    narrow, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(wide) * scaling) @ key.to(wide).transpose(-2, -1)  # (B, A, Q, N)
    weights = scores.softmax(dim=-1)
    of_weights = (gradient @ value.transpose(-2, -1)).to(wide)
    of_scores = torch._softmax_backward_data(of_weights, weights, -1, wide).to(narrow)
    of_value = weights.to(narrow).transpose(-2, -1) @ gradient  # (B, A, N, K)
    return of_scores @ key * scaling, of_scores.transpose(-2, -1) @ query * scaling, of_value


def _is_offloaded(model: nn.Module) -> bool:
    """Whether Accelerate fetches some of the weights when they are needed."""
    return any(weight.is_meta for weight in model.parameters()) and any(map(_is_watched, model.modules()))


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does anything but its `forward`: hooks, Accelerate's offloading.

    Hooks on all modules at once do not count: torch's FLOP counter sets one, to count what is computed without it.
    """
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return "forward" in vars(module) or any(getattr(module, name) for name in hooks)


class VitHfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    writes_out_backward = True  # where `_WrittenOutBackward` is the faster one

    is_causal = False

    def __init__(self, config: VitHfConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.qkv = _init_by(qkv, weight=_xavier_uniform_fused_)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps) if config.qk_norm else None
        self.k_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps) if config.qk_norm else None
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from the first `num_queries` tokens (all when None) of (B, N, D) to all tokens.

        Returns the attended tokens (B, Q, D), and the attention weights (B, A, Q, N) or None where the backend
        does not form them.
        """
        mixed: torch.Tensor  # (B, Q, A, K)
        weights: torch.Tensor | None
        if num_queries is not None and self.can_absorb:
            mixed, weights = self.absorb(hidden_states, num_queries)
        else:
            mixed, weights = self.attend(*self.heads(self.qkv(hidden_states), num_queries), **kwargs)
        return self.output(mixed.flatten(2)), weights  # (B, Q, D), (B, A, Q, N)

    def heads(self, projected: torch.Tensor, num_queries: int | None) -> list[torch.Tensor]:
        """Cut (B, N, 3*D) into queries (B, A, Q, K), keys and values (B, A, N, K); QK-norm is applied."""
        query, key, value = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)  # each (B, N, A, K)
        query, key, value = (part.transpose(1, 2) for part in (query[:, :num_queries], key, value))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return [query, key, value]

    @property
    def can_absorb(self) -> bool:
        """Whether `absorb` computes what the fused projection (no adapter in its place, no hook) and `attend` would."""
        dropping = self.training and self.dropout > 0
        return type(self.qkv) is nn.Linear and not _is_watched(self.qkv) and self.k_norm is None and not dropping

    def absorb(self, hidden_states: torch.Tensor, num_queries: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend from the first tokens of (B, N, D) without forming a key or a value, whatever the backend.

        A score is q . (W x + b) = (W' q) . x + q . b, whose last term is the same for all x, which softmax does not
        see; the mean of the values is the value of the mean token. Projections are then a product a query, not one a
        token; DeepSeek-V2 absorbs its weights so (arXiv 2405.04434, section 2.1.2).

        Returns the mixed values (B, Q, A, K) and the attention weights (B, A, Q, N).
        """
        shape, width = (self.num_heads, self.head_dim), hidden_states.shape[-1]
        query_weight, *weights = self.qkv.weight.split(width)  # each (D, D)
        query_bias, _, value_bias = [None] * 3 if self.qkv.bias is None else self.qkv.bias.split(width)
        query = F.linear(hidden_states[:, :num_queries], query_weight, query_bias).unflatten(-1, shape)  # (B, Q, A, K)
        batch, tokens = query.shape[0], hidden_states.to(query.dtype)  # autocast gives another
        key_weight, value_weight = (weight.unflatten(0, shape) for weight in weights)  # (A, K, D)
        probes = query.flatten(0, 1).transpose(0, 1) @ key_weight  # (A, B*Q, D)
        probes = probes.unflatten(1, (batch, -1)).transpose(0, 1).flatten(1, 2)  # (B, A*Q, D)
        scores = probes @ tokens.transpose(1, 2) * self.scaling  # (B, A*Q, N)
        maps = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
        means = (maps @ tokens).unflatten(1, (self.num_heads, -1)).transpose(0, 1).flatten(1, 2)  # (A, B*Q, D)
        mixed = (means @ value_weight.transpose(1, 2)).transpose(0, 1).unflatten(0, (batch, -1))  # (B, Q, A, K)
        if value_bias is not None:
            mixed = mixed + value_bias.view(shape)
        return mixed, maps.unflatten(1, (self.num_heads, -1))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix values (B, A, N, K) by the backend of the config; returns (B, Q, A, K) and the weights or None."""
        attend: Callable = eager_attention_forward
        dropout = self.dropout if self.training else 0.0
        if not kwargs.pop("output_attentions", None):  # no other backend forms the weights
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            fused = self.config._attn_implementation == "sdpa" and not dropout
            narrow = query.dtype == torch.bfloat16 and query.device.type == "cpu"
            if self.writes_out_backward and fused and narrow and query.requires_grad:
                return _WrittenOutBackward.apply(query, key, value, self.scaling).transpose(1, 2), None
            infers = not (self.training or query.requires_grad or torch.compiler.is_compiling())
            if fused and narrow and infers and _multiplies_bfloat16_without_amx():
                return _attend_by_products(query, key, value, self.scaling), None
        return attend(self, query, key, value, None, dropout=dropout, scaling=self.scaling, **kwargs)


class VitHfSwiGLU(nn.Module):
    """silu(a) * b on the two halves of the last dimension (Shazeer 2020, arXiv 2002.05202)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value  # (B, N, half)


_GELU_FORMS = {type(ACT2FN[name]): form for name, form in (("gelu", "none"), ("gelu_pytorch_tanh", "tanh"))}


class _GELUComputedAgain(torch.autograd.Function):
    """A linear layer on GELU, whose output is not kept for the backward pass, but computed there once more.

    It is 4 of the 16 float32 numbers that a block keeps for each token and channel, and 8 of its 36 bytes in bfloat16.
    Differentiable twice.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, form: str) -> torch.Tensor:
        return F.linear(F.gelu(hidden, approximate=form), weight, bias)  # (B, N, D)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: torch.Tensor) -> None:
        hidden, weight, _, ctx.form = inputs
        ctx.save_for_backward(hidden, weight)
        ctx.save_for_forward(hidden, weight)

    @staticmethod
    def jvp(ctx, hidden_t: torch.Tensor, weight_t: torch.Tensor, bias_t: torch.Tensor, _: None) -> torch.Tensor:
        hidden, weight = ctx.saved_tensors
        of_hidden = torch.ops.aten.gelu_backward(hidden_t, hidden, approximate=ctx.form)  # (B, N, M)
        return F.linear(of_hidden, weight) + F.linear(F.gelu(hidden, approximate=ctx.form), weight_t, bias_t)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors  # once: checkpointing computes them anew
        tokens = gradient.reshape(-1, gradient.shape[-1])  # (B*N, D); flatten has no rule for batches of gradients
        with torch.autocast(gradient.device.type, enabled=False):
            of_weight = tokens.T @ F.gelu(hidden, approximate=ctx.form).reshape(-1, hidden.shape[-1])  # (D, M)
            of_hidden = torch.ops.aten.gelu_backward(gradient @ weight, hidden, approximate=ctx.form)  # (B, N, M)
            return of_hidden, of_weight, tokens.sum(0), None


class VitHfMLP(nn.Module):
    """Linear, GELU, dropout, Linear (paper, section 3.1); the first layer is twice as wide with SwiGLU."""

    computes_again = True  # GELU, in the backward pass on a CPU; a compiler makes that choice by itself

    def __init__(self, config: VitHfConfig):
        super().__init__()
        gated = config.hidden_act == "swiglu"
        width = config.intermediate_size * (2 if gated else 1)
        self.fc1 = _init_by(nn.Linear(config.hidden_size, width), bias=_tiny_normal_)
        self.activation = VitHfSwiGLU() if gated else ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.fc2 = _init_by(nn.Linear(config.intermediate_size, config.hidden_size), bias=_tiny_normal_)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden = self.fc1(hidden_states)  # (B, N, M)
        on_cpu = hidden.device.type == "cpu" and not torch.compiler.is_compiling()
        if self.computes_again and on_cpu and hidden.requires_grad and self.can_compute_again:
            weight, bias = (part.to(hidden.dtype) for part in (self.fc2.weight, self.fc2.bias))  # as autocast does
            return _GELUComputedAgain.apply(hidden, weight, bias, _GELU_FORMS[type(self.activation)])  # (B, N, D)
        return self.fc2(self.dropout(self.activation(hidden)))  # (B, N, D)

    @property
    def can_compute_again(self) -> bool:
        """Whether GELU's output is kept for `fc2` alone, and no hook or adapter looks at it there."""
        dropping = self.training and self.dropout.p > 0
        plain = type(self.activation) in _GELU_FORMS and type(self.fc2) is nn.Linear and self.fc2.weight.requires_grad
        return plain and not dropping and not any(map(_is_watched, (self.activation, self.dropout, self.fc2)))


class VitHfResidualScale(nn.Module):
    """What happens to a residual branch before it is added: dropout, LayerScale, stochastic depth per sample."""

    def __init__(self, config: VitHfConfig, drop_path_rate: float):
        super().__init__()
        self.init_value = config.layer_scale_init
        self.drop_path_rate = drop_path_rate
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.scale = nn.Parameter(torch.empty(config.hidden_size)) if self.init_value is not None else None

    def draw(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Draw which of B samples keep their branch, (B,) bool; None where all do."""
        if not self.training or self.drop_path_rate == 0:
            return None
        return torch.rand(hidden_states.shape[0], device=hidden_states.device) < 1 - self.drop_path_rate

    def forward(self, branch: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Return what is added for a branch (B, N, D): nothing where a sample does not keep it."""
        branch = self.dropout(branch)
        if self.scale is not None:
            branch = branch * self.scale
        if self.training and self.drop_path_rate > 0:
            share = 1 / (1 - self.drop_path_rate)
            branch = branch * (share if kept is None else (kept * share).to(branch.dtype).view(-1, 1, 1))
        return branch


class VitHfLayer(GradientCheckpointingLayer):
    """One pre-norm encoder block (paper, equations 2 and 3)."""

    skips_dropped = True  # on a CPU; a compiler wants fixed shapes, and a CUDA device would have to be waited for

    def __init__(self, config: VitHfConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VitHfAttention(config)
        self.scale1 = VitHfResidualScale(config, drop_path_rate)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VitHfMLP(config)
        self.scale2 = VitHfResidualScale(config, drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs) -> torch.Tensor:
        def attend(tokens: torch.Tensor) -> torch.Tensor:
            return self.attention(self.norm1(tokens), num_queries, **kwargs)[0]

        whole = bool(kwargs.get("output_attentions"))  # the maps of all samples are wanted
        attended = self.add(hidden_states, attend, self.scale1, num_queries, whole=whole)  # (B, Q, D)
        return self.add(attended, lambda tokens: self.mlp(self.norm2(tokens)), self.scale2)

    def add(
        self,
        hidden_states: torch.Tensor,
        branch: Callable[[torch.Tensor], torch.Tensor],
        scale: VitHfResidualScale,
        num_queries: int | None = None,
        whole: bool = False,
    ) -> torch.Tensor:
        """Add a branch of (B, N, D), which gives (B, Q, D), to the first `num_queries` tokens (all when None).

        Samples that stochastic depth drops do not compute it where `skips_dropped` says so.
        """
        kept, first = scale.draw(hidden_states), hidden_states[:, :num_queries]  # (B,), (B, Q, D)
        skips = self.skips_dropped and hidden_states.device.type == "cpu" and not torch.compiler.is_compiling()
        if kept is None or whole or not skips or not kept.any():  # of no sample: zero gradients, which DDP waits for
            return first + scale(branch(hidden_states), kept)
        rows = kept.nonzero()[:, 0]  # (K,)
        added = scale(branch(hidden_states.index_select(0, rows)))  # (K, Q, D)
        return first.index_add(0, rows, added.to(first.dtype))


# ---------------------------------------------------------------------------------------------- pooling
class VitHfAttentionPooling(nn.Module):
    """Attention pooling by one learned probe, then a residual MLP (big_vision `models/vit.py`, MAPHead)."""

    def __init__(self, config: VitHfConfig):
        super().__init__()
        self.config = config
        self.num_heads, width = config.num_attention_heads, config.hidden_size
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.query = nn.Linear(width, width)
        self.key_value = _init_by(nn.Linear(width, 2 * width), weight=_xavier_uniform_fused_)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = VitHfMLP(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        heads = (self.num_heads, hidden_states.shape[-1] // self.num_heads)
        query = self.query(self.probe).expand(hidden_states.shape[0], -1, -1).unflatten(-1, heads)  # (B, 1, A, K)
        key, value = self.key_value(hidden_states).chunk(2, dim=-1)  # each (B, N, D)
        query, key, value = (
            part.transpose(1, 2) for part in (query, key.unflatten(-1, heads), value.unflatten(-1, heads))
        )  # (B, A, 1, K), twice (B, A, N, K)
        if self.config._attn_implementation == "eager":  # can be differentiated twice, and forwards
            pooled, _ = eager_attention_forward(self, query, key, value, None, scaling=heads[1] ** -0.5)
        else:
            pooled = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # (B, 1, A, K)
        pooled = self.output(pooled.flatten(2))  # (B, 1, D)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]  # (B, D)


class VitHfPooler(nn.Module):
    """From the tokens to the vector that the classifier sees."""

    def __init__(self, config: VitHfConfig):
        super().__init__()
        self.pooling, self.num_prefix_tokens = config.pooling, config.num_prefix_tokens
        self.attention_pooling = VitHfAttentionPooling(config) if config.pooling == "map" else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.fc_norm else None
        size = config.representation_size
        self.pre_logits = None if size is None else _init_by(nn.Linear(config.hidden_size, size), weight=_lecun_normal_)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            pooled = hidden_states[:, 0]  # (B, D)
        else:
            patches = hidden_states[:, self.num_prefix_tokens :]  # (B, h*w, D)
            pooled = patches.mean(dim=1) if self.attention_pooling is None else self.attention_pooling(patches)
        if self.norm is not None:
            pooled = self.norm(pooled)
        return pooled if self.pre_logits is None else torch.tanh(self.pre_logits(pooled))  # (B, D) or (B, R)


# ---------------------------------------------------------------------------------------------- models
class VitHfPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and capability flags that all models of this family share."""

    config: VitHfConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VitHfEmbeddings", "VitHfLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": VitHfLayer, "attentions": VitHfAttention}  # noqa: RUF012
    _input_embed_layer = "patch_embeddings"
    _has_decoder = False

    def __init__(self, config: VitHfConfig, *inputs, **kwargs):
        config.validate()  # fields may have been changed since it was made
        super().__init__(config, *inputs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise as the official code: Xavier uniform, biases of the MLP normal(1e-6), positions normal(0.02)."""
        super()._init_weights(module)  # norms ones and zeros, biases zeros
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        for name, rule in vars(module).get("init_rules", {}).items():
            rule(getattr(module, name))
        if isinstance(module, VitHfEmbeddings):
            if module.config.position_embedding == "learned":
                init.normal_(module.position_embeddings, std=0.02)
            else:  # a table that no checkpoint holds
                init.copy_(module.position_embeddings, module.fixed_positions(module.config.grid_hw))
            if module.cls_token is not None:
                init.zeros_(module.cls_token)
            if module.register_tokens is not None:
                init.normal_(module.register_tokens, std=1e-6)
            if module.mask_token is not None:
                init.trunc_normal_(module.mask_token, std=0.02)
        elif isinstance(module, VitHfAttentionPooling):
            init.xavier_uniform_(module.probe)
        elif isinstance(module, VitHfResidualScale) and module.scale is not None and module.init_value is not None:
            init.constant_(module.scale, module.init_value)

    @property
    def encoder(self) -> "VitHfModel":
        """The `VitHfModel` inside, or the model itself."""
        return cast(VitHfModel, getattr(self, self.base_model_prefix, self))

    def train(self, mode: bool = True):
        """Switch to training or evaluation; RuntimeError where the model was prepared for inference."""
        if mode and getattr(self.encoder, "is_prepared", False):
            raise RuntimeError("a model that was prepared for inference cannot be trained; load it again")
        return super().train(mode)

    def prepare_for_inference(self, image_processor=None, *, streams: int = 1):
        """Rewrite the network in place, so that the same logits take less time; it can then not be trained or saved.

        What is done stands in `inference_vit_hf.py`. On a CPU with AVX-512 the weights are packed for its matrix
        product, in the dtype that the model has now, float32 or bfloat16; it can then not be moved.

        Args:
            image_processor: the model's own; its rescaling and normalisation become part of the patch projection, and
                `pixel_values` are uint8 (B, C, H, W) from then on: `image_processor(pictures, do_rescale=False,
                do_normalize=False, return_tensors="pt")`. None keeps normalised float pixels.
            streams: parts of a batch that go through the blocks side by side, each by a thread of its own with its
                share of torch's threads, on a CPU: no core waits for others at the end of each operation. As many
                parts as there are threads or pictures where those are fewer. A batch goes whole where somebody looks
                on: hooks on blocks (transformers sets some once hidden states or maps were asked for), gradients,
                autocast, a profiler, torch.compile.

        Returns:
            The model itself, in evaluation mode, without gradients.

        Raises:
            ValueError: it is prepared already, the image processor cannot be folded in, or `streams` is no positive
                int, or more than 1 and the model is not on a CPU; it is unchanged.
        """
        from .inference_vit_hf import prepare_for_inference

        prepare_for_inference(self, image_processor, streams)
        return self

    @torch.no_grad()
    def set_image_size(
        self, image_size: int | tuple[int, int] | list[int], patch_size: int | tuple[int, int] | list[int] | None = None
    ) -> None:
        """Make the model take another image size or patch size: weights are resampled in place, the config follows.

        Positions are resampled to the new patch grid by the config's `position_interpolation`, the kernel of the patch
        projection by `resample_patch_kernel`.

        Args:
            image_size: pixels, one int or (height, width); divisible by the patch size.
            patch_size: pixels, one int or (height, width); None keeps it. With a ResNet stem a multiple of its stride.

        Raises:
            ValueError: the sizes do not divide, or the patch size of a model for masked images, which its decoder
                fixes, was to change; the model is unchanged.
        """
        changed = copy.deepcopy(self.config)
        changed.image_size = image_size if isinstance(image_size, int) else list(image_size)
        if patch_size is not None:
            changed.patch_size = patch_size if isinstance(patch_size, int) else list(patch_size)
        changed.validate_architecture()
        source, target = self.config.grid_hw, changed.grid_hw
        embeddings = self.encoder.embeddings
        if changed.patch_hw != self.config.patch_hw:
            if embeddings.mask_token is not None or self._has_decoder:
                raise ValueError(
                    f"patch_size {patch_size} cannot replace {self.config.patch_size} in a model for masked images, "
                    "whose decoder predicts whole patches; load the weights as VitHfForImageClassification"
                )
            embeddings.patch_embeddings.set_patch_size(changed)
        resampled = embeddings.resampled_positions(target)
        if isinstance(embeddings.position_embeddings, nn.Parameter):
            trainable = embeddings.position_embeddings.requires_grad
            embeddings.position_embeddings = nn.Parameter(resampled.clone(), requires_grad=trainable)
        else:
            embeddings.position_embeddings = resampled
        if source != target:
            method = self.config.position_interpolation
            logger.warning(
                f"position embeddings resampled from a {source[0]}x{source[1]} to a {target[0]}x{target[1]} grid "
                f"({method if self.config.position_embedding == 'learned' else 'sincos2d, computed anew'})"
            )
        for config in {id(c): c for c in (self.config, self.encoder.config, embeddings.config)}.values():
            config.image_size, config.patch_size = changed.image_size, changed.patch_size

    def save_pretrained(self, save_directory, is_main_process: bool = True, *args, **kwargs):
        """Write weights, config and code, as `PreTrainedModel` does, and their entries in manifest.json.

        The manifest holds size and SHA-256 of each file, for `from_pretrained` and whoever copies the folder. Entries
        of other files stay; weights of a save before this one go, with their entries. Several processes write as one.

        Raises:
            OSError: the folder cannot be written, or a file in it is a link to another place.
            ValueError: the model was prepared for inference.
        """
        if self.encoder.is_prepared:
            raise ValueError(
                "a model that was prepared for inference has other weights than its class and cannot be saved; save "
                "the model as it was loaded"
            )
        links = [
            name for name in _written_by(self, save_directory) if os.path.islink(os.path.join(save_directory, name))
        ]
        if links:
            raise OSError(
                f"{save_directory} holds links ({', '.join(links)}) that would be written through; remove them"
            )
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if is_main_process and not (distributed and torch.distributed.get_rank()):
            self._write_manifest(save_directory)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        """Upload what was saved; `save_pretrained(push_to_hub=True)` comes here before it returns."""
        self._write_manifest(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _write_manifest(self, folder: str | os.PathLike) -> None:
        names = _written_by(self, folder)
        old = WEIGHTS if any(re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name) for name in names) else INDEX
        if old in names:  # of a save in the other form; it would be loaded instead
            os.remove(Path(folder, old))
        update_manifest(folder, [name for name in names if name != old], stale=WEIGHT_FILES)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load a model, as `PreTrainedModel.from_pretrained` does, but strictly, and to any image size or label set.

        The weights are loaded as they were saved; then what the caller asked to differ is changed openly:

        - `image_size=...` or `patch_size=...` other than the stored one: positions and patch kernel are resampled,
          which a warning reports;
        - `num_labels=...`, `id2label=...`, or a config whose label names differ: the classifier is replaced by a new
          one of zeros, also when the number of classes is the same.

        Weights are read from safetensors files only, unless `use_safetensors=False` is given. What a manifest.json
        beside them says of size and SHA-256 must hold for those that are read (not for config.json, which people
        edit); files that it does not list are not compared. A config that asks for far more than the files
        hold is refused before a model is built. Of a Hub repo all files come from one commit.

        Raises:
            ValueError: the config's fields do not fit together; or weights are missing, left over, of another shape
                or not finite, and the difference between the stored and the loaded class (base model, classifier,
                masked image modelling, a head of one's own) does not explain it; all are listed. Or size or classes
                are to change where `device_map` leaves weights on the disk.
            OSError: a file is missing, cannot be read, or is not what the manifest says.
        """
        if pretrained_model_name_or_path is None or kwargs.get("state_dict") is not None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        path = pretrained_model_name_or_path
        wants_info = kwargs.pop("output_loading_info", False)
        accepts_other_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        dtypes = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}  # not for the config
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
        hub_options = {name: kwargs[name] for name in names if name in kwargs}
        if (commit := commit_of(beside(path, "config.json", hub_options))) is not None:
            hub_options["revision"] = commit
        stored_dict, _ = cls.config_class.get_config_dict(path, **hub_options)
        if (model_type := stored_dict.get("model_type")) != cls.config_class.model_type:
            if not stored_dict and beside(path, "adapter_config.json", hub_options) is not None:
                raise ValueError(
                    f"{path} holds an adapter and no model; load its base with this class, and the adapter onto that "
                    "with PeftModel.from_pretrained, or both with transformers' AutoModelForImageClassification"
                )
            found = f"a model of type {model_type!r}" if stored_dict else "no config.json"
            raise ValueError(
                f"{path} holds {found}; expected a config.json with model_type {cls.config_class.model_type!r}: give "
                "the folder or Hub id of a model that save_pretrained of this class wrote, or load another model with "
                "transformers' AutoModel"
            )
        stored = cls.config_class.from_dict(stored_dict)
        if config is None:
            kwargs |= hub_options
        if not isinstance(config, PreTrainedConfig):
            config, kwargs = cls.config_class.from_pretrained(
                path if config is None else config, return_unused_kwargs=True, **kwargs
            )
        kwargs |= hub_options | dtypes
        config = copy.deepcopy(config)
        if not cls._has_decoder:
            for name in DECODER_FIELDS:
                setattr(config, name, getattr(VitHfConfig, name))
        config.validate()
        wanted = copy.copy(config)
        config.image_size, config.patch_size = stored.image_size, stored.patch_size
        config.id2label, config.label2id = stored.id2label, stored.label2id
        with readable(path):
            files = find_weights(path, kwargs.get("variant"), hub_options, safe=kwargs["use_safetensors"])
            shapes = shapes_in(files) if kwargs["use_safetensors"] else None
        if (manifest := beside(path, MANIFEST, hub_options)) is not None:
            check_against_manifest(files, manifest)
        searched = os.path.isdir(path) or is_peft_available()
        if searched and beside(path, "adapter_config.json", hub_options) is not None:
            raise ValueError(
                f"{path} holds an adapter beside the model (adapter_config.json), which transformers would load "
                "unasked: move it to a folder of its own, and load it with PeftModel.from_pretrained"
            )
        architectures = stored.architectures or []
        if shapes is not None and not kwargs.get("key_mapping"):
            known = inspect.signature(cls.__init__).parameters
            expected = cls._expected_shapes(config, *model_args, **{k: v for k, v in kwargs.items() if k in known})
            held, needed = (sum(map(math.prod, table.values())) for table in (shapes, expected))
            if needed > 4 * held:  # not to be built
                info = cls._compare_shapes(shapes, expected)
                cls._refuse(cls._differences(info, architectures, accepts_other_shapes), architectures, path)
            widths = [config.hidden_size] if config.position_embedding == "sincos2d" else []
            widths += [config.decoder_hidden_size] if config.decoder_num_hidden_layers else []
            positions = math.prod(config.grid_hw) * max(widths, default=0)
            if positions > max(4 * held, 1 << 26):
                raise ValueError(
                    f"image_size {config.image_size} needs a table of {positions:,} positions, in a model of {held:,} "
                    "weights; expected the image_size that it was trained with: mend or download its config.json anew"
                )
        kwargs["force_download"] = False  # it was
        with readable(path):
            model, info = super().from_pretrained(
                path, *model_args, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        problems = cls._differences(info, architectures, accepts_other_shapes)
        for key, weight in model.named_parameters():
            if weight.device.type != "meta" and weight.is_floating_point() and not weight.isfinite().all():
                problems.append(f"NaN or infinite: {key}")
        cls._refuse(problems, architectures, path)
        resized = (wanted.image_hw, wanted.patch_hw) != (stored.image_hw, stored.patch_hw)
        if (resized or wanted.id2label != stored.id2label) and _is_offloaded(model):
            raise ValueError(
                f"{path}: the size or the classes of a model cannot be changed where device_map leaves weights on the "
                "disk or in another memory; load it without device_map, save it as changed, and load that"
            )
        if resized:
            model.set_image_size(wanted.image_size, wanted.patch_size)
        if wanted.id2label != stored.id2label:
            model.set_labels(wanted.id2label)
        return (model, info) if wants_info else model

    def set_labels(self, id2label: dict[int, str]) -> None:
        """Write the names of the classes into the config."""
        checked = type(self.config)(id2label=dict(id2label))
        self.config.id2label, self.config.label2id = checked.id2label, checked.label2id

    @classmethod
    def _expected_shapes(cls, config: VitHfConfig, *args, **kwargs) -> Shapes:
        """Names and shapes of all weights of a model, worked out from one block: building them all takes its time."""
        small = copy.deepcopy(config)
        small.num_hidden_layers, small._attn_implementation = 1, "eager"
        small.decoder_num_hidden_layers = min(config.decoder_num_hidden_layers, 1)
        with torch.device("meta"), init.no_init_weights():
            state = cls(small, *args, **kwargs).state_dict()
        shapes: Shapes = {}
        for name, tensor in state.items():
            before, first, after = name.partition("layers.0.")
            blocks = {"": config.num_hidden_layers, "vit.": config.num_hidden_layers}
            blocks["decoder."] = config.decoder_num_hidden_layers
            repeats = blocks.get(before, 1) if first else 1
            shapes.update({f"{before}layers.{i}.{after}" if i else name: tuple(tensor.shape) for i in range(repeats)})
        return shapes

    @classmethod
    def _compare_shapes(cls, found: Shapes, expected: Shapes) -> dict[str, list]:
        """Compare weights in files with those of a model; a base model's have no prefix. As transformers reports it."""
        plain = {name.removeprefix("vit."): shape for name, shape in found.items()}
        wanted = {name.removeprefix("vit."): shape for name, shape in expected.items()}
        shapes = [(name, plain.get(name.removeprefix("vit.")), shape) for name, shape in expected.items()]
        return {
            "missing_keys": [name for name, other, _ in shapes if other is None],
            "unexpected_keys": [name for name in found if name.removeprefix("vit.") not in wanted],
            "mismatched_keys": [row for row in shapes if row[1] not in (None, row[2])],
        }

    @classmethod
    def _differences(cls, info: dict, architectures: list[str], accepts_other_shapes: bool) -> list[str]:
        """List what is wrong with weights, all of it that a difference of classes does not explain."""
        heads = ("classifier.", "distillation_classifier.", "decoder.", "pooler.", "embeddings.mask_token")
        other_class, has_head = cls.__name__ not in architectures, not issubclass(cls, VitHfModel)
        problems = [
            f"{kind[:-5]}: {key}"
            for kind in ("missing_keys", "unexpected_keys")
            for key in sorted(info[kind])
            if not (other_class and key.removeprefix("vit.").startswith(heads))
            if not (other_class and has_head and kind == "missing_keys" and not key.startswith("vit."))  # a new head's
        ]
        if not accepts_other_shapes:
            shapes = sorted(info["mismatched_keys"])
            problems += [f"other shape: {key} {tuple(found)}, expected {tuple(want)}" for key, found, want in shapes]
        return problems

    @classmethod
    def _refuse(cls, problems: list[str], architectures: list[str], path: str) -> None:
        """Raise with all problems of the weights, if there are any."""
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise ValueError(
                f"the weights in {path} do not fit a {cls.__name__} with this config ({shown}). They were saved by "
                f"{', '.join(architectures) or 'an unknown class'}: load them with that class and the config.json "
                "beside them, without overriding sizes, and if that is so already, save or download the model anew"
            )


def _written_by(model: "VitHfPreTrainedModel", folder: str | os.PathLike) -> list[str]:
    """Return the names of the files in a folder that saving a model writes."""
    kinds = (type(model), VitHfPreTrainedModel, VitHfConfig, update_manifest)
    code = {"inference_vit_hf.py", "masked_vit_hf.py", *(f"{kind.__module__.rpartition('.')[2]}.py" for kind in kinds)}
    found = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(name for name in found if name in {*code, "config.json"} or re.fullmatch(WEIGHT_FILES, name))


class VitHfModel(VitHfPreTrainedModel):
    """The encoder with its pooling: tokens after the last LayerNorm, and the vector that a classifier would see."""

    def __init__(self, config: VitHfConfig, add_pooling_layer: bool = True, use_mask_token: bool = False):
        super().__init__(config)
        self.embeddings = VitHfEmbeddings(config, use_mask_token=use_mask_token)
        last = max(config.num_hidden_layers - 1, 1)
        rates = [config.drop_path_rate * index / last for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([VitHfLayer(config, rate) for rate in rates])
        self.norm = None if config.fc_norm else nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = VitHfPooler(config) if add_pooling_layer else None
        self.is_prepared = False  # for inference
        self.in_streams: Callable[..., torch.Tensor] | None = None  # runs blocks so, in a prepared model
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        pooled_only: bool = False,
        visible_patches: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (B, C, H, W), float, normalised as the image processor does.
            bool_masked_pos: (B, h*w), bool: patches that the mask token replaces (models with a mask token).
            interpolate_pos_encoding: accept other sizes than the config's by resampling the positions.
            pooled_only: only `pooler_output` is wanted. With pooling "cls" the last block then computes the class
                token alone, which gives the same vector for less work; `last_hidden_state` is None.
            visible_patches: (B, V), int64: numbers of the patches to encode, row by row from 0; the others are as if
                they were not there, and V takes the place of h*w in what is returned. None: all.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and what attention backends take.

        Returns:
            `last_hidden_state` (B, N, D), after the final LayerNorm (with `fc_norm` as the last block leaves it);
            `pooler_output` (B, D), or (B, R) with a representation head; on request `hidden_states` (layers + 1 of
            (B, N, D), before the final LayerNorm) and `attentions` (layers of (B, A, N, N)), whatever the attention
            backend.
        """
        if kwargs.pop("attention_mask", None) is not None:  # PEFT's classes for texts pass None
            raise ValueError("attention_mask: every patch attends to all; choose those to encode by visible_patches")
        if self.config.output_attentions:
            kwargs.setdefault("output_attentions", True)
        recording = kwargs.get("output_attentions") or kwargs.get(
            "output_hidden_states", self.config.output_hidden_states
        )
        shortcut = pooled_only and self.config.pooling == "cls" and self.pooler is not None and not recording
        masks = (bool_masked_pos, interpolate_pos_encoding, visible_patches)
        hidden_states = self.embeddings(pixel_values, *masks)  # (B, N, D)
        num_queries = 1 if shortcut else None
        if self.in_streams is None or recording:
            hidden_states = self._run_blocks(hidden_states, num_queries, **kwargs)
        else:
            blocks = partial(self._run_blocks, num_queries=num_queries, **kwargs)
            hidden_states = self.in_streams(blocks, self, hidden_states)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)  # (B, N, D), or (B, 1, D) by the shortcut
        pooled = None if self.pooler is None else self.pooler(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=None if shortcut else hidden_states, pooler_output=pooled)

    def _run_blocks(self, hidden_states: torch.Tensor, num_queries: int | None, **kwargs) -> torch.Tensor:
        """Pass tokens (B, N, D) through all blocks; the last returns the first `num_queries` of them, None: all."""
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, **kwargs)
        return self.layers[-1](hidden_states, num_queries=num_queries, **kwargs)  # (B, Q, D)


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    num_items: torch.Tensor | int | None = None,
    problem_type: str | None = None,
) -> torch.Tensor:
    """Cross-entropy against class indices or against probabilities, in float32; or what `problem_type` names.

    Args:
        logits: (B, L), float.
        labels: (B,), int64: class indices in [0, L), -100 for samples to leave out; or (B, L), float: probabilities
            that sum to 1 a row (mixup, cutmix, distillation).
        label_smoothing: share of the target that is spread evenly over the classes, in [0, 1).
        num_items: what to divide the sum by instead of the number of counted samples: the `num_items_in_batch` of
            transformers' Trainer, which counts label elements, so B*L for probabilities.
        problem_type: as in a config of transformers, which never changes here. None or "single_label_classification":
            as above. "multi_label_classification": binary cross-entropy of each class against labels (B, L), float in
            [0, 1]. "regression": squared error against labels (B, L), float, or (B,) where L is 1.

    Returns:
        Scalar float32: the mean over the counted samples (0 if there is none); for the other two over all B*L elements.

    Raises:
        ValueError: the labels do not fit, or `problem_type` is not one of these.
    """
    if problem_type in _ELEMENTWISE_LOSSES:
        return _elementwise_loss(logits, labels, problem_type, label_smoothing, num_items)
    if problem_type not in (None, "single_label_classification"):
        expected = ", ".join(("single_label_classification", *_ELEMENTWISE_LOSSES))
        raise ValueError(f"problem_type is {problem_type!r}; expected None or one of {expected}")
    soft = labels.is_floating_point()
    if labels.shape != (logits.shape if soft else logits.shape[:1]):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype} for logits of shape "
            f"{tuple(logits.shape)}; expected int64 class indices of shape ({logits.shape[0]},) or float probabilities "
            f"of shape {tuple(logits.shape)}"
        )
    labels = labels.float() if soft else labels.long()
    total = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")
    if num_items is None:
        return total / (logits.shape[0] if soft else (labels != -100).sum().clamp(min=1))
    return total / (num_items / logits.shape[1] if soft else num_items)


_ELEMENTWISE_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "multi_label_classification": F.binary_cross_entropy_with_logits,
    "regression": F.mse_loss,
}


def _elementwise_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str,
    label_smoothing: float,
    num_items: torch.Tensor | int | None,
) -> torch.Tensor:
    """Return the loss of a problem that has one label an output; see `classification_loss`."""
    if labels.shape == logits.shape[:1] and logits.shape[1] == 1:
        labels = labels[:, None]  # (B, 1)
    if labels.shape != logits.shape or not labels.is_floating_point():
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; expected float of shape "
            f"{tuple(logits.shape)}, as problem_type is {problem_type!r}"
        )
    if label_smoothing:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected 0, as problem_type is {problem_type!r}")
    total = _ELEMENTWISE_LOSSES[problem_type](logits.float(), labels.float(), reduction="sum")
    return total / (labels.numel() if num_items is None else num_items)


class VitHfForImageClassification(VitHfPreTrainedModel):
    """Vision Transformer with a linear classifier, started at zero as the paper does for fine-tuning."""

    def __init__(self, config: VitHfConfig):
        super().__init__(config)
        self.vit = VitHfModel(config)
        width = config.hidden_size if config.representation_size is None else config.representation_size
        self.classifier = _init_by(nn.Linear(width, cast(int, config.num_labels)), weight=init.zeros_)
        self.distillation_classifier = None
        if config.distilled:
            second = nn.Linear(width, cast(int, config.num_labels))
            self.distillation_classifier = _init_by(second, weight=init.zeros_)
        self.post_init()

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return cast(int, self.config.num_labels)

    @torch.no_grad()
    def set_labels(self, id2label: dict[int, str]) -> None:
        """Replace the classifiers by new ones of zeros for these classes, and write their names into the config.

        Args:
            id2label: names by class index, 0, 1, ... without gaps.

        Raises:
            StrictDataclassError: (huggingface_hub) the indices have gaps; the model is unchanged.
        """
        super().set_labels(id2label)
        old = self.classifier
        for name in ("classifier", "distillation_classifier"):
            if getattr(self, name) is not None:
                new = nn.Linear(old.in_features, len(id2label), device=old.weight.device, dtype=old.weight.dtype)
                new.weight.zero_()
                new.bias.zero_()
                setattr(self, name, _init_by(new, weight=init.zeros_))
        logger.warning(f"classifier replaced: {old.out_features} classes before, {len(id2label)} new ones, all zeros")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (B, C, H, W), float, normalised as the image processor does.
            labels: class indices (B,) int64, or probabilities (B, L) float; or as the config's `problem_type` wants
                them, see `classification_loss`.
            interpolate_pos_encoding: accept other sizes than the config's by resampling the positions.
            num_items_in_batch: divisor of the summed loss, as transformers' Trainer passes it.
            kwargs: as in `VitHfModel.forward`.

        Returns:
            `logits` (B, L); `loss` if labels are given; `hidden_states` and `attentions` on request.
        """
        outputs: BaseModelOutputWithPooling = self.vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            pooled_only=self.distillation_classifier is None,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output)  # (B, L)
        if self.distillation_classifier is not None:
            tokens = cast(torch.Tensor, outputs.last_hidden_state)
            logits = (logits + self.distillation_classifier(tokens[:, 1])) / 2
        loss = None
        if labels is not None:
            wanted = self.config.problem_type
            loss = classification_loss(logits, labels, num_items=num_items_in_batch, problem_type=wanted)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


VitHfModel.register_for_auto_class("AutoModel")
VitHfForImageClassification.register_for_auto_class("AutoModelForImageClassification")


def __getattr__(name: str) -> Any:
    """Import the model for masked images, which builds on this file, when it is asked for."""
    if name != "VitHfForMaskedImageModeling":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .masked_vit_hf import VitHfForMaskedImageModeling

    return VitHfForMaskedImageModeling


__all__ = ["VitHfForImageClassification", "VitHfModel", "VitHfPreTrainedModel"]
