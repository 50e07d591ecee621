"""What is learned: classes of labelled pictures, or the hidden patches of pictures without labels (SimMIM, MAE).

A task has the network's class, what is drawn for a batch, the loss, and the scores of a split's samples.

Shapes: B pictures, C channels, H x W pixels, L classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from ..data.mixing import PairMixing, PatchMasking
from ..data.transforms import Augmentation
from ..evaluation.scoring import OnBad, Scores, gather_rows, score
from ..masked_vit_hf import VitHfForMaskedImageModeling
from ..modeling_vit_hf import VitHfForImageClassification, VitHfPreTrainedModel
from .optim import build_loss
from .recipe import Recipe

Batch = dict[str, torch.Tensor]


class Classification:
    """Class labels; mixup and CutMix if the recipe has them."""

    model_class: type[VitHfPreTrainedModel] = VitHfForImageClassification
    metric = "top1"
    """Key of the evaluation row by which the best weights are chosen."""

    def __init__(self, recipe: Recipe, model: VitHfPreTrainedModel):
        augmentation = recipe.augmentation
        self.mixing: PairMixing | None = None
        if augmentation.mixup_alpha or augmentation.cutmix_alpha:
            self.mixing = PairMixing(augmentation, num_classes=cast(int, model.config.num_labels), seed=recipe.seed)
        self.draw = None if self.mixing is None else self.mixing.draw
        self._loss = build_loss(recipe.optimization)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean loss of a batch, a float32 scalar."""
        pixels, labels = batch["pixel_values"], batch["labels"]  # (B, C, H, W), (B,)
        if self.mixing is not None:
            pixels, labels = self.mixing.apply(pixels, labels, batch)  # (B, C, H, W), (B, L)
        return self._loss(model(pixel_values=pixels).logits, labels)

    def score(
        self,
        model: nn.Module,
        loader: DataLoader,
        accelerator: Accelerator,
        *,
        num_samples: int | None,
        on_batch: Callable[[int], None] = lambda count: None,
        on_bad: OnBad = lambda rows: None,
    ) -> Scores:
        """Return the logits of a split, every picture once."""
        return score(model, loader, accelerator, num_samples=num_samples, on_batch=on_batch, on_bad=on_bad)

    @staticmethod
    def is_better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
        """Tell whether an evaluation row beats the best so far."""
        return best is None or row["top1"] > best["top1"]


@dataclass(frozen=True)
class Errors:
    """How far a model for masked images was off, in the split's order, on the CPU."""

    of_pictures: torch.Tensor
    """(N,), float32: over a picture's hidden patches, in the terms of the model's loss."""
    name: str
    """What the error is, in words."""

    def measure(self) -> dict[str, Any]:
        """Return loss (the mean), error (its name) and n."""
        return {"loss": self.of_pictures.double().mean().item(), "error": self.name, "n": len(self.of_pictures)}


@lru_cache(maxsize=64)
def count_masked(augmentation: Augmentation, patch_hw: tuple[int, int], image_hw: tuple[int, int]) -> int:
    """Return how many patches of a picture of (height, width) pixels are hidden: as many of each."""
    masking = PatchMasking(
        ratio=augmentation.mask_ratio, mask_patch_size=augmentation.mask_patch_size, patch_hw=patch_hw, seed=0
    )
    return int(masking.draw([0], *image_hw)["bool_masked_pos"].numpy().sum())


class MaskedImageModeling:
    """Pixels of hidden patches. Of a split to score, a picture's mask depends on its row only."""

    model_class: type[VitHfPreTrainedModel] = VitHfForMaskedImageModeling
    metric = "validation_loss"

    def __init__(self, recipe: Recipe, model: VitHfPreTrainedModel):
        augmentation = recipe.augmentation
        options: dict[str, Any] = {
            "ratio": augmentation.mask_ratio,
            "mask_patch_size": augmentation.mask_patch_size,
            "patch_hw": model.config.patch_hw,
        }
        self._augmentation, self._patch_hw = augmentation, model.config.patch_hw
        self.draw = PatchMasking(**options, seed=recipe.seed).draw
        self._draw_fixed = PatchMasking(**options, seed=0).draw

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the model's own loss over the hidden patches of a batch, a float32 scalar."""
        return self._forward(model, batch["pixel_values"], batch["bool_masked_pos"]).loss

    def _forward(self, model: nn.Module, pixels: torch.Tensor, hidden: torch.Tensor) -> Any:
        count = count_masked(self._augmentation, self._patch_hw, (pixels.shape[2], pixels.shape[3]))
        return model(pixel_values=pixels, bool_masked_pos=hidden, num_masked=count)

    def score(
        self,
        model: nn.Module,
        loader: DataLoader,
        accelerator: Accelerator,
        *,
        num_samples: int | None,
        on_batch: Callable[[int], None] = lambda count: None,
        on_bad: OnBad = lambda rows: None,
    ) -> "Errors":
        """Return the error of a split, every picture once."""

        def errors(batch: Batch) -> tuple[torch.Tensor]:
            pixels = batch["pixel_values"]
            hidden = self._draw_fixed(batch["rows"].abs().tolist(), *pixels.shape[-2:])["bool_masked_pos"].to(
                pixels.device
            )
            return (network.picture_errors(self._forward(model, pixels, hidden).reconstruction, pixels, hidden),)

        network = accelerator.unwrap_model(model, keep_torch_compile=False)
        options: dict[str, Any] = {"num_samples": num_samples, "on_batch": on_batch, "on_bad": on_bad}
        (found,) = gather_rows(model, loader, accelerator, errors, **options)
        return Errors(found, network.error_name)

    @staticmethod
    def is_better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
        """Tell whether an evaluation row beats the best so far."""
        return best is None or row["validation_loss"] < best["validation_loss"]


Task = Classification | MaskedImageModeling
TASKS: dict[str, type[Classification] | type[MaskedImageModeling]] = {
    "classification": Classification,
    "masked_image_modeling": MaskedImageModeling,
}
