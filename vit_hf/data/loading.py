"""From a split to batches, with every random number drawn from an address instead of a state.

The order of the samples comes from (seed, epoch) (`vit_hf.data.order`), the augmentation of a sample from a key of
(seed, epoch, row, copy) (`vit_hf.data.draws`): a batch is the same whatever the number of workers, whatever ran before,
and wherever a run begins. What a training loader gives is made ready on the device (`vit_hf.data.preparation`).

A split whose pixels are cached (`vit_hf.data.pixel_cache`) gives the numbers of its rows, and no loader process is
started for it. Pictures of any other are decoded, cut and resized one by one, in loader processes where there are any.

What a kernel gives for a picture can depend, in the last bit, on the number of pictures beside it. So a split that is
scored comes in full batches only, its last row repeated to fill the last one; whoever scores counts each row once.

Shapes: B pictures, C channels, h x w pixels as they come, H x W as the model sees them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from transformers.image_processing_backends import TorchvisionBackend

from ..image_processing_vit_hf import VitHfImageProcessor
from .bad_images import BAD, PASSED_OVER, BadImage, GoodRows, describe
from .columns import label_values
from .drafts import as_tensor, cut_picture
from .draws import sample_keys
from .host import by_pieces, one_thread
from .images import read_rgb
from .order import Address, FullBatches, StepSampler
from .pixel_cache import cached_pixels
from .preparation import Preparation, rows_of
from .streams import EvaluationStream, TrainStream
from .transforms import TrainTransform
from .workers import Sent, leave_requests_to_the_run

_ROWS_AT_ONCE = 8
Draw = Callable[[list[int], int, int], dict[str, torch.Tensor]]


def _labels(split: Dataset, column: str) -> torch.Tensor:
    """Return all labels, (N,) int64; row by row it would take as long as decoding small pictures."""
    return torch.from_numpy(label_values(split, column).to_numpy(zero_copy_only=False).astype(np.int64))


class TrainRows(TorchDataset):
    """A split by lists of `Address`.

    Args:
        split: map-style.
        image_column, label_column: of the split.
        transform: cuts the pictures.
        seed: of the augmentation.
        cached: whether the pixels are had otherwise and only their rows are asked for.
        skip_bad: whether the next good row stands in for one that cannot be decoded; `passed_over` then says so.
    """

    def __init__(
        self,
        split: Dataset,
        image_column: str,
        label_column: str,
        transform: TrainTransform,
        seed: int,
        *,
        cached: bool = False,
        skip_bad: bool = False,
    ):
        self.images, self.labels = split.select_columns([image_column]), _labels(split, label_column)
        self.image_column, self.transform, self.seed, self.cached = image_column, transform, seed, cached
        self.good = GoodRows(self._cut, len(split)) if skip_bad else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, addresses: list[Address]) -> dict[str, torch.Tensor]:
        """Return `keys`, `labels`, `rows`, `positions`, (B,) int64, and unless cached `pixels`, uint8 (B, C, h, w)."""
        positions, epochs, rows, copies = np.array(addresses, dtype=np.int64).T.copy()
        keys, numbers = sample_keys(self.seed, epochs, rows, copies), torch.from_numpy(rows)
        batch = {"keys": torch.from_numpy(keys), "positions": torch.from_numpy(positions)}
        if not self.cached:
            pixels: Iterable[torch.Tensor] = map(self._cut, rows.tolist(), keys.tolist(), self._images(rows.tolist()))
            if self.good is not None:
                taken, pixels, passed_over = zip(*map(self.good, rows.tolist(), keys.tolist()), strict=True)
                numbers, batch[PASSED_OVER] = torch.tensor(taken), torch.tensor(passed_over)
            batch["pixels"] = default_collate(list(pixels))  # in a loader process into memory that all share
        return {**batch, "labels": self.labels[numbers], "rows": numbers}

    def _images(self, rows: list[int]) -> Iterator[Any]:
        """Yield the images of some rows, a few at a time: less work a row, and never the files of a whole batch."""
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            yield from self.images[rows[start : start + _ROWS_AT_ONCE]][self.image_column]

    def _cut(self, row: int, key: int, image: Any = None) -> torch.Tensor:
        image = self.images[row][self.image_column] if image is None else image
        return cut_picture(image, key, self.transform, where=f"row {row} of the training split")

    def _picture(self, row: int) -> PIL.Image.Image:
        return read_rgb(self.images[row][self.image_column], where=f"row {row} of the training split")

    def explain(self, rows: torch.Tensor, passed_over: torch.Tensor) -> list[BadImage]:
        """Return the bad pictures that stand before the rows of a batch."""
        assert self.good is not None
        pairs = zip(rows.tolist(), passed_over.tolist(), strict=True)
        numbers = sorted({row for pair in pairs for row in self.good.passed(*pair)})
        return [_explain("train", row, self.images[row][self.image_column], self._picture) for row in numbers]


def _explain(split: str, row: int, value: Any, read: Callable[[int], Any]) -> BadImage:
    """Read a picture that another process could not decode, to say why."""
    try:
        read(row)
    except BAD as error:
        return describe(split, row, value, error)
    return describe(split, row, value, ValueError(f"row {row} of split {split}: it could not be decoded once"))


class TrainCollator:
    """Stack samples that come one by one, and draw what is drawn for a batch (mixing, masks) from its positions.

    Args:
        draw: of `vit_hf.data.mixing`, if anything is drawn.
        size: (H, W).
    """

    def __init__(self, draw: Draw | None, size: tuple[int, int]):
        self.draw, self.size = draw, size

    def __call__(self, samples: dict[str, torch.Tensor] | list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return what the samples have but for their positions, and the draws."""
        if isinstance(samples, list):
            samples = [{**sample, "pixels": sample["pixels"]()} for sample in samples]
        batch = Sent(samples if isinstance(samples, dict) else default_collate(samples))
        positions = batch.pop("positions").tolist()
        if self.draw is not None:
            batch |= self.draw(positions, *self.size)
        return batch


