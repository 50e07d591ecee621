"""Samples of a streamed split, one by one: of the whole training run, and of a split that is scored.

Their labels were looked at by no one before. A run that is resumed reads again, undecoded, what it has had.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import cache, partial
from numbers import Integral
from typing import Any, cast

import PIL.Image
from datasets import IterableDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from .bad_images import BAD, PASSED_OVER, BadImage, describe_streamed, limit, too_many_in_succession
from .drafts import cut_picture
from .draws import sample_keys
from .images import read_rgb
from .order import seed_from
from .transforms import TrainTransform

Read = Callable[[], Any]
_SHUFFLE_BUFFER = 10_000  # samples of a streamed set among which the order is drawn


class TrainStream(TorchIterableDataset):
    """A streamed split, epoch after epoch, shuffled within a buffer; what `TrainRows` has one by one, rows counted.

    Each process reads all samples and takes its share. Their pixels are a function that cuts them, called for a sample
    that was taken; with `skip_bad` each process has to know which can be decoded, and all are cut.

    Args:
        first_position: samples of the run to pass over, undecoded, for resuming.
        skip_bad: whether samples that cannot be decoded are passed over; `passed_over` then counts them.
        passed_over: how many were, before `first_position`.
    """

    def __init__(
        self,
        split: IterableDataset,
        image_column: str,
        label_column: str,
        transform: TrainTransform,
        seed: int,
        first_position: int = 0,
        *,
        skip_bad: bool = False,
        passed_over: int = 0,
    ):
        self.skip_bad, self.passed_over = skip_bad, passed_over
        self.on_sample: Callable[[], object] = lambda: None
        """Called for each sample that is read, those that are passed over too."""
        self.bad: list[BadImage] = []  # in the order of reading, those in samples that are not asked for yet too
        self.split = split.shuffle(seed=seed_from("order", seed) % 2**32, buffer_size=_SHUFFLE_BUFFER)
        self.image_column, self.label_column = image_column, label_column
        self.transform, self.seed, self.first_position = transform, seed, first_position

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, seen, bad = 0, -1, 0
        self.bad.clear()
        while True:
            self.split.set_epoch(epoch)
            row = -1
            for row, sample in enumerate(self.split):
                seen += 1
                self.on_sample()
                if seen < self.first_position + self.passed_over:
                    continue
                where = f"sample {row} of epoch {epoch} of the training stream"
                label = _checked_label(sample[self.label_column], self.split, self.label_column, where)
                value = sample[self.image_column]
                key = int(sample_keys(self.seed, [epoch], [row], [0])[0])
                pixels = cache(partial(cut_picture, value, key, self.transform, where=where))
                try:
                    if self.skip_bad:
                        pixels()
                except BAD as error:
                    bad += 1
                    if bad > limit(seen):
                        raise too_many_in_succession(row + 1 - bad, bad, error) from error
                    self.bad.append(describe_streamed("train", row, value, error))
                    continue
                known = {PASSED_OVER: bad} if self.skip_bad else {}
                position = seen - self.passed_over - len(self.bad)
                yield {"keys": key, "labels": label, "rows": row, "pixels": pixels, "positions": position, **known}
                bad = 0
            if row < 0:
                raise ValueError(
                    "the training stream has no samples; expected at least 1; check the split and the source"
                )
            epoch += 1

    def explain(self, before: int, after: int) -> list[BadImage]:
        """Return those samples passed over in the whole run between two counts of them."""
        return self.bad[before - self.passed_over : after - self.passed_over]


class EvaluationStream(TorchIterableDataset):
    """A streamed split, once, its last sample repeated to fill the last batch; `images`, `labels` and `rows`.

    An image is a function that reads it, for whoever takes the sample; with a `stand_in` all are read by each process.
    """

    def __init__(
        self,
        split: IterableDataset,
        image_column: str,
        label_column: str,
        name: str,
        batch_size: int,
        stand_in: PIL.Image.Image | None = None,
    ):
        self.split, self.image_column, self.label_column, self.name = split, image_column, label_column, name
        self.batch_size, self.stand_in = batch_size, stand_in
        self.bad: dict[int, BadImage] = {}

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
            number, picture = row, cast(Read, cache(partial(read_rgb, sample[self.image_column], where=where)))
            try:
                if self.stand_in is not None:
                    picture()
            except BAD as error:
                picture, number = partial(copy.copy, self.stand_in), -1 - row
                self.bad[row] = describe_streamed(self.name, row, sample[self.image_column], error)
            yield {"images": picture, "labels": label, "rows": number}

    def explain(self, rows: list[int], split: str) -> list[BadImage]:
        """Return the records of bad rows, by the name of the split in them, in the process that has read them."""
        return [dataclasses.replace(self.bad[row], split=split) for row in rows if row in self.bad]


def _checked_label(label: Any, split: IterableDataset, column: str, where: str) -> int:
    """Return the label of a streamed sample, which no one has looked at before, if it is a class of the split."""
    feature = (split.features or {}).get(column)
    count = getattr(feature, "num_classes", None)
    if not isinstance(label, Integral) or label < 0 or (count is not None and label >= count):
        expected = "a class number" if count is None else f"0 to {count - 1}"
        raise ValueError(f"{where} has label {label!r} in column {column!r}; expected {expected}; correct or remove it")
    return int(label)
