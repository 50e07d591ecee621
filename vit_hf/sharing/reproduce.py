"""Recompute what a model repo claims from what lies in it and the data: files, numbers, card, and the model's outputs.

The chain: the card is rendered from results.json, results.json is computed from predictions.parquet, the predictions
come from the weights over the data, and the manifest names the bytes of all of it. Each link is made again.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..configuration_vit_hf import VitHfConfig
from ..data.hub_source import is_hub_id
from ..data.pictures import Pictures, num_rows, open_pictures
from ..data.sources import fingerprint
from ..evaluation.analysis import analyse
from ..evaluation.predictions import PREDICTIONS, read_predictions
from ..evaluation.scoring import Scores
from ..training.recipe import Recipe
from ..training.setup import describe_machine
from ..training.state import MANIFEST, DamagedFolderError, find_damage
from .card import eval_result_files, render_card
from .comparison import Check, compare, say
from .rescore import compare_errors, compare_scores, score_again

_CARD, _EVAL_RESULTS = "README.md", ".eval_results"
_STATED = {"recipe": "name", "seed": "seed", "kept": "keep"}  # key of results.json to field of recipe.yaml


@dataclass(frozen=True)
class Reproduction:
    """What was compared, and what is not as it was when the run ended."""

    checks: list[Check]
    elsewhere: list[Check]
    """Versions and device that differ from the run's; they explain small differences and are none themselves."""

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return all(check.equal is not False for check in self.checks)


