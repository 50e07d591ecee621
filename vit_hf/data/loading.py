"""From a split to batches, with every random number drawn from an address instead of a state.

The order of the samples comes from (seed, epoch), the augmentation of a sample from (seed, epoch, sample): a batch is
the same whatever the number of workers, whatever ran before, and wherever a run begins. The training set is one endless
stream, epoch after epoch, cut into steps of `batch_size`: each sample comes once an epoch and no step is ragged.

Accelerate splits each batch over the processes (`split_batches=True`), so a global batch holds the same samples for any
number of processes.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from ..image_processing_vit_hf import VitHfImageProcessor, to_rgb
from .images import read_image

_SHUFFLE_BUFFER = 10_000  # samples of a streamed set among which the order is drawn


def seed_from(*address: int | str) -> int:
    """Return 63 bits that depend on the whole address only: equal addresses equal seeds, others unrelated ones."""
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class StepSampler:
    """Batches of (epoch, row) addresses: `num_steps` steps of `accumulation` equal batches each.

    Args:
        num_rows: rows of the split.
        batch_size: samples a step, over all processes and accumulated batches; divisible by `accumulation`.
        accumulation: batches that are accumulated into one step.
        num_steps: where to stop.
        seed: of the order.
        first_step: where to begin, for resuming.
    """

    def __init__(
        self, num_rows: int, batch_size: int, *, accumulation: int = 1, num_steps: int, seed: int, first_step: int = 0
    ):
        self.num_rows, self.seed = num_rows, seed
        self.batch_size = batch_size // accumulation  # what Accelerate splits over the processes
        self.drop_last = True  # no batch is ragged
        self.batches = range(first_step * accumulation, num_steps * accumulation)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        for batch in self.batches:
            addresses = []
            for position in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                if position // self.num_rows != epoch:
                    epoch = position // self.num_rows
                    generator = torch.Generator().manual_seed(seed_from("order", self.seed, epoch))
                    order = torch.randperm(self.num_rows, generator=generator).tolist()
                addresses.append((epoch, order[position % self.num_rows]))
            yield addresses


def _augmented(sample: dict[str, Any], transform: Callable, image: Any, address: tuple, where: str) -> dict[str, Any]:
    """Decode and transform one picture under the seed of its address; the global generator is left as it was."""
    picture = read_image(image, where=where)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_from("augment", *address))
        return {**sample, "pixel_values": transform(picture)}


class TrainRows(TorchDataset):
    """A split by (epoch, row) address; each item has `pixel_values` (C, H, W), `labels` and `rows`, both int."""

    def __init__(self, split: Dataset, image_column: str, label_column: str, transform: Callable, seed: int):
        self.images = split.select_columns([image_column])
        self.labels = list(split[label_column])
        self.image_column, self.transform, self.seed = image_column, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Any]:
        epoch, row = address
        sample = {"labels": self.labels[row], "rows": row}
        image = self.images[row][self.image_column]
        return _augmented(sample, self.transform, image, (self.seed, epoch, row), f"row {row} of the training split")


def _checked_label(label: Any, split: IterableDataset, column: str, where: str) -> int:
    """Return the label of a streamed sample, which no one has looked at before, if it is a class of the split."""
    feature = (split.features or {}).get(column)
    count = getattr(feature, "num_classes", None)
    if not isinstance(label, int) or label < 0 or (count is not None and label >= count):
        expected = "a class number" if count is None else f"0 to {count - 1}"
        raise ValueError(f"{where} has label {label!r} in column {column!r}; expected {expected}; correct or remove it")
    return label


class TrainStream(TorchIterableDataset):
    """A streamed split, epoch after epoch, shuffled within a buffer; items as in `TrainRows`, rows counted."""

    def __init__(self, split: IterableDataset, image_column: str, label_column: str, transform: Callable, seed: int):
        self.split = split.shuffle(seed=seed_from("order", seed) % 2**32, buffer_size=_SHUFFLE_BUFFER)
        self.image_column, self.label_column = image_column, label_column
        self.transform, self.seed = transform, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = 0
        while True:
            self.split.set_epoch(epoch)
            row = -1
            for row, sample in enumerate(self.split):
                where = f"sample {row} of epoch {epoch} of the training stream"
                label = _checked_label(sample[self.label_column], self.split, self.label_column, where)
                known = {"labels": label, "rows": row}
                image = sample[self.image_column]
                yield _augmented(known, self.transform, image, (self.seed, epoch, row), where)
            if row < 0:
                raise ValueError(
                    "the training stream has no samples; expected at least 1; check the split and the source"
                )
            epoch += 1


class EvaluationRows(TorchDataset):
    """A split in its own order; items are decoded pictures that the collator hands to the image processor."""

    def __init__(self, split: Dataset, image_column: str, label_column: str, name: str):
        self.images, self.labels = split.select_columns([image_column]), list(split[label_column])
        self.image_column, self.name = image_column, name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        picture = read_image(self.images[row][self.image_column], where=f"row {row} of split {self.name}")
        return {"image": to_rgb(picture), "labels": self.labels[row], "rows": row}


class EvaluationStream(TorchIterableDataset):
    """A streamed split, once; items as in `EvaluationRows`."""

    def __init__(self, split: IterableDataset, image_column: str, label_column: str, name: str):
        self.split, self.image_column, self.label_column, self.name = split, image_column, label_column, name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row, sample in enumerate(self.split):
            where = f"sample {row} of split {self.name}"
            label = _checked_label(sample[self.label_column], self.split, self.label_column, where)
            picture = read_image(sample[self.image_column], where=where)
            yield {"image": to_rgb(picture), "labels": label, "rows": row}


class EvaluationCollator:
    """Stack samples; the pictures go through the model's own image processor."""

    def __init__(self, processor: VitHfImageProcessor):
        self.processor = processor

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` (B, C, H, W) float32, `labels` and `rows` (B,) int64."""
        pixels = self.processor([sample["image"] for sample in samples], return_tensors="pt")["pixel_values"]
        numbers = {name: torch.tensor([sample[name] for sample in samples]) for name in ("labels", "rows")}
        return {"pixel_values": pixels, **numbers}


def build_train_loader(
    split: Dataset | IterableDataset,
    *,
    image_column: str,
    label_column: str,
    transform: Callable,
    batch_size: int,
    accumulation: int,
    num_steps: int,
    seed: int,
    workers: int,
) -> DataLoader:
    """Return the loader of a whole run: `num_steps * accumulation` batches of `batch_size / accumulation` samples.

    Batches have `pixel_values` (B, C, H, W) float32, `labels` and `rows` (B,) int64. A streamed split gives batches
    without end.
    """
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    if isinstance(split, IterableDataset):
        stream = TrainStream(split, image_column, label_column, transform, seed)
        return DataLoader(stream, batch_size=batch_size // accumulation, drop_last=True, **{**options, "num_workers": 0,
                          "persistent_workers": False})  # fmt: skip
    sampler = StepSampler(len(split), batch_size, accumulation=accumulation, num_steps=num_steps, seed=seed)
    rows = TrainRows(split, image_column, label_column, transform, seed)
    return DataLoader(rows, batch_sampler=sampler, pin_memory=torch.cuda.is_available(), **options)


def build_evaluation_loader(
    split: Dataset | IterableDataset,
    *,
    image_column: str,
    label_column: str,
    name: str,
    processor: VitHfImageProcessor,
    batch_size: int,
    workers: int,
) -> DataLoader:
    """Return the loader of a split in its own order, once; batches as in `build_train_loader`."""
    dataset: TorchDataset
    if isinstance(split, IterableDataset):
        dataset, workers = EvaluationStream(split, image_column, label_column, name), 0
    else:
        dataset = EvaluationRows(split, image_column, label_column, name)
    collate = EvaluationCollator(processor)
    pin = torch.cuda.is_available()
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate, num_workers=workers, pin_memory=pin)
