"""A training run between two steps, on disk: all that is needed to go on as if nothing had happened.

`checkpoints/step-N/` is a model folder (the weights that would be saved now) with `training/` inside: the weights that
move where these are averaged ones, the optimiser's tensors, and `state.json`. Tensors are safetensors, all else JSON.
`checkpoints/best-N/` is the model folder of the best score. The position in the data is the step: order, augmentation,
mixing and dropout are drawn from addresses.
"""

import json
import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from .recipe import Recipe
from .state import DamagedFolderError, RunFolder, check_folder

logger = logging.getLogger(__name__)

STATE = "training/state.json"
_WEIGHTS, _OPTIMIZER = "training/weights.safetensors", "training/optimizer.safetensors"
_MODEL = "model.safetensors"

FREE_FIELDS = frozenset(
    {
        "name",
        "data.source",  # the fingerprints of the splits are compared instead
        "data.image_column",
        "data.label_column",
        "model.init_from",  # the weights come from the checkpoint
        "optimization.max_device_batch_size",
        "evaluation_batch_size",
        "workers",
        "cpu_threads",
        "gradient_checkpointing",
        "compile",
        "trackers",
        "checkpoint_minutes",
        "checkpoint_steps",
        "checkpoint_limit",
        "hang_timeout_minutes",
    }
)
"""Recipe fields that may differ on resume.

They leave pictures, augmentation and mixing of every step as they are. Another device batch draws other dropout, and
some round otherwise.
"""


def step_folder(step: int) -> str:
    """Name of the checkpoint after a step, within the run folder."""
    return f"checkpoints/step-{step:08d}"


def best_folder(step: int) -> str:
    """Name of the model folder of the best score, reached at a step."""
    return f"checkpoints/best-{step:08d}"


