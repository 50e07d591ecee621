"""What a model said of every sample of a split, in one Parquet file beside its results: the numbers behind the numbers.

A row a sample, in the split's order: `row` (int64, from 0), `label` (int64) and `logits` (a fixed list of L float32).
Any tool that reads Parquet reads it. Nothing is rounded: what is read equals what was written, bit for bit. The file's
own metadata say what was scored, under the key "vit_hf": the names of the classes, the data, the split, the split's
fingerprint, by which two files are known to be of the same pictures, and the views of a picture, if there were others
than the plain one: of several, `logits` are the logarithms of the mean probabilities. Rows of pictures that could not
be decoded, where a run passes them over, are not in the file; the metadata list them as `left_out`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .scoring import Scores

PREDICTIONS = "predictions.parquet"
_KEY = b"vit_hf"
_ABOUT = ("label_names", "data", "split", "sha256")
_EXPECTED = "expected a file that `vit-hf train` or `vit-hf evaluate --output` wrote: score the model again"


@dataclass(frozen=True)
class Predictions:
    """What a model said of a split, and of which."""

    scores: Scores
    """Logits (N, L) and labels (N,), both in the model's numbering of the classes."""
    label_names: tuple[str, ...]
    """L names, in the order of the logits."""
    data: str
    """Name of the data set, never a path."""
    split: str
    """Name of the split."""
    sha256: str
    """Fingerprint of the split, as `vit_hf.data.sources.fingerprint` gives it; "streaming" for a streamed one."""
    views: dict[str, Any] | None = None
    """What `Views.describe` says of other views than one plain one at the model's own image size."""

    @classmethod
    def of_run(cls, scores: Scores, label_names: Sequence[str], results: Mapping[str, Any]) -> "Predictions":
        """Return the predictions of the final test of a run, whose record (`results.json`) says what was scored."""
        data, split = results["data"], results["split"]
        return cls(scores, tuple(label_names), data["source"], split, data["splits"][split]["sha256"])


def write_predictions(path: str | Path, predictions: Predictions) -> None:
    """Write predictions, compressed with zstd.

    Args:
        path: of the new file.
        predictions: of N >= 1 samples and L classes.

    Raises:
        ValueError: there are not as many names as classes.
    """
    scores = predictions.scores
    if len(predictions.label_names) != scores.logits.shape[1]:
        raise ValueError(
            f"{len(predictions.label_names)} label names for logits of {scores.logits.shape[1]} classes; expected one "
            "a class"
        )
    logits, labels = scores.logits.contiguous().numpy(), scores.labels.numpy()  # (N, L), (N,)
    columns = {
        "row": pa.array(scores.rows.numpy()),
        "label": pa.array(labels),
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1]),
    }
    about = {name: getattr(predictions, name) for name in (*_ABOUT, "views")}
    if scores.left_out:
        about["left_out"] = list(scores.left_out)
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)


def read_predictions(path: str | Path) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Parquet file, has other columns, does not say what was scored, or has rows that are
            missing, repeated or out of order, labels outside the classes, or logits that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; {_EXPECTED}")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_EXPECTED}") from error
    found = {field.name: str(field.type) for field in table.schema}
    kind = table.schema.field("logits").type if "logits" in found else None
    size = kind.list_size if isinstance(kind, pa.FixedSizeListType) and kind.value_type == pa.float32() else 0
    if {**found, "logits": ""} != {"row": "int64", "label": "int64", "logits": ""} or not size:
        columns = ", ".join(f"{name} {kind}" for name, kind in found.items())
        raise ValueError(
            f"{path} has the columns {columns}; not row int64, label int64, logits float32[L]; {_EXPECTED}"
        )
    lists = table["logits"].combine_chunks()
    if not len(table) or any(column.null_count for column in table.columns) or lists.flatten().null_count:
        raise ValueError(f"{path} has {len(table)} rows, or values that are missing; {_EXPECTED}")
    about = _read_about(path, table.schema.metadata or {}, size)
    left_out = about.pop("left_out")
    rows, labels = table["row"].to_numpy(), table["label"].to_numpy()
    expected = np.setdiff1d(np.arange(len(rows) + len(left_out)), left_out)
    wrong = np.flatnonzero(rows != expected) if len(rows) == len(expected) else np.zeros(1, np.int64)
    if len(wrong):
        raise ValueError(
            f"{path} has row {rows[wrong[0]]} in place {wrong[0]}, not each row once in order; {_EXPECTED}"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= size))
    if len(wrong):
        raise ValueError(f"{path} has label {labels[wrong[0]]} in row {wrong[0]}, of {size} classes; {_EXPECTED}")
    logits = lists.flatten().to_numpy().reshape(-1, size)  # (N, L)
    wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(wrong):
        raise ValueError(f"{path} has logits that are not finite in row {wrong[0]}; {_EXPECTED}")
    return Predictions(Scores(torch.tensor(logits), torch.tensor(labels), left_out), **about)


def _read_about(path: Path, metadata: dict[bytes, bytes], size: int) -> dict[str, Any]:
    """Return names, data, split, fingerprint, views and rows left out from the metadata of the file."""
    try:
        about = json.loads(metadata.get(_KEY, b"null"))
    except ValueError:
        about = None
    about = about if isinstance(about, dict) else {}
    names, words = about.get("label_names", []), [about.get(name) for name in _ABOUT[1:]]
    if not isinstance(names, list) or len(names) != size or not all(isinstance(word, str) for word in names + words):
        raise ValueError(f"{path} does not say what was scored, in its metadata {_KEY.decode()!r}; {_EXPECTED}")
    known = {name: about[name] for name in _ABOUT[1:]}
    left_out = about.get("left_out", [])
    if not isinstance(left_out, list) or not all(isinstance(row, int) and row >= 0 for row in left_out):
        raise ValueError(f"{path} says that {left_out!r} was left out; expected numbers of rows; {_EXPECTED}")
    views = about.get("views")  # files of earlier versions have none
    return {"label_names": tuple(names), **known, "views": views, "left_out": tuple(left_out)}
