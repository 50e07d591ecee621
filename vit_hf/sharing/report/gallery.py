"""The mistakes that a model was surest of: the picture as it saw it, and where it looked."""

import io
from dataclasses import dataclass

import torch
from datasets import Dataset
from PIL import Image

from ...data.images import read_rgb
from ...evaluation.metrics import top_k_correct
from ...evaluation.scoring import Scores
from ...image_processing_vit_hf import VitHfImageProcessor
from ...inspection.attention import attention_map, lay_over, model_view
from ...modeling_vit_hf import VitHfForImageClassification

SHOWN = 12
PIXELATED = 96  # pixels; pictures up to so large are shown with their pixels visible
_SIDE = 224  # pixels of the longer side of a picture in the report; larger ones are made smaller


@dataclass(frozen=True)
class Mistake:
    """A picture that was named wrongly."""

    row: int
    """In the split that was scored."""
    true: int
    named: int
    probability: float
    """Of the class that was named."""
    true_probability: float
    """Of the class that is right."""


def most_confident_mistakes(scores: Scores, limit: int = SHOWN) -> list[Mistake]:
    """Return the mistakes in the order of the probability that was given to the wrong class; the first row first.

    A class is named as in `confusion_counts`.
    """
    logits, labels = scores.logits, scores.labels
    wrong = (~top_k_correct(logits, labels, 1)).nonzero()[:, 0]
    if not len(wrong):
        return []
    truth = labels[wrong][:, None]
    named = logits[wrong].scatter(1, truth, -torch.inf).argmax(dim=1, keepdim=True)
    probabilities = logits[wrong].double().softmax(dim=1)
    confidence, of_truth = probabilities.gather(1, named)[:, 0], probabilities.gather(1, truth)[:, 0]
    order = torch.sort(confidence, descending=True, stable=True).indices[:limit].tolist()
    return [
        Mistake(int(wrong[i]), int(truth[i]), int(named[i]), float(confidence[i]), float(of_truth[i])) for i in order
    ]


def pixels_of(rows: Dataset, numbers: list[int], image_column: str, processor: VitHfImageProcessor) -> torch.Tensor:
    """Return what the model is given of some rows, (B, C, H, W), float32."""
    pictures = [read_rgb(rows[number][image_column], where=f"row {number}") for number in numbers]
    return processor(pictures, return_tensors="pt")["pixel_values"]


def views(
    model: VitHfForImageClassification, processor: VitHfImageProcessor, pixels: torch.Tensor
) -> list[tuple[Image.Image, Image.Image]]:
    """Return each picture as the model sees it, and the same with the attention of the last block laid over."""
    attention = attention_map(model, pixels, method="last")  # (B, h, w)
    seen = model_view(processor, pixels)
    return [(view, lay_over(view, weights)) for view, weights in zip(seen, attention, strict=True)]


def to_file(picture: Image.Image, side: int = _SIDE) -> bytes:
    """Return a picture as the bytes of a PNG, its longer side at most `side` pixels."""
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