def reproduce(repo_or_folder: str | Path, *, data: str | None = None, revision: str | None = None) -> Reproduction:
    """Compare a finished run, pushed or not, with what its own files and the data give.

    No network is needed for a folder and data that are at hand.

    Args:
        repo_or_folder: a run folder, a pulled one, or the Hub id of one, which is pulled first.
        data: where the data lies, as `load_source` takes it; None for where the recipe says.
        revision: branch, tag or commit of the Hub repo.

    Raises:
        FileNotFoundError: there is no such folder, it is not that of a finished run, or its data is not at hand.
        ValueError: a record cannot be read; and what `pull` and loading the data raise.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(repo_or_folder)
        if folder.is_dir():
            if revision is not None:
                raise ValueError(f"revision is {revision!r} but {folder} is a folder; name a Hub repo, or leave it out")
        elif "/" in str(repo_or_folder) and is_hub_id(str(repo_or_folder)):
            from .hub import pull

            place = stack.enter_context(tempfile.TemporaryDirectory())
            folder = pull(str(repo_or_folder), Path(place) / "model", revision=revision)
        else:
            raise FileNotFoundError(f"no folder {folder}; expected a run folder, or a Hub id owner/name")
        return _reproduce(folder, data)


def _reproduce(folder: Path, data: str | None) -> Reproduction:
    results, recipe = _read_results(folder), Recipe.from_yaml(_existing(folder / "recipe.yaml"))
    stored = read_predictions(folder / PREDICTIONS).scores if recipe.task == "classification" else None
    pictures = open_pictures(_find_data(recipe, results, data).data)
    checks = [*_check_files(folder), *_check_records(folder, results, recipe)]
    if stored is not None:
        checks += _check_numbers(folder, results, stored)
    checks += [*_check_card(folder), *_check_data(results, pictures, stored)]
    if any(check.equal is False for check in checks if check.what.startswith("data")):
        checks.append(Check("model", "-", "not run: these are other data", None))
    else:
        checks += _check_model(folder, results, recipe, pictures, stored)
    return Reproduction(checks, _elsewhere(results))


# ---------------------------------------------------------------------------------------------- records
def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}; expected the folder of a finished run")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); expected what `vit-hf train` wrote") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected what `vit-hf train` wrote")
    return value


def _read_results(folder: Path) -> dict[str, Any]:
    results = _read_json(folder / "results.json")
    data = results.get("data")
    splits = data.get("splits") if isinstance(data, dict) else None
    if not isinstance(splits, dict) or not isinstance(splits.get(results.get("split")), dict):
        raise ValueError(f"{folder / 'results.json'} does not say what data was scored; expected that of a run")
    return results


def _check_files(folder: Path) -> list[Check]:
    """Compare the files with the manifest."""
    if not (folder / MANIFEST).is_file():
        return [Check("files", f"no {MANIFEST}", "-", None)]
    try:
        damage = find_damage(folder)
    except DamagedFolderError as error:
        return [Check(f"file {MANIFEST}", "-", str(error), False)]
    listed = len(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    wrong = [Check(f"file {name}", MANIFEST, problem, False) for name, problem in damage.items()]
    return wrong or [Check("files", f"{listed} in {MANIFEST}", "the same", True)]


def _check_records(folder: Path, results: dict[str, Any], recipe: Recipe) -> Iterator[Check]:
    """Compare results.json with the records that were written before it."""
    yield compare(
        "results.json as recipe.yaml",
        {key: getattr(recipe, name) for key, name in _STATED.items()},
        {key: results.get(key) for key in _STATED},
    )
    if (folder / "run.json").is_file():
        record = _read_json(folder / "run.json")
        yield compare("results.json as run.json", record, {key: results.get(key, "nothing") for key in record})
    if (folder / "metrics.jsonl").is_file() and results.get("validation_top1") is not None:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        best = max((json.loads(line)["top1"] for line in lines), default="nothing")
        yield compare("results.json: validation_top1", results["validation_top1"], best)


def _check_numbers(folder: Path, results: dict[str, Any], stored: Scores) -> Iterator[Check]:
    """Compute the numbers of results.json from the predictions again."""
    names = [name for _, name in sorted((VitHfConfig.from_pretrained(folder).id2label or {}).items())]
    if len(names) != stored.logits.shape[1]:
        yield Check("classes", f"{len(names)} in config.json", f"{stored.logits.shape[1]} in {PREDICTIONS}", False)
        return
    for key, value in {**stored.measure(), **analyse(stored, names)}.items():
        yield compare(f"results.json: {key}", results.get(key, "nothing"), value)


def _check_card(folder: Path) -> Iterator[Check]:
    """Render README.md and the evaluation results from the records again."""
    try:
        rendered = {_CARD: render_card([folder]), **eval_result_files(folder)}
    except (OSError, ValueError) as error:
        yield Check(_CARD, "-", f"cannot be rendered: {error}", False)
        return
    there = [path.relative_to(folder).as_posix() for path in sorted((folder / _EVAL_RESULTS).glob("*"))]
    if (folder / _CARD).is_file():
        there.append(_CARD)
    expected = [name for name in rendered if name in there or there != [_CARD]] if there else []
    for name in sorted({*there, *expected}):
        texts = [
            (folder / name).read_text(encoding="utf-8") if name in there else "",
            rendered.get(name, ""),
        ]
        lines = zip_longest(*(text.splitlines() for text in texts), fillvalue="nothing")
        number, pair = next(((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1]), (0, ("", "")))
        if number:
            yield Check(f"{name}, line {number}", say(pair[0]), f"from the records: {say(pair[1])}", False)
        else:
            yield Check(name, f"{len(texts[0].splitlines())} lines", "the same", True)
    if not there:
        yield Check(_CARD, "none", "-", None)


# ---------------------------------------------------------------------------------------------- data and model
def _find_data(recipe: Recipe, results: dict[str, Any], data: str | None) -> Recipe:
    """Return the recipe with the data where they are now, at the commit that was used."""
    fields, record = recipe.data, results["data"]
    if data is not None:
        fields = replace(fields, source=data, revision=None if Path(data).expanduser().exists() else fields.revision)
    elif record["kind"] == "hub":
        fields = replace(fields, revision=record["revision"])
    elif record["kind"] != "digits" and not Path(fields.source).expanduser().exists():
        raise FileNotFoundError(
            f"the data of this run, {record['source']!r}, are not at {fields.source}; say where they are: --data SOURCE"
        )
    return replace(recipe, data=fields)


def _check_data(results: dict[str, Any], pictures: Pictures, stored: Scores | None) -> Iterator[Check]:
    """Compare the split that was scored with its fingerprint, and its labels with those of the predictions."""
    split, record = pictures.test, results["data"]["splits"][results["split"]]
    what = f"data, split {results['split']}"
    yield compare(f"{what}: pictures", record.get("n", "nothing"), num_rows(split))
    digest = fingerprint(split, **pictures.columns)
    if digest == record.get("sha256") == "streaming":
        yield Check(f"{what}: SHA-256", "none, they were streamed", "-", None)
        return
    yield compare(f"{what}: SHA-256", record.get("sha256", "nothing"), digest)
    if stored is not None and num_rows(split) is not None:
        labels = list(split[pictures.source.label_column])
        labels = [labels[row] for row in stored.rows.tolist() if row < len(labels)]
        yield compare(f"{what}: labels", stored.labels.tolist(), labels)


def _check_model(
    folder: Path, results: dict[str, Any], recipe: Recipe, pictures: Pictures, stored: Scores | None
) -> list[Check]:
    """Run the model over the split and compare what it says with what was recorded."""
    try:
        found, parameters = score_again(folder, recipe, pictures)
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        return [Check("model", "-", f"cannot be run: {error}", False)]
    checks = [compare("model: parameters", results.get("parameters", "nothing"), parameters)]
    if isinstance(found, Scores):
        assert stored is not None
        return [*checks, *compare_scores(results, stored, found, recipe)]
    return [*checks, *compare_errors(results, found, recipe)]


def _elsewhere(results: dict[str, Any]) -> list[Check]:
    """Return where versions and device differ from those of the session that ended the run."""
    recorded = [results, *results.get("resumed", [])][-1]
    now = describe_machine(Accelerator().device)
    pairs = {name: (recorded.get(name), now[name]) for name in ("torch_build", "device")}
    pairs |= {name: (recorded.get("versions", {}).get(name), number) for name, number in now["versions"].items()}
    return [Check(name, say(old), say(new), None) for name, (old, new) in pairs.items() if old != new]
