"""Mode `input`: real pictures in, batches on the device out, for training and for evaluation.

One timing is a whole pass, from asking the loader for its first batch to the last batch on the device. Loader processes
are started before and stay; none of them has anything to do while another library is timed. Ours caches the decoded
pixels of small pictures: what that took once is recorded apart, and so is the first pass of each.

Shapes: B pictures, C channels, H x W pixels, L classes.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset, Image, concatenate_datasets

from vit_hf import VitHfImageProcessor, get_recipe
from vit_hf.data.loading import build_evaluation_loader, build_train_loader, finisher
from vit_hf.data.mixing import PairMixing
from vit_hf.data.pictures import DataFields, Pictures, open_pictures
from vit_hf.data.transforms import TrainTransform

from .peer_inputs import Pass, dict_pass, processor_loader, timm_loader, torchvision_loader
from .timing import FAILURES, first_line, interleave, synchronizer

OURS = "vit_hf"
PIXEL_TOLERANCE = 2.01 * 2 / 255  # two levels of 256, normalised: Pillow and torchvision round differently
RECIPES = {"cifar100": "cifar100_scratch", "imagenet": "deit"}
SIZES = {"cifar100": (32, 32), "imagenet": (224, 224)}
BATCHES = {"cifar100": 128, "imagenet": 32}


@dataclass(frozen=True)
class Case:
    """One kind of input."""

    mode: str
    """"input"."""
    what: str
    """"cifar100 train", "cifar100 evaluation", "imagenet train" or "imagenet evaluation"."""
    device: str
    batch: int
    workers: int
    """Of those who use any; each is measured without, too, and the better one counts."""

    @property
    def set_name(self) -> str:
        """The data set."""
        return self.what.partition(" ")[0]

    @property
    def training(self) -> bool:
        """Whether pictures are augmented."""
        return self.what.endswith("train")

    @property
    def libraries(self) -> tuple[str, ...]:
        """Rows of the record."""
        peers = ["torchvision", "timm"] + ([] if self.training else ["transformers"])
        kinds = [f"{self.workers} workers", "0 workers"] if self.workers else ["0 workers"]
        ours = [OURS] if self.set_name == "cifar100" else [f"{OURS}, {kind}" for kind in kinds]  # pixels in a cache
        return (*ours, *(f"{name}, {kind}" for name in peers for kind in kinds))


def cases(sets: list[str], devices: list[str], batch: int | None, workers: int) -> list[Case]:
    """Return training and evaluation input of each data set."""
    return [
        Case("input", f"{name} {kind}", device, batch or BATCHES[name], workers)
        for device in devices
        for name in sets
        for kind in ("train", "evaluation")
    ]


def open_set(case: Case, source: str, pictures: int) -> Pictures:
    """Open so many pictures of a data set, each class by its share; a smaller set is gone through several times."""
    opened = open_pictures(DataFields(source=source, max_train_images=pictures, max_test_images=pictures))
    if case.training:
        return dataclasses.replace(opened, train=_stretched(opened.train, pictures))
    return dataclasses.replace(opened, test=_stretched(opened.test, pictures))


def _stretched(split: Any, count: int) -> Dataset:
    return concatenate_datasets([split] * -(-count // len(split))).select(range(count))


# ---------------------------------------------------------------------------------------------- ours
def our_pass(case: Case, pictures: Pictures, library: str, device: torch.device) -> Pass:
    """Return the input path of `vit-hf train` and `vit-hf evaluate`, with the recipe's augmentation.

    Pictures are not repeated within a step (DeiT's recipe does), so that each batch costs a full decoding.
    """
    recipe = get_recipe(RECIPES[case.set_name])
    height, width = SIZES[case.set_name]
    processor = VitHfImageProcessor(size={"height": height, "width": width})
    if not case.training:
        loader = build_evaluation_loader(
            pictures.test,
            **pictures.columns,
            name=pictures.test_name,
            processor=processor,
            batch_size=case.batch,
            workers=_workers(library),
        )
        finish = finisher(loader)

        def finished() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for batch in loader:
                there = finish({name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()})
                yield there["pixel_values"], there["labels"]

        return finished
    augmentation = dataclasses.replace(recipe.augmentation, repeats=1)
    mixing = PairMixing(augmentation, num_classes=len(pictures.source.label_names), seed=0)
    train_loader, prepare = build_train_loader(
        pictures.train,
        **pictures.columns,
        transform=TrainTransform(augmentation, processor),
        batch_size=case.batch,
        accumulation=1,
        num_steps=len(pictures.train) // case.batch,
        seed=0,
        workers=_workers(library),
        draw=mixing.draw,
    )

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in train_loader:
            ready = prepare(batch, device)
            yield mixing.apply(ready["pixel_values"], ready["labels"], ready)

    return batches


def peer_pass(case: Case, pictures: Pictures, library: str, device: torch.device) -> Pass:
    """Return the input path of a peer with so many workers: "timm, 2 workers"."""
    name = library.partition(",")[0]
    augmentation = None
    if case.training:
        augmentation = dataclasses.replace(get_recipe(RECIPES[case.set_name]).augmentation, repeats=1)
    columns: dict[str, str] = {**pictures.columns}  # type: ignore[dict-item]
    whole: Any = pictures.train if case.training else pictures.test
    split = whole.cast_column(columns["image_column"], Image())  # decoded by `datasets`, as everywhere
    common: dict[str, Any] = {
        "size": SIZES[case.set_name],
        "batch_size": case.batch,
        "workers": _workers(library),
    }
    if name == "transformers":
        return dict_pass(processor_loader(split, columns, **common), device)
    common |= {"augmentation": augmentation, "num_classes": len(pictures.source.label_names)}
    if name == "torchvision":
        return dict_pass(torchvision_loader(split, columns, **common), device)
    loader = timm_loader(split, columns, device=device, **common)
    return partial(iter, loader)


def _workers(library: str) -> int:
    """Return the number in the name of a row, 0 without one."""
    rest = library.partition(", ")[2]
    return int(rest.split()[0]) if rest else 0


# ---------------------------------------------------------------------------------------------- a case
def run_pass(begin: Pass) -> int:
    """Take all batches; returns the number of pictures."""
    return sum(len(pixels) for pixels, _ in begin())


def _statistics(begin: Pass) -> dict[str, float]:
    """Return mean and standard deviation of the pixels of a pass, and the mean of the largest label weight."""
    count = total = squares = labels = 0.0
    batches = 0
    for pixels, targets in begin():
        values = pixels.double()
        count, total, squares = count + values.numel(), total + float(values.sum()), squares + float((values**2).sum())
        labels += float(targets.amax(dim=1).mean()) if targets.is_floating_point() else 1.0
        batches += 1
    mean = total / count
    return {
        "pixel_mean": mean,
        "pixel_std": (squares / count - mean**2) ** 0.5,
        "largest_label": labels / batches,
    }


def measure(case: Case, source: str, *, pictures: int, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Time one kind of input in all libraries, on the same pictures.

    Returns:
        As `models.measure`; in the rows, beside the seconds of a pass, "first_seconds" (setting up and the first pass),
        for training the statistics of the augmented pixels, for evaluation the largest and the mean difference of the
        first batch's pixels from ours, in normalised units (one of 256 levels is 0.0078), which decides "agrees".
    """
    device = torch.device(case.device)
    warnings.filterwarnings("ignore", ".*EXIF orientation", UserWarning)  # of a picture, at each reading of it
    opened = open_set(case, source, pictures)
    whole = len(opened.train if case.training else opened.test)  # type: ignore[arg-type]
    count = whole // case.batch * case.batch if case.training else whole
    if not count:
        raise ValueError(f"{whole} pictures of {case.what} make no batch of {case.batch}; give a smaller --batch")
    rows: dict[str, dict[str, Any]] = {library: {} for library in case.libraries}
    tasks: dict[str, Callable[[], object]] = {}
    first: dict[str, torch.Tensor] = {}
    for library in case.libraries:
        try:
            start = time.perf_counter()
            maker = our_pass if library.startswith(OURS) else peer_pass
            begin = maker(case, opened, library, device)
            passed = run_pass(begin)
            rows[library]["first_seconds"] = time.perf_counter() - start
            if passed < count:
                raise RuntimeError(f"a pass had {passed} pictures, expected {count}")
            if case.training:
                rows[library] |= _statistics(begin)
            else:
                first[library] = next(iter(begin()))[0].float().cpu()
            tasks[library] = partial(run_pass, begin)
        except FAILURES as error:
            rows[library]["failure"] = first_line(error)
    agrees, ours = True, case.libraries[0]
    for library, pixels in first.items():
        if library != ours and ours in first:
            gap = (pixels - first[ours]).abs()
            rows[library] |= {"difference": float(gap.max()), "mean_difference": float(gap.mean())}
            agrees &= rows[library]["difference"] <= PIXEL_TOLERANCE
    timings = interleave(tasks, rounds=rounds, warmup=0, min_seconds=min_seconds, synchronize=synchronizer(device))
    for library, reason in timings.failures.items():
        rows[library]["failure"] = reason
    for library, seconds in timings.seconds.items():
        rows[library]["seconds"] = seconds
    return {"case": asdict(case), "pictures": count, "rows": rows, "agrees": agrees}
