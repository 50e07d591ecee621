"""A checkpoint of `VitHfTrainer` on disk: safetensors, JSON, and a manifest that says that all of it is there.

`checkpoint-N/` is a model folder (the weights that move) with `trainer_state.json` by the Trainer, and from here the
optimiser's tensors, `training_state.json`, the averaged weights if there are, and last the manifest of it all. A folder
without one, or with that of the model's files only, is one that a crash left half-written.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..files_vit_hf import read_manifest
from .checkpoint import optimizer_tensors, restore_optimizer
from .state import MANIFEST, DamagedFolderError, check_folder, describe_files, sync

logger = logging.getLogger(__name__)

WEIGHTS, AVERAGE = "model.safetensors", "average.safetensors"
HALF_WRITTEN = "is half-written, or without what a run goes on from (save_only_model, the stock Trainer)"
_OPTIMIZER, _STATE = "optimizer.safetensors", "training_state.json"


def write_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[str, Any],
    average: AveragedModel | None,
    run: Mapping[str, Any],
) -> None:
    """Write what a run goes on from, beside the weights that move.

    Args:
        folder: of the checkpoint.
        model: unwrapped.
        optimizer: of the model.
        parts: schedule and gradient scaler: things with a `state_dict` of plain values, or None.
        average: averaged weights, if the run has them.
        run: plain values by which the run is known again.
    """
    tensors, groups = optimizer_tensors(model, optimizer)
    save_file(tensors, folder / _OPTIMIZER)
    if average is not None:
        save_file(average.module.state_dict(), folder / AVERAGE)
    state = {
        "run": dict(run),
        "groups": groups,
        "tensors": sorted(tensors),
        "averaged": None if average is None else int(average.n_averaged),
        **{name: None if part is None else part.state_dict() for name, part in parts.items()},
    }
    (folder / _STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def read_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[str, Any],
    average: AveragedModel | None,
    run: Mapping[str, Any],
) -> None:
    """Put back what `write_state` wrote; arguments as there.

    Raises:
        DamagedFolderError: a file or tensor is missing.
        ValueError: the checkpoint is of another run, or its optimiser has other parameters.
    """
    missing = [name for name in (_OPTIMIZER, _STATE) if not (folder / name).is_file()]
    if missing:
        raise DamagedFolderError(
            f"{folder} has no {missing[0]}; was it saved with save_only_model, or by the stock Trainer?"
        )
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    differences = [
        f"{name} was {state['run'][name]} and is {now}" for name, now in run.items() if state["run"][name] != now
    ]
    if differences:
        raise ValueError(f"{folder} belongs to another run: {'; '.join(differences)}; start a new one")
    tensors = _read(folder / _OPTIMIZER)
    different = sorted(tensors.keys() ^ set(state["tensors"]))
    if different:
        raise DamagedFolderError(f"{folder / _OPTIMIZER} lacks, or has beside what was saved: {', '.join(different)}")
    restore_optimizer(model, optimizer, tensors, state["groups"])
    for name, part in parts.items():
        if part is not None and state.get(name) is not None:  # one of an earlier version has no bad images
            part.load_state_dict(state[name])
    if average is not None:
        load_weights(average.module, folder / AVERAGE)
        average.n_averaged.fill_(state["averaged"])


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a safetensors file into a model: each tensor, no other, and compare what the model then holds.

    Raises:
        DamagedFolderError: the file cannot be read, or has missing, unexpected or other tensors (all are listed).
    """
    tensors = _read(file)
    expected = model.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    faults += [f"{name} is unexpected" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        found, wanted = tensors[name], expected[name]
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            faults.append(f"{name} is {found.dtype} {tuple(found.shape)}, not {wanted.dtype} {tuple(wanted.shape)}")
    if faults:
        raise DamagedFolderError(f"{file} does not fit the model: {'; '.join(sorted(faults))}")
    model.load_state_dict(tensors)
    wrong = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor.cpu(), tensors[name])]
    if wrong:
        raise DamagedFolderError(f"after loading {file} the model differs from it in {', '.join(wrong)} (NaN, perhaps)")


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DamagedFolderError(f"{file} cannot be read: {error}") from error


def seal(folder: Path) -> None:
    """Force a checkpoint to the disk, then write its manifest: from then on it counts."""
    sync(folder)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps(describe_files(folder), indent=2) + "\n", encoding="utf-8")
    sync(folder)
    temporary.rename(folder / MANIFEST)
    sync(folder)


def is_sealed(folder: Path) -> bool:
    """Whether `seal` was reached: what the model writes of itself does not list the state of the training."""
    try:
        return _STATE in read_manifest(folder / MANIFEST)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # damaged since then
        return True


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest `checkpoint-N` in a folder that is whole, or None when no save was ever completed.

    Damaged and half-written ones are named in a warning and passed over.

    Raises:
        DamagedFolderError: of the completed ones none is whole.
    """
    damaged = None
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
        if not is_sealed(path):
            logger.warning("%s %s: the checkpoint before it is taken, if there is one", path, HALF_WRITTEN)
            continue
        try:
            check_folder(path)
            return path
        except DamagedFolderError as error:
            damaged = damaged or error
            logger.warning("%s: the checkpoint before it is taken, if there is one", error)
    if damaged is not None:
        raise DamagedFolderError(f"{damaged}; no other checkpoint in {folder} is whole: start a new run") from damaged
    return None
