"""Runs to report on: made in a second, with pictures, records and predictions that belong together."""

import io
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfImageProcessor
from vit_hf.data.pictures import DataFields, open_pictures
from vit_hf.evaluation.analysis import analyse
from vit_hf.evaluation.predictions import PREDICTIONS, Predictions, write_predictions
from vit_hf.evaluation.scoring import Scores
from vit_hf.inspection.plots import draw_learning_curves
from vit_hf.inspection.style import to_png
from vit_hf.sharing.report import facts, seen
from vit_hf.sharing.report import scores as scores_module
from vit_hf.training.recipe import ModelFields, Recipe

FIELDS = {"augmentation.flip": True, "augmentation.rotation": 20.0, "augmentation.mixup_alpha": 0.8,
          "augmentation.cutmix_alpha": 1.0, "optimization.batch_size": 8}  # fmt: skip
NAMES = [f"kind {letter}" for letter in "abcdef"]
HOSTILE = [
    "<script>alert(1)</script>".replace("/", "\u2215"),  # a slash cannot be in the name of a folder
    "<img src=x onerror=alert(1)>",
    "\"quoted' & --> ]]> </td>".replace("/", "\u2215"),
    "\u202egnp.elif",
    "שלום עולם",
    "日本語の長い名前" * 5,
    "an_overlong_name_without_any_space_" * 6,
    "tab\tand\x01control",
    "$x^2$ {curly} %s",
    "javascript:alert(1)",
    "z" * 80,
    "0.123456789",
]
RECORD = {
    "split": "test", "seed": 3, "kept": "best", "kept_epoch": 2.0, "steps": 4321, "epochs": 12.5, "seconds": 678.4,
    "energy_kwh": 0.01234, "energy_source": "counter", "mfu": 0.4136, "peak_tflops": 989.4,
    "started": "2026-01-02T03:04:05+00:00",
    "command": "vit-hf train mine.yaml --output /home/somebody/runs/x --data /home/somebody/pictures",
    "base_model": None, "git_commit": "0123456789abcdef", "torch_build": "2.12", "device": "Some GPU", "processes": 2,
    "distributed_type": "NO", "versions": {"torch": "2.12.0", "transformers": "5.20.0"},
}  # fmt: skip
CURVES = [
    {"epoch": 1.0, "step": 10, "train_loss": 2.3456, "validation_loss": 2.1234, "top1": 0.2222, "top5": 0.7777,
     "learning_rate": 0.001, "images_per_second": 111.4},
    {"epoch": 2.0, "step": 20, "train_loss": 1.3456, "validation_loss": 1.1234, "top1": 0.3333, "top5": 0.8888,
     "learning_rate": 0.0005, "images_per_second": 222.4},
]  # fmt: skip


