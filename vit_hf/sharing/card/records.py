"""The records of model folders, read and checked, and their words made fit to be shown to anybody."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from ...checkpoints.receipt import RECEIPT_FILE
from ...configuration_vit_hf import VitHfConfig

CARD = "README.md"
UNNAMED = "FOLDER_OR_HUB_ID"  # what stands in code where the model's place is not known
_NEEDED = ("recipe", "seed", "data", "split", "loss", "n", "kept", "parameters", "steps", "seconds", "command",
           "device", "processes", "versions")  # fmt: skip
_TOKEN = re.compile(r"\bhf_\w{8,}")


@dataclass(frozen=True)
class Records:
    """What a model folder says of itself.

    Attributes:
        folder: where it lies; never shown.
        config: of the network.
        parameters: how many numbers the weights are.
        preprocessing: preprocessor_config.json, None without one.
        results: results.json of a finished run, None for a folder that is none.
        recipe: recipe.yaml of the run, likewise.
        receipt: receipt.json of converted weights, None without one.
    """

    folder: Path
    config: VitHfConfig
    parameters: int
    preprocessing: dict[str, Any] | None
    results: dict[str, Any] | None
    recipe: dict[str, Any] | None
    receipt: dict[str, Any] | None

    @property
    def is_classifier(self) -> bool:
        """Whether it names classes: not so for a masked-image model, nor where the classifier was left at zeros."""
        if "VitHfForImageClassification" not in (self.config.architectures or ()):
            return False
        entries = self.receipt["tensors"] if self.receipt is not None and self.results is None else []
        blank = any(entry["action"] == "re-initialised" and "classifier" in str(entry["model"]) for entry in entries)
        return not blank

    @property
    def is_masked(self) -> bool:
        """Whether it predicts the pixels of hidden patches."""
        return "VitHfForMaskedImageModeling" in (self.config.architectures or ())

    @property
    def label_names(self) -> list[str]:
        """Class names by their number."""
        names = self.config.id2label or {}
        return [str(names[index]) for index in range(len(names))]  # type: ignore[index]


def read_records(folder: str | Path) -> Records:
    """Read the records of a model folder, finished run or not.

    Raises:
        FileNotFoundError: no config.json; results.json without recipe.yaml or the other way round; no weights.
        ValueError: a record is no JSON or YAML, or lacks what a run writes into it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; expected a model folder, as `vit-hf train` and `vit-hf convert` leave it"
        )
    results, recipe = _read(folder / "results.json"), _read(folder / "recipe.yaml")
    for name, found, other in (("results.json", results, recipe), ("recipe.yaml", recipe, results)):
        if found is None and other is not None:
            raise FileNotFoundError(f"{folder} has no {name}; expected the folder of a finished run")
    for name in _NEEDED if results is not None else ():
        if name not in (results or {}):
            raise ValueError(f"{folder / 'results.json'} has no {name!r}; expected the record of `vit-hf train`")
    return Records(
        folder=folder,
        config=VitHfConfig.from_pretrained(folder),
        parameters=results["parameters"] if results is not None else _count_parameters(folder),
        preprocessing=_read(folder / "preprocessor_config.json"),
        results=results,
        recipe=recipe,
        receipt=_read(folder / RECEIPT_FILE),
    )


def read_runs(folders: Sequence[str | Path]) -> list[Records]:
    """Read one model folder, or several finished runs of one recipe on the same data.

    Raises:
        FileNotFoundError, ValueError: as `read_records`; none at all, folders that belong not together, a seed twice.
    """
    if not folders:
        raise ValueError("there is no run to render a card of; expected at least one finished run folder")
    runs = [read_records(folder) for folder in folders]
    first, seeds = runs[0], []
    for run in runs if len(runs) > 1 else ():
        if run.results is None or run.recipe is None or first.results is None or first.recipe is None:
            raise FileNotFoundError(f"{run.folder} has no results.json; of several folders each is a finished run")
        if (
            _but_for_the_seed(run.recipe) != _but_for_the_seed(first.recipe)
            or run.results["data"] != first.results["data"]
        ):
            raise ValueError(f"{run.folder} is not a run of the same recipe and data as {first.folder}; render them "
                             "apart")  # fmt: skip
        seeds.append(run.results["seed"])
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have the seeds {seeds}; expected each once, or the spread would be too small")
    return runs