# ------------------------------------------------------------------------------------------- optimiser
def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, list[dict[str, Any]]]:
    """Take an optimiser apart.

    Args:
        model: unwrapped; its parameters, or their shards, are those of the optimiser.
        optimizer: torch's.

    Returns:
        Tensors by "parameter/key", whole and on the CPU (sharded ones are gathered: call it on all processes), and
        the groups with parameter names for parameters, plain values only.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after an evaluation the last ones are still whole, and not the optimiser's
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value is not None:  # SGD's momentum before the first step
                tensors[f"{names[id(parameter)]}/{key}"] = _whole(torch.as_tensor(value)).cpu().contiguous()
    groups = [
        {key: [names[id(p)] for p in value] if key == "params" else value for key, value in group.items()}
        for group in optimizer.param_groups
    ]
    return tensors, groups


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], groups: list[dict]
) -> None:
    """Put back what `optimizer_tensors` took; ValueError when the groups have other parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    if expected != [group["params"] for group in groups]:
        raise ValueError("the optimiser of the checkpoint has other parameters, or groups them otherwise")
    numbers = {names[id(parameter)]: number for number, parameter in enumerate(parameters)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        if owner not in numbers:
            raise ValueError(f"the checkpoint has optimiser state {name!r} of a parameter that is not trained")
        parameter = parameters[numbers[owner]]
        if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
            tensor = distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
        state.setdefault(numbers[owner], {})[key] = tensor
    numbered = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": numbered})


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# ------------------------------------------------------------------------------------------- files
def write_training_state(
    folder: Path,
    state: Mapping[str, Any],
    optimizer: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor] | None,
) -> None:
    """Write the part of a checkpoint that is not the model folder.

    Args:
        folder: of the checkpoint; holds `model.safetensors`.
        state: plain values.
        optimizer: of `optimizer_tensors`.
        weights: what moves, where `model.safetensors` holds averaged weights; else None.
    """
    (folder / STATE).parent.mkdir()
    (folder / STATE).write_text(json.dumps(state, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    save_file(optimizer, folder / _OPTIMIZER)
    if weights is not None:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / _WEIGHTS)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the plain values of a checkpoint, after comparing its files, and those of its best, with the manifests."""
    if not (checkpoint / STATE).is_file() and not checkpoint.name.startswith("step-"):
        raise DamagedFolderError(f"{checkpoint} is no checkpoint to resume from; expected a folder checkpoints/step-N")
    check_folder(checkpoint)
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    if state["best"]:
        check_folder(checkpoint.parents[1] / best_folder(state["best"]["step"]))
    return state


def read_weights(checkpoint: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """Return the weights that move, and the averaged ones if there are."""
    try:
        saved = load_file(checkpoint / _MODEL)
        return (load_file(checkpoint / _WEIGHTS), saved) if (checkpoint / _WEIGHTS).exists() else (saved, None)
    except (OSError, SafetensorError) as error:
        raise DamagedFolderError(f"{checkpoint} cannot be read: {error}") from error


def read_optimizer(checkpoint: Path, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the optimiser's tensors; DamagedFolderError when they are not those that the state lists."""
    tensors = load_file(checkpoint / _OPTIMIZER)
    different = sorted(set(tensors) ^ set(state["optimizer_tensors"]))
    if different:
        raise DamagedFolderError(
            f"{checkpoint / _OPTIMIZER} has other tensors than its state lists ({', '.join(different[:3])}); take the "
            "checkpoint before it"
        )
    return tensors


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run folder, the newest first; none of them checked."""
    found = (run / "checkpoints").glob("step-*")
    named = [path for path in found if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(named, key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def newest_checkpoint(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint that is whole, and its state; None when the run has none.

    Damaged ones are named in a warning and passed over.

    Raises:
        DamagedFolderError: there are checkpoints and all are damaged.
    """
    damaged = None
    for path in checkpoints(run):
        try:
            return path, read_state(path)
        except DamagedFolderError as error:
            damaged = damaged or error
            logger.warning("%s: the checkpoint before it is taken, if there is one", error)
    if damaged is not None:
        raise DamagedFolderError(f"{damaged}; no other checkpoint of {run} is whole: start a new run")
    return None


def rotate(folder: RunFolder, *, step: int, limit: int, best_step: int | None) -> None:
    """Remove all but the `limit` newest checkpoints, and all models of a best score that none of these refers to.

    Those beyond `step`, which the run has reached, go first: it went on from before them, because they are damaged or
    by request, and they must not take the place of what it saves.
    """
    kept = [path for path in checkpoints(folder.path) if _step_of(path) <= step][:limit]
    wanted = set() if best_step is None else {best_step}
    for path in kept:
        try:
            best = json.loads((path / STATE).read_text(encoding="utf-8"))["best"]
        except (OSError, ValueError, KeyError):  # damaged: nothing to keep for it
            continue
        wanted |= {best["step"]} if best else set()
    for path in checkpoints(folder.path):
        if path not in kept:
            folder.remove(f"checkpoints/{path.name}")
    for path in (folder.path / "checkpoints").glob("best-*"):
        if f"checkpoints/{path.name}" not in {best_folder(step) for step in wanted}:
            folder.remove(f"checkpoints/{path.name}")


# ------------------------------------------------------------------------------------------- where a run begins
def next_output(name: str) -> Path:
    """Return `runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3`, ... that is free."""
    candidates = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


def open_run(path: Path, *, resume: bool, name: str | None) -> RunFolder:
    """Open the folder of a run.

    Args:
        path: of the folder.
        resume: go on in it.
        name: of the recipe, where the folder was not chosen by the user: the next one that is free is taken if another
            run, which was started at the same time, has this one.
    """
    while True:
        try:
            return RunFolder(path, resume=resume)
        except (FileExistsError, BlockingIOError):
            if name is None:
                raise
            path = next_output(name)


def resume_command(run: Path) -> str:
    """Return the line that resumes a run."""
    return f"vit-hf train {shlex.quote(str(run / 'recipe.yaml'))} --output {shlex.quote(str(run))} --resume auto"


def find_start(
    recipe: Recipe, output: str | Path | None, resume: str | Path | None, data: dict[str, Any]
) -> tuple[Path, Path | None, dict[str, Any] | None, dict[str, Any] | None]:
    """Decide where a run goes and where it begins.

    Args:
        recipe, output, resume: as of `train`.
        data: `Pictures.describe()` of the run.

    Returns:
        The run folder; the checkpoint to resume from and its state, or None; the results if the run is finished, or
        None.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: there is nothing to resume, what is there is no run, is
            another run, or is damaged.
    """
    if resume is None:
        return Path(output or next_output(recipe.name)), None, None, None
    run, checkpoint = find_run(recipe, output, resume)
    finished = results_of(run, recipe, data)
    if finished is not None:
        return run, None, None, finished
    found = newest_checkpoint(run) if checkpoint is None else (checkpoint, read_state(checkpoint))
    if found is None and any((run / "checkpoints").glob("checkpoint-*")):
        raise ValueError(f"{run} is a run of the Trainer; go on with it by scripts/finetune_trainer.py, or start anew")
    if found is None and str(resume) != "auto":
        raise FileNotFoundError(f"{run} has no checkpoints/step-N to resume from; start a new run")
    if found is None:
        return run, None, None, None
    check_same_run(found[1], recipe, data, found[0])
    return run, *found, None


def find_run(recipe: Recipe, output: str | Path | None, resume: str | Path) -> tuple[Path, Path | None]:
    """Return the folder of the run that is to be resumed, and the checkpoint in it if `resume` names one.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: there is no such folder, it is none of a run, or `output` is
            another one.
    """
    run, checkpoint = Path(output or Path("runs") / recipe.name), None
    if str(resume) != "auto":
        named = Path(resume)
        checkpoint = named if named.parent.name == "checkpoints" else None
        run = named.parent.parent if checkpoint else named
        if not named.is_dir():
            raise FileNotFoundError(
                f"no folder {named.absolute()} to resume from; expected a run folder, or one of its checkpoints"
            )
        if output is not None and Path(output).resolve() != run.resolve():
            raise ValueError(f"--resume goes on in {run}, --output names {output}; leave --output out")
    _check_run_folder(run)
    return run, checkpoint


def results_of(run: Path, recipe: Recipe, data: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results of a finished run, None of another; ValueError if it had another recipe or other data."""
    if not (run / "results.json").exists():
        return None
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    check_same_run({"recipe": read_recipe(run), "data": results["data"]}, recipe, data, run)
    return results


def read_recipe(run: Path) -> dict[str, Any]:
    """Return the fields of a run's recipe, as they were written."""
    return yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))


