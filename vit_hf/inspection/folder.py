"""All that can be seen of a classifier, as PNGs and the numbers behind them: what `vit-hf inspect` writes.

    filters.png               principal components of the patch projection's filters; none for a hybrid
    positions.png             similarity of the patches' position embeddings
    attention_distance.png    how far each head looks, averaged over all pictures that were given
    attention_<picture>.png   the picture as the model sees it, the last step of attention over it, the rollout
    heads_<picture>.png       each head of the last step
    patches_<picture>.png     the picture as the model cuts it
    inspection.json           sizes and costs by layer, and the numbers of all figures; rows and columns count from 0

Attention and patches need pictures; those of a single picture are drawn for the first few.
"""

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from PIL import Image

from ..image_processing_vit_hf import VitHfImageProcessor, VitHfImageProcessorPil
from ..modeling_vit_hf import VitHfForImageClassification
from .attention import attention_maps, model_view
from .attention_plots import draw_attention, draw_heads
from .distance import attention_distance, draw_attention_distance, patch_distances
from .filters import draw_filters, filter_components
from .patches import draw_patches
from .positions import draw_position_similarity, position_similarity, sampled
from .style import save_figure
from .summary import Summary

NUMBERS = "inspection.json"
_AT_ONCE = 8  # pictures that are prepared together


def write_inspection(
    model: VitHfForImageClassification,
    processor: VitHfImageProcessor | VitHfImageProcessorPil,
    pictures: Iterable[tuple[str, Image.Image]],
    folder: str | os.PathLike,
    *,
    summary: Summary,
    drawn: int,
    name: str = "",
    on_step: Callable[[str], None] = lambda what: None,
) -> list[str]:
    """Draw everything into a folder.

    Args:
        model: in evaluation mode.
        processor: the model's own.
        pictures: (name, PIL image) each; names become parts of file names, unfit letters replaced. Without any, what
            needs pictures is left out.
        folder: an existing one.
        summary: of the model, for the numbers.
        drawn: how many of the pictures get figures of their own; attention distance is averaged over all.
        name: of the model, for the numbers.
        on_step: called before each piece of work with a few words about it.

    Returns:
        Names of the files, in the order that they were written.
    """
    writer = _Writer(Path(folder), on_step)
    numbers = {"model": name, **_sizes(summary), **_weights(model, writer)}
    numbers.update(_pictures(model, processor, pictures, drawn, writer))
    (writer.folder / NUMBERS).write_text(json.dumps(numbers, allow_nan=False) + "\n", encoding="utf-8")
    return [*writer.written, NUMBERS]


class _Writer:
    """Saves figures into a folder and remembers their names."""

    def __init__(self, folder: Path, on_step: Callable[[str], None]):
        self.folder, self.on_step = folder, on_step
        self.written: list[str] = []

    def save(self, figure: Figure, name: str) -> str:
        self.on_step(name)
        save_figure(figure, self.folder / name)
        self.written.append(name)
        return name


def _sizes(summary: Summary) -> dict[str, Any]:
    """Sizes of the network and its layers."""
    grid, patch, image = summary.grid_hw, summary.patch_hw, summary.image_hw
    totals = {"parameters": summary.parameters, "flops": summary.flops, "activation_bytes": summary.activation_bytes}
    layers = [asdict(layer) for layer in summary.layers]
    return {"image_hw": image, "patch_hw": patch, "grid_hw": grid, "tokens": summary.tokens, **totals, "layers": layers}


def _weights(model: VitHfForImageClassification, writer: _Writer) -> dict[str, Any]:
    """Draw what the weights alone tell: filters and positions."""
    numbers: dict[str, Any] = {"filters": None}
    if model.config.resnet_stem_layers is None:
        found = filter_components(model)
        shares, components = _listed(found.shares), _listed(found.components)
        numbers["filters"] = {"filters": found.filters, "variance_shares": shares, "components": components}
        writer.save(draw_filters(model), "filters.png")
    rows, columns = (sampled(size) for size in model.config.grid_hw)
    similarity = position_similarity(model)[rows][:, columns]  # (rows, columns, h, w)
    numbers["positions"] = {"rows": rows, "columns": columns, "cosine_similarity": _listed(similarity)}
    writer.save(draw_position_similarity(model), "positions.png")
    return numbers


def _pictures(
    model: VitHfForImageClassification,
    processor: Any,
    pictures: Iterable[tuple[str, Image.Image]],
    drawn: int,
    writer: _Writer,
) -> dict[str, Any]:
    """Draw what the model does with pictures: attention distance over all, figures of the first few."""
    distances: list[torch.Tensor] = []  # each (B, layers, A)
    shown: list[dict[str, Any]] = []
    taken: set[str] = set()
    queue, count = iter(pictures), 0
    while batch := list(islice(queue, _AT_ONCE)):
        count += len(batch)
        writer.on_step(f"attention over {count} pictures")
        pixels = processor([image for _, image in batch], return_tensors="pt")["pixel_values"]
        distances.append(attention_distance(model, pixels))
        for (name, _), own in zip(batch, pixels.split(1), strict=True):
            if len(shown) < drawn:
                shown.append({"picture": name, **_one(model, processor, own, _file_name(name, taken), writer)})
    if not distances:
        return {"attention_distance": None, "pictures": []}
    every = torch.cat(distances)
    writer.save(draw_attention_distance(model, every), "attention_distance.png")
    even = round(patch_distances(model.config).mean().item(), 4)
    measured = {"pictures": count, "pixels": _listed(every.nanmean(dim=0)), "even_attention_pixels": even}
    return {"attention_distance": measured, "pictures": shown}


@torch.no_grad()
def _one(
    model: VitHfForImageClassification, processor: Any, pixels: torch.Tensor, name: str, writer: _Writer
) -> dict[str, Any]:
    """Draw one picture's figures; return its numbers."""
    probabilities = model(pixels).logits.float().softmax(dim=-1)[0]  # (L,)
    probability, index = (value.item() for value in probabilities.max(dim=0))
    label = cast(dict[int, str], model.config.id2label)[int(index)]
    view = model_view(processor, pixels)[0]
    maps = attention_maps(model, pixels)
    last, rolled, heads = maps.last[0], maps.rollout[0], maps.heads[0]
    files = [
        writer.save(draw_attention(view, last, rolled, answer=(label, probability)), f"attention_{name}.png"),
        writer.save(draw_heads(view, heads), f"heads_{name}.png"),
        writer.save(draw_patches(view, model.config), f"patches_{name}.png"),
    ]
    numbers = {"last_step": _listed(last), "rollout": _listed(rolled), "heads": _listed(heads)}
    return {"label": label, "probability": round(probability, 6), "files": files, **numbers}


def _file_name(name: str, taken: set[str]) -> str:
    """Turn a picture's name into a part of a file name that no other picture has."""
    plain = re.sub(r"[^\w.-]+", "_", name)[:80] or "picture"
    free = next(text for n in range(1, len(taken) + 2) if (text := plain if n == 1 else f"{plain}-{n}") not in taken)
    taken.add(free)
    return free


def _listed(numbers: torch.Tensor) -> list:
    """Turn numbers into nested lists, NaN into None; six decimals are more than a figure shows."""
    if numbers.ndim > 1 and numbers.isnan().any():
        return [_listed(part) for part in numbers]
    return [None if value != value else value for value in (numbers.double() * 1e6).round().div(1e6).tolist()]


__all__ = ["NUMBERS", "write_inspection"]
