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

CROPS = ("inception", "padded", "random", "none")
MAX_MAGNITUDE = 30
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
    most `crop_padding`; "random": resized to `resize`, then cut out anywhere; "none": resized only."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """Smallest and largest share of the picture's area that an "inception" crop takes."""
    resize: tuple[int, int] | None = None
    """Size (height, width) in pixels that the picture gets before a "random" crop (448 before 384 in AugReg)."""
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
    """Strength of these operations, 0 to 30: torchvision's scale. Three times the level of timm ("m9" is 27) and of
    big_vision ("randaug(2,10)" is 30), whose full strength is 10; see `RandAugment`."""
    randaugment_std: float = 0.0
    """Standard deviation of the strength, drawn for each operation, on the same scale (timm's "mstd0.5" is 1.5); 0 for
    a fixed one."""
    randaugment_probability: float = 1.0
    """Probability that a drawn operation is carried out (timm: 0.5)."""
    three_augment: bool = False
    """One of greyscale, solarise and blur for each picture (DeiT III, arXiv 2204.07118)."""
    repeats: int = 1
    """Copies of a picture in a step, each augmented on its own (arXiv 1901.09335); DeiT: 3. A step then holds
    batch_size / repeats different pictures, and an epoch, whose steps stay as many, that part of them."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    erasing: float = 0.0
    """Probability that a rectangle of the normalised pixels is replaced by normal noise (arXiv 1708.04896)."""
    mixup_alpha: float = 0.0
    """Beta parameter of mixup (arXiv 1710.09412); 0 for none. With CutMix too, each batch draws one of the two."""
    cutmix_alpha: float = 0.0
    """Beta parameter of CutMix (arXiv 1905.04899); 0 for none."""
    mask_ratio: float = 0.6
    """Share of the picture that masked image modelling hides (SimMIM, arXiv 2111.09886)."""
    mask_patch_size: int = 32
    """Side in pixels of the squares that it hides; a multiple of the model's patch."""

    def __post_init__(self):
        if self.crop not in CROPS:
            raise ValueError(f"augmentation.crop is {self.crop!r}; expected one of {', '.join(CROPS)}")
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"augmentation.crop_area is {self.crop_area}; expected 0 < smallest <= largest <= 1")
        if (self.crop == "random") != (self.resize is not None):
            raise ValueError(
                f"augmentation.resize is {self.resize} and augmentation.crop {self.crop!r}; expected a size (such as "
                'resize 448,448 for a model of 384 pixels) with crop "random", and none with another crop'
            )
        if self.resize is not None and min(self.resize) < 1:
            raise ValueError(f"augmentation.resize is {self.resize}; expected two sizes of 1 pixel or more")
        for name in (
            *("crop_padding", "rotation", "randaugment_ops", "randaugment_std"),
            *("color_jitter", "mixup_alpha", "cutmix_alpha"),
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"augmentation.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("repeats", "mask_patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"augmentation.{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 <= self.randaugment_magnitude <= MAX_MAGNITUDE:
            raise ValueError(
                f"augmentation.randaugment_magnitude is {self.randaugment_magnitude}; expected 0 to {MAX_MAGNITUDE}"
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"augmentation.mask_ratio is {self.mask_ratio}; expected 0 < share < 1")
        for name in ("translation", "scaling"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"augmentation.{name} is {getattr(self, name)}; expected 0 <= share < 1")
        for name in ("erasing", "randaugment_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name} is {getattr(self, name)}; expected a probability in [0, 1]")


class RandAugment(torch.nn.Module):
    """torchvision's RandAugment with a strength drawn for each operation and a chance for it to be left out.

    torchvision has one fixed strength and carries every operation out; timm, whose policy "rand-m9-mstd0.5-inc1" DeiT,
    MAE and CCT train with, draws both (timm `data/auto_augment.py`, `AugmentOp`). With std 0 and probability 1 it draws
    and returns exactly what torchvision's does.

    Scales: torchvision's 31 bins run from nothing (0) to shear 0.3, rotation 30 degrees, colours by 0.9, 4 bits (30).
    timm (`_LEVEL_DENOM`) and big_vision (`pp/autoaugment.py`, `_MAX_LEVEL`) reach the same at level 10, so that a level
    is three bins. Levels above 10, big_vision's randaug(2,15) and (2,20), rotate by 45 and 60 degrees: they have no
    equal here. Other differences stay: torchvision has Identity for Invert, SolarizeAdd and big_vision's Cutout;
    big_vision's colour operations only strengthen at level 10, torchvision's do either.
    """

    def __init__(self, num_ops: int, magnitude: int, std: float, probability: float):
        super().__init__()
        self.num_ops, self.magnitude, self.std, self.probability = num_ops, magnitude, std, probability
        grey = [128] * 3
        self.at = torch.nn.ModuleList([v2.RandAugment(1, level, fill=grey) for level in range(MAX_MAGNITUDE + 1)])

    def forward(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Return the picture after `num_ops` draws, same size."""
        for _ in range(self.num_ops):
            if self.probability < 1 and torch.rand(()) >= self.probability:
                continue
            level = float(self.magnitude)
            if self.std:
                level = min(max(level + self.std * float(torch.randn(())), 0.0), float(MAX_MAGNITUDE))
            image = self.at[round(level)](image)
        return image


def three_augment(size: tuple[int, int]) -> v2.RandomChoice:
    """Return DeiT III's choice of greyscale, solarisation and Gaussian blur, one for each picture, each as likely.

    Strengths are those of facebookresearch/deit `augment.py`: pixels from 128 on are inverted, the blur's standard
    deviation is uniform in 0.1 to 2 pixels. Its kernel reaches four of the largest, as far as a picture of that size
    (height, width) allows.
    """
    reach = min(17, 2 * min(size) - 1)
    return v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(reach, (0.1, 2.0))])


class TrainTransform:
    """Turn one decoded picture into normalised pixels (C, H, W), float32, augmented."""

    def __init__(self, augmentation: Augmentation, processor: VitHfImageProcessor):
        size = processor.image_hw
        options = {"interpolation": _INTERPOLATION[int(processor.resample)], "antialias": True}
        steps: list[torch.nn.Module] = []
        if augmentation.crop == "inception":
            steps.append(v2.RandomResizedCrop(size, scale=augmentation.crop_area, **options))
        elif augmentation.resize is not None:
            if any(before < after for before, after in zip(augmentation.resize, size, strict=True)):
                raise ValueError(
                    f"augmentation.resize is {augmentation.resize}; expected at least the {size[0]}x{size[1]} pixels "
                    'of the model, which a "random" crop cuts out'
                )
            steps += [v2.Resize(augmentation.resize, **options), v2.RandomCrop(size)]
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
            names = ("ops", "magnitude", "std", "probability")
            steps.append(RandAugment(*(getattr(augmentation, f"randaugment_{name}") for name in names)))
        if augmentation.three_augment:
            steps.append(three_augment(size))
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
