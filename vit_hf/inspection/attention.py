"""Where a classifier looks: how much each patch weighs in the vector that is classified, laid over the picture.

The weights of an image are those with which the pooled vector draws on the patches, averaged over the heads:

    pooling   "last"                                               "rollout"
    -------   --------------------------------------------------   -------------------------------------------------
    cls       the class token's row of the last block's attention  the class token's row of the product of all blocks
    gap       the mean row of the patches in the last block        the mean row of the patches in that product
    map       the probe's attention over the patches               the probe's attention times that product

Rollout is Abnar & Zuidema (2020, arXiv 2005.00928, section 3): each block counts as (A + I) / 2, the identity standing
for its residual connection, and blocks are multiplied from the first to the last. Class, distillation and register
tokens are left out of the map, and what remains is made to sum to 1. A map shows where the model reads, not why it
decides: MLPs, values and signs are left out.

Shapes: B batch, C channels, H x W pixels, h x w patch grid, N tokens (prefix P, then h*w patches), A heads, K head dim.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..configuration_vit_hf import VitHfConfig
from ..image_processing_vit_hf import VitHfImageProcessor, VitHfImageProcessorPil
from ..modeling_vit_hf import VitHfAttentionPooling, VitHfForImageClassification, VitHfModel, VitHfPooler
from .style import COLORMAP

Method = Literal["last", "rollout"]
_SMALLEST_SIDE = 448  # pixels of a drawn picture's longer side, reached by whole pixels


# ---------------------------------------------------------------------------------------------- the map
@torch.no_grad()
def attention_map(
    model: VitHfForImageClassification | VitHfModel, pixel_values: torch.Tensor, *, method: Method = "last"
) -> torch.Tensor:
    """Return how much each patch weighs in the pooled vector; see the module for what that is.

    Args:
        model: in evaluation mode; any attention backend.
        pixel_values: (B, C, H, W), float, as the image processor gives it.
        method: "last" or "rollout".

    Returns:
        (B, h, w), float32 on the CPU, at least 0, each image summing to 1. Should no attention at all go to patches,
        it is spread evenly.

    Raises:
        ValueError: an unknown method; a model without pooling, such as the encoder of a model for masked images.
    """
    if method not in ("last", "rollout"):
        raise ValueError(f"method is {method!r}; expected 'last' or 'rollout'")
    encoder, outputs = _run(model, pixel_values)
    weights = _rolled(encoder, outputs) if method == "rollout" else _last_step(encoder, outputs).mean(dim=1)
    return _shares(weights, model.config)


@dataclass(frozen=True)
class AttentionMaps:
    """What one pass over images tells of their attention; each map is at least 0 and sums to 1."""

    last: torch.Tensor
    """(B, h, w), float32 on the CPU: `attention_map` with method "last"."""
    rollout: torch.Tensor
    """(B, h, w), likewise with method "rollout"."""
    heads: torch.Tensor
    """(B, A, h, w), likewise: the last step head by head, of the last block or of the probe. A head that gives nothing
    to patches is even."""


@torch.no_grad()
def attention_maps(model: VitHfForImageClassification | VitHfModel, pixel_values: torch.Tensor) -> AttentionMaps:
    """Return all maps of images from one pass; arguments and errors are those of `attention_map`."""
    encoder, outputs = _run(model, pixel_values)
    heads, rolled = _last_step(encoder, outputs), _rolled(encoder, outputs)
    last, rolled, heads = (_shares(weights, model.config) for weights in (heads.mean(dim=1), rolled, heads))
    return AttentionMaps(last, rolled, heads)


def _run(
    model: VitHfForImageClassification | VitHfModel, pixel_values: torch.Tensor
) -> tuple[VitHfModel, BaseModelOutputWithPooling]:
    """Encode images with their attention; ValueError for a model that pools nothing."""
    encoder = model.encoder
    if encoder.pooler is None:
        raise ValueError(f"{type(model).__name__} pools nothing, so no patch has a weight; give a classifier")
    return encoder, encoder(pixel_values.to(model.device), output_attentions=True, return_dict=True)


def _rows(config: VitHfConfig) -> slice:
    """Return the tokens after the last block that are averaged into the pooled vector."""
    if config.pooling == "cls":
        return slice(0, 2 if config.distilled else 1)
    return slice(config.num_prefix_tokens, None)


def _last_step(encoder: VitHfModel, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """Return the weights of the tokens in the last step by head, (B, A, N), float32; of the prefix 0 for a probe."""
    config, last = encoder.config, cast(tuple, outputs.attentions)[-1]
    pooling = cast(VitHfPooler, encoder.pooler).attention_pooling
    if pooling is None:
        return last[:, :, _rows(config)].float().mean(dim=2)
    prefix = config.num_prefix_tokens
    probe = probe_attention(pooling, cast(torch.Tensor, outputs.last_hidden_state)[:, prefix:])  # (B, A, h*w)
    return F.pad(probe.float(), (prefix, 0))


def _rolled(encoder: VitHfModel, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """Return the weights of the tokens by rollout, (B, N), float32."""
    attentions = [heads.float().mean(dim=1) for heads in cast(tuple, outputs.attentions)]  # layers of (B, N, N)
    if encoder.config.pooling == "map":
        start = _last_step(encoder, outputs).mean(dim=1)  # (B, N), of the pooled vector on the last tokens
    else:
        start = attentions[0].new_zeros(attentions[0].shape[:2])
        start[:, _rows(encoder.config)] = 1
        start = start / start.sum(dim=1, keepdim=True)
    return (start[:, None] @ rollout(attentions))[:, 0]


def _shares(weights: torch.Tensor, config: VitHfConfig) -> torch.Tensor:
    """Turn weights of tokens (..., N) into shares of the patches (..., h, w) that sum to 1; even where all are 0."""
    patches = weights[..., config.num_prefix_tokens :]  # (..., h*w)
    total = patches.sum(dim=-1, keepdim=True)
    shares = torch.where(total > 0, patches / total, torch.full_like(patches, 1 / patches.shape[-1]))
    return shares.unflatten(-1, config.grid_hw).cpu()


def rollout(attentions: list[torch.Tensor]) -> torch.Tensor:
    """Multiply the blocks' attention, each averaged with the identity (Abnar & Zuidema 2020, equation 1).

    Args:
        attentions: by block, first to last: (B, N, N), float, rows summing to 1.

    Returns:
        (B, N, N): row i tells how token i after the last block draws on the tokens before the first.
    """
    identity = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    product = identity.expand_as(attentions[0])
    for attention in attentions:
        product = (attention + identity) / 2 @ product
    return product


def probe_attention(pooling: VitHfAttentionPooling, patches: torch.Tensor) -> torch.Tensor:
    """Return the attention weights of a pooling probe, which its fused attention never forms.

    Args:
        pooling: the module.
        patches: (B, h*w, D), what it pools.

    Returns:
        (B, A, h*w), float, rows summing to 1.
    """
    heads = (pooling.num_heads, patches.shape[-1] // pooling.num_heads)
    query = pooling.query(pooling.probe).unflatten(-1, heads).transpose(1, 2)  # (1, A, 1, K)
    key = pooling.key_value(patches).chunk(2, dim=-1)[0].unflatten(-1, heads).transpose(1, 2)  # (B, A, h*w, K)
    scores = (query @ key.transpose(-2, -1)) * heads[1] ** -0.5  # (B, A, 1, h*w)
    return scores.float().softmax(dim=-1)[:, :, 0]


# ---------------------------------------------------------------------------------------------- the picture
def model_view(
    processor: VitHfImageProcessor | VitHfImageProcessorPil, pixel_values: torch.Tensor
) -> list[Image.Image]:
    """Turn what the processor made back into pictures: resized and cropped as the model sees them.

    Args:
        processor: what made `pixel_values`, with its own settings.
        pixel_values: (B, 3, H, W), float.

    Returns:
        B PIL images of mode RGB, W x H pixels.
    """
    pixels = pixel_values.detach().float().cpu()
    settings: Any = processor
    if settings.do_normalize:
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (settings.image_mean, settings.image_std))
        pixels = pixels * std + mean  # (B, 3, H, W)
    if settings.do_rescale:
        pixels = pixels / settings.rescale_factor
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]


def lay_over(view: Image.Image, attention: torch.Tensor, *, alpha: float = 0.6) -> Image.Image:
    """Lay an attention map over the picture that the model saw.

    The map is stretched so that its lowest weight is dark and its highest bright, and smoothed between the patches'
    centres; an even map is drawn dark all over. The picture below is grey, so that every colour is the map's; a small
    one is enlarged with its pixels visible.

    Args:
        view: what the model saw, as `model_view` gives it.
        attention: (h, w), float, of that picture.
        alpha: share of the map's colour in a pixel, in [0, 1].

    Returns:
        A PIL image of mode RGB with the proportions of `view`.
    """
    picture = enlarged(view).convert("L").convert("RGB")
    weights = attention.float().numpy()
    low, high = weights.min(), weights.max()
    even = high - low <= 1e-6 * high
    stretched = np.zeros_like(weights) if even else (weights - low) / (high - low)  # (h, w) in [0, 1]
    smooth = Image.fromarray(stretched).resize(picture.size, Image.Resampling.BILINEAR)
    colours = matplotlib.colormaps[COLORMAP](np.asarray(smooth))[..., :3] * 255  # (H, W, 3)
    mixed = alpha * colours + (1 - alpha) * np.asarray(picture)
    return Image.fromarray(mixed.round().astype(np.uint8))


def enlarged(view: Image.Image) -> Image.Image:
    """Repeat the pixels of a small picture a whole number of times, so that it can be looked at."""
    times = max(1, round(_SMALLEST_SIDE / max(view.size)))
    return view.resize((view.width * times, view.height * times), Image.Resampling.NEAREST)


__all__ = [
    "AttentionMaps",
    "attention_map",
    "attention_maps",
    "enlarged",
    "lay_over",
    "model_view",
    "probe_attention",
    "rollout",
]
