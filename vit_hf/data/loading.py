"""From a split to batches, with every random number drawn from an address instead of a state.

The order of the samples comes from (seed, epoch), the augmentation of a sample from (seed, epoch, sample): a batch is
the same whatever the number of workers, whatever ran before, and wherever a run begins. The training set is one endless
stream, epoch after epoch, cut into steps of `batch_size`: each sample comes once an epoch and no step is ragged.

Accelerate splits each batch over the processes (`split_batches=True`), so a global batch holds the same samples for any
number of processes.

What a kernel gives for a picture can depend, in the last bit, on the number of pictures beside it. So a split that is
scored comes in full batches only, its last row repeated to fill the last one; whoever scores counts each row once.
"""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from ..image_processing_vit_hf import VitHfImageProcessor, to_rgb
from .images import read_image

_SHUFFLE_BUFFER = 10_000  # samples of a streamed set among which the order is drawn


def seed_from(*address: int | str) -> int:
    """Return 63 bits that depend on the whole address only: equal addresses equal seeds, others unrelated ones."""
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Address(NamedTuple):
    """Where a training sample stands: all that its randomness is drawn from, beside the seed."""

    position: int
    """Place in the stream of the whole run; names the pair that is mixed."""
    epoch: int
    row: int
    copy: int = 0
    """Number among the repeats of the row in one step."""


