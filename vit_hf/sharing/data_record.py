"""Look at every picture of an image set before it is shared, and write down what its card says.

The record is plain JSON and travels with the data, so that the card can be checked against it. Nothing in it is typed
by hand or estimated: every picture is decoded once.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from PIL import ExifTags, Image

from ..data.columns import find_label_column, label_values
from ..data.images import read_image
from ..data.sources import ImageSource, fingerprint

_ROWS_PER_PROCESS = 10_000  # decoding fewer takes less time than starting a process
_SEEN = Features(
    {
        "error": Value("string"),
        "sha256": Value("string"),
        "format": Value("string"),
        "mode": Value("string"),
        "width": Value("int64"),
        "height": Value("int64"),
        "bytes": Value("int64"),
        "exif": Value("bool"),
        "gps": Value("bool"),
    }
)


def describe_source(source: ImageSource, *, license: str | None = None) -> dict[str, Any]:
    """Decode every picture of a source, and describe all that the card of the data set says.

    Args:
        source: prepared, not streamed.
        license: the Hub's name of a licence, such as "cc-by-4.0".

    Returns:
        Plain values only: what `render_data_card` renders.

    Raises:
        ValueError: a streamed source, or damaged pictures; all of them are listed, each by its path or row.
    """
    splits: dict[str, Dataset] = {}
    for name, split in source.splits.items():
        if not isinstance(split, Dataset):
            raise ValueError(f"{source.name}: split {name} is streamed, so it cannot be counted; load it whole")
        splits[name] = split
    seen = {name: _look(split, source.image_column, name=name) for name, split in splits.items()}
    damaged = [error for rows in seen.values() for error in rows["error"] if error is not None]
    if damaged:
        listed = "\n  ".join(damaged)
        total = sum(len(rows) for rows in seen.values())
        raise ValueError(f"{source.name}: {len(damaged):,} of {total:,} pictures are damaged:\n  {listed}")
    columns = shared_columns(source)
    return {
        "source": source.name,
        "kind": source.kind,
        "revision": source.revision,
        "license": license,
        "columns": columns,
        "left_out_columns": [name for name in next(iter(splits.values())).column_names if name not in columns],
        "left_out_splits": list(source.unlabelled),
        "image_column": source.image_column,
        "label_column": source.label_column,
        "label_names": list(source.label_names),
        "splits": {
            name: {
                "n": len(split),
                "fingerprint": fingerprint(split, source.image_column, source.label_column),
                "sha256": _digest(split, seen[name]["sha256"], columns[1:]),
                "per_class": np.bincount(
                    _labels(split, source.label_column), minlength=len(source.label_names)
                ).tolist(),
            }
            for name, split in splits.items()
        },
        "pictures": _summarise(seen),
    }


def shared_columns(source: ImageSource) -> list[str]:
    """Columns that are shared: the pictures, their label, and further `ClassLabel` columns that leave no doubt.

    Any other column may hold what its owner does not know of (paths, names of people). A further label column that
    `load_source` would take for the label, or could not tell from it, is left out too.
    """
    splits = list(source.splits.values())
    features = splits[0].features or {}
    label = source.label_column
    further = [
        name
        for name, feature in features.items()
        if isinstance(feature, ClassLabel)
        and name != label
        and all((split.features or {}).get(name) == feature for split in splits)
    ]
    columns = [source.image_column, label, *further]
    try:
        found = find_label_column(Features({name: features[name] for name in columns}), where=source.name)
    except ValueError:
        found = None
    return columns if found == label else columns[:2]


def content_of(record: dict[str, Any]) -> str:
    """The part of a record that tells one content from another, whatever it is called and wherever it came from."""
    splits = {name: [split["n"], split["sha256"]] for name, split in record["splits"].items()}
    return json.dumps([record["columns"], record["label_names"], splits])


def _look(split: Dataset, image_column: str, *, name: str) -> Dataset:
    """One row of `_SEEN` for every picture."""
    pictures = split.select_columns([image_column])
    processes = min(os.cpu_count() or 1, len(split) // _ROWS_PER_PROCESS)
    return pictures.map(
        _look_at_one,
        with_indices=True,
        input_columns=[image_column],
        remove_columns=[image_column],
        features=_SEEN,
        fn_kwargs={"split": name},
        num_proc=processes if processes > 1 else None,
        load_from_cache_file=False,  # a file may have changed since
        keep_in_memory=True,
        desc=f"checking the pictures of {name}",
    )


def _look_at_one(value: dict[str, Any], row: int, *, split: str) -> dict[str, Any]:
    try:
        image = read_image(value, where=f"row {row} of split {split}")
    except (ValueError, OSError) as error:
        return {**dict.fromkeys(_SEEN), "error": str(error)}
    data = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
    return {
        "error": None,
        "sha256": hashlib.sha256(data).hexdigest(),
        "format": image.format,
        "mode": image.mode,
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        "exif": "exif" in image.info,
        "gps": _has_place(image),
    }


def _has_place(image: Image.Image) -> bool:
    """Whether EXIF says where a picture was taken; broken EXIF counts as saying nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bool(image.getexif().get_ifd(ExifTags.IFD.GPSInfo))
        except Exception:  # Pillow's parser raises nearly anything on broken EXIF, which the pixels do not need
            return False


def _labels(split: Dataset, column: str) -> np.ndarray:
    return np.asarray(label_values(split, column).fill_null(-1)).astype("<i8")  # (n,)


def _digest(split: Dataset, pictures: list[str], label_columns: list[str]) -> str:
    """SHA-256 of every picture's SHA-256 and every label, in row order; unlike the fingerprint it samples nothing."""
    digest = hashlib.sha256("".join(pictures).encode())
    for column in label_columns:
        digest.update(json.dumps(split.features[column].names).encode() + _labels(split, column).tobytes())
    return digest.hexdigest()


def _summarise(seen: dict[str, Dataset]) -> dict[str, Any]:
    """Formats, modes, sizes and repetitions over all splits."""
    columns = {name: [value for rows in seen.values() for value in rows[name]] for name in _SEEN}
    contents = {split: set(rows["sha256"]) for split, rows in seen.items()}
    different = set().union(*contents.values())
    return {
        "formats": _count(columns["format"]),
        "modes": _count(columns["mode"]),
        **{name: _spread(columns[name]) for name in ("width", "height", "bytes")},
        "total_bytes": sum(columns["bytes"]),
        "with_exif": sum(columns["exif"]),
        "with_gps": sum(columns["gps"]),
        "different": len(different),
        "in_several_splits": sum(sum(one in content for content in contents.values()) > 1 for one in different),
    }


def _count(values: list[str]) -> dict[str, int]:
    names, counts = np.unique(np.asarray(values, dtype=object).astype(str), return_counts=True)
    return dict(sorted(zip(names.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0])))


def _spread(values: list[int]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}
