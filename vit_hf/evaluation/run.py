"""Score a saved model on a split: what `vit-hf evaluate` does.

Every picture is counted once, whatever the number of processes, and always computed in a batch of the same size. So on
one kind of processor one process and several give the same files, byte by byte, if the batch size is the same and, on
CPUs, the number of threads, on which the last bit of a sum depends (OMP_NUM_THREADS).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, DataLoaderConfiguration

from ..checkpoints.load import load_model
from ..data.bad_images import BadImages
from ..data.loading import build_evaluation_loader
from ..data.pictures import DataFields, Pictures, Split, num_rows, open_pictures
from ..data.sources import fingerprint
from ..image_processing_vit_hf import VitHfImageProcessor
from ..modeling_vit_hf import VitHfForImageClassification
from .analysis import analyse
from .output import check_output, published, write_scores
from .predictions import PREDICTIONS, Predictions, read_predictions
from .real_labels import read_real_labels
from .scoring import align_labels, score
from .views import ViewCutter, Views, at_size, processor_at_size, score_views

OnBatch = Callable[[int, int | None], None]
_PLAIN, _NO_LABELS = Views(), torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Subject:
    """A model, and the split that it is scored on."""

    model: VitHfForImageClassification
    processor: VitHfImageProcessor
    pictures: Pictures
    rows: Split
    split: str

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the model's classes, in the order of the logits."""
        names: dict[Any, str] = self.model.config.id2label or {}
        return tuple(names[index] for index in range(len(names)))


def evaluate(
    model: str | Path,
    *,
    data: str | None = None,
    split: str | None = None,
    output: str | Path | None = None,
    batch_size: int = 64,
    views: Views = _PLAIN,
    real_labels: str | Path | None = None,
    on_bad_image: str | None = None,
    on_batch: OnBatch = lambda done, total: None,
) -> dict[str, Any] | None:
    """Score every picture of a split once, with the model's own image processor; or measure earlier scores anew.

    Args:
        model: folder or Hub id of a model of this package, or what `load_checkpoint` takes; or a predictions.parquet,
            or a folder that has one and no model: then no model runs, and every figure is computed from that file.
        data: what `load_source` takes; None for the data a run folder was trained on, cut as in training.
        split: name of the split; None for test, else validation.
        output: new folder for results.json and predictions.parquet, which appears when both are there.
        batch_size: pictures a process takes at once.
        views: of each picture, whose probabilities are averaged.
        real_labels: file of ImageNet's reassessed labels, as `read_real_labels` takes it.
        on_bad_image: "raise", or "skip" to leave out what cannot be decoded; None for what the run did, or "raise".
        on_batch: called on the main process after each batch with the pictures scored so far and their total (None
            when streamed).

    Returns:
        top1, top5 (fractions), loss (nats), n, data, split, views (null for the plain one), model, what `analyse`
        returns, and left_out (rows) if there are pictures that could not be decoded; None on other than the main
        process.

    Raises:
        FileExistsError: `output` exists and is not empty.
        ValueError: no data is named and the model folder has no recipe.yaml; the data has classes that the model does
            not know; the model cannot take an image size; data, split or views are named for earlier scores; the
            reassessed labels are not of this split; and what loading model and data raises.
        BrokenSourceError: pictures are to be skipped, and more than ten and 1% of them are bad.
        FloatingPointError: the model gives numbers that are not finite.
    """
    folder = check_output(output)
    accelerator = new_accelerator()
    if (file := find_scores(model)) is not None:
        if data is not None or split is not None or views != _PLAIN or on_bad_image is not None:
            raise ValueError(
                f"{model} holds scores and no model, which --data, --split, --image-size, --crops, --flip, --curve and "
                "--on-bad-image need; leave them out to measure these scores, or name a model"
            )
        predictions = read_predictions(file) if accelerator.is_main_process else None
    else:
        subject = open_subject(model, data=data, split=split, on_bad_image=on_bad_image)
        check_real_labels(subject, real_labels)
        predictions = predict_split(subject, views, accelerator, batch_size=batch_size, on_batch=on_batch)
    if predictions is None:
        return None
    results = {**measure(predictions, real_labels), "model": str(model)}
    if folder is not None:
        with published(folder) as made:
            write_scores(made, predictions, results)
    return results


def new_accelerator() -> Accelerator:
    """Return the accelerator for `predict_split`."""
    return Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))


def find_scores(path: str | Path) -> Path | None:
    """Return the file of earlier scores that a path names, or None if it names a model."""
    path = Path(path)
    if path.is_file():
        return path if path.suffix == ".parquet" else None
    file = path / PREDICTIONS
    return file if file.is_file() and not (path / "config.json").exists() else None


def open_subject(model: str | Path, *, data: str | None, split: str | None, on_bad_image: str | None = None) -> Subject:
    """Load a model and the split to score it on; arguments and errors as of `evaluate`."""
    network, processor = load_model(model)
    pictures = open_data(model, data, on_bad_image)
    if split is None:
        return Subject(network, processor, pictures, pictures.test, pictures.test_name)
    if split == "validation" and pictures.validation is not None:
        return Subject(network, processor, pictures, pictures.validation, split)
    return Subject(network, processor, pictures, pictures.source.split(split), split)


def check_real_labels(subject: Subject, real_labels: str | Path | None) -> None:
    """Raise, before anything runs, what `read_real_labels` does unless the file is of the split; a stream has no N."""
    total = num_rows(subject.rows)
    if real_labels is not None and total is not None:
        read_real_labels(real_labels, num_samples=total, num_classes=len(subject.label_names))