class StepSampler:
    """Batches of addresses: `num_steps` steps of `accumulation` equal batches each.

    Args:
        num_rows: rows of the split.
        batch_size: samples a step, over all processes and accumulated batches; divisible by `accumulation`.
        accumulation: batches that are accumulated into one step.
        num_steps: where to stop.
        seed: of the order.
        first_step: steps done before, for resuming.
        repeats: copies of a row in a step; the step then holds ceil(batch_size / repeats) different rows, whose copies
            stand as far apart as they can.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        accumulation: int = 1,
        num_steps: int,
        seed: int,
        first_step: int = 0,
        repeats: int = 1,
    ):
        self.num_rows, self.seed = num_rows, seed
        self.batch_size = batch_size // accumulation  # what Accelerate splits over the processes
        self.drop_last = True  # no batch is ragged
        self.accumulation, self.steps = accumulation, range(first_step, num_steps)
        self.rows_per_step = -(-batch_size // repeats)

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[Address]]:
        epoch, order = -1, []
        for step in self.steps:
            rows = []
            for place in range(step * self.rows_per_step, (step + 1) * self.rows_per_step):
                if place // self.num_rows != epoch:
                    epoch = place // self.num_rows
                    generator = torch.Generator().manual_seed(seed_from("order", self.seed, epoch))
                    order = torch.randperm(self.num_rows, generator=generator).tolist()
                rows.append((epoch, order[place % self.num_rows]))
            for part in range(self.accumulation):
                members = range(part * self.batch_size, (part + 1) * self.batch_size)
                start = step * self.accumulation * self.batch_size
                yield [Address(start + j, *rows[j % len(rows)], j // len(rows)) for j in members]


def _augmented(
    sample: dict[str, Any], transform: Callable, image: Any, seed: int, address: Address, where: str
) -> dict[str, Any]:
    """Decode and transform one picture under the seed of its address; the global generator is left as it was."""
    picture = read_image(image, where=where)
    copy = (address.copy,) if address.copy else ()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_from("augment", seed, address.epoch, address.row, *copy))
        return {**sample, "pixel_values": transform(picture), "positions": address.position}


class TrainRows(TorchDataset):
    """A split by `Address`; each item has `pixel_values` (C, H, W), `labels`, `rows` and `positions`, all int."""

    def __init__(self, split: Dataset, image_column: str, label_column: str, transform: Callable, seed: int):
        self.images = split.select_columns([image_column])
        self.labels = list(split[label_column])
        self.image_column, self.transform, self.seed = image_column, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, address: Address) -> dict[str, Any]:
        row = address.row
        sample = {"labels": self.labels[row], "rows": row}
        image = self.images[row][self.image_column]
        return _augmented(sample, self.transform, image, self.seed, address, f"row {row} of the training split")


def _checked_label(label: Any, split: IterableDataset, column: str, where: str) -> int:
    """Return the label of a streamed sample, which no one has looked at before, if it is a class of the split."""
    feature = (split.features or {}).get(column)
    count = getattr(feature, "num_classes", None)
    if not isinstance(label, int) or label < 0 or (count is not None and label >= count):
        expected = "a class number" if count is None else f"0 to {count - 1}"
        raise ValueError(f"{where} has label {label!r} in column {column!r}; expected {expected}; correct or remove it")
    return label


class TrainStream(TorchIterableDataset):
    """A streamed split, epoch after epoch, shuffled within a buffer; items as in `TrainRows`, rows counted.

    Args:
        first_position: samples of the run to pass over, undecoded, for resuming.
    """

    def __init__(
        self,
        split: IterableDataset,
        image_column: str,
        label_column: str,
        transform: Callable,
        seed: int,
        first_position: int = 0,
    ):
        self.split = split.shuffle(seed=seed_from("order", seed) % 2**32, buffer_size=_SHUFFLE_BUFFER)
        self.image_column, self.label_column = image_column, label_column
        self.transform, self.seed, self.first_position = transform, seed, first_position

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, position = 0, -1
        while True:
            self.split.set_epoch(epoch)
            row = -1
            for row, sample in enumerate(self.split):
                position += 1
                if position < self.first_position:
                    continue
                where = f"sample {row} of epoch {epoch} of the training stream"
                label = _checked_label(sample[self.label_column], self.split, self.label_column, where)
                known = {"labels": label, "rows": row}
                image = sample[self.image_column]
                yield _augmented(known, self.transform, image, self.seed, Address(position, epoch, row), where)
            if row < 0:
                raise ValueError(
                    "the training stream has no samples; expected at least 1; check the split and the source"
                )
            epoch += 1


class TrainCollator:
    """Stack samples, and draw what is drawn for a batch (mixing, masks) from the positions in it."""

    def __init__(self, draw: Callable[[list[int], int, int], dict[str, torch.Tensor]] | None):
        self.draw = draw

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` (B, C, H, W) float32, `labels` and `rows` (B,) int64, and the draws."""
        positions = [sample.pop("positions") for sample in samples]
        batch = default_collate(samples)
        height, width = batch["pixel_values"].shape[-2:]
        return batch if self.draw is None else {**batch, **self.draw(positions, height, width)}


class FullBatches:
    """Batches of row numbers, each row in its place, the last one repeated until the last batch is full.

    Args:
        num_rows: rows of the split.
        batch_size: rows a batch.
    """

    def __init__(self, num_rows: int, batch_size: int):
        self.num_rows, self.batch_size = num_rows, batch_size
        self.drop_last = False  # Accelerate reads it: every process gets as many batches, if need be from the start

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.num_rows, self.batch_size):
            yield [min(row, self.num_rows - 1) for row in range(start, start + self.batch_size)]


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

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """Return the items of a batch; a row that fills it up is decoded once."""
        items = {row: self[row] for row in dict.fromkeys(rows)}
        return [items[row] for row in rows]


class EvaluationStream(TorchIterableDataset):
    """A streamed split, once, its last sample repeated to fill the last batch; items as in `EvaluationRows`."""

    def __init__(self, split: IterableDataset, image_column: str, label_column: str, name: str, batch_size: int):
        self.split, self.image_column, self.label_column, self.name = split, image_column, label_column, name
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        item, count = None, 0
        for item in self._items():
            count += 1
            yield item
        if item is not None:
            yield from [item] * (-count % self.batch_size)

    def _items(self) -> Iterator[dict[str, Any]]:
        for row, sample in enumerate(self.split):
            where = f"sample {row} of split {self.name}"
            label = _checked_label(sample[self.label_column], self.split, self.label_column, where)
            picture = read_image(sample[self.image_column], where=where)
            yield {"image": to_rgb(picture), "labels": label, "rows": row}


