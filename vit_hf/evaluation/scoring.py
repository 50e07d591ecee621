"""Run a classifier over a split and keep the scores of every sample, each exactly once.

Shapes: N samples of the split, B batch, L classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from ..data.bad_images import BrokenSourceError
from ..data.loading import finisher
from ..image_processing_vit_hf import VitHfImageProcessor, to_rgb
from ..modeling_vit_hf import VitHfForImageClassification
from .metrics import load_metrics
from .metrics.samples import probability_figures

OnBad = Callable[[list[int]], None]


@dataclass(frozen=True)
class Scores:
    """What a model said of a split, in the split's order, on the CPU."""

    logits: torch.Tensor
    """(N, L), float32."""
    labels: torch.Tensor
    """(N,), int64."""
    left_out: tuple[int, ...] = ()
    """Rows of the split that could not be decoded and are not among the N, ascending."""

    @property
    def rows(self) -> torch.Tensor:
        """(N,), int64: the numbers in the split."""
        rows = torch.arange(len(self.labels) + len(self.left_out))
        return rows[~torch.isin(rows, torch.tensor(self.left_out, dtype=torch.int64))]

    def measure(self) -> dict[str, float]:
        """Return top1 and top5 (fractions), loss (mean cross-entropy in nats) and n."""
        found = load_metrics().compute(predictions=self.logits, references=self.labels)
        loss = math.fsum(probability_figures(self.logits, self.labels)[0].tolist()) / len(self.labels)
        return {"top1": float(found["top1"]), "top5": float(found["top5"]), "loss": loss, "n": len(self.labels)}


def score(
    model: nn.Module,
    loader: DataLoader,
    accelerator: Accelerator,
    *,
    num_samples: int | None,
    on_batch: Callable[[int], None] = lambda count: None,
    on_bad: OnBad = lambda rows: None,
) -> Scores:
    """Score every sample of a split once, over all processes; arguments and errors as of `gather_rows`.

    Args:
        model: a classifier on the accelerator's device; left in the mode it was in.
        loader: prepared by the accelerator; batches with `pixel_values`, `labels` and `rows`.
        accelerator: gathers the samples.
        num_samples: N, checked; None for a streamed split.
        on_batch: called with the number of samples after each batch, for progress.
        on_bad: as of `gather_rows`; the scores say which rows are left out.
    """

    def logits_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(pixel_values=batch["pixel_values"]).logits.float()  # (B, L)

    options: dict[str, Any] = {"num_samples": num_samples, "on_batch": on_batch, "on_bad": on_bad}
    return gather_scores(model, loader, accelerator, logits_of, **options)


