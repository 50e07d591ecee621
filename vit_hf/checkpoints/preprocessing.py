"""How a checkpoint's images were prepared, as settings of our image processor."""

import math
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..image_processing_vit_hf import VitHfImageProcessor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RECTANGLES = "; the image is no square, so the aspect ratio of pictures is not kept"


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation preprocessing, for any image size.

    Attributes:
        how: where it comes from.
        mean: subtracted after scaling to [0, 1], a channel.
        std: divided by, a channel.
        resample: name of Pillow's filter.
        crop_pct: None resizes straight to the image; else the share of the resized image that the central crop keeps.
        keep_aspect: with a crop, whether the shorter edge is resized (the aspect ratio stays) or both edges. For
            images that are no squares both are in any case: our processor cannot fit an aspect ratio around a
            rectangle, and `described` says so.
        crop_rounding: where the crop begins if the margin is odd: "round" (torchvision, timm) or "floor".
        extra: further settings of the image processor.
    """

    how: str
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: str = "bilinear"
    crop_pct: float | None = None
    keep_aspect: bool = True
    crop_rounding: str = "floor"
    extra: dict[str, Any] = field(default_factory=dict)

    def described(self, image_hw: tuple[int, int], channels: int) -> str:
        """Say where it comes from, and what our image processor cannot do for such images."""
        cropped = self.crop_pct is not None and self.keep_aspect and image_hw[0] != image_hw[1]
        grey = f"; it makes RGB, the model takes {channels} channels: prepare pixels yourself" if channels != 3 else ""
        return self.how + (RECTANGLES if cropped else "") + grey

    def processor(self, image_hw: tuple[int, int]) -> VitHfImageProcessor:
        """Return the image processor for images of (height, width) pixels."""
        size = {"height": image_hw[0], "width": image_hw[1]}
        settings: dict[str, Any] = {
            "image_mean": list(self.mean if len(self.mean) == 3 else VIT.mean),
            "image_std": list(self.std if len(self.std) == 3 else VIT.std),
            "resample": RESAMPLING[self.resample],
            "size": size,
        }
        if self.crop_pct is not None:
            height, width = (math.floor(side / self.crop_pct) for side in image_hw)
            square = self.keep_aspect and height == width
            settings["size"] = {"shortest_edge": height} if square else {"height": height, "width": width}
            settings |= {"do_center_crop": True, "crop_size": size, "crop_rounding": self.crop_rounding}
        return VitHfImageProcessor(**{**settings, **self.extra})


VIT = Preprocessing("the ViT paper's, the file says nothing")
IMAGENET = Preprocessing(
    "DeiT's, MAE's and DINO's evaluation code",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    resample="bicubic",
    crop_pct=0.875,
    crop_rounding="round",
)
