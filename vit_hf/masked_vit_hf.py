"""Masked image modelling: a Vision Transformer learns without labels, from the patches that it is not shown.

Two forms, by the config's `decoder_num_hidden_layers`:

- 0: SimMIM (Xie et al. 2022, arXiv 2111.09886). A mask token stands in place of each hidden patch, one linear layer
  predicts its pixels, the loss is the mean absolute error.
- more: MAE (He et al. 2022, arXiv 2111.06377; facebookresearch/mae `models_mae.py`). The encoder sees the visible
  patches only, a small transformer predicts all patches from them, the loss is the mean squared error.

What differs from MAE's code in form, not in value: visible patches keep their order, where MAE shuffles all; the mask
is the caller's, nothing is drawn here; the decoder's fixed positions are computed, not saved. The encoder and the
decoder's blocks start as all blocks of this package do, after the official ViT code. (MAE: class token normal(0.02),
patch projection Xavier uniform, MLP biases 0, query, key and value one Xavier matrix.)

Shapes: B batch, C channels, H x W pixels, h x w patch grid, P tokens before the patches, V visible patches, D width,
W decoder width.
"""

import copy
import math
from typing import cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedImageModelingOutput
from transformers.utils.generic import can_return_tuple

from .configuration_vit_hf import VitHfConfig, patch_grid
from .modeling_vit_hf import VitHfLayer, VitHfModel, VitHfPreTrainedModel, sincos2d_positions


# ---------------------------------------------------------------------------------------------- pixels
def cut_patches(pixels: torch.Tensor, patch_hw: tuple[int, int]) -> torch.Tensor:
    """View (B, C, H, W) as (B, C, h, patch height, w, patch width)."""
    return pixels.unflatten(3, (-1, patch_hw[1])).unflatten(2, (-1, patch_hw[0]))


def patch_statistics(cut: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of each patch of `cut_patches`, all channels together, each (B, 1, h, 1, w, 1).

    The deviation is sqrt(variance + 1e-6), the variance the unbiased one (facebookresearch/mae `forward_loss`).
    """
    variance, mean = torch.var_mean(cut, dim=(1, 3, 5), keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def reconstruction_error(
    reconstruction: torch.Tensor,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor,
    patch_hw: tuple[int, int],
    *,
    squared: bool = False,
    normalised: bool = False,
) -> torch.Tensor:
    """Mean error over the hidden patches of each image, float32 (B,); 0 where none is hidden.

    Args:
        reconstruction: (B, C, H, W), float.
        pixel_values: (B, C, H, W), float: the target.
        bool_masked_pos: (B, h*w), bool: True for hidden patches.
        patch_hw: patch size in pixels.
        squared: the square of the difference (MAE) instead of its magnitude (SimMIM).
        normalised: in deviations of the target's patch instead of units of the pixels.
    """
    target = cut_patches(pixel_values.float(), patch_hw)
    error = cut_patches(reconstruction.float(), patch_hw) - target
    if normalised:
        error = error / patch_statistics(target)[1]
    error = (error.square() if squared else error.abs()).mean(dim=(1, 3, 5))  # (B, h, w)
    hidden = bool_masked_pos.reshape(error.shape).float()
    return (error * hidden).sum(dim=(1, 2)) / hidden.sum(dim=(1, 2)).clamp(min=1)


def find_visible(bool_masked_pos: torch.Tensor, num_masked: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers of the visible patches in their order, (B, V), int64, and which pictures have V, (B,), bool.

    Args:
        bool_masked_pos: (B, h*w), bool: True for hidden patches.
        num_masked: hidden patches of every picture; None: counted, for which the host waits for the device.

    Raises:
        ValueError: the pictures have different numbers of hidden patches, or nothing is visible.
    """
    hidden = bool_masked_pos.bool()
    patches, counts = hidden.shape[1], hidden.sum(dim=1)  # (B,)
    if num_masked is None:
        found = counts.tolist()
        num_masked = max(found, default=0)
        if min(found, default=0) != num_masked:
            raise ValueError(
                f"bool_masked_pos hides {min(found)} to {num_masked} patches of a picture; expected as many in each, "
                "because the encoder sees the others only (decoder_num_hidden_layers is not 0)"
            )
    if not 0 <= num_masked < patches:
        raise ValueError(f"{num_masked} of {patches} patches are hidden; expected 0 to {patches - 1}: lower the ratio")
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)  # (B, h*w): visible ones first
    return order[:, : patches - num_masked], counts == num_masked


