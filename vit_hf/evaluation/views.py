"""Several views of one picture (image sizes, crops, its mirror image), whose probabilities are averaged.

A picture is shown at each image size (positions of the model resampled, the image processor's resize in proportion), as
one central view or as five crops, and each of these as it is or mirrored too. The order is always the same: sizes as
they were given; within a size the centre, then top left, top right, bottom left, bottom right (torchvision's
`five_crop`, centre first); within a crop the picture, then its mirror image.

Five crops are cut, at the model's image size, from the picture as the image processor resizes it before its central
crop, or, where it has none, resized to 8/7 of that size (256 for 224, as Krizhevsky et al., 2012, did).

What is averaged are probabilities, in float64; kept is the logarithm of the mean, as float32. It takes the place of
logits: its softmax is the mean, so that every figure is computed from it as from any other scores.

Shapes: B batch, K crops, V views, C channels, H x W pixels, L classes.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from transformers.image_utils import SizeDict

from ..configuration_vit_hf import VitHfConfig
from ..image_processing_vit_hf import VitHfImageProcessor
from ..modeling_vit_hf import VitHfForImageClassification
from .scoring import OnBad, Scores, gather_scores

_ENLARGED = 8 / 7  # of the model's size, before five crops


@dataclass(frozen=True)
class Views:
    """How each picture is shown to the model."""

    image_sizes: tuple[tuple[int, int], ...] = ()
    """(height, width) in pixels; several are averaged; none for the model's own."""
    crops: int = 1
    """1, or 5: the centre and the four corners."""
    flip: bool = False
    """Whether each view is shown mirrored too."""

    def __post_init__(self):
        if self.crops not in (1, 5):
            raise ValueError(f"crops is {self.crops}; expected 1, or 5 for centre and corners")
        if len(set(self.image_sizes)) < len(self.image_sizes):
            raise ValueError(f"image sizes {say_sizes(self.image_sizes)} name one twice; expected each once")

    @property
    def count(self) -> int:
        """V, the number of views of a picture."""
        return max(len(self.image_sizes), 1) * self.crops * (2 if self.flip else 1)

    def describe(self, own_size: tuple[int, int]) -> dict[str, Any] | None:
        """Return what the results say of the views; None for one plain view at the model's own size."""
        sizes = self.image_sizes or (own_size,)
        if sizes == (own_size,) and self.count == 1:
            return None
        fields = {"image_sizes": [list(size) for size in sizes], "crops": self.crops, "flip": self.flip}
        return {**fields, "count": self.count}


def say_sizes(sizes: Any) -> str:
    """Say image sizes, (height, width) each, as on the command line."""
    return ", ".join(str(height) if height == width else f"{height}x{width}" for height, width in sizes)


def at_size(model: VitHfForImageClassification, size: tuple[int, int]) -> VitHfForImageClassification:
    """Return the model at an image size, (height, width): itself if it has it, else a copy, positions resampled.

    Raises:
        ValueError: the patch size does not divide it.
    """
    if size == model.config.image_hw:
        return model
    check_size(model.config, size)
    resized = copy.deepcopy(model)
    resized.set_image_size(size)
    return resized


def check_size(config: VitHfConfig, size: tuple[int, int]) -> None:
    """Raise ValueError, as the model does, unless it can take images of (height, width) pixels."""
    changed = copy.deepcopy(config)
    changed.image_size = list(size)
    changed.validate_architecture()


def processor_at_size(processor: VitHfImageProcessor, size: tuple[int, int]) -> VitHfImageProcessor:
    """Return the image processor at an image size, (height, width); itself if it has it."""
    if size == processor.image_hw:
        return processor
    resized = copy.deepcopy(processor)
    resized.set_image_size(*size)
    return resized


class ViewCutter:
    """Make the views of pictures but for the mirrored ones, which cost nothing later.

    Args:
        processors: one an image size.
        crops: 1 or 5.
    """

    def __init__(self, processors: list[VitHfImageProcessor], crops: int):
        self.processors, self.crops = processors, crops

    def __call__(self, pictures: list[PIL.Image.Image]) -> list[torch.Tensor]:
        """Return for each size (B, K, C, H, W), float32."""
        cut = self._five if self.crops == 5 else self._one
        return [cut(processor, pictures) for processor in self.processors]

    @staticmethod
    def _one(processor: VitHfImageProcessor, pictures: list[PIL.Image.Image]) -> torch.Tensor:
        return processor(pictures, return_tensors="pt")["pixel_values"][:, None]

    @staticmethod
    def _five(processor: VitHfImageProcessor, pictures: list[PIL.Image.Image]) -> torch.Tensor:
        height, width = processor.image_hw
        larger: dict[str, Any] = {} if processor.do_center_crop else {"size": _enlarged(height, width)}
        whole = processor(pictures, do_center_crop=False, **larger)["pixel_values"]  # B of (C, H', W')
        cut = []
        for picture in whole:
            if picture.shape[-2] < height or picture.shape[-1] < width:
                found = "x".join(map(str, picture.shape[-2:]))
                raise ValueError(
                    f"five crops of {height}x{width} pixels do not fit a picture that the image processor resizes to "
                    f"{found}; expected a resize to at least the crop: leave the crops out, or mend size and crop_size"
                )
            centre = processor.center_crop(picture, SizeDict(height=height, width=width))
            rows, columns = (slice(height), slice(-height, None)), (slice(width), slice(-width, None))
            corners = [picture[:, row, column] for row in rows for column in columns]
            cut.append(torch.stack([centre, *corners]))  # (5, C, H, W)
        return torch.stack(cut)


def _enlarged(height: int, width: int) -> dict[str, int]:
    return {"height": round(height * _ENLARGED), "width": round(width * _ENLARGED)}


def score_views(
    models: list[VitHfForImageClassification],
    loader: DataLoader,
    accelerator: Accelerator,
    *,
    flip: bool,
    num_samples: int | None,
    on_batch: Callable[[int], None] = lambda count: None,
    on_bad: OnBad = lambda rows: None,
) -> Scores:
    """Score every sample once by the mean probabilities of its views; arguments and errors as of `gather_scores`.

    Args:
        models: one an image size, on the accelerator's device.
        loader: prepared by the accelerator; `pixel_values` as `ViewCutter` gives them.
        accelerator: gathers the samples.
        flip: show each view mirrored too.
        num_samples: N, checked; None for a streamed split.
        on_batch: called with the number of samples after each batch.
        on_bad: as of `gather_scores`.

    Returns:
        Logarithms of the mean probabilities in the place of logits.
    """

    def logits_of(batch: dict[str, Any]) -> torch.Tensor:
        said = [
            model(pixel_values=view).logits.float()
            for model, crops in zip(models, batch["pixel_values"], strict=True)
            for crop in crops.unbind(1)  # (B, C, H, W)
            for view in ((crop, crop.flip(-1)) if flip else (crop,))
        ]
        return average(torch.stack(said))

    options: dict[str, Any] = {"num_samples": num_samples, "on_batch": on_batch, "on_bad": on_bad}
    return gather_scores(nn.ModuleList(models), loader, accelerator, logits_of, **options)


def average(logits: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the mean probability of each class, (B, L) float32, of logits (V, B, L)."""
    precise = torch.float32 if logits.device.type == "mps" else torch.float64  # which MPS has not
    return (logits.to(precise).log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))).float()
