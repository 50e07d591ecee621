"""Decode a training picture no larger than what is cut from it needs, and hand its pixels over without a copy.

libjpeg can scale a picture by 1/2, 1/4 or 1/8 while it decodes it (Pillow's draft mode): a photograph of 12 million
pixels for 224 x 224 then takes a fifth of the time. It is done where what is cut out keeps at least twice the size that
it is resized to. There the pixels differ from those of a whole decoding by 0.45 levels of 255 in the mean, and 99 of
100 by at most 3 (ImageNet's pictures to 64, 112 and 160 pixels); at once the size it would be 1.4 and 12. Twice is also
the `reducing_gap` of Pillow's thumbnails. The box moves to whole pixels of the smaller picture, by at most half of one.

Only upright JPEGs in colour or grey are scaled. Evaluation decodes whole pictures.

Shapes: C channels, h x w pixels.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ..image_processing_vit_hf import orientation_of
from .images import read_rgb
from .transforms import TrainTransform

Box = tuple[int, int, int, int]
"""Top, left, height, width."""

_GAP = 2
_REDUCTIONS = (8, 4, 2)


def cut_picture(value: Any, key: int, transform: TrainTransform, *, where: str) -> torch.Tensor:
    """Decode, cut and resize a training picture by the key of its sample: uint8 (3, h, w); else as `read_for_cut`."""
    pixels, box = read_for_cut(value, lambda size: transform.crop_box(size, key), transform.cut_size, where=where)
    return transform.cut(pixels, box)


def read_for_cut(
    value: Any, box_of: Callable[[tuple[int, int]], Box], cut_size: tuple[int, int], *, where: str
) -> tuple[torch.Tensor, Box]:
    """Decode a picture of which a box will be cut out and resized.

    Args:
        value, where: as `read_image` takes them.
        box_of: from the (height, width) of the upright picture to the box.
        cut_size: (height, width) that the box is resized to.

    Returns:
        Upright RGB, uint8 (C, h, w), perhaps smaller than the picture, and the box in it; C is 3 or, where the pixels
        are Pillow's own, 4, the last of no meaning.

    Raises:
        BadImageError, FileNotFoundError: as `read_rgb`.
    """
    scaled: list[tuple[Box, int, tuple[int, int]]] = []

    def draft(image: Image.Image) -> None:
        if image.format == "JPEG" and image.mode in ("RGB", "L") and _is_upright(image):
            size = (image.height, image.width)
            box = box_of(size)
            by = reduction(box, cut_size)
            if by > 1:
                image.draft(None, (image.width // by, image.height // by))
            scaled.append((box, by, size))

    picture = read_rgb(value, where=where, draft=draft)
    box = _scaled(*scaled[0]) if scaled else box_of((picture.height, picture.width))
    return as_tensor(picture), box


def _is_upright(image: Image.Image) -> bool:
    if not {"exif", "xmp"} & image.info.keys():  # of a JPEG, the only places
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `read_rgb` will warn
        return orientation_of(image) == 1


def reduction(box: Box, cut_size: tuple[int, int]) -> int:
    """Return by what to divide both sides of a picture while decoding: 1, 2, 4 or 8."""
    fits = (by for by in _REDUCTIONS if all(side >= _GAP * by * to for side, to in zip(box[2:], cut_size, strict=True)))
    return next(fits, 1)


def _scaled(box: Box, by: int, size: tuple[int, int]) -> Box:
    """Return the box in a picture of (height, width) that was made smaller, without what is left over at its edges."""
    top, left = round(box[0] / by), round(box[1] / by)
    bottom, right = (min(round((box[at] + box[2 + at]) / by), size[at] // by) for at in (0, 1))
    return top, left, bottom - top, right - left


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """Return the pixels of an RGB picture, uint8: (4, h, w), a view of Pillow's own, or (3, h, w), a copy."""
    try:
        pixels = torch.from_dlpack(pa.array(picture).values).view(picture.height, picture.width, 4)  # R, G, B, padding
    except ValueError:  # Pillow keeps it in several blocks of memory
        pixels = torch.from_numpy(np.array(picture))
    return pixels.permute(2, 0, 1)