# ---------------------------------------------------------------------------------------------- MAE's decoder
class VitHfDecoder(nn.Module):
    """Transformer that sees the encoded patches and a mask token for each hidden one, and predicts pixels (MAE)."""

    positions: torch.Tensor

    def __init__(self, config: VitHfConfig):
        super().__init__()
        self.config, self.grid = config, config.grid_hw
        self.width = config.decoder_hidden_size
        inner = copy.deepcopy(config)
        inner.hidden_size, inner.num_attention_heads = self.width, config.decoder_num_attention_heads
        inner.intermediate_size, inner.layer_scale_init = config.decoder_intermediate_size, None
        self.embed = nn.Linear(config.hidden_size, self.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.width))
        self.register_buffer("positions", self.fixed_positions(self.grid), persistent=False)
        self.layers = nn.ModuleList([VitHfLayer(inner) for _ in range(config.decoder_num_hidden_layers)])
        for layer in self.layers:
            cast(VitHfLayer, layer).attention.config = config  # the attention backend is that of the whole model
        self.norm = nn.LayerNorm(self.width, eps=config.layer_norm_eps)
        self.predict = nn.Linear(self.width, math.prod(config.patch_hw) * config.num_channels)

    def fixed_positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return MAE's sine-cosine table for a patch grid, (1, P + h*w, W), in the default dtype."""
        table = sincos2d_positions(grid, self.width, self.config.num_prefix_tokens, endpoint=False)
        return table.to(torch.get_default_dtype())  # that of the parameters while the model is built

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Compute the positions anew for another patch grid."""
        self.positions, self.grid = self.fixed_positions(grid).to(self.positions), grid

    def forward(self, encoded: torch.Tensor, visible: torch.Tensor | None, grid: tuple[int, int]) -> torch.Tensor:
        """Predict all patches.

        Args:
            encoded: (B, P + V, D): prefix tokens and visible patches.
            visible: (B, V), int64: the numbers of these; None where all h*w are visible.
            grid: (h, w), in patches.

        Returns:
            (B, h*w, patch height * patch width * C).
        """
        prefix = self.config.num_prefix_tokens
        tokens = self.embed(encoded)  # (B, P + V, W)
        if visible is not None:
            masks = self.mask_token.to(tokens.dtype).expand(len(tokens), math.prod(grid), -1)
            places = visible[..., None].expand(-1, -1, self.width)  # (B, V, W)
            patches = masks.scatter(1, places, tokens[:, prefix:])  # (B, h*w, W)
            tokens = torch.cat([tokens[:, :prefix], patches], dim=1)  # (B, P + h*w, W)
        tokens = tokens + (self.positions if grid == self.grid else self.fixed_positions(grid).to(self.positions))
        for layer in self.layers:
            tokens = layer(tokens)
        return self.predict(self.norm(tokens[:, prefix:]))


# ---------------------------------------------------------------------------------------------- the model
class VitHfForMaskedImageModeling(VitHfPreTrainedModel):
    """SimMIM or, with `decoder_num_hidden_layers`, MAE: see the text of this file."""

    _no_split_modules = ["VitHfEmbeddings", "VitHfLayer", "VitHfDecoder"]  # noqa: RUF012
    _has_decoder = True

    def __init__(self, config: VitHfConfig):
        super().__init__(config)
        self.is_mae = config.decoder_num_hidden_layers > 0
        self.vit = VitHfModel(config, add_pooling_layer=False, use_mask_token=not self.is_mae)
        outputs = math.prod(config.patch_hw) * config.num_channels
        self.decoder = VitHfDecoder(config) if self.is_mae else nn.Linear(config.hidden_size, outputs)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise as `VitHfPreTrainedModel` does, and MAE's mask token as its code does, normal(0.02)."""
        super()._init_weights(module)
        if isinstance(module, VitHfDecoder):
            init.normal_(module.mask_token, std=0.02)
            init.copy_(module.positions, module.fixed_positions(module.grid))  # a table that no checkpoint holds

    @property
    def error_name(self) -> str:
        """What `loss` and `picture_errors` are, in words."""
        if not self.is_mae:
            return "mean absolute error of hidden pixels"
        return f"mean squared error of hidden {'patches, each normalised' if self.config.norm_pix_loss else 'pixels'}"

    def picture_errors(
        self, reconstruction: torch.Tensor, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor
    ) -> torch.Tensor:
        """Return the error of each picture over its hidden patches, in the terms of the loss, float32 (B,).

        Args:
            reconstruction: of `forward`.
            pixel_values, bool_masked_pos: what it was given.
        """
        options = {"squared": self.is_mae, "normalised": self.config.norm_pix_loss}
        return reconstruction_error(reconstruction, pixel_values, bool_masked_pos, self.config.patch_hw, **options)

    @torch.no_grad()
    def set_image_size(self, image_size, patch_size=None) -> None:
        """Make the model take another image size, as `VitHfPreTrainedModel.set_image_size`, the decoder too."""
        super().set_image_size(image_size, patch_size)
        if isinstance(self.decoder, VitHfDecoder):
            self.decoder.set_grid(self.config.grid_hw)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_masked: int | None = None,
        **kwargs,
    ) -> MaskedImageModelingOutput:
        """Reconstruct images from their visible patches.

        Args:
            pixel_values: (B, C, H, W), float, normalised as the image processor does; also the target.
            bool_masked_pos: (B, h*w), bool: True for the patches to hide and predict; MAE: as many of each picture.
                None: nothing hidden, no loss.
            interpolate_pos_encoding: accept other sizes than the config's by resampling the positions.
            num_masked: hidden patches of each picture, where the caller knows. MAE then need not count them, for which
                the host would wait for the device, and compiles as one graph; a picture with another number becomes
                NaN. SimMIM has no use for it.
            kwargs: as in `VitHfModel.forward`; they concern the encoder.

        Returns:
            `reconstruction` (B, C, H, W): predictions of all patches, in units of the pixels; MAE's are float32. With
            `norm_pix_loss` each patch is multiplied by the target's deviation and moved to the target's mean: a picture
            to look at, that nobody could make without the target. `loss`: over the hidden patches of the batch, the
            mean absolute error (SimMIM) or mean squared error (MAE, with `norm_pix_loss` of normalised patches).
            `hidden_states` and `attentions` of the encoder, on request.

        Raises:
            ValueError: MAE: the pictures have different numbers of hidden patches, or nothing is visible.
        """
        patch_hw = self.config.patch_hw
        if isinstance(self.decoder, VitHfDecoder):
            pixels, outputs = self._from_visible(
                pixel_values, bool_masked_pos, interpolate_pos_encoding, num_masked, **kwargs
            )
        else:
            outputs = self.vit(pixel_values, bool_masked_pos, interpolate_pos_encoding, return_dict=True, **kwargs)
            encoded = cast(torch.Tensor, outputs.last_hidden_state)
            pixels = self.decoder(encoded[:, self.config.num_prefix_tokens :])  # (B, h*w, numbers of a patch)
        h, w = patch_grid((pixel_values.shape[2], pixel_values.shape[3]), patch_hw)
        pixels = pixels.view(len(pixels), h, w, *patch_hw, -1).permute(0, 5, 1, 3, 2, 4)  # as `cut_patches`
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(cut_patches(pixel_values.float(), patch_hw))
            pixels = pixels * deviation + mean
        reconstruction = pixels.reshape(pixel_values.shape)
        loss = None
        if bool_masked_pos is not None:
            errors = self.picture_errors(reconstruction, pixel_values, bool_masked_pos)  # (B,)
            weights = bool_masked_pos.reshape(len(errors), -1).sum(dim=1)  # (B,), hidden patches
            loss = (errors * weights).sum() / weights.sum().clamp(min=1)
        return MaskedImageModelingOutput(
            loss=loss, reconstruction=reconstruction, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _from_visible(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None,
        interpolate_pos_encoding: bool,
        num_masked: int | None,
        **kwargs,
    ) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """Return MAE's predictions of all patches, float32 (B, h*w, numbers of a patch), and the encoder's outputs."""
        visible = fits = None
        grid = patch_grid((pixel_values.shape[-2], pixel_values.shape[-1]), self.config.patch_hw)
        if bool_masked_pos is not None:
            if bool_masked_pos.shape != (len(pixel_values), math.prod(grid)):
                raise ValueError(
                    f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}; expected "
                    f"{(len(pixel_values), math.prod(grid))}: one value a patch, row by row"
                )
            visible, fits = find_visible(bool_masked_pos, num_masked)
        outputs: BaseModelOutputWithPooling = self.vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            visible_patches=visible,
            return_dict=True,
            **kwargs,
        )
        encoded = cast(torch.Tensor, outputs.last_hidden_state)  # (B, P + V, D)
        if fits is not None and num_masked is not None:
            encoded = encoded.masked_fill(~fits[:, None, None], math.nan)
        return self.decoder(encoded, visible, grid).float(), outputs


VitHfForMaskedImageModeling.register_for_auto_class("AutoModelForMaskedImageModeling")

__all__ = ["VitHfForMaskedImageModeling"]
