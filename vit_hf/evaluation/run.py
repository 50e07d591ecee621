"""Score a saved model on a split: what `vit-hf evaluate` does."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from ..checkpoints.load import load_model
from ..data.loading import build_evaluation_loader
from ..data.pictures import DataFields, num_rows, open_pictures
from ..data.sources import fingerprint
from .analysis import analyse
from .predictions import PREDICTIONS, Predictions, write_predictions
from .scoring import Scores, align_labels, score


def evaluate(
    model: str | Path,
    *,
    data: str | None = None,
    split: str | None = None,
    output: str | Path | None = None,
    batch_size: int = 64,
    on_batch: Callable[[int, int | None], None] = lambda done, total: None,
) -> dict[str, Any] | None:
    """Score every picture of a split once, with the model's own image processor.

    Args:
        model: folder or Hub id of a model of this package, or what `load_checkpoint` takes.
        data: what `load_source` takes; None for the data a run folder was trained on, cut as in training.
        split: name of the split; None for test, else validation.
        output: new folder for results.json and predictions.parquet.
        batch_size: pictures a process takes at once.
        on_batch: called after each batch with the pictures scored so far and their total (None when streamed).

    Returns:
        top1, top5 (fractions), loss (nats), n, data, split, model, and what `analyse` returns; None on other than the
        main process.

    Raises:
        FileExistsError: `output` exists and is not empty.
        ValueError: no data is named and the model folder has no recipe.yaml; the data has classes that the model does
            not know; and what loading model and data raises.
    """
    folder = Path(output) if output is not None else None
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; choose another --output")
    network, processor = load_model(model)
    pictures = open_pictures(DataFields(source=data) if data is not None else trained_on(Path(model)))
    if split is None:
        rows, name = pictures.test, pictures.test_name
    elif split == "validation" and pictures.validation is not None:
        rows, name = pictures.validation, split
    else:
        rows, name = pictures.source.split(split), split
    accelerator = Accelerator()
    loader = build_evaluation_loader(
        rows, **pictures.columns, name=name, processor=processor, batch_size=batch_size, workers=0
    )
    network, loader = accelerator.prepare(network.eval(), loader)
    done, total = 0, num_rows(rows)

    def count(scored: int) -> None:
        nonlocal done
        done = min(done + scored, total or done + scored)
        on_batch(done, total)

    scores = score(network, loader, accelerator, num_samples=total, on_batch=count)
    config = accelerator.unwrap_model(network).config
    model_names = tuple(config.id2label[index] for index in range(config.num_labels))
    scores = Scores(scores.logits, align_labels(scores.labels, pictures.source.label_names, model_names))
    results = {
        **scores.measure(),
        "data": pictures.source.name,
        "split": name,
        "model": str(model),
        **analyse(scores, model_names),
    }
    if not accelerator.is_main_process:
        return None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        sha256 = fingerprint(rows, **pictures.columns)
        write_predictions(folder / PREDICTIONS, Predictions(scores, model_names, pictures.source.name, name, sha256))
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def trained_on(folder: Path) -> DataFields:
    """Read the data section of a run's recipe; the whole test split, even if the run was shortened."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise ValueError(f"{folder} has no recipe.yaml that tells its data; name the data with --data SOURCE")
    section = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]
    known = {field.name for field in fields(DataFields)}
    return replace(DataFields(**{key: value for key, value in section.items() if key in known}), max_test_images=None)
