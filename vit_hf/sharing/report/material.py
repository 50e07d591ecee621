"""What a report is made of: the records of a run, what it said of every test picture, and the pictures themselves.

Nothing but folder and records is needed. What is not there is left out of the report, which says so.
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...data.pictures import Columns, DataFields, Pictures, open_pictures
from ...data.sources import fingerprint
from ...evaluation.analysis import analyse
from ...evaluation.predictions import PREDICTIONS, Predictions, read_predictions
from ...training.recipe import Recipe
from ..card.records import Records, read_records
from ..comparison import is_close

METRICS = "metrics.jsonl"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """What there is to report on; None, or empty, for what there is not."""

    run: Records
    recipe: Recipe | None
    measured: dict[str, Any] | None
    """Scores and what `analyse` returns; of a run without predictions what its results.json holds of it."""
    predictions: Predictions | None
    curves: list[dict[str, Any]]
    """Rows of metrics.jsonl."""
    own_scores: bool
    """Whether the scores are those of the run's own test."""
    scored: Dataset | None = None
    """The pictures that the predictions are of."""
    trained: Dataset | None = None
    """The pictures that were trained on."""
    columns: Columns | None = None
    """Names of the image and label columns of both."""
    absent: str = ""
    """Why pictures are not there; fit to be shown to anybody."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names by their number."""
        return self.predictions.label_names if self.predictions is not None else tuple(self.run.label_names)


def read_material(folder: str | Path, scores: str | Path | None = None) -> Material:
    """Read the records of a model folder, and its scores.

    Args:
        folder: a finished run, or a model folder.
        scores: a folder that `vit-hf evaluate --output` wrote, instead of the run's own.

    Raises:
        FileNotFoundError: no model folder, or no scores.
        ValueError: a record cannot be read; predictions and results disagree, or are of other classes.
    """
    folder, results = Path(folder), None
    if not (folder / "config.json").is_file() and (folder / PREDICTIONS).is_file():
        raise ValueError(
            f"{folder} holds scores, not the model they are of; give the model folder, and this one with --scores"
        )
    run = read_records(folder)
    recipe = Recipe.from_yaml(folder / "recipe.yaml") if run.recipe is not None else None
    home = Path(scores) if scores is not None else folder
    if scores is None:
        results = run.results
    elif (home / "results.json").is_file() and (home / PREDICTIONS).is_file():
        results = _read_json(home / "results.json")
    else:
        raise FileNotFoundError(
            f"{home} has no results.json with {PREDICTIONS} beside it; expected a folder of `vit-hf evaluate --output`"
        )
    predictions = read_predictions(home / PREDICTIONS) if (home / PREDICTIONS).is_file() else None
    measured = results if results is not None and "loss" in results else None
    if predictions is not None:
        if run.is_classifier and list(predictions.label_names) != run.label_names:
            raise ValueError(
                f"{home / PREDICTIONS} is of other classes than the model in {folder}; expected the scores of this "
                "model: run vit-hf evaluate again"
            )
        recorded = results or {}
        real: dict[str, Any] = {
            name: recorded[name] for name in ("real_top1", "real_n") if name in recorded
        }  # of a file of labels
        measured = {**real, **predictions.scores.measure(), **analyse(predictions.scores, predictions.label_names)}
        if "real_top1" in recorded.get("intervals", {}):
            measured["intervals"]["real_top1"] = recorded["intervals"]["real_top1"]
        for name in ("top1", "loss", "n") if results is not None else ():
            if not is_close(float(results.get(name, -1)), float(measured[name])):  # type: ignore[union-attr]
                raise ValueError(
                    f"{home / 'results.json'} has {name} {results.get(name)}, but {PREDICTIONS} gives "  # type: ignore[union-attr]
                    f"{measured[name]}; one of them was changed: score the model again"
                )
    return Material(run, recipe, measured, predictions, _read_rows(folder / METRICS), scores is None)


def find_pictures(material: Material, data: str | None) -> Material:
    """Open the pictures that were scored, and those that were trained on, and prove that they are those.

    Args:
        material: as `read_material` gives it.
        data: what `load_source` takes; None for the place that the recipe names.

    Returns:
        The material, with pictures or with the reason why there are none.

    Raises:
        ValueError: `data` is not what was scored; and what opening it raises.
    """
    recipe = material.recipe
    if recipe is None and data is None:
        return replace(material, absent="The folder has no recipe that names the data; give it with --data.")
    fields = recipe.data if recipe is not None else DataFields(source=str(data))
    fields = fields if material.own_scores else replace(fields, max_test_images=None)
    fields = fields if data is None else replace(fields, source=data)
    try:
        pictures = open_pictures(fields)
    except (OSError, ValueError) as error:
        if data is not None:
            raise
        logger.warning("a report without pictures: %s", error)
        return replace(material, absent="The data was not found where the run read it; give it with --data.")
    if not isinstance(pictures.test, Dataset):
        return replace(material, absent="The data is streamed, so that no picture can be looked up.")
    scored = _proven(pictures, material.predictions, data)
    trained = pictures.train if _is_same(pictures.train, pictures, _recorded(material)) else None
    absent = ""
    if material.predictions is not None and scored is None:
        absent = "The data that the recipe names is no longer what was scored; give the same with --data."
    return replace(material, scored=scored, trained=trained, columns=pictures.columns, absent=absent)


def _proven(pictures: Pictures, predictions: Predictions | None, data: str | None) -> Dataset | None:
    """Return the split that was scored, if it is the same; ValueError if it is not, and was given as such."""
    if predictions is None:
        return None
    name = predictions.split
    if name == pictures.test_name:
        rows = pictures.test
    elif name == "validation" and pictures.validation is not None:
        rows = pictures.validation
    elif data is None and name not in pictures.source.splits:
        return None
    else:
        rows = pictures.source.split(name)
    if _is_same(rows, pictures, predictions.sha256):
        return rows.select(predictions.scores.rows.tolist()) if predictions.scores.left_out else rows  # type: ignore
    if data is None or not isinstance(rows, Dataset):
        return None
    raise ValueError(
        f"split {name} of {pictures.source.name} has the fingerprint {fingerprint(rows, **pictures.columns)[:12]}, "
        f"the scores are of {predictions.sha256[:12]}; expected the same {len(predictions.scores.labels):,} pictures, "
        "bytes and labels: give with --data what was scored, or leave it out"
    )


def _is_same(rows: Any, pictures: Pictures, sha256: str | None) -> bool:
    return isinstance(rows, Dataset) and fingerprint(rows, **pictures.columns) == sha256


def _recorded(material: Material) -> str | None:
    """Fingerprint of the training pictures, as the run recorded it."""
    results = material.run.results
    return None if results is None else results["data"]["splits"].get("train", {}).get("sha256")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); score the model again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected the record of a score")
    return content


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error}); restore or remove the file") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows
