"""What a model for masked images makes of pictures: what it sees of each, what it predicts, and the picture.

With `norm_pix_loss` a predicted patch has the mean and the contrast of the real one, which the model does not know.

Shapes: B pictures, C channels, H x W pixels, h x w patch grid.
"""

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..image_processing_vit_hf import VitHfImageProcessor, VitHfImageProcessorPil
from ..masked_vit_hf import VitHfForMaskedImageModeling
from .attention import model_view
from .contact_sheet import LARGEST, Cell, draw_contact_sheet

GREY = 128
COLUMNS = 2


@torch.no_grad()
def draw_reconstructions(
    model: VitHfForMaskedImageModeling,
    processor: VitHfImageProcessor | VitHfImageProcessorPil,
    pictures: list[tuple[str, Image.Image]],
    hidden: torch.Tensor,
) -> tuple[Figure, list[float]]:
    """Draw for each picture what the model sees, what it predicts in the hidden places, and the picture itself.

    Args:
        model: in evaluation mode.
        processor: the model's own.
        pictures: name and RGB picture, 1 to 24 of them.
        hidden: (B, h*w), bool: True for the patches to hide.

    Returns:
        The figure, and each picture's error, in the terms of the model's loss.

    Raises:
        ValueError: too many pictures or none; or what the model says of the mask.
    """
    if not 1 <= len(pictures) <= LARGEST:
        raise ValueError(f"there are {len(pictures)} pictures to reconstruct; expected 1 to {LARGEST}")
    pixels = processor([picture for _, picture in pictures], return_tensors="pt")["pixel_values"]  # (B, C, H, W)
    found = model(pixels, hidden).reconstruction
    errors = model.picture_errors(found, pixels, hidden).tolist()
    (h, w), (patch_h, patch_w) = model.config.grid_hw, model.config.patch_hw
    places = hidden.reshape(-1, h, w).repeat_interleave(patch_h, 1).repeat_interleave(patch_w, 2)  # (B, H, W)
    filled = torch.where(places[:, None], found.to(pixels.dtype), pixels)
    cells = []
    for (name, _), whole, predicted, place, error in zip(
        pictures, model_view(processor, pixels), model_view(processor, filled), places, errors, strict=True
    ):
        seen = Image.fromarray(np.where(place.numpy()[..., None], np.uint8(GREY), np.asarray(whole)))
        cells.append(Cell((seen, predicted, whole), (f"{name}, error {error:.3f}",)))
    return draw_contact_sheet(cells, columns=min(COLUMNS, len(cells))), errors


__all__ = ["draw_reconstructions"]
