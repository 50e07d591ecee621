"""How others bring pictures to the model: torchvision by the picture, timm's loader, transformers' image processor.

Each is set up as its own documentation does, for the augmentation of one of our recipes: the same crop, flip,
RandAugment (probability, strength), erasing and mixing, in the forms that the library has. timm has RandAugment's "inc"
set of operations and mixes within its collator, torchvision mixes the batch with the batch rolled by one.

Shapes: B pictures, C channels, H x W pixels, L classes.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from timm.data import FastCollateMixup, create_loader
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2
from transformers import ViTImageProcessor

from vit_hf.data.transforms import Augmentation

MEAN = STD = (0.5, 0.5, 0.5)  # those of our image processor
Pass: TypeAlias = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]
"""Begins a pass over all pictures: batches of pixels (B, C, H, W) float32 and labels (B,) or (B, L), on the device."""


# ---------------------------------------------------------------------------------------------- torchvision
def torchvision_steps(size: tuple[int, int], augmentation: Augmentation | None) -> v2.Compose:
    """Return the transform of one PIL picture, for training as a recipe augments, for evaluation with None."""
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    if augmentation is None:
        return v2.Compose([v2.Resize(size), *end])
    steps: list[Any] = [v2.RandomResizedCrop(size, scale=augmentation.crop_area)]
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip())
    for _ in range(augmentation.randaugment_ops):
        one = v2.RandAugment(1, augmentation.randaugment_magnitude, fill=[128] * 3)
        steps.append(v2.RandomApply([one], augmentation.randaugment_probability))
    erasing = [v2.RandomErasing(augmentation.erasing, value="random")] if augmentation.erasing else []
    return v2.Compose([*steps, *end, *erasing])


class EachPicture:
    """What `with_transform` calls with the rows of a batch: every picture goes through the steps by itself."""

    def __init__(self, image_column: str, label_column: str, steps: v2.Compose):
        self.image_column, self.label_column, self.steps = image_column, label_column, steps

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return `pixel_values` and `labels`, one a row."""
        pixels = [self.steps(image.convert("RGB")) for image in rows[self.image_column]]
        return {"pixel_values": pixels, "labels": rows[self.label_column]}


class MixingCollate:
    """Stack samples, then torchvision's MixUp or CutMix on the batch."""

    def __init__(self, augmentation: Augmentation | None, num_classes: int):
        kinds = []
        if augmentation is not None and augmentation.mixup_alpha:
            kinds.append(v2.MixUp(alpha=augmentation.mixup_alpha, num_classes=num_classes))
        if augmentation is not None and augmentation.cutmix_alpha:
            kinds.append(v2.CutMix(alpha=augmentation.cutmix_alpha, num_classes=num_classes))
        self.mix = v2.RandomChoice(kinds) if kinds else None

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` and `labels`."""
        batch = default_collate(samples)
        if self.mix is not None:
            batch["pixel_values"], batch["labels"] = self.mix(batch["pixel_values"], batch["labels"])
        return batch


def torchvision_loader(
    split: Dataset,
    columns: dict[str, str],
    *,
    size: tuple[int, int],
    augmentation: Augmentation | None,
    num_classes: int,
    batch_size: int,
    workers: int,
) -> DataLoader:
    """Return `datasets` + `with_transform` + torchvision v2 by the picture + DataLoader."""
    steps = torchvision_steps(size, augmentation)
    training = augmentation is not None
    return DataLoader(
        split.with_transform(EachPicture(columns["image_column"], columns["label_column"], steps)),  # type: ignore[arg-type]
        batch_size=batch_size,
        shuffle=training,
        drop_last=training,
        collate_fn=MixingCollate(augmentation, num_classes),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


# ---------------------------------------------------------------------------------------------- transformers
class ProcessorCollate:
    """Hand the pictures of a batch to transformers' ViTImageProcessor."""

    def __init__(self, columns: dict[str, str], size: tuple[int, int]):
        self.columns = columns
        shape = {"height": size[0], "width": size[1]}
        self.processor = ViTImageProcessor(size=shape, resample=2, image_mean=list(MEAN), image_std=list(STD))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` and `labels`."""
        pictures = [row[self.columns["image_column"]].convert("RGB") for row in rows]
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row[self.columns["label_column"]] for row in rows])}


def processor_loader(
    split: Dataset, columns: dict[str, str], *, size: tuple[int, int], batch_size: int, workers: int
) -> DataLoader:
    """Return `datasets` + DataLoader + transformers' image processor on each batch, for evaluation."""
    return DataLoader(
        split.select_columns(list(columns.values())),  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=ProcessorCollate(columns, size),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def dict_pass(loader: DataLoader, device: torch.device) -> Pass:
    """Return the pass over a loader of `pixel_values` and `labels`."""

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in loader:
            yield batch["pixel_values"].to(device, non_blocking=True), batch["labels"].to(device, non_blocking=True)

    return batches


# ---------------------------------------------------------------------------------------------- timm
class TimmRows(TorchDataset):
    """A split as timm's loader takes it, which sets `transform`; items are (pixels, label)."""

    def __init__(self, split: Dataset, columns: dict[str, str]):
        self.split, self.columns = split.select_columns(list(columns.values())), columns
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.split[index]
        return self.transform(row[self.columns["image_column"]].convert("RGB")), row[self.columns["label_column"]]


def timm_loader(
    split: Dataset,
    columns: dict[str, str],
    *,
    size: tuple[int, int],
    augmentation: Augmentation | None,
    num_classes: int,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Any:
    """Return timm's loader with its prefetcher, which normalises and erases on the device, as its train.py makes it."""
    options: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": "squash"}  # both edges resized, as our processor does
    if augmentation is not None:
        level = augmentation.randaugment_magnitude // 3  # timm's levels are three of torchvision's bins
        policy = f"rand-m{level}-n{augmentation.randaugment_ops}-p{augmentation.randaugment_probability}"
        policy += f"-mstd{augmentation.randaugment_std / 3}-inc1"
        options = {
            "is_training": True,
            "scale": augmentation.crop_area,
            "hflip": 0.5 if augmentation.flip else 0.0,
            "color_jitter": 0.0,
            "auto_augment": policy if augmentation.randaugment_ops else None,
            "re_prob": augmentation.erasing,
            "re_mode": "pixel",
        }
        if augmentation.mixup_alpha or augmentation.cutmix_alpha:
            options["collate_fn"] = FastCollateMixup(
                mixup_alpha=augmentation.mixup_alpha,
                cutmix_alpha=augmentation.cutmix_alpha,
                label_smoothing=0.0,
                num_classes=num_classes,
            )
    return create_loader(
        TimmRows(split, columns),  # type: ignore[arg-type]
        input_size=(3, *size),
        batch_size=batch_size,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        device=device,
        pin_memory=device.type == "cuda",
        **options,
    )
