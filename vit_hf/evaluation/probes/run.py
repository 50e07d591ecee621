"""Probe a model on data of one's own or on a task of VTAB-1k: what `vit-hf probe` does."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from ... import __version__
from ..bootstrap import percentile_interval, resample_means
from ..output import RESULTS, check_output, published, write_json
from ..run import open_data
from .features import Features, load_frozen, split_features
from .fewshot import SEEDS, SHOTS, probe_fewshot
from .knn import NEIGHBOURS, TEMPERATURE, predict_knn
from .logistic import probe_logistic
from .vtab import open_task, probe_task, summarise
from .vtab_tasks import get_task

METHODS = ("fewshot", "knn", "logistic")
Progress = Callable[[str, int, int], None]


def _quiet(split: str, done: int, total: int) -> None:
    """Show no progress."""


def probe(
    model: str | Path,
    *,
    data: str | None = None,
    methods: Sequence[str] = METHODS,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    output: str | Path | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
    on_batch: Progress = _quiet,
) -> dict[str, Any] | None:
    """Learn from the frozen features of the training split, and score the test split.

    Args:
        model: folder, file or Hub id: what `load_frozen` takes.
        data: what `load_source` takes; None for the data a run folder was trained on.
        methods: of METHODS.
        shots: pictures a class, for "fewshot".
        seeds: draws of the shots.
        output: new folder for results.json.
        batch_size: pictures a process takes at once.
        cache: folder of the features' cache; None for `cache.default_folder()`.
        on_batch: called with split, pictures done and their number, while features are computed.

    Returns:
        model, weights (SHA-256), data, n_train, n, num_labels, width, feature, seconds of each part, and fewshot, knn,
        logistic as asked for (fractions); None on other than the main process.

    Raises:
        FileExistsError: `output` exists and is not empty.
        ValueError: an unknown method, no data is named and the model folder has no recipe.yaml, or what model and data
            raise.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods {list(methods)}; expected some of {', '.join(METHODS)}")
    folder = check_output(output)
    pictures = open_data(model, data)
    frozen = load_frozen(model)
    accelerator = Accelerator()
    started = time.perf_counter()
    found: list[Features | None] = []
    for name, split in (("train", pictures.train), (pictures.test_name, pictures.test)):
        found.append(
            split_features(
                frozen,
                split,
                accelerator,
                **pictures.columns,
                name=name,
                batch_size=batch_size,
                cache=None if cache is None else Path(cache),
                on_batch=lambda done, total, name=name: on_batch(name, done, total),  # type: ignore[misc]
            )
        )
    train, test = found
    if train is None or test is None:
        return None
    num_labels = len(pictures.source.label_names)
    results: dict[str, Any] = {
        "model": str(model),
        "weights": frozen.identity["weights"],
        "feature": frozen.identity["kind"],
        "width": train.vectors.shape[1],
        "data": pictures.source.name,
        "split": pictures.test_name,
        "n_train": len(train.labels),
        "n": len(test.labels),
        "num_labels": num_labels,
        "version": __version__,
    }
    seconds = {"features": time.perf_counter() - started}
    for method in methods:
        started = time.perf_counter()
        if method == "fewshot":
            scores = probe_fewshot(train, test, num_labels, shots=shots, seeds=seeds)
            results[method] = [dataclasses.asdict(score) for score in scores]
        elif method == "knn":
            results[method] = _knn(train, test, num_labels)
        else:
            results[method] = _logistic(train, test)
        seconds[method] = time.perf_counter() - started
    results["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
    _write(folder, results)
    return results


def probe_vtab(
    model: str | Path,
    task_name: str,
    *,
    data: str | None = None,
    output: str | Path | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
    on_batch: Progress = _quiet,
) -> dict[str, Any] | None:
    """Run one task of VTAB-1k; see `vtab`. Arguments and errors as of `probe`, and those of `open_task`.

    Returns:
        What `vtab.probe_task` gives, and model, weights (SHA-256), data; None on other than the main process.
    """
    task = get_task(task_name)
    folder = check_output(output)
    opened = open_task(task, data)
    frozen = load_frozen(model)
    found = probe_task(
        frozen,
        task,
        opened,
        Accelerator(),
        batch_size=batch_size,
        cache=None if cache is None else Path(cache),
        on_batch=on_batch,
    )
    if found is None:
        return None
    about = {"model": str(model), "weights": frozen.identity["weights"], "feature": frozen.identity["kind"]}
    results = {**found, **about, "data": opened.source, "version": __version__}
    _write(folder, results)
    return results


def summarise_vtab(paths: Sequence[str | Path], *, output: str | Path | None = None) -> dict[str, Any]:
    """Put the results of several tasks together.

    Args:
        paths: results.json files, or folders that hold one.
        output: new folder for results.json.

    Returns:
        What `vtab.summarise` gives, and model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or as `vtab.summarise`.
        FileExistsError: `output` exists and is not empty.
    """
    folder = check_output(output)
    results = []
    for path in map(Path, paths):
        file = path / RESULTS if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"there is no {file}; expected what `vit-hf probe MODEL --vtab TASK --output DIR` wrote"
            )
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON ({error}); probe the task again") from error
        results.append(result if isinstance(result, dict) else {})
    summary = {**summarise(results), "model": results[0].get("model")}
    _write(folder, summary)
    return summary


def _knn(train: Features, test: Features, num_labels: int) -> dict[str, Any]:
    """Score the numbers of neighbours that the training split allows."""
    n = len(train.labels)
    neighbours = [k for k in NEIGHBOURS if k <= n] or [n]
    predictions = predict_knn(train, test, num_labels, neighbours=neighbours)  # (len(neighbours), M)
    correct = (predictions == test.labels).astype(np.float64).T
    low, high = percentile_interval(resample_means(correct))
    rows = zip(neighbours, correct.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    scores = [{"neighbours": k, "top1": score, "interval": [a, b]} for k, score, a, b in rows]
    return {"temperature": TEMPERATURE, "scores": scores}


def _logistic(train: Features, test: Features) -> dict[str, Any]:
    """Score logistic regression."""
    result = probe_logistic(train, test)
    correct = (result.predictions == test.labels).astype(np.float64)[:, None]  # (M, 1)
    low, high = percentile_interval(resample_means(correct)[:, 0]).tolist()
    return {
        "top1": float(correct.mean()),
        "interval": [low, high],
        "c": result.c,
        "held_out": result.held_out,
        "validation": {str(c): score for c, score in result.validation.items()},
        "converged": result.converged,
    }


def _write(folder: Path | None, results: dict[str, Any]) -> None:
    if folder is not None:
        with published(folder) as made:
            write_json(made / RESULTS, results)
