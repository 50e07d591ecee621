"""What a run was shown of its training pictures: the very versions of its first epochs, drawn again from its recipe."""

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ...data.loading import TrainRows
from ...data.mixing import PairMixing, PatchMasking
from ...data.order import Address, StepSampler
from ...data.pictures import Columns
from ...data.pixel_cache import cached_pixels
from ...data.preparation import Preparation
from ...data.transforms import TrainTransform
from ...image_processing_vit_hf import VitHfImageProcessor
from ...inspection.attention import model_view
from ...training.recipe import Recipe
from .gallery import pixels_of

PICTURES, VERSIONS, MIXES = 4, 5, 4


@dataclass(frozen=True)
class Versions:
    """A training picture, as evaluation sees it and as training did."""

    row: int
    label: int
    plain: Image.Image
    augmented: list[Image.Image]
    """Of epoch 1, 2, ...; where a step holds several copies of a picture, the first."""


@dataclass(frozen=True)
class Mix:
    """Two neighbours of the first step, and what the model got of them."""

    pictures: tuple[Image.Image, Image.Image]
    mixed: Image.Image
    labels: tuple[int, int]
    share: float
    """Weight of the first label, in [0, 1]; the other has the rest."""


@dataclass(frozen=True)
class Masked:
    """A picture of the first step, and what the model saw of it."""

    picture: Image.Image
    seen: Image.Image
    hidden: float
    """Share of the patches that were hidden."""


class Preview:
    """Draws again what the loader of a run drew.

    Args:
        rows: the training split.
        columns: names of the image and label columns.
        recipe: of the run.
        processor: beside the model.
    """

    def __init__(self, rows: Dataset, columns: Columns, recipe: Recipe, processor: VitHfImageProcessor):
        transform = TrainTransform(recipe.augmentation, processor)
        pixels = cached_pixels(rows, columns["image_column"])
        self.samples = TrainRows(rows, **columns, transform=transform, seed=recipe.seed, cached=pixels is not None)
        self.preparation = Preparation(transform, pixels)
        self.rows, self.columns, self.recipe, self.processor = rows, columns, recipe, processor

    def versions(self) -> list[Versions]:
        """Return some pictures, of different classes as far as there are any, in several versions each."""
        chosen: dict[int, int] = {}
        for row, label in enumerate(self.samples.labels.tolist()):
            chosen.setdefault(label, row)
        labels = sorted(chosen)
        spread = np.unique(np.linspace(0, len(labels) - 1, min(PICTURES, len(labels))).round().astype(int))
        numbers = [chosen[labels[place]] for place in spread]
        plain = model_view(self.processor, pixels_of(self.rows, numbers, self.columns["image_column"], self.processor))
        return [
            Versions(row, int(self.samples.labels[row]), picture, self._augmented(row))
            for row, picture in zip(numbers, plain, strict=True)
        ]

    def _augmented(self, row: int) -> list[Image.Image]:
        batch = self._prepared([Address(0, epoch, row) for epoch in range(VERSIONS)])
        return model_view(self.processor, batch["pixel_values"])

    def mixes(self) -> list[Mix]:
        """Return the first pairs of the first step; [] where the recipe does not mix."""
        augmentation = self.recipe.augmentation
        if not (augmentation.mixup_alpha or augmentation.cutmix_alpha):
            return []
        samples = self._first_samples(2 * MIXES)
        pixels, labels = samples["pixel_values"], samples["labels"].tolist()  # (B, C, H, W)
        mixing = PairMixing(augmentation, num_classes=max(labels) + 1, seed=self.recipe.seed)
        draws = mixing.draw(samples["positions"].tolist(), *pixels.shape[-2:])
        before = model_view(self.processor, pixels)
        mixed = model_view(self.processor, mixing.apply(pixels, samples["labels"], draws)[0])
        return [
            Mix((before[i], before[i + 1]), mixed[i], (labels[i], labels[i + 1]), float(draws["mix_share"][i]))
            for i in range(0, len(labels), 2)
        ]

    def masks(self, patch_hw: tuple[int, int]) -> list[Masked]:
        """Return the first pictures of the first step with what the model did not see of them in grey."""
        augmentation, samples = self.recipe.augmentation, self._first_samples(MIXES)
        pixels = samples["pixel_values"]  # (B, C, H, W)
        height, width = pixels.shape[-2:]
        masking = PatchMasking(ratio=augmentation.mask_ratio, mask_patch_size=augmentation.mask_patch_size,
                               patch_hw=patch_hw, seed=self.recipe.seed)  # fmt: skip
        hidden = masking.draw(samples["positions"].tolist(), height, width)["bool_masked_pos"]
        found = []
        for picture, mask in zip(model_view(self.processor, pixels), hidden, strict=True):
            grid = mask.reshape(height // patch_hw[0], width // patch_hw[1]).numpy()
            area = grid.repeat(patch_hw[0], axis=0).repeat(patch_hw[1], axis=1)  # (H, W)
            seen = np.where(area[..., None], np.uint8(128), np.asarray(picture))
            found.append(Masked(picture, Image.fromarray(seen), float(mask.double().mean())))
        return found

    def _first_samples(self, count: int) -> dict[str, torch.Tensor]:
        """Return the first samples of the run, augmented as they were."""
        optimization, repeats = self.recipe.optimization, self.recipe.augmentation.repeats
        sampler = StepSampler(len(self.rows), optimization.batch_size, num_steps=1, seed=self.recipe.seed,
                              repeats=repeats)  # fmt: skip
        first = next(iter(sampler))
        return self._prepared(first[: min(count, len(first) // 2 * 2)])

    def _prepared(self, addresses: list[Address]) -> dict[str, torch.Tensor]:
        return self.preparation(self.samples.__getitems__(addresses), torch.device("cpu"))
