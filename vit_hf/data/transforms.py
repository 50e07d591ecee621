"""What happens to a picture between the file and the model, by torchvision.transforms.v2.

Evaluation uses the model's image processor and nothing else. Training begins with the same `to_rgb` and ends with the
same rescaling and normalisation, and puts the augmentation of the recipe between them. All randomness is drawn from
torch's global CPU generator, which the loader seeds for each sample (see `vit_hf.data.loading`).

Shapes: C channels, H x W pixels.
"""

import math
from dataclasses import dataclass

import PIL.Image
import torch
from torchvision.transforms import InterpolationMode, v2

from ..image_processing_vit_hf import VitHfImageProcessor, to_rgb

CROPS = ("inception", "padded", "none")
_INTERPOLATION = {  # Pillow's resampling codes, which image processors use
    0: InterpolationMode.NEAREST_EXACT,
    1: InterpolationMode.LANCZOS,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied; everything off by default but nothing that a recipe turns on is hidden."""

    crop: str = "none"
    """"inception": a random area and shape, resized (Szegedy et al. 2015); "padded": the resized picture shifted by at
    most `crop_padding`; "none": resized only."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """Smallest and largest share of the picture's area that an "inception" crop takes."""
    resize: tuple[int, int] | None = None
    """Size (height, width) in pixels that the picture gets before a crop without resizing: "random" (448 -> 384)."""
    crop_padding: int = 4
    """Pixels of black added on each side before a "padded" crop."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""
    rotation: float = 0.0
    """Largest angle of a random rotation, in degrees either way."""
    translation: float = 0.0
    """Largest random shift, as a share of the side."""
    scaling: float = 0.0
    """Largest random change of size: 0.1 for factors from 0.9 to 1.1."""
    randaugment_ops: int = 0
    """Operations a picture that RandAugment draws (arXiv 1909.13719); 0 for none."""
    randaugment_magnitude: int = 9
    """Strength of these operations, 0 to 30."""
    randaugment_std: float = 0.0
    """Standard deviation of the strength, drawn for each operation (DeiT: 0.5); 0 for a fixed one."""
    three_augment: bool = False
    """One of greyscale, solarise and blur for each picture (DeiT III, arXiv 2204.07118)."""
    repeats: int = 1
    """Copies of a picture in a step, each augmented on its own (arXiv 1901.09335); DeiT: 3. A step then holds
    batch_size / repeats different pictures, and a pass over all of them takes that many times as many steps."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    erasing: float = 0.0
    """Probability that a rectangle is replaced by noise (arXiv 1708.04896)."""
    mixup_alpha: float = 0.0
    """Beta parameter of mixup (arXiv 1710.09412); 0 for none. With CutMix too, each batch draws one of the two."""
    cutmix_alpha: float = 0.0
    """Beta parameter of CutMix (arXiv 1905.04899); 0 for none."""

    def __post_init__(self):
        if self.crop not in CROPS:
            raise ValueError(f"augmentation.crop is {self.crop!r}; expected one of {', '.join(CROPS)}")
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"augmentation.crop_area is {self.crop_area}; expected 0 < smallest <= largest <= 1")
        for name in ("crop_padding", "rotation", "randaugment_ops", "color_jitter", "mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"augmentation.{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.randaugment_magnitude <= 30:
            raise ValueError(f"augmentation.randaugment_magnitude is {self.randaugment_magnitude}; expected 0 to 30")
        for name in ("translation", "scaling"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"augmentation.{name} is {getattr(self, name)}; expected 0 <= share < 1")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"augmentation.erasing is {self.erasing}; expected a probability in [0, 1]")


class TrainTransform:
    """Turn one decoded picture into normalised pixels (C, H, W), float32, augmented."""

    def __init__(self, augmentation: Augmentation, processor: VitHfImageProcessor):
        size = processor.image_hw
        options = {"interpolation": _INTERPOLATION[int(processor.resample)], "antialias": True}
        steps: list[torch.nn.Module] = []
        if augmentation.crop == "inception":
            steps.append(v2.RandomResizedCrop(size, scale=augmentation.crop_area, **options))
        else:
            steps.append(v2.Resize(size, **options))
        if augmentation.crop == "padded":
            steps.append(v2.RandomCrop(size, padding=augmentation.crop_padding))
        if augmentation.flip:
            steps.append(v2.RandomHorizontalFlip())
        if augmentation.rotation or augmentation.translation or augmentation.scaling:
            shift, change = augmentation.translation, augmentation.scaling
            bilinear = InterpolationMode.BILINEAR
            factors = (1 - change, 1 + change)
            steps.append(v2.RandomAffine(augmentation.rotation, (shift, shift), factors, interpolation=bilinear))
        if augmentation.randaugment_ops:
            grey = [128] * 3
            steps.append(v2.RandAugment(augmentation.randaugment_ops, augmentation.randaugment_magnitude, fill=grey))
        if augmentation.color_jitter:
            steps.append(v2.ColorJitter(*[augmentation.color_jitter] * 3))
        self.geometry_and_colour = v2.Compose([*steps, v2.PILToTensor()])
        self.scale = processor.rescale_factor if processor.do_rescale else 1.0
        shape = (-1, 1, 1)
        self.mean = torch.tensor(processor.image_mean).view(shape) if processor.do_normalize else torch.tensor(0.0)
        self.std = torch.tensor(processor.image_std).view(shape) if processor.do_normalize else torch.tensor(1.0)
        self.erasing = v2.RandomErasing(augmentation.erasing, value="random") if augmentation.erasing else None

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        """Return pixels (C, H, W), float32, of the size and normalisation of the image processor."""
        pixels = self.geometry_and_colour(to_rgb(image))  # (C, H, W), uint8
        pixels = (pixels.float() * self.scale - self.mean) / self.std
        return pixels if self.erasing is None else self.erasing(pixels)


def build_mixing(augmentation: Augmentation, num_classes: int) -> torch.nn.Module | None:
    """Return mixup and CutMix for whole batches, or None when the recipe has neither.

    The module takes pixels (B, C, H, W) and class indices (B,), int64, and returns mixed pixels and probabilities
    (B, num_classes), float32. It draws from torch's global CPU generator.
    """
    choices: list[torch.nn.Module] = []
    if augmentation.mixup_alpha:
        choices.append(v2.MixUp(alpha=float(augmentation.mixup_alpha), num_classes=num_classes))
    if augmentation.cutmix_alpha:
        choices.append(v2.CutMix(alpha=float(augmentation.cutmix_alpha), num_classes=num_classes))
    if not choices:
        return None
    return choices[0] if len(choices) == 1 else v2.RandomChoice(choices)