class EvaluationCollator:
    """Stack samples; the pictures go through the model's own image processor, or what stands in for it."""

    def __init__(self, processor: VitHfImageProcessor, to_pixels: Callable[[list[Any]], Any] | None = None):
        self.processor, self.to_pixels = processor, to_pixels

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `pixel_values`, float32 (B, C, H, W) or what was asked for, `labels` and `rows` (B,) int64."""
        pictures = [sample["image"] for sample in samples]
        if self.to_pixels is not None:
            pixels = self.to_pixels(pictures)
        else:
            pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        numbers = {name: torch.tensor([sample[name] for sample in samples]) for name in ("labels", "rows")}
        return {"pixel_values": pixels, **numbers}


def _leave_requests_to_the_run(worker: int) -> None:
    """Let a loader process pass over Ctrl-C, and over SIGTERM unless its own run sends it, which ends it so.

    Terminals and schedulers send both to the whole group; the run ends its loader processes itself, once it has saved.
    When it dies, they see that and end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    run = os.getppid()

    def wait_for_the_run() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait_for_the_run, daemon=True).start()


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
    first_step: int = 0,
    repeats: int = 1,
    draw: Callable[[list[int], int, int], dict[str, torch.Tensor]] | None = None,
) -> DataLoader:
    """Return the loader of a run from `first_step` on: `accumulation` batches a step.

    Batches have `batch_size / accumulation` samples: `pixel_values` (B, C, H, W) float32, `labels` and `rows` (B,)
    int64, and what `draw` (of `vit_hf.data.mixing`) gives for their positions. A streamed split gives batches without
    end, has no `repeats`, and reads again, undecoded, what came before `first_step`.
    """
    collate, pin = TrainCollator(draw), torch.cuda.is_available()
    if isinstance(split, IterableDataset):
        stream = TrainStream(split, image_column, label_column, transform, seed, first_step * batch_size)
        return DataLoader(stream, batch_size // accumulation, drop_last=True, collate_fn=collate, pin_memory=pin)
    sampler = StepSampler(
        len(split),
        batch_size,
        accumulation=accumulation,
        num_steps=num_steps,
        seed=seed,
        first_step=first_step,
        repeats=repeats,
    )
    rows = TrainRows(split, image_column, label_column, transform, seed)
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": pin}
    return DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=collate,
        worker_init_fn=_leave_requests_to_the_run if workers else None,
        **options,
    )


def build_evaluation_loader(
    split: Dataset | IterableDataset,
    *,
    image_column: str,
    label_column: str,
    name: str,
    processor: VitHfImageProcessor,
    batch_size: int,
    workers: int,
    to_pixels: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """Return the loader of a split in its own order, once, in full batches; the last row fills up the last one.

    Args:
        split: any.
        image_column: of the split.
        label_column: of the split.
        name: of the split, for errors.
        processor: turns pictures into `pixel_values`.
        batch_size: pictures a batch, and where Accelerate splits batches of all processes together.
        workers: processes that decode; none for a streamed split.
        to_pixels: from RGB pictures to a tensor, or a list of tensors, (B, ...), in place of the processor.

    Returns:
        Batches as in `build_train_loader`.
    """
    collate, pin = EvaluationCollator(processor, to_pixels), torch.cuda.is_available()
    if isinstance(split, IterableDataset):
        stream = EvaluationStream(split, image_column, label_column, name, batch_size)
        return DataLoader(stream, batch_size, collate_fn=collate, pin_memory=pin)
    return DataLoader(
        EvaluationRows(split, image_column, label_column, name),
        batch_sampler=FullBatches(len(split), batch_size),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_leave_requests_to_the_run if workers else None,
    )
