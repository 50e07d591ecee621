"""What is done to one split as a whole: hold part of it out, and name its content by a hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Image, IterableDataset

from .columns import label_values
from .images import BadImageError, read_file

_FINGERPRINT_IMAGES = 1000


def split_off(dataset: Dataset, label_column: str, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a split in two, stratified by label, the same way on every machine and version.

    Rows are ranked within their class by SHA-256 of "seed:row"; of n rows the first round(n * fraction) are held out,
    at least 1 and at most n - 1. A class with a single row stays whole in the rest. Original order is kept.

    Args:
        dataset: a map-style split.
        label_column: its ClassLabel or integer column.
        fraction: share to hold out, in (0, 1).
        seed: any integer; not tied to the training seed.

    Returns:
        (rest, held_out).

    Raises:
        ValueError: a streamed set, a fraction outside (0, 1), or no class with two rows.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"cannot hold out {fraction} of a streamed set, whose rows are not known; expected a set with a test split "
            "and data.validation_fraction 0, or data.streaming false"
        )
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction {fraction} to hold out; expected more than 0 and less than 1, such as 0.1")
    labels = np.asarray(label_values(dataset, label_column))
    held_out: list[int] = []
    for label in np.unique(labels):
        rows = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: _rank(seed, row))
        held_out += rows[: min(max(round(len(rows) * fraction), 1), len(rows) - 1)]
    if not held_out:
        raise ValueError(
            f"cannot hold out {fraction} of {len(labels)} rows: no class in column {label_column!r} has two rows; "
            "expected at least one such class; give a data set with a test split"
        )
    mask = np.zeros(len(labels), dtype=bool)
    mask[held_out] = True
    return dataset.select(np.flatnonzero(~mask)), dataset.select(np.flatnonzero(mask))


def fingerprint(dataset: Dataset | IterableDataset, image_column: str, label_column: str) -> str:
    """SHA-256 of a split's content, independent of its path, caches and column names; "streaming" for a streamed one.

    Covered: the number of rows, the label names, every label, and the encoded bytes of at most 1,000 evenly spaced
    images (always the first and the last). So the same pictures encoded otherwise count as other data.
    """
    if not isinstance(dataset, Dataset):
        return "streaming"
    names = getattr(dataset.features[label_column], "names", None)
    digest = hashlib.sha256(json.dumps([len(dataset), names]).encode())
    digest.update(np.asarray(label_values(dataset, label_column)).astype("<i8").tobytes())
    undecoded = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _FINGERPRINT_IMAGES)).astype(int))
    for row in rows.tolist():
        data = _encoded(undecoded[row][image_column] or {})
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _encoded(image: Mapping[str, Any]) -> bytes:
    """Bytes of a picture; none where there is no file, which whoever reads the row will say."""
    data, path = image.get("bytes"), image.get("path")
    if data is None and path is not None:
        with contextlib.suppress(BadImageError, FileNotFoundError):
            data = read_file(path, where="")
    return data or b""


def _rank(seed: int, row: int) -> bytes:
    return hashlib.sha256(f"{seed}:{row}".encode()).digest()
