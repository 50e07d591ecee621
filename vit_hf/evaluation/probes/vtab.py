"""VTAB-1k (Zhai et al. 2019, arXiv 1910.04867): a linear probe on 1,000 pictures of each of 19 tasks.

The protocol of the paper (section 3, "800 training and 200 validation") with logistic regression on frozen features as
the way of adapting: its strength is chosen by learning from 800 pictures and scoring 200, then all 1,000 are learned
from, and the whole test split is scored once. The paper fine-tunes the network too; that is another, higher number.

Which 1,000 pictures: the benchmark takes the first ones in the order of TensorFlow Datasets, which copies on the Hub
need not keep. Data with splits named `train800`, `val200` and `test`, as copies made for VTAB-1k have them, is used as
it is. From any other the pictures are drawn: the rows of each split are ordered by the raw words of NumPy's PCG64,
seeded by the split's name, and the slices of the table are taken in that order. So the choice is the same everywhere,
but another than in published results: figures are comparable up to the choice of pictures.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Image

from ...data.columns import find_image_column, label_values
from ...data.order import seed_from
from ...data.sources import ImageSource, read_source
from ..bootstrap import percentile_interval, resample_means
from .features import Features, FrozenModel, split_features
from .logistic import probe_logistic
from .vtab_tasks import GROUPS, TASKS, LabelRule, VtabTask

LABEL = "vtab_label"
PUBLISHED = ("train800", "val200", "test")
SIZES = {"train800": 800, "val200": 200}


@dataclass(frozen=True)
class VtabData:
    """The three parts of a task, with the label column `LABEL`."""

    source: str
    image_column: str
    parts: dict[str, Dataset]
    """By the names of PUBLISHED."""
    rule: LabelRule
    drawn: bool
    """Whether the 1,000 pictures were drawn here."""
    differs: tuple[str, ...]
    """What is not as in the benchmark."""


def open_task(task: VtabTask, data: str | Path | None = None) -> VtabData:
    """Load a task's pictures, make its labels, and divide it.

    Args:
        task: of the table.
        data: what `load_source` takes; None for the copy on the Hub.

    Raises:
        ValueError: there is no copy on the Hub, or the data has not the columns, splits, classes or pictures that the
            task needs.
        OSError: what reading the data raises.
    """
    if data is None and task.hub_id is None:
        raise ValueError(f"{task.name}: no copy on the Hub is known ({task.read_in}); give the data with --data SOURCE")
    source = read_source(data if data is not None else str(task.hub_id), config_name=None if data else task.config_name)
    splits: dict[str, Dataset] = {}
    for name, split in source.splits.items():
        if not isinstance(split, Dataset):
            raise ValueError(f"{source.name}: split {name} is streamed; VTAB needs it prepared")
        splits[name] = split
    first = next(iter(splits.values()))
    rule = _find_rule(task, first, where=source.name)
    image_column = find_image_column(first.features, where=source.name)
    labelled = {
        name: _with_labels(split, task, rule, image_column, where=f"{source.name}, split {name}")
        for name, split in splits.items()
        if rule.column in split.column_names
    }
    drawn = not set(PUBLISHED) <= set(labelled)
    parts, differs = {name: split for name, split in labelled.items() if name in PUBLISHED}, list[str]()
    if drawn:
        parts, differs = _draw(task, source, labelled)
    wrong = {name: len(parts[name]) for name, size in SIZES.items() if len(parts[name]) != size}
    if wrong:
        raise ValueError(f"{source.name}: {wrong} pictures; VTAB-1k needs {SIZES}; give data with more pictures")
    if len(parts["test"]) != task.test_images:
        differs.append(f"{len(parts['test']):,} test pictures, not {task.test_images:,}")
    return VtabData(source.name, image_column, parts, rule, drawn, tuple(differs))


def probe_task(
    frozen: FrozenModel,
    task: VtabTask,
    data: VtabData,
    accelerator: Accelerator,
    *,
    batch_size: int = 64,
    cache: Path | None = None,
    on_batch: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> dict[str, Any] | None:
    """Run one task; returns its result (fractions, JSON values), None on other than the main process.

    Arguments as of `split_features`; `on_batch` gets the part's name too.
    """
    found: dict[str, Features | None] = {}
    for name, part in data.parts.items():
        found[name] = split_features(
            frozen,
            part,
            accelerator,
            image_column=data.image_column,
            label_column=LABEL,
            name=name,
            batch_size=batch_size,
            cache=cache,
            on_batch=lambda done, total, name=name: on_batch(name, done, total),  # type: ignore[misc]
        )
    learn, choose, test = (found[name] for name in PUBLISHED)
    if learn is None or choose is None or test is None:
        return None
    both = Features(np.concatenate([learn.vectors, choose.vectors]), np.concatenate([learn.labels, choose.labels]))
    rows = np.arange(len(both.labels))
    result = probe_logistic(both, test, parts=(rows[: len(learn.labels)], rows[len(learn.labels) :]))
    correct = (result.predictions == test.labels).astype(np.float64)[:, None]  # (M, 1)
    low, high = percentile_interval(resample_means(correct)[:, 0]).tolist()
    return {
        "vtab": task.name,
        "group": task.group,
        "top1": float(correct.mean()),
        "interval": [low, high],
        "n": len(correct),
        "c": result.c,
        "validation": {str(c): score for c, score in result.validation.items()},
        "converged": result.converged,
        "pictures": "drawn" if data.drawn else "published",
        "label_column": data.rule.column,
        "differs": list(data.differs),
    }


def summarise(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Put results of one model together: means of the groups, and the mean over all 19 tasks, as in the paper.

    A mean is None until each of its tasks is there.

    Args:
        results: as `probe_task` returns them, with `weights` (SHA-256) added.

    Returns:
        tasks (top1 by name), groups (mean, missing), mean, missing, differs (by task).

    Raises:
        ValueError: a result is none of VTAB, a task comes twice, or the results are of several models.
    """
    results = list(results)
    for result in results:
        if result.get("vtab") not in TASKS:
            raise ValueError(
                "a result is not of a VTAB task; expected results.json of `vit-hf probe MODEL --vtab TASK`"
            )
    names = [result["vtab"] for result in results]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several results of {', '.join(twice)}; expected one of each task; leave the others out")
    if len({result.get("weights") for result in results}) > 1:
        models = ", ".join(sorted({str(result.get("model")) for result in results}))
        raise ValueError(f"the results are of models with different weights ({models}); expected those of one model")
    scores = {result["vtab"]: result["top1"] for result in results}

    def mean(tasks: list[str]) -> dict[str, Any]:
        missing = [name for name in tasks if name not in scores]
        return {"mean": None if missing else float(np.mean([scores[name] for name in tasks])), "missing": missing}

    groups = {group: mean([name for name, task in TASKS.items() if task.group == group]) for group in GROUPS}
    return {
        "tasks": {name: scores[name] for name in TASKS if name in scores},
        "groups": groups,
        **mean(list(TASKS)),
        "differs": {result["vtab"]: result["differs"] for result in results if result.get("differs")},
    }


