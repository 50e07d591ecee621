"""Folders of results that appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .predictions import PREDICTIONS, Predictions, write_predictions

RESULTS = "results.json"


def check_output(path: str | Path | None) -> Path | None:
    """Return the folder that is to be made, looked at before anything is computed; None for none.

    Raises:
        FileExistsError: it exists and is not an empty folder.
        OSError: it cannot be made where it should lie.
    """
    if path is None:
        return None
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; choose another --output")
    try:
        with tempfile.TemporaryDirectory(dir=next(parent for parent in folder.parents if os.path.lexists(parent))):
            pass  # a try: what may be written depends on more than the permissions
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}); choose another --output") from error
    return folder


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder`; it takes its name when the block ends without an error, else it is removed."""
    check_output(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        yield made
        if folder.exists():
            folder.rmdir()  # empty, or an error
        os.rename(made, folder)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON that any reader takes: a number that is not finite is an error."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_scores(folder: Path, predictions: Predictions, results: Mapping[str, Any]) -> None:
    """Write predictions.parquet and results.json into an existing folder."""
    write_predictions(folder / PREDICTIONS, predictions)
    write_json(folder / RESULTS, results)
