"""What a model said of every sample of a split, in one Parquet file beside its results: the numbers behind the numbers.

A row a sample, in the split's order: `row` (int64, from 0), `label` (int64) and `logits` (a fixed list of L float32).
Any tool that reads Parquet reads it. Nothing is rounded: what is read equals what was written, bit for bit.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .scoring import Scores

PREDICTIONS = "predictions.parquet"
_EXPECTED = "expected a file that `vit-hf train` or `vit-hf evaluate --output` wrote: score the model again"


def write_predictions(path: str | Path, scores: Scores) -> None:
    """Write the logits and labels of a split, compressed with zstd.

    Args:
        path: of the new file.
        scores: of N >= 1 samples and L classes.
    """
    logits, labels = scores.logits.contiguous().numpy(), scores.labels.numpy()  # (N, L), (N,)
    columns = {
        "row": pa.array(np.arange(len(labels), dtype=np.int64)),
        "label": pa.array(labels),
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1]),
    }
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=False)


def read_predictions(path: str | Path) -> Scores:
    """Read what `write_predictions` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Parquet file, has other columns, or rows that are missing, repeated or out of order, labels
            outside the classes, or logits that are not finite.
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
    rows, labels = table["row"].to_numpy(), table["label"].to_numpy()
    wrong = np.flatnonzero(rows != np.arange(len(rows)))
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
    return Scores(logits=torch.tensor(logits), labels=torch.tensor(labels))