class EvaluationRows(TorchDataset):
    """A split in its own order, by lists of row numbers.

    Args:
        split: map-style.
        image_column, label_column: of the split.
        name: of the split, for errors.
        pixels: of all rows, if they are cached.
        stand_in: what a row has that cannot be decoded; its number is then -1 - row. None: it is an error.
    """

    def __init__(
        self,
        split: Dataset,
        image_column: str,
        label_column: str,
        name: str,
        pixels: torch.Tensor | None = None,
        stand_in: PIL.Image.Image | None = None,
    ):
        self.stand_in = stand_in
        self.images, self.labels = split.select_columns([image_column]), _labels(split, label_column)
        self.image_column, self.name, self.pixels = image_column, name, pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        """Return `images`, PIL pictures or uint8 (B, C, h, w); `labels` and `rows`, (B,) int64.

        A row that fills a batch up is decoded once.
        """
        numbers = torch.tensor(rows)
        known = {"labels": self.labels[numbers], "rows": numbers}
        if self.pixels is not None:
            return {"images": rows_of(self.pixels, numbers), **known}
        pictures = {row: self._picture_or_none(row) for row in dict.fromkeys(rows)}
        bad = torch.tensor([pictures[row] is None for row in rows])
        known["rows"] = torch.where(bad, -1 - numbers, numbers)
        return {"images": [pictures[row] or self.stand_in for row in rows], **known}

    def _picture_or_none(self, row: int) -> PIL.Image.Image | None:
        try:
            return self._picture(row)
        except BAD:
            if self.stand_in is None:
                raise
            return None

    def _picture(self, row: int) -> PIL.Image.Image:
        return read_rgb(self.images[row][self.image_column], where=f"row {row} of split {self.name}")

    def explain(self, rows: list[int], split: str) -> list[BadImage]:
        """Return the records of bad rows, by the name of the split in them."""
        return [_explain(split, row, self.images[row][self.image_column], self._picture) for row in rows]


