"""The outside of a trial: start a session, watch it, end it, and judge what it left."""

import atexit
import contextlib
import functools
import hashlib
import io
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file

from vit_hf import Recipe, get_recipe
from vit_hf.data.images import read_image
from vit_hf.data.sources import load_source, progress_bars_on_terminals_only
from vit_hf.training.progress import TIMES

from .trial import Fault, Trial, run

SMALL = {
    "data.source": "digits",
    "data.max_train_images": 96,
    "data.max_test_images": 20,
    "data.validation_fraction": 0.02,
    "model.num_hidden_layers": 1,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "augmentation.rotation": 0.0,
    "augmentation.translation": 0.0,
    "augmentation.scaling": 0.0,
    "optimization.max_steps": 6,
    "optimization.batch_size": 24,
    "optimization.warmup_steps": 1,
    "evaluate_every": 0.5,
    "checkpoint_steps": 1,
    "checkpoint_minutes": None,
    "checkpoint_limit": 2,
    "trackers": [],
}
_PATIENCE_S = 90.0


def small(**overrides: Any) -> Recipe:
    """Return a recipe of 6 steps of 24 pictures, 4 of which are an epoch of 96; "__" stands for the dot."""
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return get_recipe("digits").override({**SMALL, **changes})


def with_loader_processes(**overrides: Any) -> Recipe:
    """Return such a recipe whose pictures two loader processes decode, as they have two sizes."""
    return small(workers=2, data__source=two_sizes(), **overrides)


@functools.cache
def two_sizes() -> str:
    """Return a folder of the digits, every fifth one a row taller, for this process and what it starts."""
    folder = Path(tempfile.mkdtemp(prefix="vit-hf-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    splits = {}
    for name, split in load_source("digits").splits.items():
        images = []
        for row, image in enumerate(split["image"]):
            picture, buffer = read_image(image, where=name), io.BytesIO()
            picture.crop((0, 0, 8, 8 + (row % 5 == 0))).save(buffer, format="PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        splits[name] = Dataset.from_dict({"image": images, "label": split["label"]}, features=split.features)
    with progress_bars_on_terminals_only():
        DatasetDict(splits).save_to_disk(folder / "digits")
    return str(folder / "digits")


@dataclass
class Tally:
    """What a case counted, and what did not hold."""

    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        """Note a problem if something does not hold."""
        if not holds:
            self.problems.append(problem)

    def add(self, other: "Tally") -> None:
        """Count what another tally counted."""
        self.counts.update(other.counts)  # adding would drop zeros
        self.problems += other.problems


# ------------------------------------------------------------------------------------------- sessions
@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    """Start the process that sessions are forked from: one thread, everything imported and used once."""
    folder = Path(tempfile.mkdtemp(prefix="vit-hf-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    recipe = small(optimization__max_steps=2)
    (folder / "warm.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.server"])
    environment = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "FAULTS_WARM_UP": str(folder / "warm"),
        "VIT_HF_CACHE": os.environ.get("VIT_HF_CACHE", str(folder / "cache")),
    }
    with mock.patch.dict(os.environ, environment):
        forkserver.ensure_running()
    ready = context.Process(target=int)  # the server answers when it is warm
    with _POLLING:
        ready.start()
        ready.join()
    return context


_POLLING = threading.Lock()
"""Starting a process looks at all others too; two threads that do so at once read one exit code, and one gets 255."""


class Session:
    """A `vit-hf train` in a process of its own.

    Args:
        folder: of the run (`folder/run`), the log and the notes.
        recipe: what to run.
        faults: called in the process before it begins.
        resume: as of the command.
        name: of the run.
        output: of the run, where it is not `folder/name`.
        environment: beside that of the server.
    """

    _number = 0

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        *faults: Fault,
        resume: str | None = "auto",
        name: str = "run",
        output: Path | None = None,
        environment: dict[str, str] | None = None,
    ):
        Session._number += 1
        self.output = output or folder / name
        self._log, self._notes = (folder / f"{name}-{Session._number}.{ending}" for ending in ("log", "notes"))
        self._log.touch()
        self._notes.touch()
        self.started = time.monotonic()
        trial = Trial(recipe, self.output, resume, self._notes, self._log, faults, environment or {})
        self.process = _server().Process(target=run, args=(trial,))
        with _POLLING:
            self.process.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        with _POLLING:
            return self.process.is_alive()

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What it has done, one entry a step and a published folder."""
        return [json.loads(line) for line in self._notes.read_text().splitlines(keepends=True) if line.endswith("\n")]

    @property
    def taken(self) -> int:
        """The last step it has taken; 0 for none."""
        return max((note["taken"] for note in self.notes if "taken" in note), default=0)

    @property
    def published(self) -> int:
        """Step of the last checkpoint it has published; 0 for none."""
        names = [note["published"] for note in self.notes if "published" in note]
        return max((int(name.rpartition("-")[2]) for name in names if "/step-" in name), default=0)

    def wait_until(self, condition: Callable[["Session"], bool]) -> bool:
        """Wait for something, or for the end; returns whether it runs."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.is_running and not condition(self):
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"a session did nothing for {_PATIENCE_S:g} s:\n{self.log}")
            time.sleep(0.001)
        return self.is_running

    def wait_for_steps(self) -> bool:
        """Wait for the first note."""
        return self.wait_until(lambda session: session._notes.stat().st_size > 0)

    def wait_for(self, seconds: float) -> bool:
        """Wait for some time, or for the end; returns whether it runs."""
        end = time.monotonic() + seconds
        return self.wait_until(lambda session: time.monotonic() > end)

    def signal(self, kind: int, *, group: bool = False) -> None:
        """Send a signal to it, or to it and its loader processes."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, kind)

    def end(self, patience_s: float = _PATIENCE_S) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        if not multiprocessing.connection.wait([self.process.sentinel], patience_s):
            self.signal(signal.SIGKILL, group=True)
            raise TimeoutError(f"a session did not end within {patience_s:g} s:\n{self.log}")
        self.seconds = time.monotonic() - self.started
        with _POLLING:
            self.process.join()
            return self.process.exitcode


def finish(folder: Path, recipe: Recipe, *faults: Fault, **options: Any) -> Session:
    """Run a session to its good end."""
    session = Session(folder, recipe, *faults, **options)
    code = session.end()
    if code:
        raise RuntimeError(f"a session that should have finished ended with code {code}:\n{session.log}")
    return session


def ranks(folder: Path, recipe: Recipe, *faults: Fault, count: int = 2, **options: Any) -> list[Session]:
    """Start the processes of one job on this machine, without a launcher."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Session(folder, recipe, *faults, environment={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, **options)
        for r in range(count)
    ]


