"""Run the original library and ours on the same images: the largest differences of pixels, tokens and logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .files import read_checkpoint
from .load import find_source, load_checkpoint
from .originals import ORIGINALS, Original
from .receipt import CheckpointError

TOLERANCE = 1e-4  # of tokens and logits, relative to the largest value where that exceeds 1; float32


@dataclass(frozen=True)
class Difference:
    """One comparison.

    Attributes:
        quantity: "preprocessed pixels", "tokens" or "logits".
        largest: the largest absolute difference; None if the original has no such thing.
        scale: the largest absolute value of the original.
        note: what was compared, or why nothing was.
    """

    quantity: str
    largest: float | None
    scale: float | None
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """Differences from the original on some images."""

    original: str
    images: int
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """Whether tokens and logits differ by rounding only: at most `TOLERANCE`, relative above 1."""
        return all(
            row.largest <= TOLERANCE * max(1.0, row.scale or 0.0)
            for row in self.differences
            if row.largest is not None and row.quantity != "preprocessed pixels"
        )


def verify_conversion(
    path_or_hub_id: str | Path,
    images: Sequence[Image.Image] | None = None,
    *,
    source: str | None = None,
    revision: str | None = None,
    **config_overrides: Any,
) -> Verification:
    """Compare our model with the original library's on the same images.

    Args:
        path_or_hub_id: as in `load_checkpoint`.
        images: pictures, any size; the two photographs that come with scikit-learn when None.
        source: as in `load_checkpoint`.
        revision: as in `load_checkpoint`.
        config_overrides: what the file does not tell, as in `load_checkpoint`.

    Raises:
        CheckpointError: the checkpoint does not load, or its original library is not installed or cannot build it.
    """
    checkpoint = read_checkpoint(path_or_hub_id, revision=revision)
    source = source or find_source(checkpoint)
    model = load_checkpoint(path_or_hub_id, source=source, revision=revision, **config_overrides).float()
    if any(entry.action == "resampled" for entry in vars(model)["receipt"].tensors):
        raise CheckpointError("a conversion is verified at the file's own sizes; leave image_size and patch_size out")
    original = ORIGINALS[source](checkpoint, model, revision)
    pictures = [picture.convert("RGB") for picture in (images or _sample_images())]
    processor = vars(model)["image_processor"]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs_tokens, theirs_logits = original.forward(pixels)
        ours = model.vit(pixels).last_hidden_state
        logits = model(pixels).logits
    rows = [
        _compare_pixels(original, pictures, pixels, processor),
        _compare("tokens", theirs_tokens, ours, "same pixels in"),
        _compare("logits", theirs_logits, logits, "same pixels in"),
    ]
    return Verification(original.name, len(pictures), tuple(rows))


def _sample_images() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(array) for array in load_sample_images().images]


def _compare(quantity: str, theirs: torch.Tensor | None, ours: torch.Tensor, note: str) -> Difference:
    if theirs is None:
        return Difference(quantity, None, None, "the original gives none")
    if theirs.shape != ours.shape:
        raise CheckpointError(f"{quantity} have shape {tuple(theirs.shape)} there and {tuple(ours.shape)} here")
    return Difference(quantity, (theirs - ours).abs().max().item(), theirs.abs().max().item(), note)


def _compare_pixels(original: Original, pictures: list[Image.Image], ours: torch.Tensor, processor: Any) -> Difference:
    if original.preprocess is None:
        return Difference("preprocessed pixels", None, None, original.without)
    theirs = torch.stack([original.preprocess(picture) for picture in pictures])
    found = _compare("preprocessed pixels", theirs, ours, "")
    levels = (found.largest or 0.0) * 255 * max(processor.image_std)
    return Difference(found.quantity, found.largest, found.scale, f"{levels:.2f} of 255 grey levels")