def _but_for_the_seed(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without its seed, and without that of the model it starts from: "mae-0" and "mae-1" are alike."""
    start = recipe["model"].get("init_from")
    kind = None if start is None else re.sub(r"-\d+$", "", _last(str(start)))
    return {**recipe, "seed": 0, "model": {**recipe["model"], "init_from": kind}}


def stated_in_card(folder: Path) -> tuple[str | None, str | None]:
    """Return the licence and the Hub id that the card in a folder states, None for what it does not.

    So a card that is rendered again from a folder that was pulled is the one that was pushed.
    """
    path = folder / CARD
    if not path.is_file():
        return None, None
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{path} begins with metadata that is no YAML ({error}); mend or remove it") from error
    license = data.get("license")
    name = str(data.get("model_name"))
    is_ours = "vit_hf" in (data.get("tags") or [])
    return (license if isinstance(license, str) else None), (name if is_ours and _is_hub_id(name) else None)


# ---------------------------------------------------------------------------------------------- fit to be shown
def public_command(run: Records) -> str:
    """Return the command of a run without the folder it wrote to, and without folders and names of the machine."""
    assert run.results is not None
    command = str(run.results["command"])
    try:
        words = shlex.split(command)
    except ValueError:  # it was written without quotation marks
        words = command.split()
    kept: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name == "--output":
            if not equals:
                next(remaining, None)
        elif name in ("--data", "--data.source", "--model.init_from"):
            value = value if equals else next(remaining, "")
            shown = public_source(run, value) if name.startswith("--data") else public_start(run, value)
            kept += [f"{name}={shown}"] if equals else [name, shown]
        elif word.startswith("--") and equals:
            kept.append(f"{name}={public_text(value)}")
        else:
            kept.append(public_text(word))
    return shlex.join(kept)


def public_recipe(run: Records) -> dict[str, Any]:
    """Return the recipe of a run with the last part of every path."""
    assert run.recipe is not None
    tree = _map_texts(run.recipe)
    tree["data"]["source"] = public_source(run, str(run.recipe["data"]["source"]))
    start = run.recipe["model"].get("init_from")
    tree["model"]["init_from"] = None if start is None else public_start(run, str(start))
    return tree


def public_source(run: Records, source: str) -> str:
    """Return the name of a run's data as its record has it; a source that the record does not mean is made public."""
    assert run.results is not None
    data = run.results["data"]
    return source if data["kind"] == "hub" and source == data["source"] else public_text(_last(source))


def public_start(run: Records, start: str) -> str:
    """Return the Hub id that a run started from, or the last part of the path."""
    assert run.results is not None
    return start if start == run.results.get("base_model") else public_text(_last(start))


def public_text(text: str) -> str:
    """Return a text without a Hub token, and only the last part of it if it is a path from the root or home."""
    text = _TOKEN.sub("hf_…", text)
    return _last(text) if re.match(r"[/\\~.]|[A-Za-z]:[/\\]|\w+://", text) else text


def _last(path: str) -> str:
    """Last part of a path of any system."""
    return next((part for part in reversed(re.split(r"[/\\]", path)) if part not in ("", ".", "..", "~")), path)


def _map_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map_texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_map_texts(inner) for inner in value]
    return public_text(value) if isinstance(value, str) else value


# ---------------------------------------------------------------------------------------------- files
def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or train or convert again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected the fields of a record")
    return content


def _count_parameters(folder: Path) -> int:
    """Numbers in the weights, by the files' headers."""
    index = _read(folder / "model.safetensors.index.json")
    files = sorted(set(index["weight_map"].values())) if index is not None else ["model.safetensors"]
    total = 0
    for name in files:
        if Path(name).name != name:
            raise ValueError(
                f"{folder} has an index that names {name!r}; expected files beside it: save the model again"
            )
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; expected a model folder with its weights")
        with safe_open(folder / name, framework="pt") as stored:
            for tensor in stored.keys():  # noqa: SIM118
                size = 1
                for length in stored.get_slice(tensor).get_shape():
                    size *= length
                total += size
    return total


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name