def predict_split(
    subject: Subject,
    views: Views,
    accelerator: Accelerator,
    *,
    batch_size: int,
    on_batch: OnBatch = lambda done, total: None,
) -> Predictions | None:
    """Score the split of a subject, over all processes; None on other than the main one.

    Args:
        subject: model and split.
        views: of each picture.
        accelerator: as `new_accelerator` makes it.
        batch_size: pictures a process takes at once.
        on_batch: as of `evaluate`.
    """
    own, total = subject.model.config.image_hw, num_rows(subject.rows)
    align_labels(_NO_LABELS, subject.pictures.source.label_names, subject.label_names)  # before anything runs
    models = [at_size(subject.model, size) for size in views.image_sizes] or [subject.model]
    processors = [processor_at_size(subject.processor, size) for size in views.image_sizes] or [subject.processor]
    loader = build_evaluation_loader(
        subject.rows,
        **subject.pictures.columns,
        name=subject.split,
        processor=processors[0],
        batch_size=batch_size * accelerator.num_processes,
        workers=0,
        to_pixels=None if views.count == 1 else ViewCutter(processors, views.crops),
        skip_bad=subject.pictures.skip_bad,
    )
    samples: Any = loader.dataset
    loader = accelerator.prepare_data_loader(loader)
    models = [model.to(accelerator.device) for model in models]
    done = 0

    def count(scored: int) -> None:
        nonlocal done
        done = min(done + scored, total or done + scored)
        if accelerator.is_main_process:
            on_batch(done, total)

    def report(bad: list[int]) -> None:
        tried, found = total or max(bad) + 1, samples.explain(bad, subject.split)
        BadImages("skip", says=accelerator.is_main_process).note(found, tried=tried, by_path=total is None)

    options: dict[str, Any] = {"num_samples": total, "on_batch": count, "on_bad": report}
    if views.count == 1:
        scores = score(models[0].eval(), loader, accelerator, **options)
    else:
        scores = score_views(models, loader, accelerator, flip=views.flip, **options)
    if not accelerator.is_main_process:
        return None
    source, names = subject.pictures.source, subject.label_names
    sha256 = fingerprint(subject.rows, **subject.pictures.columns)
    labels = align_labels(scores.labels, source.label_names, names)
    scores = replace(scores, labels=labels)
    return Predictions(scores, names, source.name, subject.split, sha256, views.describe(own))


def measure(predictions: Predictions, real_labels: str | Path | None = None) -> dict[str, Any]:
    """Return every figure that follows from predictions, and from a file of reassessed labels, and what they are of."""
    scores, about, real = predictions.scores, ("data", "split", "views"), None
    if real_labels is not None:
        every = len(scores.labels) + len(scores.left_out)
        real = read_real_labels(real_labels, num_samples=every, num_classes=len(predictions.label_names))
        real = [real[row] for row in scores.rows.tolist()]
    return {
        **scores.measure(),
        **{name: getattr(predictions, name) for name in about},
        **analyse(scores, predictions.label_names, real_labels=real),
        **({"left_out": list(scores.left_out)} if scores.left_out else {}),
    }


def open_data(model: str | Path, data: str | None, on_bad_image: str | None = None) -> Pictures:
    """Open the data that is named, or what a run folder was trained on: the whole test split, even of a shortened run.

    Args:
        model: the run folder, if no data is named.
        data: what `load_source` takes, or None.
        on_bad_image: "raise" or "skip"; None for what the run did, or "raise".

    Raises:
        ValueError: the folder has no recipe.yaml that tells its data; or at that path are other pictures now, which
            their fingerprint shows.
        FileNotFoundError: the run had files on a disk, and there are none at that path, seen from here.
    """
    folder = Path(model)
    changed: dict[str, Any] = {} if on_bad_image is None else {"on_bad_image": on_bad_image}
    if data is not None:
        return open_pictures(replace(DataFields(source=data), **changed))
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder} has no recipe.yaml that tells its data; name the data with --data SOURCE")
    section = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["data"]
    known = {field.name for field in fields(DataFields)}
    trained = DataFields(**{key: value for key, value in section.items() if key in known})
    record = json.loads((folder / "run.json").read_text(encoding="utf-8")) if (folder / "run.json").is_file() else {}
    about, path = record.get("data") or {}, Path(trained.source)
    if about.get("kind", "hub") not in ("hub", "digits") and not path.expanduser().exists():
        raise FileNotFoundError(
            f"{folder} was trained on {trained.source!r}, files on a disk, and there are none at {path.absolute()}; "
            "name the data with --data SOURCE"
        )
    pictures = open_pictures(replace(trained, max_test_images=None, **changed))
    if trained.max_test_images is None and trained.on_bad_image != "skip" and not trained.streaming:
        recorded = about.get("splits", {}).get(pictures.test_name)
        found = {"n": num_rows(pictures.test), "sha256": fingerprint(pictures.test, **pictures.columns)}
        if recorded is not None and any(recorded.get(name, value) != value for name, value in found.items()):
            # what is held out of train by row may now be pictures that were trained on
            raise ValueError(
                f"{folder} was tested on {recorded['n']:,} pictures of {trained.source!r} ({pictures.test_name}), "
                f"which has {found['n']} here, not the same ones; expected the same data: name it with --data SOURCE"
            )
    return pictures