def small(names, **fields) -> VitHfConfig:
    sizes = {"image_size": [16, 24], "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "intermediate_size": 24, "pooling": "gap"}
    return VitHfConfig(**{**sizes, **heads, "id2label": dict(enumerate(names)), **fields})


def write_pictures(folder: Path, names, *, train: int = 3, test: int = 6) -> Path:
    """Write noise as PNG, in class folders of a training and a test split."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for place in range(count):
                coarse = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
                PIL.Image.fromarray(coarse).resize((24, 16), PIL.Image.Resampling.BICUBIC).save(
                    folder / split / name / f"{place}.png"
                )
    return folder


def make_scores(labels: torch.Tensor, classes: int) -> Scores:
    """Logits that are often right, wrong in a pattern, and once tied."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(labels), classes, generator=generator)
    logits[torch.arange(len(labels)), labels] += 1.5
    logits[torch.arange(len(labels)), (labels + 1) % classes] += 0.8
    logits[0, :2] = logits[0].max() + 1  # a tie of the first two classes
    return Scores(logits, labels)


def write_run(folder: Path, source: Path, *, fields=None, masked=False, data=None, **changes) -> Path:
    """Write a finished run on the pictures in `source`.

    Args:
        folder: new.
        source: as `write_pictures` left it.
        fields: of the recipe, by dotted name.
        masked: a model for masked images.
        data: what the recipe names as source; None for `source`.
        changes: of results.json; `...` takes a key away.
    """
    folder.mkdir(parents=True)
    pictures = open_pictures(DataFields(str(source)))
    names = pictures.source.label_names
    recipe = Recipe(name="mine", data=DataFields(data or str(source)), model=ModelFields("Ti/4"), seed=3)
    recipe = recipe.override({**({"task": "masked_image_modeling"} if masked else {}), **(fields or {})})
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    torch.manual_seed(0)
    kind = VitHfForMaskedImageModeling if masked else VitHfForImageClassification
    model = kind(small(names))
    model.save_pretrained(folder)
    VitHfImageProcessor(size={"height": 16, "width": 24}).save_pretrained(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CURVES), encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    results = {**RECORD, "recipe": recipe.name, "parameters": parameters, "data": pictures.describe()}
    if masked:
        results |= {"loss": 0.4321, "n": len(pictures.test)}
    else:
        scores = make_scores(torch.tensor(pictures.test[pictures.source.label_column]), len(names))
        results |= {**scores.measure(), **analyse(scores, names)}
        write_predictions(folder / PREDICTIONS, Predictions.of_run(scores, names, results))
    results = {key: value for key, value in {**results, **changes}.items() if value is not ...}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def write_many(folder: Path, classes: int, *, samples: int, seed: int = 0) -> Path:
    """Write a finished run of many classes whose mistakes have structure, and whose pictures are nowhere."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    centres = torch.randn(classes, 16, generator=generator)
    centres += torch.randn(-(-classes // 10), 16, generator=generator).repeat_interleave(10, 0)[:classes]
    features = centres[labels] + torch.randn(samples, 16, generator=generator)
    scores = Scores((features @ centres.T - centres.square().sum(1) / 2).float(), labels)
    names = [f"class number {index}" for index in range(classes)]
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    VitHfForImageClassification(small(names)).save_pretrained(folder)
    VitHfImageProcessor(size={"height": 16, "width": 24}).save_pretrained(folder)
    recipe = Recipe(name="many", data=DataFields("/nowhere/many"), model=ModelFields("Ti/4"))
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    data = {"source": "many", "kind": "folder", "revision": None, "num_labels": classes,
            "splits": {"train": {"n": 9, "sha256": "aa"}, "test": {"n": samples, "sha256": "bb"}}}  # fmt: skip
    results = {**RECORD, **scores.measure(), "recipe": "many", "parameters": 1, "data": data}
    write_predictions(folder / PREDICTIONS, Predictions.of_run(scores, names, results))
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def dot(colour: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (1, 1), colour).save(buffer, format="PNG")
    return buffer.getvalue()


LIGHT_DOT, DARK_DOT, PLOT = dot("white"), dot("black"), scores_module.plot


def _dots(pictures, name, draw, *, alt, caption):
    return pictures.plot(name, LIGHT_DOT, DARK_DOT, alt=alt, caption=caption)


@contextmanager
def without_drawing():
    """Plots are dots: drawing takes long, and is tested with the charts."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (scores_module, seen, facts):
            patch.setattr(module, "plot", _dots)
        patch.setattr(scores_module, "to_png", lambda figure, dpi: figure)
        patch.setattr(scores_module, "draw_learning_curves", _curves)
        yield


def _curves(rows, theme, loss=""):
    return dict.fromkeys(("loss (nats)", "accuracy (%)"), LIGHT_DOT if theme.paper == "#FFFFFF" else DARK_DOT)


@contextmanager
def with_drawing(dpi: int):
    """Plots are plots, but small, also within `without_drawing`."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (scores_module, seen, facts):
            patch.setattr(module, "plot", PLOT)
        patch.setattr(scores_module, "to_png", lambda figure, **_: to_png(figure, dpi=dpi))
        patch.setattr(scores_module, "draw_learning_curves", draw_learning_curves)
        yield