# ------------------------------------------------------------------------------------------- judgement
def valid(folder: Path) -> str | None:
    """Compare a published folder with its manifest, by code of our own; return what is wrong."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if found != {*manifest, "manifest.json"}:
            return f"{folder}: files {sorted(found)}, manifest {sorted(manifest)}"
        for name, entry in manifest.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != entry["sha256"]:
                return f"{folder / name}: another content"
        for path in folder.rglob("*.safetensors"):
            load_file(path)
    except Exception as error:
        return f"{folder}: {type(error).__name__}: {error}"
    return None


def published(run: Path) -> list[int]:
    """Return the steps of the checkpoints of a run folder, ascending."""
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def checkpoint_path(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def digest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def difference(one: Path, other: Path) -> float:
    """Largest difference of any tensor of two finished runs and their last checkpoints; inf when they differ in kind.

    Compared are the saved model, weights, averaged weights and optimiser of the last checkpoint; its evaluation rows,
    schedule, optimiser groups and scaler; and the test score.
    """
    records = [_records(run) for run in (one, other)]
    return math.inf if None in records or records[0] != records[1] else tensor_difference(one, other)


def tensor_difference(one: Path, other: Path) -> float:
    """Largest difference of any tensor of two finished runs and their last checkpoints; inf when they have others."""
    tensors = [_tensors(run) for run in (one, other)]
    kinds = [{name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} for found in tensors]
    if kinds[0] != kinds[1]:
        return math.inf
    return max((tensors[0][name].double() - tensors[1][name].double()).abs().max().item() for name in tensors[0])


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    last = checkpoint_path(run, max(published(run), default=0))
    files = [run / "model.safetensors", *last.rglob("*.safetensors")]
    return {f"{path.relative_to(run)}: {name}": tensor for path in files for name, tensor in load_file(path).items()}


def _records(run: Path) -> Any:
    state = json.loads((checkpoint_path(run, max(published(run))) / "training" / "state.json").read_text())
    results = json.loads((run / "results.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = ("step", "schedule", "optimizer", "scaler", "n_averaged")
    scores = ("top1", "top5", "loss", "n", "kept_epoch", "validation_top1", "steps")
    if state["evaluated"] and state["rows"] != rows:  # else it was stopped in the last evaluation, and has not its row
        return None
    return _timeless([{key: state[key] for key in wanted}, {key: results.get(key) for key in scores}, rows])


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return value


def copy_run(run: Path, to: Path, *, last_step: int) -> Path:
    """Copy a run as it was after a step, when it kept all checkpoints; not its records of the end."""
    for path in run.iterdir():
        if path.is_file() and path.name in ("recipe.yaml", "run.json"):
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to / path.name)
    for step in published(run):
        if step <= last_step:
            shutil.copytree(checkpoint_path(run, step), checkpoint_path(to, step))
    for best in (run / "checkpoints").glob("best-*"):
        if int(best.name[5:]) <= last_step:
            shutil.copytree(best, to / "checkpoints" / best.name)
    return to


def mean_difference(one: Path, other: Path) -> float:
    """Mean difference of the entries of two saved models."""
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    total = sum((a[name].double() - b[name].double()).abs().sum().item() for name in a)
    return total / sum(tensor.numel() for tensor in a.values())


def finite(folder: Path) -> bool:
    """Tell whether all tensors of a checkpoint are finite."""
    return all(
        torch.isfinite(tensor).all() for path in folder.rglob("*.safetensors") for tensor in load_file(path).values()
    )