def _check_run_folder(path: Path) -> None:
    """Raise FileExistsError when a folder holds something, and no run."""
    names = {inner.name for inner in path.iterdir()} if path.is_dir() else set()
    if names - {"checkpoints"} and "recipe.yaml" not in names:
        raise FileExistsError(
            f"{path} is no run folder (it holds something, and no recipe.yaml); give one, or a new folder"
        )


def check_same_run(state: Mapping[str, Any], recipe: Recipe, data: Mapping[str, Any], where: Path) -> None:
    """Raise ValueError listing how recipe and data differ from those of a checkpoint, if they do.

    Args:
        state: of the checkpoint.
        recipe: of the run that wants to resume.
        data: `Pictures.describe()` of it.
        where: the checkpoint, for the message.
    """
    before, now = flatten(state["recipe"]), flatten(recipe.to_dict())
    free = FREE_FIELDS - ({"data.source"} if recipe.data.streaming else set())  # a stream has no fingerprint
    names = sorted((set(before) | set(now)) - free)
    pairs = [(name, before.get(name), now.get(name)) for name in names]
    splits = [name for name in state["data"]["splits"] if name in data["splits"]]
    pairs += [("number of splits", len(state["data"]["splits"]), len(data["splits"]))]
    for key in ("n", "sha256"):
        pairs += [(f"{key} of {s}", state["data"]["splits"][s][key], data["splits"][s][key]) for s in splits]
    differences = [f"{name} was {a!r} and is {b!r}" for name, a, b in pairs if a != b]
    if differences:
        raise ValueError(
            f"{where} belongs to another run: {'; '.join(differences)}. Resume with the recipe.yaml of its run folder "
            "and the same data, or start a new run (model.init_from takes the checkpoint as a start)"
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested values to dotted names; lists and tuples become equal."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
