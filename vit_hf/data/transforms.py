"""What happens to a training picture between the file and the model: a little by the picture, the rest by the batch.

`TrainTransform.picture` cuts and resizes one decoded picture, `TrainTransform.batch` does everything else to a batch of
them, on the device they are on. Evaluation uses the model's image processor and nothing else; with all augmentation
off, training sees what it gives. All randomness is drawn from the key of a sample (see `vit_hf.data.draws`): nothing
depends on the batch, the worker or what ran before.

The operations are torchvision's on uint8 tensors. Earlier versions ran them on Pillow's pictures, one by one, whose
roundings and greyscale differ by a level and whose affine maps treat the edge otherwise.

Shapes: B pictures, C channels, h x w pixels of a picture as it comes, H x W as the model sees it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import PIL.Image
import torch
from numpy.typing import ArrayLike, NDArray

from ..image_processing_vit_hf import VitHfImageProcessor, to_rgb
from .cropping import INTERPOLATION, cut_and_resize, inception_box, inception_boxes, resize
from .draws import integers, uniforms
from .erasing import erase, erasing_boxes
from .geometry import bilinear_affine, draw_affine, windows
from .host import by_pieces, change_rows, to_device
from .jitter import color_jitter, draw_color_jitter, draw_three_augment, three_augment
from .randaugment import MAX_LEVEL, draw_operations, randaugment

CROPS = ("inception", "padded", "random", "none")


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
    big_vision ("randaug(2,10)" is 30), whose full strength is 10; see
    `vit_hf.data.randaugment`."""
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
        if not 0 <= self.randaugment_magnitude <= MAX_LEVEL:
            raise ValueError(
                f"augmentation.randaugment_magnitude is {self.randaugment_magnitude}; expected 0 to {MAX_LEVEL}"
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"augmentation.mask_ratio is {self.mask_ratio}; expected 0 < share < 1")
        for name in ("translation", "scaling"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"augmentation.{name} is {getattr(self, name)}; expected 0 <= share < 1")
        for name in ("erasing", "randaugment_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name} is {getattr(self, name)}; expected a probability in [0, 1]")


@lru_cache(maxsize=16)
def _by_channel(numbers: tuple[float, ...], scale: float, device: torch.device) -> torch.Tensor:
    """Return a mean or a standard deviation of the scaled pixels as one of unscaled pixels, (C, 1, 1) float32."""
    return torch.tensor(numbers).mul(1 / scale).view(-1, 1, 1).to(device)