def gather_scores(
    model: nn.Module,
    loader: DataLoader,
    accelerator: Accelerator,
    logits_of: Callable[[dict[str, Any]], torch.Tensor],
    *,
    on_bad: OnBad = lambda rows: None,
    **options: Any,
) -> Scores:
    """Return the scores of a split; `logits_of` a batch are (B, L) float32, the rest is as of `gather_rows`."""
    bad: list[int] = []

    def leave_out(rows: list[int]) -> None:
        bad.extend(rows)
        on_bad(rows)

    def forward(batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        return batch["labels"], logits_of(batch)

    labels, logits = gather_rows(model, loader, accelerator, forward, on_bad=leave_out, **options)
    return Scores(logits=logits, labels=labels, left_out=tuple(bad))


def gather_rows(
    model: nn.Module,
    loader: DataLoader,
    accelerator: Accelerator,
    forward: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, ...]],
    *,
    num_samples: int | None,
    on_batch: Callable[[int], None] = lambda count: None,
    on_bad: OnBad = lambda rows: None,
) -> tuple[torch.Tensor, ...]:
    """Run over a split in evaluation mode and return what `forward` gives, a row a sample, in the split's order.

    Args:
        model: what `forward` calls; left in the mode it was in.
        loader: prepared by the accelerator; batches with `rows`.
        accelerator: gathers the samples; samples that it repeats to even out the last batch are counted once.
        forward: from a batch to tensors (B, ...).
        num_samples: N, checked; None for a streamed split.
        on_batch: called with the number of samples after each batch.
        on_bad: called on all processes with the rows that could not be decoded, ascending, if there are any: rows
            whose number in a batch is -1 - row (`build_evaluation_loader` with `skip_bad`).

    Returns:
        Tensors (N, ...), on the CPU, without the bad rows.

    Raises:
        RuntimeError: the scored rows are not exactly those of the split.
        BrokenSourceError: all are bad.
        FloatingPointError: a value is NaN or infinite.
    """
    training = model.training
    model.eval()
    collected: list[tuple[torch.Tensor, ...]] = []
    finish = finisher(loader)
    try:
        with torch.no_grad(), accelerator.autocast():
            for batch in map(finish, loader):
                gathered = accelerator.gather((batch["rows"], *forward(batch)))
                collected.append(tuple(tensor.cpu() for tensor in gathered))
                on_batch(len(batch["rows"]) * accelerator.num_processes)
    finally:
        model.train(training)
    if not collected:
        raise RuntimeError("there is nothing to score: the split is empty; expected at least 1 sample")
    rows, *values = (torch.cat(parts) for parts in zip(*collected, strict=True))
    bad, rows = rows < 0, torch.where(rows < 0, -1 - rows, rows)
    order = torch.unique(rows, return_inverse=True)  # sorted rows, each once
    first = torch.full((len(order[0]),), len(rows)).scatter_reduce(0, order[1], torch.arange(len(rows)), "amin")
    expected = len(first) if num_samples is None else num_samples
    if not torch.equal(order[0], torch.arange(expected)):
        raise RuntimeError(f"scored {len(first)} different rows of a split of {expected}; expected each row once")
    if bad.any():
        on_bad(rows[first][bad[first]].tolist())
        first = first[~bad[first]]
        if not len(first):
            raise BrokenSourceError(f"none of the {expected} pictures of the split can be decoded; mend the source")
    rows, values = rows[first], [value[first] for value in values]
    for value in values:
        finite = torch.isfinite(value).reshape(len(value), -1).all(dim=1)
        if not finite.all():
            raise FloatingPointError(
                f"the scores of row {rows[~finite][0].item()} are not finite; the weights are damaged, or training "
                "diverged"
            )
    return tuple(values)


def align_labels(labels: torch.Tensor, data_names: tuple[str, ...], model_names: tuple[str, ...]) -> torch.Tensor:
    """Return the data's class indices in the model's numbering, matched by name.

    Args:
        labels: (N,), int64, indices into `data_names`.
        data_names: class names of the data set, in its order.
        model_names: class names of the model, in its order.

    Raises:
        ValueError: the model does not know a class of the data.
    """
    unknown = [name for name in data_names if name not in model_names]
    if unknown:
        raise ValueError(
            f"the data has {len(data_names)} classes, {len(unknown)} of them unknown to the model (first: "
            f"{unknown[0]!r}; the model knows {len(model_names)}, first {model_names[0]!r}); evaluate on data with the "
            "model's classes, or fine-tune the model on this data first"
        )
    return torch.tensor([model_names.index(name) for name in data_names])[labels]


@torch.no_grad()
def classify(
    model: VitHfForImageClassification,
    processor: VitHfImageProcessor,
    pictures: list[PIL.Image.Image],
    *,
    top_k: int = 5,
    batch_size: int = 32,
) -> list[list[tuple[str, float]]]:
    """Return the `top_k` classes of each picture with their probabilities, the likeliest first.

    Args:
        model: a classifier, in evaluation mode.
        processor: its image processor.
        pictures: any mode and size.
        top_k: classes a picture; all there are when fewer.
        batch_size: pictures the model takes at once.
    """
    answers = []
    id2label = model.config.id2label or {}
    for start in range(0, len(pictures), batch_size):
        batch = [to_rgb(picture) for picture in pictures[start : start + batch_size]]
        pixels = processor(batch, return_tensors="pt")["pixel_values"].to(model.device)  # (B, C, H, W)
        probabilities = model(pixels).logits.float().softmax(dim=-1)  # (B, L)
        values, indices = probabilities.topk(min(top_k, probabilities.shape[-1]))
        for row_values, row_indices in zip(values.tolist(), indices.tolist(), strict=True):
            names = [id2label[index] for index in row_indices]
            answers.append(list(zip(names, row_values, strict=True)))
    return answers
