"""Look for trouble in the labels and pictures of a data set: what `vit-hf audit` does. It changes nothing.

Wrong labels and names (`vit_hf.data.label_check`), damaged pictures, pictures that are there twice
(`vit_hf.data.duplicates`), and labels that a model disputes (`trouble`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, Image

from ..data.columns import find_image_column, find_label_column, name_labels
from ..data.duplicates import SIDE, NearPair, TooManyAlikeError, digest, find_exact, find_near, shrink
from ..data.image_folder import TRAIN_NAMES
from ..data.images import read_rgb
from ..data.label_check import LabelReport, check_all_labels
from ..data.sources import ImageSource, fingerprint, read_source, split_off
from .predictions import Predictions
from .trouble import find_disputed

STREAMED = "streaming"
HELD_OUT = "held out of train"


@dataclass(frozen=True)
class Audit:
    """What was found, and the way back to the pictures."""

    found: dict[str, Any]
    """Plain values, see `audit`."""
    splits: Mapping[str, Dataset]
    image_column: str

    def picture(self, split: str, row: int) -> PIL.Image.Image:
        """Return a picture as RGB."""
        value = self.splits[split][row][self.image_column]
        return read_rgb(value, where=f"row {row} of split {split}")


def audit(
    source: str | Path,
    *,
    predictions: Predictions | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    on_step: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> Audit:
    """Look at every label and every picture of all splits.

    Args:
        source: what `load_source` takes; not streamed.
        predictions: of one of its splits, for the labels that a model disputes.
        image_column, label_column, config_name, revision: as of `load_source`.
        on_step: called with what is being done ("reading", "comparing"), the pictures done and their number.

    Returns:
        data, kind, splits (rows by name), image_column, label_column, classes (how many).
        labels: wrong, unlabelled, other_names, alike_names, empty, few, as of `LabelReport`.
        damaged: split, row, error.
        exact: groups of equal pictures, each `places` ([split, row, label or null] of each) and `same_label`.
        near: pairs, `places` (the two, then what equals either of them), `same_label`, similarity, mirrored, the most
            similar first; null where the pictures are
            too much alike to tell, then `near_note` says so.
        copies: of exact and near together: for each split but the training split, the number of its pictures that the
            training split holds, too, exactly, and exactly or nearly; empty without a training split.
        disputed: null without predictions; split, matched_by ("fingerprint" or "labels"), model_may_have_seen (whether
            it is the training split), model_agrees (share of the labels that it predicts), samples as of
            `find_disputed`; or `note` where wrong labels forbid it.

    Raises:
        ValueError: no split is the one of the predictions; and what `read_source` raises.
    """
    read = read_source(source, config_name=config_name, revision=revision)
    splits, image_column, label_column = _find_columns(read, image_column, label_column)
    train = next((name for name in TRAIN_NAMES if name in splits), None)
    report = check_all_labels(splits, label_column, train=train)
    disputed, judged = None, dict(splits)
    if predictions is not None:
        disputed, extra = _judge(read, splits, report, predictions, image_column, label_column, train)
        judged.update(extra)
    found = {
        "data": read.name,
        "kind": read.kind,
        "splits": {name: len(split) for name, split in splits.items()},
        "image_column": image_column,
        "label_column": label_column,
        "classes": len(report.names),
        "labels": {
            name: getattr(report, name)
            for name in ("wrong", "unlabelled", "other_names", "alike_names", "empty", "few")
        },
        **_find_copies(splits, image_column, report, train, on_step),
        "disputed": disputed,
    }
    return Audit(found, judged, image_column)


def _find_columns(
    read: ImageSource, image_column: str | None, label_column: str | None
) -> tuple[dict[str, Dataset], str, str]:
    first = read.find("train") or next(iter(read.splits))
    features = read.splits[first].features
    image_column = find_image_column(features, where=read.name, wanted=image_column)
    label_column = find_label_column(features, where=read.name, wanted=label_column)
    splits = {}
    for name, split in read.splits.items():
        where = f"{read.name}, split {name}"
        find_image_column(split.features, where=where, wanted=image_column)
        find_label_column(split.features, where=where, wanted=label_column)
        splits[name] = split.cast_column(image_column, Image(decode=False))
    return splits, image_column, label_column


def _judge(
    read: ImageSource,
    splits: dict[str, Dataset],
    report: LabelReport,
    predictions: Predictions,
    image_column: str,
    label_column: str,
    train: str | None,
) -> tuple[dict[str, Any], dict[str, Dataset]]:
    """Find the split that was predicted, and what of it is disputed."""
    if report.wrong or report.other_names:
        return {"note": "the labels must be right before a model can be asked about them"}, {}
    named = {name: split for name, split in splits.items() if name not in report.unlabelled}
    named = name_labels(named, label_column, where=read.name, train=train)
    if read.find("test") is None and train is not None:
        named[HELD_OUT] = split_off(named[train], label_column, 0.2, seed=0)[1]
    by = "labels" if predictions.sha256 == STREAMED else "fingerprint"
    for name, split in named.items():
        if by == "labels":
            words = np.array(report.names)[np.asarray(split[label_column])]
            said = np.array(predictions.label_names)[predictions.scores.labels.numpy()]
            same = name == predictions.split and len(words) == len(said) and bool((words == said).all())
        else:
            same = fingerprint(split, image_column, label_column) == predictions.sha256
        if same:
            agrees = predictions.scores.logits.argmax(dim=1) == predictions.scores.labels
            about = {
                "split": name,
                "matched_by": by,
                "model_may_have_seen": name == train,
                "model_agrees": agrees.double().mean().item(),
            }
            return {**about, "samples": find_disputed(predictions)}, {name: split}
    raise ValueError(
        f"the predictions are of {predictions.data}, split {predictions.split} ({len(predictions.scores.labels):,} "
        f"samples), and {read.name} has no split with the same pictures and labels, only "
        f"{', '.join(f'{name} ({len(split):,})' for name, split in named.items())}; score the model on this data: "
        "vit-hf evaluate MODEL --data SOURCE --split NAME --output DIR"
    )


def _find_copies(
    splits: Mapping[str, Dataset],
    image_column: str,
    report: LabelReport,
    train: str | None,
    on_step: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Decode every picture once and find what is there twice."""
    places: list[tuple[str, int]] = []
    digests, damaged = [], []
    known: dict[bytes, int] = {}
    total = sum(map(len, splits.values()))
    small = np.empty((total, SIDE, SIDE, 3), np.uint8)
    for name, split in splits.items():
        for row, value in enumerate(split.select_columns([image_column])):
            try:
                picture = read_rgb(value[image_column], where=f"row {row} of split {name}")
            except (ValueError, OSError) as error:
                damaged.append({"split": name, "row": row, "error": str(error)})
                continue
            if (key := digest(picture)) not in known:  # of equal pictures the first one stands for all
                small[len(known)] = shrink(picture)
                known[key] = len(places)
            digests.append(key)
            places.append((name, row))
            if row % 100 == 0:
                on_step("reading", len(places) + len(damaged), total)
    exact = find_exact(digests)
    others, different = {group[0]: group[1:] for group in exact}, list(known.values())
    near: list[NearPair] | None
    try:
        near, note = find_near(small[: len(known)], lambda done, total: on_step("comparing", done, total)), None
    except TooManyAlikeError as error:
        near, note = None, str(error)

    def describe(members: list[int]) -> dict[str, Any]:
        where = [places[member] for member in members]
        classes = [int(report.numbers[split][row]) for split, row in where]
        labels = [report.names[number] if number >= 0 else None for number in classes]
        known = {label for label in labels if label is not None}
        said = [[split, row, label] for (split, row), label in zip(where, labels, strict=True)]
        return {"places": said, "same_label": len(known) < 2}

    pairs = []
    for pair in near or []:
        first, second = different[pair.first], different[pair.second]
        members = [first, second, *others.get(first, []), *others.get(second, [])]
        pairs.append({**describe(members), "similarity": pair.similarity, "mirrored": pair.mirrored})
    groups = [describe(group) for group in exact]
    return {
        "damaged": damaged,
        "exact": groups,
        "near": None if near is None else pairs,
        "near_note": note,
        "copies": _count_copies(groups, pairs, splits, train),
    }


def _count_copies(
    groups: list[dict[str, Any]], pairs: list[dict[str, Any]], splits: Mapping[str, Dataset], train: str | None
) -> dict[str, dict[str, int]]:
    """Count the pictures of the other splits that the training split holds, too."""
    if train is None:
        return {}
    counts = {}
    for name in splits:
        if name == train:
            continue
        held: list[set[int]] = []
        for several in (groups, [*groups, *pairs]):
            together = (one["places"] for one in several if any(split == train for split, *_ in one["places"]))
            held.append({row for there in together for split, row, _ in there if split == name})
        counts[name] = {"exact": len(held[0]), "exact_or_near": len(held[1])}
    return counts