class TrainTransform:
    """Turn decoded pictures into normalised pixels (B, C, H, W), float32, augmented.

    Args:
        augmentation: how they are varied.
        processor: of the model: size, resampling, scale and normalisation.

    Raises:
        ValueError: a "random" crop is larger than what it is cut from, or the resampling is none of nearest, bilinear,
            bicubic and Lanczos.
    """

    def __init__(self, augmentation: Augmentation, processor: VitHfImageProcessor):
        self.augmentation, self.size, self.resample = augmentation, processor.image_hw, int(processor.resample)
        if self.resample not in INTERPOLATION:
            raise ValueError(
                f"resample of the image processor is {self.resample}; expected one of {sorted(INTERPOLATION)}: "
                "nearest, Lanczos, bilinear, bicubic"
            )
        if augmentation.resize is not None and any(
            before < after for before, after in zip(augmentation.resize, self.size, strict=True)
        ):
            raise ValueError(
                f"augmentation.resize is {augmentation.resize}; expected at least the {self.size[0]}x{self.size[1]} "
                'pixels of the model, which a "random" crop cuts out'
            )
        self.cut_size = augmentation.resize or self.size
        """(h, w) of what `picture` returns."""
        self.scale = processor.rescale_factor if processor.do_rescale else 1.0
        numbers = (processor.image_mean, processor.image_std)
        by_channel = [tuple(np.atleast_1d(part).tolist()) for part in numbers]
        self.mean_and_std = by_channel if processor.do_normalize else None

    # -------------------------------------------------------------------------------------------- by the picture
    def crop_box(self, size: tuple[int, int], key: int) -> tuple[int, int, int, int]:
        """Return the box (top, left, height, width) that is cut out of a picture of that size (height, width).

        It is all of it where the crop is not "inception".
        """
        if self.augmentation.crop != "inception":
            return 0, 0, *size
        return inception_box(size, key, self.augmentation.crop_area)

    def picture(self, picture: PIL.Image.Image, key: int) -> torch.Tensor:
        """Cut and resize one picture, of any mode, to what `batch(..., cut=True)` takes: uint8 (C, h, w)."""
        pixels = torch.from_numpy(np.array(to_rgb(picture))).permute(2, 0, 1)
        return self.cut(pixels, self.crop_box((pixels.shape[1], pixels.shape[2]), key))

    def cut(self, pixels: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
        """Cut a box (top, left, height, width) out of a picture and resize it.

        Args:
            pixels: (3, h, w) or (4, h, w) uint8, on the CPU; a fourth channel is left out.
            box: within it.

        Returns:
            (C, h, w) uint8, of `cut_size`.
        """
        top, left, height, width = box
        pixels = pixels[:, top : top + height, left : left + width]
        if (height, width) != self.cut_size:
            # A picture in the middle of another one is packed and unpacked by the kernel, which takes as long again.
            dense = pixels[None].contiguous(memory_format=torch.channels_last)  # (1, C, h, w)
            pixels = resize(dense, self.cut_size, resample=self.resample)[0]
        return torch.from_numpy(np.ascontiguousarray(pixels[:3].numpy()))  # 0.75 of the time of torch's own copy

    # -------------------------------------------------------------------------------------------- by the batch
    def batch(self, pixels: torch.Tensor, keys: ArrayLike, *, cut: bool) -> torch.Tensor:
        """Augment and normalise a batch; each picture as if it were alone.

        Args:
            pixels: (B, C, h, w) uint8, on any device; left as they are.
            keys: (B,) int64, on the CPU.
            cut: whether they come from `picture`; if not they are whole pictures, all of one size, which are cut and
                resized here.

        Returns:
            (B, C, H, W) float32 on the device of the pixels. Nothing waits for that device.
        """
        keys = np.asarray(keys, np.int64)
        self._check(pixels, keys, cut)
        augmentation = self.augmentation
        pixels = self._placed(pixels, keys, cut)
        if augmentation.rotation or augmentation.translation or augmentation.scaling:
            options = {name: getattr(augmentation, name) for name in ("rotation", "translation", "scaling")}
            matrices = draw_affine(keys, self.size, **options).matrices()
            pixels = bilinear_affine(pixels, to_device(matrices, pixels.device))
        if augmentation.randaugment_ops:
            operations = draw_operations(
                keys,
                count=augmentation.randaugment_ops,
                level=augmentation.randaugment_magnitude,
                std=augmentation.randaugment_std,
                probability=augmentation.randaugment_probability,
            )
            pixels = randaugment(pixels, operations)
        if augmentation.three_augment:
            pixels = three_augment(pixels, *draw_three_augment(keys))
        if augmentation.color_jitter:
            pixels = color_jitter(pixels, *draw_color_jitter(keys, augmentation.color_jitter))
        found = self._normalized(pixels)
        if augmentation.erasing:
            found = erase(found, erasing_boxes(self.size, keys, augmentation.erasing), keys)
        return found

    def _normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scale and normalise (B, C, H, W) uint8 by the very steps of the image processor, to float32."""

        def normalize(some: torch.Tensor) -> torch.Tensor:
            values = some.to(torch.float32, memory_format=torch.contiguous_format)
            if self.mean_and_std is None:
                return values.mul_(self.scale)
            mean, std = (_by_channel(numbers, self.scale, values.device) for numbers in self.mean_and_std)
            return values.sub_(mean).div_(std)

        return by_pieces(pixels, normalize)

    def _check(self, pixels: torch.Tensor, keys: NDArray[np.int64], cut: bool) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}; expected torch.uint8 (B, 3, h, w)")
        if keys.shape != pixels.shape[:1]:
            raise ValueError(f"there are keys of shape {keys.shape} for {len(pixels)} pictures; expected one for each")
        if cut and tuple(pixels.shape[2:]) != self.cut_size:
            raise ValueError(
                f"cut pictures are {tuple(pixels.shape[2:])}; expected {self.cut_size}, as `picture` gives them, or "
                "cut=False for whole ones"
            )

    def _placed(self, pixels: torch.Tensor, keys: NDArray[np.int64], cut: bool) -> torch.Tensor:
        """Cut, resize, shift and mirror; a new tensor, (B, C, H, W) uint8."""
        augmentation, (height, width) = self.augmentation, pixels.shape[2:]
        mirrored = uniforms(keys, "flip", 1)[:, 0] < 0.5 if augmentation.flip else None
        if augmentation.crop == "inception" and not cut:
            boxes = inception_boxes((height, width), keys, augmentation.crop_area)
            return cut_and_resize(pixels, boxes, self.size, resample=self.resample, mirrored=mirrored)
        before = pixels
        if (height, width) != self.cut_size:
            pixels = resize(pixels, self.cut_size, resample=self.resample)
        if augmentation.crop in ("padded", "random"):
            if augmentation.crop == "padded" and augmentation.crop_padding:
                pixels = torch.nn.functional.pad(pixels, [augmentation.crop_padding] * 4)
            room = [there - size + 1 for there, size in zip(pixels.shape[2:], self.size, strict=True)]
            tops, lefts = integers(uniforms(keys, "shift", 2), np.array(room)).T
            pixels = windows(pixels, tops, lefts, self.size)
        pixels = pixels.clone() if pixels is before else pixels
        if mirrored is not None and mirrored.any():
            pixels = change_rows(pixels, np.flatnonzero(mirrored), lambda some: some.flip(-1))
        return pixels