class EvaluationCollator:
    """Resize the pictures of a batch as the model's own image processor does, or hand them to what stands in for it.

    What leaves a loader process are bytes, a quarter of the numbers that they become: `finish` does the rest of the
    processor's work, by the batch and on the device.
    """

    def __init__(self, processor: VitHfImageProcessor, to_pixels: Callable[[list[Any]], Any] | None = None):
        self.processor, self.to_pixels = processor, to_pixels
        settings: Any = processor
        own_steps = type(processor)._preprocess is not TorchvisionBackend._preprocess or settings.do_pad
        self.leaves_rest = to_pixels is None and not own_steps

    def __call__(self, samples: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
        """Return `pixel_values` for `finish`, (B, C, H, W) or what was asked for, `labels` and `rows` (B,) int64."""
        if isinstance(samples, list):
            numbers = {name: torch.tensor([sample[name] for sample in samples]) for name in ("labels", "rows")}
            samples = {"images": [sample["images"]() for sample in samples], **numbers}
        images = samples.pop("images")
        if self.to_pixels is not None:
            pixels = self.to_pixels(_as_pictures(images))
        elif not self.leaves_rest:
            pixels = self.processor(_as_pictures(images), return_tensors="pt")["pixel_values"]
        elif isinstance(images, torch.Tensor):
            with one_thread(images.device):
                pixels = _resized(self.processor, images)
        else:
            each = [_resized(self.processor, as_tensor(image)[None])[0] for image in images]
            pixels = default_collate(each)  # in a loader process into memory that all share
        return Sent(pixel_values=pixels, **samples)

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with `pixel_values` as the processor gives them, float32 (B, C, H, W), on its device."""
        if not self.leaves_rest:
            return batch
        pixels = batch["pixel_values"]
        with one_thread(pixels.device):
            return {**batch, "pixel_values": _normalized(self.processor, pixels)}


def _as_pictures(images: Any) -> list[PIL.Image.Image]:
    if isinstance(images, torch.Tensor):
        return [PIL.Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).contiguous().numpy()]
    return images


def _resized(processor: VitHfImageProcessor, pixels: torch.Tensor) -> torch.Tensor:
    """Return RGB pictures of one size, uint8 (B, 3 or 4, h, w), before they are scaled and normalised, (B, 3, H, W).

    A processor takes a batch apart, on a CPU each picture goes through all steps by itself: the cost of a call a
    picture, 20 times the work on 32 x 32 pixels. The steps themselves take a batch, so here and in `_normalized` they
    are taken in its order (`TorchvisionBackend._preprocess`); each picture comes out bit for bit as if it came alone.
    """
    settings: Any = processor
    if settings.do_resize:
        pixels = processor.resize(pixels, size=settings.size, resample=settings.resample)
    if settings.do_center_crop:
        pixels = processor.center_crop(pixels, settings.crop_size)
    return pixels[:, :3].contiguous()  # after the resize, which takes a third of the time with all four


def _normalized(processor: VitHfImageProcessor, pixels: torch.Tensor) -> torch.Tensor:
    """Return what `_resized` gives scaled and normalised."""
    steps = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    settings = [getattr(processor, name) for name in steps]
    if not (processor.do_rescale or processor.do_normalize):
        return pixels  # as bytes
    return by_pieces(pixels, lambda some: processor.rescale_and_normalize(some, *settings))


def finisher(loader: Iterable) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what makes the batches of `build_evaluation_loader` ready on their device; of other loaders nothing."""
    collate = getattr(loader, "collate_fn", None)
    return collate.finish if isinstance(collate, EvaluationCollator) else lambda batch: batch


def build_train_loader(
    split: Dataset | IterableDataset,
    *,
    image_column: str,
    label_column: str,
    transform: TrainTransform,
    batch_size: int,
    accumulation: int,
    num_steps: int,
    seed: int,
    workers: int,
    first_step: int = 0,
    repeats: int = 1,
    draw: Draw | None = None,
    skip_bad: bool = False,
    passed_over: int = 0,
) -> tuple[DataLoader, Preparation]:
    """Return the loader of a run from `first_step` on, `accumulation` batches a step, and what makes them ready.

    Batches have `batch_size / accumulation` samples: `keys`, `labels` and `rows` (B,) int64, `pixels` (B, C, h, w)
    uint8 unless they are cached, and what `draw` (of `vit_hf.data.mixing`) gives for their positions. A streamed split
    gives batches without end, has no `repeats`, and reads again, undecoded, what came before `first_step`. Neither it
    nor a split whose pixels are cached has `workers`. With `skip_bad` batches have `passed_over` (B,) too (but those of
    cached pixels, which are all good); a stream is then to be told how many were, in all, before `first_step`.
    """
    collate, pin = TrainCollator(draw, transform.size), torch.cuda.is_available()
    if isinstance(split, IterableDataset):
        columns, done = (image_column, label_column), first_step * batch_size
        stream = TrainStream(split, *columns, transform, seed, done, skip_bad=skip_bad, passed_over=passed_over)
        loader = DataLoader(stream, batch_size // accumulation, drop_last=True, collate_fn=collate, pin_memory=pin)
        return loader, Preparation(transform, None)
    sampler = StepSampler(
        len(split),
        batch_size,
        accumulation=accumulation,
        num_steps=num_steps,
        seed=seed,
        first_step=first_step,
        repeats=repeats,
    )
    pixels = cached_pixels(split, image_column)
    rows = TrainRows(split, image_column, label_column, transform, seed, cached=pixels is not None, skip_bad=skip_bad)
    options = _workers(workers, pixels)
    options["persistent_workers"] = bool(options)
    loader = DataLoader(rows, batch_sampler=sampler, collate_fn=collate, pin_memory=pin, **options)
    return loader, Preparation(transform, pixels)


def _workers(workers: int, pixels: torch.Tensor | None) -> dict[str, Any]:
    """Return the options of a loader about its processes: none where the pixels are there already."""
    if pixels is not None or workers == 0:
        return {}
    return {"num_workers": workers, "worker_init_fn": leave_requests_to_the_run}


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
    skip_bad: bool = False,
) -> DataLoader:
    """Return the loader of a split in its own order, once, in full batches; the last row fills up the last one.

    Args:
        split: any.
        image_column: of the split.
        label_column: of the split.
        name: of the split, for errors.
        processor: turns pictures into `pixel_values`.
        batch_size: pictures a batch, and where Accelerate splits batches of all processes together.
        workers: processes that decode; none for a streamed split, or one whose pixels are cached.
        to_pixels: from RGB pictures to a tensor, or a list of tensors, (B, ...), in place of the processor.
        skip_bad: whether a row that cannot be decoded has the number -1 - row, and a grey picture, and is no error.

    Returns:
        Batches for `finisher`, with `labels` and `rows` (B,) int64; from there `pixel_values` are float32 (B, C, H, W),
        or what `to_pixels` gives.
    """
    stand_in = PIL.Image.new("RGB", processor.image_hw[::-1], "grey") if skip_bad else None
    collate, pin = EvaluationCollator(processor, to_pixels), torch.cuda.is_available()
    if isinstance(split, IterableDataset):
        stream = EvaluationStream(split, image_column, label_column, name, batch_size, stand_in)
        return DataLoader(stream, batch_size, collate_fn=collate, pin_memory=pin)
    pixels = cached_pixels(split, image_column)
    rows = EvaluationRows(split, image_column, label_column, name, pixels, stand_in)
    sampler = FullBatches(len(split), batch_size)
    return DataLoader(rows, batch_sampler=sampler, collate_fn=collate, pin_memory=pin, **_workers(workers, pixels))