# ---------------------------------------------------------------------------------------------- labels
def _find_rule(task: VtabTask, split: Dataset, *, where: str) -> LabelRule:
    for rule in task.labels:
        if rule.column in split.column_names:
            return rule
    wanted = " or ".join(rule.column + (f" (with {rule.reads})" if rule.reads else "") for rule in task.labels)
    raise ValueError(
        f"{where}: columns {split.column_names}; the task {task.name} makes its labels of {wanted}; give data with one "
        "of these columns"
    )


def _with_labels(split: Dataset, task: VtabTask, rule: LabelRule, image_column: str, *, where: str) -> Dataset:
    """Return a split of two columns: the pictures, undecoded, and `LABEL`."""
    feature = split.features[rule.column]
    names = [str(number) for number in range(task.num_labels)]
    if rule.make is int and isinstance(feature, ClassLabel):
        if feature.num_classes != task.num_labels:
            raise ValueError(
                f"{where}: column {rule.column!r} has {feature.num_classes} classes; the task {task.name} has "
                f"{task.num_labels}; give the data of this task"
            )
        names = feature.names
    labels = np.empty(len(split), dtype=np.int64)
    for row, value in enumerate(label_values(split, rule.column).to_pylist()):
        found = f"{where}: row {row} has {str(value)[:80]!r} in column {rule.column!r}"
        remedy = f"give the data of the task {task.name}"
        try:
            labels[row] = rule.make(value)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            expected = rule.reads or "a class number"
            raise ValueError(f"{found} ({type(error).__name__}: {error}); expected {expected}; {remedy}") from error
        if not 0 <= labels[row] < task.num_labels:
            limit = task.num_labels - 1
            raise ValueError(f"{found}, which makes class {labels[row]}; expected 0 to {limit}; {remedy}")
    pictures = split.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    return pictures.add_column(LABEL, labels, feature=ClassLabel(names=names))


# ---------------------------------------------------------------------------------------------- pictures
def _draw(task: VtabTask, source: ImageSource, labelled: dict[str, Dataset]) -> tuple[dict[str, Dataset], list[str]]:
    """Cut the splits as the table says, in a drawn order, and take the first 800 and 200 pictures.

    Returns the parts, and what could not be done as the table says.
    """
    by_name = dataclasses.replace(source, splits=dict(labelled))

    def cut(text: str) -> tuple[Dataset, np.ndarray]:
        name, start, stop = _parse_slice(text)
        split = cast(Dataset, by_name.split(name))
        words = np.random.PCG64(seed_from("vtab", name)).random_raw(len(split))
        order = np.argsort(words, kind="stable")
        return split, order[len(split) * start // 100 : len(split) * stop // 100]

    train, rows = cut(task.train)
    parts = {"train800": train.select(rows[:800]), "test": _selected(*cut(task.test))}
    if by_name.find(_parse_slice(task.validation)[0]) is None:
        parts["val200"] = train.select(rows[800:1000])
        return parts, ["the 200 pictures are from train: there is no validation split"]
    split, chosen = cut(task.validation)
    return {**parts, "val200": split.select(chosen[:200])}, []


def _selected(split: Dataset, rows: np.ndarray) -> Dataset:
    """Return these rows; the split itself where they are all, which keeps its order."""
    return split if len(rows) == len(split) else split.select(rows)


def _parse_slice(text: str) -> tuple[str, int, int]:
    """Read "train", "train[:60%]", "train[60%:80%]" or "train[80%:]": the split's name, and percentages."""
    match = re.fullmatch(r"(\w+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?", text)
    assert match is not None
    return match[1], int(match[2] or 0), int(match[3] or 100)


__all__ = ["LABEL", "PUBLISHED", "VtabData", "open_task", "probe_task", "summarise"]
